"""The comparison's figures, from its points alone: quality against latency, against teacher use, use against budget.

Same points, same bytes: nothing in a file depends on the day or on chance. Needs matplotlib (the extra "compare").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtw_fast.options import nearest

from .plan import OUTSIDE
from .quality import METRICS, Interval
from .summary import OWN_DRAFTS, Point, pareto

FAINT = "50"  # alpha of bars and of points that their own grid beats, in hex
WIDTH, HEIGHT, DPI = 9.0, 5.4, 150  # inches of a panel's figure; one panel is as wide as a README's column


@dataclass(frozen=True)
class Style:
    """How a group is drawn: colours of Okabe and Ito, told apart by colour-blind readers, and a marker of its own."""

    label: str
    colour: str
    marker: str
    joined: bool = False  # by a line: along its own front, or in the order of its budgets


STYLES = {
    "training-wheels": Style("KDTW", "#D55E00", "o", joined=True),
    "verify": Style("KDTW with verification", "#E69F00", "D"),
    "distillspec": Style("DistillSpec", "#0072B2", "s", joined=True),
    "speculative": Style("speculative, lossless", "#56B4E9", "P"),
    "bild": Style("BiLD", "#009E73", "^", joined=True),
    "interleaved": Style("interleaved (SKD)", "#F0E442", "*"),
    "random": Style("random calls", "#777777", "x", joined=True),
    "entropy": Style("calls by entropy", "#CC79A7", "v", joined=True),
    "student": Style("student alone", "#000000", "<"),
    "teacher": Style("teacher alone", "#000000", ">"),
}
GRIDS = ("distillspec", "bild")  # of which only the points on the front matter
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "kdtw_fast",
    "text.parse_math": False,  # names are no formulas
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def require_matplotlib() -> None:
    """Raises ImportError with what to do where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("kdtw compare draws with matplotlib; pip install 'kdtw_fast[compare]'") from None


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
    require_matplotlib()
    panels: dict[str, Callable[[Any, list[Point], str], None]] = {
        "quality-latency": _quality_latency,
        "quality-use": _quality_use,
        "budgets": _budgets,
    }
    return [path for name, panel in panels.items() for path in _figure(points, out / name, panel, metric)]


def _figure(
    points: Sequence[Point], path: Path, panel: Callable[[Any, list[Point], str], None], metric: str
) -> list[Path]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    pairs = list(dict.fromkeys(point.pair for point in points))
    with mpl.rc_context({**mpl.rcParamsDefault, **_SETTINGS}):
        figure = Figure(figsize=(WIDTH if len(pairs) == 1 else 1.3 * WIDTH, HEIGHT), layout="constrained")
        handles: dict[str, Any] = {}
        for axes, pair in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs):
            here = [point for point in points if point.pair == pair]
            panel(axes, here, metric)
            axes.set_title(f"{here[0].task} ({pair}, {here[0].sentences} sentences)", fontsize=11)
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=10)
        paths = [path.with_suffix(".png"), path.with_suffix(".svg")]
        figure.savefig(paths[0], dpi=DPI, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def _style(group: str, points: Sequence[Point]) -> Style:
    style = STYLES[group]
    own = group == "distillspec" and not any("drafter" in point.settings for point in points)
    return Style(OWN_DRAFTS, style.colour, style.marker, style.joined) if own else style


def _groups(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {group: found for group in STYLES if (found := [point for point in points if point.group == group])}


def _quality_latency(axes: Any, points: list[Point], metric: str) -> None:
    """Quality on x, ms per token on y; bars are 95 % intervals and quartiles."""
    inside = [point for point in points if point.latency is not None and point.group not in OUTSIDE]
    for group, found in _groups(inside).items():
        style, front = _style(group, found), pareto(found, metric) if group in GRIDS else found
        rest = [point for point in found if point not in front]
        if style.joined:
            _scatter(axes, rest, metric, style, bars=False)
            axes.plot([_x(p, metric) for p in front], [_ms(p).median for p in front], color=style.colour, lw=1.2)
            _scatter(axes, front, metric, style, label=style.label)
        else:
            _scatter(axes, found, metric, style, label=style.label)
        if group == "training-wheels":
            for number, point in enumerate(front):  # neighbours on either side of the line
                right = number % 2 == 0
                axes.annotate(
                    str(point.settings.get("budget", "")),
                    (_x(point, metric), _ms(point).median),
                    xytext=(7, -11) if right else (-7, 5),
                    ha="left" if right else "right",
                    textcoords="offset points",
                    fontsize=9,
                )
    front = pareto(inside, metric)
    if front:
        xs, ys = [_x(p, metric) for p in front], [_ms(p).median for p in front]
        axes.plot(xs, ys, color="#000000", alpha=0.13, lw=9, solid_capstyle="round", zorder=0, label="Pareto front")
        axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{METRICS[metric]} (more is better)")
    axes.set_ylabel("ms per token (less is better)")
    outside = [f"{p.label}: {_ms(p).median:.3g}" for p in points if p.latency is not None and p.group in OUTSIDE]
    if outside:
        axes.set_ylim(top=axes.get_ylim()[1] * (1 + 0.06 * len(outside)))  # room above the points
        text = "ms per token of other systems\n" + "\n".join(outside)
        axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", fontsize=9, color="#444444")


def _scatter(axes: Any, points: list[Point], metric: str, style: Style, *, label: str = "", bars: bool = True) -> None:
    if not points:
        return
    xs, ys = [_x(p, metric) for p in points], [_ms(p).median for p in points]
    spreads = [(p.quality[metric], _ms(p)) for p in points]
    axes.errorbar(
        xs,
        ys,
        xerr=[[max(0.0, q.value - q.low) for q, _ in spreads], [max(0.0, q.high - q.value) for q, _ in spreads]]
        if bars
        else None,
        yerr=[[s.median - s.q1 for _, s in spreads], [s.q3 - s.median for _, s in spreads]] if bars else None,
        fmt=style.marker,
        color=style.colour if bars else style.colour + FAINT,
        ms=7,
        elinewidth=0.8,
        ecolor=style.colour + FAINT,
        label=label,
    )


def _x(point: Point, metric: str) -> float:
    return point.quality[metric].value


def _ms(point: Point) -> Any:
    assert point.latency is not None
    return point.latency.ms_per_token


def _quality_use(axes: Any, points: list[Point], metric: str) -> None:
    """Share of the tokens that the teacher wrote on x, quality on y."""
    known = [point for point in points if point.teacher_use is not None and point.group not in OUTSIDE]
    for group, found in _groups(known).items():
        style = _style(group, found)
        ordered = sorted(found, key=lambda p: _use(p).value)
        joined = "-" if style.joined and group not in GRIDS else ""
        _crosses(axes, [_use(p) for p in ordered], [p.quality[metric] for p in ordered], style, joined)
    axes.set_xlabel("tokens written by the teacher, %")
    axes.set_ylabel(f"{METRICS[metric]} (more is better)")


def _budgets(axes: Any, points: list[Point], metric: str) -> None:
    """Asked budget on x, achieved use on y, with the diagonal."""
    asked = [p for p in points if p.budget is not None and p.teacher_use is not None]
    top = 100 * max((max(p.budget or 0.0, _use(p).high / 100) for p in asked), default=0.5)
    axes.plot([0, top], [0, top], color="#000000", lw=1, ls="--", alpha=0.6, label="as asked")
    groups = {group: found for group, found in _groups(asked).items() if group in ("training-wheels", "verify")}
    for group, found in groups.items():
        style = _style(group, found)
        budgets = [Interval(*[100 * (p.budget or 0.0)] * 3) for p in found]
        _crosses(axes, budgets, [_use(p) for p in found], style, "-" if style.joined else "")
    axes.set_xlabel("budget in the prompt, % of the tokens")
    axes.set_ylabel("tokens written by the teacher, %")


def _use(point: Point) -> Interval:
    """In percent."""
    assert point.teacher_use is not None
    return Interval(
        *(100 * value for value in (point.teacher_use.value, point.teacher_use.low, point.teacher_use.high))
    )


def _crosses(axes: Any, xs: list[Interval], ys: list[Interval], style: Style, line: str) -> None:
    def bars(values: list[Interval]) -> list[list[float]]:
        return [[max(0.0, v.value - v.low) for v in values], [max(0.0, v.high - v.value) for v in values]]

    axes.errorbar(
        [x.value for x in xs],
        [y.value for y in ys],
        xerr=bars(xs),
        yerr=bars(ys),
        fmt=style.marker + line,
        color=style.colour,
        ms=7,
        lw=1.2,
        elinewidth=0.8,
        ecolor=style.colour + FAINT,
        label=style.label,
    )
