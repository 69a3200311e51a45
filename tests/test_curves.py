"""Curves of a run: what is read from metrics.jsonl, what is drawn, and the command."""

import errno
import json
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path

import pytest
from kdtw_fast.training.curves import COLOURS, PANELS, draw, plot_run, read_quantities
from test_figures import contrast
from typer.testing import CliRunner

from kdtw_fast.cli import app
from kdtw_fast.comparison.figures import PAGE

TRAINING = Path(__file__).parent.parent / "training"
LINES = [
    {"event": "start", "steps": 40},
    {"event": "step", "step": 10, "loss": 2.0, "use/light": 0.2, "use/high": 0.5, "rate": 0.1, "seconds_update": 1.0},
    {"event": "step", "step": 20, "loss": 1.0, "use/light": 0.1, "use/high": float("nan"), "seconds": 3.0},
    {"event": "validation", "step": 20, "budget": "light", "asked": 0.1, "achieved": 0.12, "bleu": 7.0},
    {"event": "validation", "step": 20, "budget": "high", "asked": 0.4, "achieved": 0.42, "bleu": 9.0},
    {"event": "sample", "step": 20, "text": "a [b]"},
]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"event": "st')
    return tmp_path


def test_quantities_have_a_line_per_budget(run):
    found = read_quantities(run / "metrics.jsonl")
    assert found["loss"] == {"": [(10, 2.0), (20, 1.0)]}
    assert found["use"] == {"light": [(10, 0.2), (20, 0.1)], "high": [(10, 0.5)]}
    assert found["achieved"] == {"light": [(20, 0.12)], "high": [(20, 0.42)]}


def test_every_quantity_is_one_that_an_algorithm_logs():
    others = [path.read_text("utf-8") for path in TRAINING.glob("*.py") if path.name not in ("curves.py", "losses.py")]
    losses = (TRAINING / "losses.py").read_text("utf-8")
    others.append(losses.split("def path_consistency(")[0])  # whose names phase 2 changes
    for quantity in (quantity for panel in PANELS for quantity in panel.quantities):
        assert any(f'"{quantity}{end}' in text for text in others for end in ('":', '",', '")', "/")), quantity


def test_panels_stand_by_question_with_units_and_what_was_asked(run):
    figure = draw(read_quantities(run / "metrics.jsonl"))
    axes = {axis.get_title(loc="left").split(",")[0]: axis for axis in figure.axes if axis.get_visible()}
    assert list(axes) == [
        "Budgets: the teacher's tokens",
        "Quality: held-out ROUGE-2 and BLEU",
        "Optimiser: loss",
        "Optimiser: gradient's norm",
    ]
    assert all(axis.get_ylabel() for axis in axes.values())
    use = axes["Budgets: the teacher's tokens"]
    dotted = [line for line in use.lines if line.get_linestyle() == ":"]
    solid = [line for line in use.lines if line.get_linestyle() == "-"]
    assert {line.get_ydata()[0] for line in dotted} == {10, 40}
    assert {line.get_color() for line in solid} == {line.get_color() for line in dotted}
    assert len(axes["Optimiser: loss"].lines) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["budget “light”", "budget “high”"]


@pytest.mark.parametrize("norms", [(3.1, 3.9), (0.02, 0.3), (1e-3, 40.0)])
def test_an_axis_has_numbers_and_what_stands_alone_has_a_name(norms):
    figure = draw({"grad_norm": {"": [(1, norms[0]), (2, norms[1])]}})
    (axes,) = (axis for axis in figure.axes if axis.get_visible())
    low, high = axes.get_ylim()
    told = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high and label.get_text()]
    assert len(told) >= 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["grad norm"]


def test_at_most_eight_panels_in_colours_that_are_seen_on_white():
    assert len(PANELS) <= 8 and all(panel.unit and panel.question for panel in PANELS)
    assert [panel.question for panel in PANELS] == sorted(
        (panel.question for panel in PANELS), key=["Budgets", "Reward", "Quality", "Optimiser"].index
    )
    drawn = [quantity for panel in PANELS for quantity in panel.quantities]
    assert len(drawn) == len(set(drawn))
    assert min(contrast(colour, PAGE) for colour in COLOURS) > 3


def test_nothing_written_overlaps_or_is_cut(run):
    from matplotlib.text import Text

    figure = draw(read_quantities(run / "metrics.jsonl"), "a run")
    figure.draw_without_rendering()
    box = {text: text.get_window_extent() for text in figure.findobj(Text) if text.get_text().strip()}
    outer = [box[axis.xaxis.label] for axis in figure.axes if axis.get_visible() and axis.get_xlabel()]
    outer += [figure.legends[0].get_window_extent(), *(axis._left_title.get_window_extent() for axis in figure.axes)]
    assert all(figure.bbox.x0 <= one.x0 and one.x1 <= figure.bbox.x1 for one in outer if one.width)
    assert not any(a.overlaps(b) for a, b in combinations([one for one in outer if one.width], 2))
    assert min(text.get_fontsize() for text in box) >= 9


def test_the_command_writes_what_is_named(run):
    result = CliRunner().invoke(app, ["curves", str(run), "-o", str(run / "a.svg"), "-o", str(run / "b.png")])
    assert result.exit_code == 0, result.output
    assert (run / "a.svg").read_text().startswith("<?xml") and (run / "b.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in plot_run(run)] == ["curves.png"]


def test_curves_that_cannot_be_written_leave_the_old_ones(run, tmp_path, monkeypatch):
    def full(figure, file, **_):
        with Path(file).open("wb") if isinstance(file, (str, Path)) else nullcontext(file) as stream:
            stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    old = tmp_path / "drawn/old.png"
    old.parent.mkdir()
    old.write_bytes(b"old")
    result = CliRunner().invoke(app, ["curves", str(run), "-o", str(old)])
    assert (result.exit_code, result.stderr) == (2, f"kdtw: cannot use {old}: No space left on device\n")
    assert [file.read_bytes() for file in old.parent.iterdir()] == [b"old"]


def test_a_run_without_numbers_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder of a run"):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    with pytest.raises(ValueError, match="holds no numbers yet"):
        plot_run(tmp_path)
