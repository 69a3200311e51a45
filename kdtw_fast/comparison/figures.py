"""The comparison's figures: quality against latency, quality against teacher use, use against budget.

Same points, same bytes: nothing in a file depends on the day or on chance. Needs matplotlib (the extra "compare").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdtw_fast.extras import require
from kdtw_fast.files import replacing

from .labels import Label, write_labels
from .plan import METRICS, TIMED_ONLY, check_metric
from .quality import Interval
from .summary import FEW_TURNS, OWN_DRAFTS, Point
from .table import shown

# Inches and points: at 390 pixels, a phone's width, a point is a pixel.
WIDTH, DPI, FONT = 5.2, 180, 9.5
PAGE, NIGHT = "#ffffff", "#1d1f23"  # what a figure lies on: a light page, and a dark one


@dataclass(frozen=True)
class Style:
    """How a group is drawn: a marker of its own, and its colour on a light and on a dark page."""

    label: str
    colour: str
    night: str
    marker: str
    joined: bool = False  # by a line
    size: float = 5.5


STYLES = {
    "training-wheels": Style("KDTW, by budget", "#C04A00", "#F08A4B", "o", joined=True, size=6),
    "verify": Style("KDTW that also checks drafts", "#D07A00", "#F0B44C", "D", size=5),
    "distillspec": Style("DistillSpec (lossy)", "#0072B2", "#6CB4EE", "s", size=5),
    "speculative": Style("speculative, lossless", "#7B61FF", "#B3A2FF", "P", size=7),
    "bild": Style("BiLD, by thresholds", "#007F5C", "#4CC9A0", "^", size=6),
    "interleaved": Style("interleaved (SKD)", "#8A6D00", "#D8B94A", "*", size=9),
    "random": Style("random calls, as many as KDTW", "#707070", "#A3A3A3", "x", joined=True),
    "entropy": Style("calls by entropy, as many", "#B0508A", "#E48CC0", "v", joined=True),
    "student": Style("student alone", "#000000", "#E6E4DE", "<", size=8.5),
    "gkd": Style("GKD's student alone", "#000000", "#E6E4DE", "1", size=9),
    "teacher": Style("teacher alone", "#000000", "#E6E4DE", ">", size=8),
    "hugging-face": Style("Hugging Face generate", "#000000", "#E6E4DE", "h", size=6.5),
    "ctranslate2": Style("CTranslate2", "#00838F", "#4CC4D0", "p", size=7),
}
APART = ("student", "gkd", "hugging-face", "ctranslate2")  # of latency: far from where the methods lie
NAMED = ("student", "gkd", "teacher", "hugging-face", "ctranslate2")  # whose names stand beside them
FRONT, FRAME = "Pareto front: none is better", "frame: enlarged below"
NOISY, BARS = f"hollow: under {FEW_TURNS} turns, noisy", "bars: 95 % intervals"
QUARTILES = "bars: quartiles of the turns"


@dataclass(frozen=True)
class Mark:
    """A point of a figure: its group of :data:`STYLES`, its place with intervals, and what stands beside it.

    A noisy one was timed in too few turns to trust; it is drawn hollow, with its interval.
    """

    group: str
    x: Interval
    y: Interval
    text: str = ""
    noisy: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        title, x_label, y_label: what it says.
        marks: its points, in the order in which lines join them.
        height: in inches.
        front: places that a thick grey line joins.
        diagonal: draws a line where both axes are equal.
        log: whether the x axis is logarithmic.
        frame: left, right, bottom, top of what another panel enlarges.
        limits: the same of this panel; empty = all marks, from 0.
        interval: the half width of a mark's interval of quality, drawn once in a corner; 0 = each has its own.
        bars: what its marks' bars are.
    """

    title: str
    x_label: str
    y_label: str
    marks: list[Mark]
    height: float = 3.6
    front: Sequence[tuple[float, float]] = ()
    diagonal: bool = False
    log: bool = False
    frame: tuple[float, ...] = ()
    limits: tuple[float, ...] = ()
    interval: float = 0.0
    bars: str = BARS


def draw(points: Sequence[Point], out: Path, metric: str = "rouge2") -> list[Path]:
    """Writes the three figures as PNG and SVG; returns the paths.

    Args:
        points: of :func:`kdtw_fast.comparison.summary.summarise`; panels for each pair.
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
    figures: dict[str, Callable[[list[Point], str], list[Panel]]] = {
        "quality-latency": _quality_latency,
        "quality-use": _quality_use,
        "budgets": _budgets,
    }
    paths = []
    for name, make in figures.items():
        paths += [(out / name).with_suffix(suffix) for suffix in (".png", ".svg")]
        write_figure([panel for here in by_pair for panel in make(here, metric)], paths[-2:], labels)
    return paths


def _title(points: list[Point]) -> str:
    return f"{points[0].task} ({points[0].pair}, {points[0].sentences} sentences)"


def _mark(point: Point, x: Interval, y: Interval, noisy: bool = False) -> Mark:
    group = "gkd" if point.group == "student" and "drafter" in point.settings else point.group
    text = str(point.settings.get("budget", "")) if group == "training-wheels" else ""
    return Mark(group, x, y, point.label if group in NAMED else text, noisy)


def _quality_latency(points: list[Point], metric: str) -> list[Panel]:
    marks = []
    for point in shown(points, metric):
        if point.latency is not None and point.group not in TIMED_ONLY:
            spread = point.latency.ms_per_token
            place = Interval(spread.median, spread.q1, spread.q3)
            marks.append(_mark(point, place, point.quality[metric], point.latency.noisy))
    return latency_panels(_title(points), METRICS[metric], marks)


def latency_panels(title: str, metric: str, marks: list[Mark]) -> list[Panel]:
    """Quality against milliseconds per token: everything on a logarithmic axis, and the methods enlarged below it.

    Quartiles of latency are no wider than a mark unless it is noisy, and intervals of quality are alike: they stand
    in the corner once.
    """
    half = _usual_half(marks)
    marks = [replace(m, x=m.x if m.noisy else _exact(m.x.value), y=_exact(m.y.value)) for m in marks]
    front: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda m: (m.x.value, -m.y.value)):
        if not front or mark.y.value > front[-1][1]:
            front.append((mark.x.value, mark.y.value))
    no_calls = [m for m in marks if m.group == "student"]
    near = [
        m
        for m in marks
        if m.group not in APART and not any(m.x.value < 1.5 * s.x.value and m.y.value == s.y.value for s in no_calls)
    ]
    frame = _around(near) if len(near) > 3 else ()
    words = ("milliseconds per token (less is better)", f"{metric} (more is better)")
    inside = [mark for mark in near if mark.group not in NAMED or mark.group == "teacher"]
    all_texts = [mark if mark not in inside or not frame else replace(mark, text="") for mark in marks]
    panels = [Panel(title, *words, all_texts, 3.1, front, log=True, frame=frame, interval=0.0 if frame else half)]
    if frame:
        panels.append(Panel("the frame, enlarged", *words, marks, 4.0, front, limits=frame, interval=half))
    return [replace(panel, bars=QUARTILES) for panel in panels]


def _usual_half(marks: Sequence[Mark]) -> float:
    """Half of the middle one of their intervals of quality."""
    widths = sorted((mark.y.high - mark.y.low) / 2 for mark in marks)
    return widths[len(widths) // 2] if widths else 0.0


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


def _around(marks: Sequence[Mark]) -> tuple[float, ...]:
    """The frame round these marks, with a margin for what is written beside them."""
    xs, ys = ([get(mark) for mark in marks] for get in (lambda m: m.x.value, lambda m: m.y.value))
    wide, high = max(xs) - min(xs) or max(xs), max(ys) - min(ys) or 1.0
    return max(0.0, min(xs) - 0.12 * wide), max(xs) + 0.1 * wide, min(ys) - 0.08 * high, max(ys) + 0.1 * high


def _quality_use(points: list[Point], metric: str) -> list[Panel]:
    known = [p for p in points if p.teacher_use is not None and p.group not in ("hugging-face", "ctranslate2")]
    known.sort(key=lambda p: p.teacher_use.value if p.teacher_use else 0.0)
    marks = [_mark(p, _percent(p.teacher_use), p.quality[metric]) for p in known]
    words = ("tokens written by the teacher, %", f"{METRICS[metric]} (more is better)")
    exact = [replace(mark, y=_exact(mark.y.value)) for mark in marks]
    return [Panel(_title(points), *words, exact, interval=_usual_half(marks))]


def _budgets(points: list[Point], metric: str) -> list[Panel]:
    asked = [p for p in points if p.group in ("training-wheels", "verify") and p.teacher_use is not None]
    marks = [_mark(p, _exact(100 * (p.budget or 0.0)), _percent(p.teacher_use)) for p in asked]
    x_label, y_label = "budget in the prompt, % of the tokens", "tokens written by the teacher, %"
    return [Panel(_title(points), x_label, y_label, marks, diagonal=True)]


def _percent(use: Interval | None) -> Interval:
    assert use is not None
    return Interval(100 * use.value, 100 * use.low, 100 * use.high)


SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "kdtw_fast",
    "text.parse_math": False,  # names are no formulas
    "font.size": FONT,
    "axes.titlesize": FONT + 1,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT - 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#707070",
    "grid.alpha": 0.2,
    "legend.frameon": False,
}


def write_figure(panels: Sequence[Panel], paths: Sequence[Path], labels: dict[str, str] | None = None) -> None:
    """Draws panels below each other over one legend, and writes them to each path, in the format of its suffix.

    Args:
        panels: at least one.
        paths: ".png" or ".svg".
        labels: by group, what the legend says instead of the style's label.
    """
    import matplotlib as mpl

    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        figure = make_figure(panels, labels)
        for path in paths:
            metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
            with replacing(path, "wb") as stream:
                figure.savefig(stream, format=path.suffix[1:], dpi=DPI, metadata=metadata)


def make_figure(panels: Sequence[Panel], labels: dict[str, str] | None = None) -> Any:
    """The figure of :func:`write_figure`, laid out; matplotlib's settings are the caller's (:data:`SETTINGS`)."""
    from matplotlib.figure import Figure

    heights = [panel.height for panel in panels]
    groups = {mark.group for panel in panels for mark in panel.marks}
    legend = 0.2 * (len(groups) // 2 + 3)
    figure = Figure(figsize=(WIDTH, sum(heights) + legend), layout="constrained")
    handles: dict[str, Any] = {}
    plots = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(plots, panels):
        _plot(axes, panel, labels or {})
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, columnspacing=1.2)
    figure.draw_without_rendering()  # settles where the axes are
    for axes, panel in zip(plots, panels):
        seen = [mark for mark in panel.marks if _inside(mark, panel.limits)]
        texts = [Label(m.text, m.x.value, m.y.value, STYLES[m.group].colour) for m in seen if m.text]
        write_labels(axes, texts, [(mark.x.value, mark.y.value) for mark in seen], FONT)
    return figure


def _inside(mark: Mark, limits: tuple[float, ...]) -> bool:
    return not limits or (limits[0] <= mark.x.value <= limits[1] and limits[2] <= mark.y.value <= limits[3])


def _plot(axes: Any, panel: Panel, labels: dict[str, str]) -> None:
    from matplotlib.patches import Rectangle

    if panel.front:
        xs, ys = zip(*panel.front)
        axes.plot(xs, ys, color="#808080", alpha=0.3, lw=7, solid_capstyle="round", zorder=0, label=FRONT)
    if panel.diagonal:
        top = max((mark.y.high for mark in panel.marks), default=50.0)
        axes.plot([0, top], [0, top], color="#000000", lw=1, ls="--", alpha=0.6, label="as asked")
    for group, style in STYLES.items():
        for noisy in (False, True):
            marks = [mark for mark in panel.marks if mark.group == group and mark.noisy == noisy]
            if marks:
                _plot_marks(axes, marks, style, labels.get(group, style.label), small=bool(panel.frame))
    if any(mark.noisy for mark in panel.marks):
        axes.plot([], [], "o", color="#000000", mfc="none", label=NOISY)
    if any(_bars([mark.x]) or _bars([mark.y]) for mark in panel.marks):
        axes.plot([], [], "-", color="#707070", lw=0.9, label=panel.bars)
    if panel.frame:
        left, right, bottom, top = panel.frame
        edge: dict[str, Any] = {"fill": False, "ec": "#707070", "lw": 0.9, "ls": (0, (4, 2)), "zorder": 1}
        axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, label=FRAME, **edge))
    if panel.log:
        _log_axis(axes)
    if panel.limits:
        axes.set_xlim(panel.limits[:2])
        axes.set_ylim(panel.limits[2:])
    elif not panel.log:
        axes.set_xlim(left=-0.03 * axes.get_xlim()[1])  # marks at 0 are seen whole
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.interval:
        _scale_bar(axes, panel.interval, panel.marks)


def _plot_marks(axes: Any, marks: list[Mark], style: Style, label: str, small: bool) -> None:
    xs, ys = [mark.x.value for mark in marks], [mark.y.value for mark in marks]
    order = {"training-wheels": 3.2, "student": 2.1, "verify": 3.1}.get(marks[0].group, 3)
    wide, high = _bars([mark.x for mark in marks]), _bars([mark.y for mark in marks])
    if wide or high:
        axes.errorbar(xs, ys, high, wide, "none", ecolor=style.colour, elinewidth=0.8, alpha=0.4, zorder=2)
    hollow, strokes = marks[0].noisy, style.marker in "x1"
    axes.plot(
        xs,
        ys,
        style.marker + ("-" if style.joined else ""),
        color=style.colour,
        ms=style.size * (0.75 if small and marks[0].group not in NAMED else 1.0),
        mfc="none" if hollow else style.colour,
        mew=1.6 if strokes else 1.0 if hollow else 0.5,
        mec=style.colour if hollow or strokes else PAGE,
        lw=1.2,
        zorder=order,
        label=label,
    )


def _bars(values: Sequence[Interval]) -> list[list[float]] | None:
    lengths = [[max(0.0, v.value - v.low) for v in values], [max(0.0, v.high - v.value) for v in values]]
    return lengths if any(map(any, lengths)) else None


def _log_axis(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.margins(0.1, 0.13)
    axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scale_bar(axes: Any, half: float, marks: Sequence[Mark]) -> None:
    """How wide the intervals of quality are, once, in the corner with the fewest marks."""
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    low, high = axes.get_ylim()
    length = 2 * half / (high - low)  # of the axes
    seen = axes.transAxes.inverted().transform(axes.transData.transform([(m.x.value, m.y.value) for m in marks]))
    tall = max(0.2, length + 0.06) if length < 0.4 else 0.2

    def crowd(corner: tuple[bool, bool]) -> int:
        right, top = corner
        return sum((x > 0.65 if right else x < 0.35) and (y > 1 - tall if top else y < tall) for x, y in seen)

    right, top = min(((True, False), (False, True), (False, False), (True, True)), key=crowd)
    x, y = 0.97 if right else 0.03, 0.97 - tall / 2 if top else 0.03 + tall / 2
    words = f"95 % interval\nof a point: ± {half:.1f}"
    if length < 0.4:
        ends = [y - length / 2, y + length / 2]
        axes.plot([x, x], ends, "_-", color="#707070", lw=1.2, ms=6, transform=axes.transAxes, zorder=1)
        x += -0.03 if right else 0.03
    side = "right" if right else "left"
    axes.text(x, y, words, transform=axes.transAxes, ha=side, va="center", fontsize=FONT - 1, color="#444444")
