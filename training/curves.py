"""Curves of a training run from its metrics.jsonl alone: at most two panels for each of four questions.

matplotlib is imported when a figure is drawn; the rest needs the standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.files import check_target, replacing

# A quantity's lines by name ("" where there is one), each a list of (batch, value).
Points = list[tuple[int, float]]
Quantities = dict[str, dict[str, Points]]


@dataclass(frozen=True)
class Panel:
    """One plot: the question that it helps to answer, and the quantities of metrics.jsonl that it shows.

    Args:
        question: those of one question stand side by side.
        title: of the plot.
        unit: of its y axis.
        quantities: those of them that the run logged are drawn.
        scale: what a value is multiplied by.
        log: whether the y axis is logarithmic, where all values are above 0.
    """

    question: str
    title: str
    unit: str
    quantities: tuple[str, ...]
    scale: float = 1.0
    log: bool = False


PANELS = (
    Panel("Budgets", "the teacher's tokens, and asked (dotted)", "% of the tokens", ("use", "achieved"), 100),
    Panel("Budgets", "price of a call, λ", "reward for each call", ("lambda",)),
    Panel("Reward", "reward of a token", "nats", ("reward_mean", "reward_deviation", "reward")),
    Panel(
        "Reward",
        "distance from the oracle, value's error",
        "nats",
        ("divergence", "consistency_error", "policy", "ask"),
    ),
    Panel("Quality", "held-out ROUGE-2 and BLEU", "points of 100", ("rouge2", "bleu")),
    Panel("Quality", "length, outputs cut off", "ratio", ("length_ratio", "cut_off", "acceptance")),
    Panel("Optimiser", "loss", "nats", ("loss", "validation_loss")),
    Panel("Optimiser", "gradient's norm, rate", "norm, rate (log)", ("grad_norm", "value_grad_norm", "rate"), log=True),
)
# From light to dark on white, all with a contrast above 3; lines of one budget differ by quantity, as the others do.
COLOURS = ("#8E8E8E", "#C77700", "#C2407A", "#7B61FF", "#0072B2", "#14323F")
STROKES = ("-", "--", "-.")
_WIDTH, _HEIGHT, _FONT = 4.5, 2.4, 9.5  # of a panel in inches, and of letters in points


def read_quantities(path: Path) -> Quantities:
    """The numbers of a metrics.jsonl, by quantity and line; a last line that was cut off is left out.

    Raises FileNotFoundError if there is no such file, ValueError if it holds nothing to draw.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; name the folder of a run (its out=…)")
    found: Quantities = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:  # cut off, it may be in the middle of a letter
            continue
        for quantity, name, value in _numbers(record):
            found.setdefault(quantity, {}).setdefault(name, []).append((record["step"], value))
    if not any(quantity in found for panel in PANELS for quantity in panel.quantities):
        raise ValueError(f"{path} holds no numbers yet; the first come after log_every batches")
    return found


def _numbers(record: dict[str, Any]) -> list[tuple[str, str, float]]:
    """(quantity, line, value) of a record: "use/light" and a validation's "budget" name lines."""
    if record.get("event") not in ("step", "validation"):
        return []
    found = []
    for key, value in record.items():
        quantity, _, line = key.partition("/")
        if type(value) in (int, float) and math.isfinite(value):
            found.append((quantity, line or str(record.get("budget", "")), float(value)))
    return found


def draw(found: Quantities, title: str = "") -> Any:
    """A matplotlib figure of the panels of :data:`PANELS` whose quantities are there.

    Lines of budgets have one colour each; where use is drawn, a dotted line of that colour is what was asked, and dots
    are what validation found.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(quantity in found for quantity in panel.quantities)]
    sizes = dict.fromkeys(("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), _FONT)
    settings: dict[Any, Any] = {"font.size": _FONT, "legend.fontsize": _FONT - 0.5, "text.parse_math": False, **sizes}
    with rc_context(settings):
        questions = list(dict.fromkeys(panel.question for panel in panels))
        columns = max(sum(panel.question == question for panel in panels) for question in questions)
        figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * len(questions) + 0.8), layout="constrained")
        shown = figure.subplots(len(questions), columns, squeeze=False)
        named: dict[str, Any] = {}
        for row, question in zip(shown, questions):
            here = [panel for panel in panels if panel.question == question]
            for panel, axes in zip(here, row):
                _draw_panel(panel, axes, found, named)
                axes.set_title(f"{question}: {panel.title}", loc="left")
            for axes in row[len(here) :]:
                axes.set_visible(False)
            for axes in row if question == questions[-1] else ():
                axes.set_xlabel("batch")
        figure.suptitle(title, fontsize=_FONT + 1)
        if named:
            phrases = [budget.phrase for budget in BUDGETS if budget.phrase in named]
            words = [f"budget “{phrase}”" for phrase in phrases]
            figure.legend(
                [named[p] for p in phrases], words, loc="outside lower center", ncols=3 * columns // 2, frameon=False
            )
        figure.draw_without_rendering()
    return figure


def _draw_panel(panel: Panel, axes: Any, found: Quantities, named: dict[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    asked = {budget.phrase: budget.fraction for budget in BUDGETS}
    colours = dict(zip(asked, COLOURS, strict=True))
    shown = [quantity for quantity in panel.quantities if quantity in found]
    handles: dict[str, Any] = {}
    lowest, highest = math.inf, 0.0
    for place, quantity in enumerate(shown):
        for name, points in found[quantity].items():
            steps, values = zip(*((step, panel.scale * value) for step, value in points))
            lowest, highest = min(lowest, *values), max(highest, *values)
            colour = colours.get(name, COLOURS[4] if place == 0 else COLOURS[1] if place == 1 else COLOURS[2])
            dots = quantity == "achieved"
            few = len(points) < 30 and not dots
            style = {"linestyle": "none" if dots else STROKES[place % len(STROKES)], "linewidth": 1.2}
            marker = {"marker": "o" if dots else "." if few else "", "markersize": 4}
            (line,) = axes.plot(steps, values, color=colour, label=quantity, **style, **marker)
            handles.setdefault(quantity.replace("_", " "), line)
            if name in colours:
                named.setdefault(name, line)
            if name in asked and quantity in ("use", "achieved"):
                axes.axhline(panel.scale * asked[name], color=colour, linestyle=":", linewidth=1)
    if panel.log and lowest > 0:
        axes.set_yscale("log")
        if highest < 20 * lowest:  # has hardly a power of ten
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_ylabel(panel.unit)
    axes.grid(color="#707070", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.quantities) > 1:
        axes.margins(y=0.2)  # for the words above
        words = {"achieved": "at validation", "use": "in training"}
        told = [words.get(word, word) for word in handles]
        axes.legend(list(handles.values()), told, loc="upper right", ncols=3, frameon=False, borderpad=0.1)


def plot_run(folder: str | Path, files: Sequence[str | Path] = ()) -> list[Path]:
    """Draw the curves of the run in `folder` into `files` (by default curves.png there); returns the files.

    Raises FileNotFoundError and ValueError as `read_quantities`, ValueError if matplotlib is missing or knows no such
    kind of file.
    """
    folder = Path(folder)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("curves need matplotlib: pip install matplotlib") from None
    found = read_quantities(folder / "metrics.jsonl")
    written = [Path(file) for file in files] or [folder / "curves.png"]
    written = [file if file.suffix else file.with_name(f"{file.name}.png") for file in written]
    for file in written:
        check_target("output", file, folder / "metrics.jsonl")
    figure = draw(found, folder.resolve().name)
    for file in written:
        with replacing(file, "wb") as stream:
            figure.savefig(stream, format=file.suffix[1:], dpi=150)
    return written
