"""Curves of a run: what is read from metrics.jsonl, what is drawn, and the command."""

import json

import pytest
from kdtw_fast.training.curves import draw, plot_run, read_panels
from typer.testing import CliRunner

from kdtw_fast.cli import app

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


def test_a_panel_per_quantity_and_a_line_per_budget(run):
    panels = read_panels(run / "metrics.jsonl")
    assert list(panels) == ["loss", "bleu", "use", "achieved"]
    assert panels["loss"] == {"": [(10, 2.0), (20, 1.0)]}
    assert panels["use"] == {"light": [(10, 0.2), (20, 0.1)], "high": [(10, 0.5)]}
    assert panels["achieved"] == {"light": [(20, 0.12)], "high": [(20, 0.42)]}


def test_what_was_asked_is_drawn_beside_use(run):
    figure = draw(read_panels(run / "metrics.jsonl"))
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(axes) == ["loss", "bleu", "use", "achieved"]
    dotted = [line for line in axes["use"].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [0.1, 0.4]
    solid = [line for line in axes["use"].lines if line.get_linestyle() == "-"]
    assert [line.get_color() for line in solid] == [line.get_color() for line in dotted]
    assert len(axes["loss"].lines) == 1


def test_the_command_writes_what_is_named(run):
    result = CliRunner().invoke(app, ["curves", str(run), "-o", str(run / "a.svg"), "-o", str(run / "b.png")])
    assert result.exit_code == 0, result.output
    assert (run / "a.svg").read_text().startswith("<?xml") and (run / "b.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in plot_run(run)] == ["curves.png"]


def test_a_run_without_numbers_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder of a run"):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    with pytest.raises(ValueError, match="holds no numbers yet"):
        plot_run(tmp_path)
