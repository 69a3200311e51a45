"""Curves of a training run from its metrics.jsonl alone: a panel per quantity, a line per budget.

matplotlib is imported when a figure is drawn; the rest needs the standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdtw_fast.budgets import BUDGETS

# A quantity is one panel: its lines by name ("" where there is one), each a list of (batch, value).
Points = list[tuple[int, float]]
Panels = dict[str, dict[str, Points]]

_FIRST = ("loss", "rouge2", "bleu", "use", "lambda", "achieved", "length_ratio")  # panels come in this order
_NOT_DRAWN = ("step", "rows", "asked", "seconds", "rate", "tokens", "signature")
_COLUMNS = 4


def read_panels(path: Path) -> Panels:
    """The numbers of a metrics.jsonl, by quantity and line; a last line that was cut off is left out.

    Raises FileNotFoundError if there is no such file, ValueError if it holds nothing to draw.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; name the folder of a run (its out=…)")
    panels: Panels = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        for panel, name, value in _numbers(record):
            panels.setdefault(panel, {}).setdefault(name, []).append((record["step"], value))
    if not panels:
        raise ValueError(f"{path} holds no numbers yet; the first come after log_every batches")
    first = {name: place for place, name in enumerate(_FIRST)}
    return dict(sorted(panels.items(), key=lambda item: (first.get(item[0], len(first)), item[0])))


def _numbers(record: dict[str, Any]) -> list[tuple[str, str, float]]:
    """(quantity, line, value) of a record: "use/light" and a validation's "budget" name lines."""
    if record.get("event") not in ("step", "validation"):
        return []
    found = []
    for key, value in record.items():
        quantity, _, line = key.partition("/")
        number = type(value) in (int, float) and math.isfinite(value)
        if number and quantity not in _NOT_DRAWN and not quantity.startswith("seconds_"):
            found.append((quantity, line or str(record.get("budget", "")), float(value)))
    return found


def draw(panels: Panels, title: str = "") -> Any:
    """A matplotlib figure of all panels.

    Lines of budgets have one colour each; where use is drawn, a dotted line of that colour is what was asked.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    asked = {budget.phrase: budget.fraction for budget in BUDGETS}
    colours = {b.phrase: colormaps["viridis"](0.9 * i / (len(BUDGETS) - 1)) for i, b in enumerate(BUDGETS)}
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(3.6 * min(_COLUMNS, len(panels)), 2.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, min(_COLUMNS, len(panels)), squeeze=False).flat
    named: dict[str, Any] = {}
    for (quantity, lines), axis in zip(panels.items(), axes):
        for name, points in lines.items():
            colour = colours.get(name, "#30608f")
            (drawn,) = axis.plot(*zip(*points), color=colour, marker="." if len(points) < 30 else "", linewidth=1.2)
            if name in colours:
                named[name] = drawn
            if name in asked and quantity in ("use", "achieved"):
                axis.axhline(asked[name], color=colour, linestyle=":", linewidth=0.8)
        axis.set_title(quantity.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    for axis in axes:  # those that are left
        axis.set_visible(False)
    figure.supxlabel("batch", fontsize=9)
    figure.suptitle(title, fontsize=10)
    if named:
        chosen = [phrase for phrase in asked if phrase in named]
        figure.legend([named[p] for p in chosen], chosen, loc="outside lower right", ncols=len(chosen), fontsize=7)
    return figure


def plot_run(folder: str | Path, files: Sequence[str | Path] = ()) -> list[Path]:
    """Draw the curves of the run in `folder` into `files` (by default curves.png there); returns the files.

    Raises FileNotFoundError and ValueError as `read_panels`, ValueError if matplotlib is missing or knows no such
    kind of file.
    """
    folder = Path(folder)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("curves need matplotlib: pip install matplotlib") from None
    figure = draw(read_panels(folder / "metrics.jsonl"), folder.resolve().name)
    written = [Path(file) for file in files] or [folder / "curves.png"]
    for file in written:
        figure.savefig(file, dpi=130)
    return written
