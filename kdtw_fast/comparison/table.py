"""The comparison as a table: in Markdown, and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from kdtw_fast.tables import markdown_table, terminal_table

from .plan import GROUPS
from .quality import METRICS, Interval
from .summary import FEW_TURNS, Point, Spread, pareto

_BEFORE, _AFTER = ("method", "asked", "used"), ("gap", "passes/token", "ms/token", "ms/sentence", "tokens/s")
ALL_COLUMNS = (*_BEFORE, *METRICS.values(), *_AFTER)
COLUMNS = tuple(column for column in ALL_COLUMNS if column not in ("ROUGE-1", "ROUGE-L", "ms/sentence"))
NARROW = tuple(column for column in COLUMNS if column not in ("chrF", "tokens/s"))  # what fits a terminal
GRIDS = ("distillspec", "bild", "verify")  # of which only the points on their own Pareto front are shown
METRIC = "rouge2"  # that the front and the gap are taken in
NONE = "–"


def shown(points: Sequence[Point], metric: str = METRIC) -> list[Point]:
    """The points that a table shows: all but those of a grid that another point of the same grid beats."""
    kept = {point.id for point in points if point.group not in GRIDS or point.latency is None}
    for pair in dict.fromkeys(point.pair for point in points):
        for group in GRIDS:
            kept |= {p.id for p in pareto([p for p in points if (p.pair, p.group) == (pair, group)], metric)}
    return [point for point in points if point.id in kept]


def cells(point: Point, columns: Sequence[str] = COLUMNS, intervals: Sequence[str] = (METRICS[METRIC],)) -> list[str]:
    """A point as text in these columns; half of the interval stands behind the values of ``intervals``."""
    latency, gap = point.latency, (point.gap_closed or {}).get(METRIC)
    row = {
        "method": point.label,
        "asked": NONE if point.budget is None else f"{100 * point.budget:.0f} %",
        "used": _interval(point.teacher_use, 100, " %"),
        **{name: _interval(point.quality.get(metric)) for metric, name in METRICS.items()},
        "gap": _interval(gap, 100, " %", digits=0),
        "passes/token": NONE if point.teacher_passes_per_token is None else f"{point.teacher_passes_per_token:.2f}",
        "ms/token": NONE if latency is None else _spread(latency.ms_per_token),
        "ms/sentence": NONE if latency is None else _spread(latency.ms_per_sentence),
        "tokens/s": NONE if latency is None else f"{latency.tokens_per_second.median:.0f}",
    }
    return [row[column] if column in intervals else row[column].split(" ± ")[0] for column in columns]


def _interval(value: Interval | None, scale: float = 1.0, unit: str = "", digits: int = 1) -> str:
    if value is None:
        return NONE
    return f"{scale * value.value:.{digits}f}{unit} ± {scale * (value.high - value.low) / 2:.{digits}f}"


def _spread(spread: Spread) -> str:
    digits = 3 if spread.median < 0.1 else 2
    return f"{spread.median:.{digits}f} ({spread.q1:.{digits}f}–{spread.q3:.{digits}f})"


def caption(points: Sequence[Point]) -> str:
    """What was measured, in a line."""
    timed = [point.latency for point in points if point.latency is not None]
    sentences = f"{points[0].sentences} sentences, greedy"
    if not timed:
        return f"{points[0].pair}: {sentences}"
    batch = "one sentence at a time" if timed[0].batch == 1 else f"batches of {timed[0].batch}"
    threads = f"{timed[0].threads} thread{'s' * (timed[0].threads > 1)}"
    noisy = f" (noisy: under {FEW_TURNS})" if timed[0].noisy else ""
    return f"{points[0].pair}: {sentences}; latency {batch}, {threads}, {timed[0].turns} turns{noisy}"


FOOTNOTE = (
    "asked, used: share of the output tokens that the prompt allows the teacher and that it wrote. "
    "±: half of the 95 % bootstrap interval over sentences. gap: share of the way from the student's to the teacher's "
    f"{METRICS[METRIC]}. passes: of the teacher. ms/token: median (quartiles) over turns. Of a grid (lossy speculative "
    "decoding, BiLD, KDTW with verification), the points that no other of the grid beats. Assisted generation is timed "
    "only."
)


def points_tables(points: Sequence[Point], folded: Sequence[str] = ()) -> str:
    """A Markdown table for each pair; groups in ``folded`` have a second one, which a reader unfolds."""
    lines: list[str] = []
    for pair in dict.fromkeys(point.pair for point in points):
        here = [point for point in points if point.pair == pair]
        first = [point for point in shown(here) if point.group not in folded]
        rest = [point for point in shown(here) if point.group in folded]
        lines += [f"**{caption(here)}**", "", *markdown_table(COLUMNS, map(cells, first)), ""]
        if rest:
            groups = ", ".join(GROUPS[group] for group in dict.fromkeys(point.group for point in rest))
            lines += ["<details>", f"<summary>{len(rest)} more: {groups}</summary>", ""]
            lines += [*markdown_table(COLUMNS, map(cells, rest)), "", "</details>", ""]
    return "\n".join([*lines, FOOTNOTE])


def terminal_tables(points: Sequence[Point]) -> list[Table]:
    """The same for a terminal, with fewer columns and without quartiles."""
    result = []
    for pair in dict.fromkeys(point.pair for point in points):
        here = [point for point in points if point.pair == pair]
        rows = ([cell.split(" (")[0] for cell in cells(point, NARROW)] for point in shown(here))
        result.append(terminal_table(caption(here), NARROW, rows))
    return result
