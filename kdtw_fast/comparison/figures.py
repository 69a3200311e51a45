"""The comparison's figures: quality against latency, quality against teacher use, use against budget.

Same points, same bytes: nothing in a file depends on the day or on chance. Needs matplotlib (the extra "compare").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import cos, inf, pi, sin
from pathlib import Path
from typing import Any

from kdtw_fast.extras import require
from kdtw_fast.options import nearest

from .plan import OUTSIDE
from .quality import METRICS, Interval
from .summary import OWN_DRAFTS, Point
from .table import shown

WIDTH, HEIGHT, LEGEND, DPI = 6.4, 4.3, 1.2, 200  # inches: a panel's size and the legend's height; readable on a phone


@dataclass(frozen=True)
class Style:
    """How a group is drawn: in colours of Okabe and Ito, which colour-blind readers tell apart, and its own marker."""

    label: str
    colour: str
    marker: str
    joined: bool = False  # by a line
    size: int = 6


STYLES = {
    "training-wheels": Style("KDTW, by budget", "#D55E00", "o", joined=True),
    "verify": Style("KDTW that checks drafts", "#E69F00", "D"),
    "distillspec": Style("DistillSpec (lossy)", "#0072B2", "s"),
    "speculative": Style("speculative, lossless", "#56B4E9", "P"),
    "bild": Style("BiLD", "#009E73", "^"),
    "interleaved": Style("interleaved (SKD)", "#B8A000", "*", size=8),
    "random": Style("random calls", "#888888", "x", joined=True),
    "entropy": Style("calls by entropy", "#CC79A7", "v", joined=True),
    "student": Style("student alone", "#000000", "<", size=11),
    "gkd": Style("GKD student alone", "#000000", "1", size=9),
    "teacher": Style("teacher alone", "#000000", ">", size=9),
}


@dataclass(frozen=True)
class Mark:
    """A point of a figure: its group of :data:`STYLES`, its place with intervals, and what stands beside it."""

    group: str
    x: Interval
    y: Interval
    text: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        title, x_label, y_label: what it says.
        marks: its points, in the order in which lines join them.
        front: places that a thick grey line joins.
        diagonal: draws a line where both axes are equal.
        corner: text in the lower right corner.
    """

    title: str
    x_label: str
    y_label: str
    marks: list[Mark]
    front: Sequence[tuple[float, float]] = ()
    diagonal: bool = False
    corner: str = ""


def check_metric(metric: str) -> None:
    """Raises ValueError for a metric that is not in :data:`kdtw_fast.comparison.quality.METRICS`."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}{nearest(metric, METRICS)}")


def draw(points: Sequence[Point], out: Path, metric: str = "rouge2") -> list[Path]:
    """Writes the three figures as PNG and SVG; returns the paths.

    Args:
        points: of :func:`kdtw_fast.comparison.summary.summarise`; one panel for each pair.
        out: folder, which exists.
        metric: the quality, of :data:`kdtw_fast.comparison.quality.METRICS`.

    Raises:
        ValueError: an unknown metric.
        ImportError: matplotlib is not installed.
    """
    check_metric(metric)
    require("comparing", "a figure")
    own_drafts = not any("drafter" in point.settings for point in points if point.group == "distillspec")
    labels = {"distillspec": OWN_DRAFTS} if own_drafts else {}
    by_pair = [[p for p in points if p.pair == pair] for pair in dict.fromkeys(point.pair for point in points)]
    figures: dict[str, Callable[[list[Point], str], Panel]] = {
        "quality-latency": _quality_latency,
        "quality-use": _quality_use,
        "budgets": _budgets,
    }
    paths = []
    for name, make in figures.items():
        paths += [(out / name).with_suffix(suffix) for suffix in (".png", ".svg")]
        write_figure([make(here, metric) for here in by_pair], paths[-2:], labels)
    return paths


def _title(points: list[Point]) -> str:
    return f"{points[0].task} ({points[0].pair}, {points[0].sentences} sentences)"


def _mark(point: Point, x: Interval, y: Interval) -> Mark:
    group = "gkd" if point.group == "student" and "drafter" in point.settings else point.group
    return Mark(group, x, y, str(point.settings.get("budget", "")) if group == "training-wheels" else "")


def _quality_latency(points: list[Point], metric: str) -> Panel:
    marks = []
    for point in shown(points, metric):
        if point.latency is not None and point.group not in OUTSIDE:
            spread = point.latency.ms_per_token
            marks.append(_mark(point, Interval(spread.median, spread.q1, spread.q3), point.quality[metric]))
    return latency_panel(_title(points), METRICS[metric], marks)


def latency_panel(title: str, metric: str, marks: list[Mark]) -> Panel:
    """Quality against milliseconds per token, with the Pareto front; marks are drawn without their intervals.

    Quartiles of latency are no wider than a mark, and intervals of quality are alike: the panel says how wide.
    """
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (m.x.value, -m.y.value)):
        if not front or mark.y.value > front[-1].y.value:
            front.append(mark)
    widths = sorted((mark.y.high - mark.y.low) / 2 for mark in marks)
    return Panel(
        title,
        "milliseconds per token (less is better)",
        f"{metric} (more is better)",
        [Mark(m.group, Interval(*[m.x.value] * 3), Interval(*[m.y.value] * 3), m.text) for m in marks],
        [(mark.x.value, mark.y.value) for mark in front],
        corner=f"95 % interval of a point: ± {widths[0]:.1f} to {widths[-1]:.1f}" if widths else "",
    )


def _quality_use(points: list[Point], metric: str) -> Panel:
    known = [p for p in points if p.teacher_use is not None and p.group not in OUTSIDE]
    known.sort(key=lambda p: p.teacher_use.value if p.teacher_use else 0.0)
    marks = [_mark(p, _percent(p.teacher_use), p.quality[metric]) for p in known]
    return Panel(_title(points), "tokens written by the teacher, %", f"{METRICS[metric]} (more is better)", marks)


def _budgets(points: list[Point], metric: str) -> Panel:
    asked = [p for p in points if p.group in ("training-wheels", "verify") and p.teacher_use is not None]
    marks = [_mark(p, Interval(*[100 * (p.budget or 0.0)] * 3), _percent(p.teacher_use)) for p in asked]
    x_label, y_label = "budget in the prompt, % of the tokens", "tokens written by the teacher, %"
    return Panel(_title(points), x_label, y_label, marks, diagonal=True)


def _percent(use: Interval | None) -> Interval:
    assert use is not None
    return Interval(100 * use.value, 100 * use.low, 100 * use.high)


def write_figure(panels: Sequence[Panel], paths: Sequence[Path], labels: dict[str, str] | None = None) -> None:
    """Draws panels below each other over one legend, and writes them to each path, in the format of its suffix.

    Args:
        panels: at least one.
        paths: ".png" or ".svg".
        labels: by group, what the legend says instead of the style's label.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.hashsalt": "kdtw_fast",
        "text.parse_math": False,  # names are no formulas
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
    with mpl.rc_context({**mpl.rcParamsDefault, **settings}):
        figure = Figure(figsize=(WIDTH, HEIGHT * len(panels) + LEGEND), layout="constrained")
        handles: dict[str, Any] = {}
        plots = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, panel in zip(plots, panels):
            _plot(axes, panel, labels or {})
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=9)
        figure.draw_without_rendering()  # settles where the axes are
        for axes, panel in zip(plots, panels):
            _write_texts(axes, panel.marks)
        for path in paths:
            metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
            figure.savefig(path, dpi=DPI, metadata=metadata)


def _plot(axes: Any, panel: Panel, labels: dict[str, str]) -> None:
    if panel.front:
        xs, ys = zip(*panel.front)
        axes.plot(xs, ys, color="#000000", alpha=0.1, lw=8, solid_capstyle="round", zorder=0, label="Pareto front")
    if panel.diagonal:
        top = max((mark.y.high for mark in panel.marks), default=50.0)
        axes.plot([0, top], [0, top], color="#000000", lw=1, ls="--", alpha=0.6, label="as asked")
    for group, style in STYLES.items():
        marks = [mark for mark in panel.marks if mark.group == group]
        if not marks:
            continue
        axes.errorbar(
            [mark.x.value for mark in marks],
            [mark.y.value for mark in marks],
            xerr=_bars([mark.x for mark in marks]),
            yerr=_bars([mark.y for mark in marks]),
            fmt=style.marker + ("-" if style.joined else ""),
            color=style.colour,
            ms=style.size,
            lw=1.2,
            elinewidth=0.8,
            ecolor=f"{style.colour}50",
            zorder={"training-wheels": 3, "student": 1}.get(group, 2),
            label=labels.get(group, style.label),
        )
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_xlim(left=0)
    axes.text(0.99, 0.02, panel.corner, transform=axes.transAxes, ha="right", fontsize=8, color="#555555")


def _bars(values: Sequence[Interval]) -> list[list[float]] | None:
    lengths = [[max(0.0, v.value - v.low) for v in values], [max(0.0, v.high - v.value) for v in values]]
    return lengths if any(map(any, lengths)) else None


def _write_texts(axes: Any, marks: Sequence[Mark]) -> None:
    """Writes each mark's text where it covers no mark, line or other text, with a thin line to its mark."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    def box(x: float, y: float, width: float, height: float) -> Any:
        return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)

    def shared(a: Any, b: Any) -> float:
        common = Bbox.intersection(a, b)
        return 0.0 if common is None else common.width * common.height

    room, scale = axes.get_window_extent(), axes.figure.dpi / 72  # pixels of a point
    places = axes.transData.transform([(m.x.value, m.y.value) for m in marks])
    taken = [box(x, y, 12 * scale, 12 * scale) for x, y in places]
    for line in axes.lines:
        if line.get_linestyle() != "None":
            along = axes.transData.transform(line.get_path().interpolated(10).vertices)
            taken += [box(x, y, 4 * scale, 4 * scale) for x, y in along]
    for mark, (x, y) in zip(marks, places):
        if not mark.text:
            continue
        colour = STYLES[mark.group].colour
        text = axes.annotate(
            mark.text,
            (mark.x.value, mark.y.value),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color=colour,
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": colour, "shrinkB": 4},
        )
        size = Text.get_window_extent(text)  # without its line
        width, height = size.width + 4 * scale, size.height + 2 * scale

        # Round the mark, ever farther; to the upper left first, where the points' line leaves room.
        best, fewest = (0.0, 0.0), inf
        for radius, step in product((16, 24, 34, 46, 60), range(16)):
            angle = 0.75 * pi + (step + 1) // 2 * (-1) ** step * pi / 8
            place = (radius * scale + size.width / 2) * cos(angle), radius * scale * sin(angle)
            here = box(x + place[0], y + place[1], width, height)
            covered = sum(shared(here, other) for other in taken) + width * height - shared(here, room)
            if (cost := 100 * covered / (width * height) + radius / 60) < fewest:
                best, fewest = place, cost
        text.set_position((best[0] / scale, best[1] / scale))
        taken.append(box(x + best[0], y + best[1], width, height))
