"""The paper's claims: points compared in pairs, how surely they differ, and a table of what holds at which budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdtw_fast.tables import markdown_table

from .provenance import SEED
from .quality import METRICS, RESAMPLES, Interval
from .records import Records
from .summary import OWN_DRAFTS, Point, Samples, pareto
from .table import NONE

KEPT = 0.03  # how far use may be from a budget that is kept


@dataclass(frozen=True)
class Comparison:
    """Two points of a pair, compared on the same sentences or the same turns.

    Args:
        question: what is asked of them.
        metric: of the quality, or "ms_per_token".
        this, other: ids of the points.
        difference: this minus other for a quality; this over other, minus 1, for a latency. The interval is a paired
            bootstrap's, over sentences or over turns.
        p: share of the resamples on the side of zero where the difference is not, twice (two-sided); at least
            1 / the number of resamples.
    """

    question: str
    metric: str
    this: str
    other: str
    difference: Interval
    p: float


def compare_quality(samples: Samples, question: str, this: str, other: str, metric: str) -> Comparison:
    """The difference in a metric between two points, by paired bootstrap over sentences."""
    (mine, mines), (theirs, others) = samples.score(this, metric), samples.score(other, metric)
    difference = Interval.of(mine - theirs, mines - others)
    return Comparison(question, metric, this, other, difference, two_sided(mines - others))


def mean_difference(samples: Samples, compared: Sequence[Comparison]) -> Interval:
    """The mean of several differences in quality, by paired bootstrap over sentences."""
    scores = [[samples.score(name, one.metric) for name in (one.this, one.other)] for one in compared]
    value = np.mean([mine - theirs for (mine, _), (theirs, _) in scores])
    return Interval.of(float(value), np.mean([mines - others for (_, mines), (_, others) in scores], axis=0))


def compare_latency(records: Records, question: str, this: str, other: str) -> Comparison | None:
    """How much longer a point takes per token than another, by bootstrap over the turns; None without both timed.

    A turn of both is taken together: a slow moment of the machine hits them alike.
    """
    mine, theirs = (
        {t.repetition: sum(t.seconds) / sum(t.tokens) for t in records.timings_of(name) if sum(t.tokens)}
        for name in (this, other)
    )
    turns = sorted(mine.keys() & theirs.keys())
    if not turns:
        return None
    ratios = np.array([mine[turn] / theirs[turn] - 1 for turn in turns])
    drawn = np.random.default_rng(SEED).integers(len(turns), size=(RESAMPLES, len(turns)))
    medians = np.median(ratios[drawn], axis=1)
    return Comparison(
        question, "ms_per_token", this, other, Interval.of(float(np.median(ratios)), medians), two_sided(medians)
    )


def two_sided(differences: np.ndarray) -> float:
    """Two-sided bootstrap p of resampled differences [B] against zero."""
    share = min(float(np.mean(differences <= 0)), float(np.mean(differences >= 0)))
    return min(1.0, max(2 * share, 1 / len(differences)))


def claims(records: Records, samples: dict[str, Samples], points: Sequence[Point], metric: str) -> list[Comparison]:
    """The comparisons that the paper's claims rest on, pair by pair.

    For KDTW at every budget: against the student alone, the budget below, both controls at equal use, the best
    DistillSpec point that is not slower; and in latency against the fastest DistillSpec point that is not worse, and
    the fastest of all. Where the pair's own student drafts, the questions say that.
    """
    found: list[Comparison | None] = []
    for pair, drawn in samples.items():
        here = [point for point in points if point.pair == pair]
        wheels = sorted(_of(here, "training-wheels"), key=lambda p: p.budget or 0.0)
        lossy = _of(here, "distillspec")
        rival_name = rival(points, pair)
        for i, point in enumerate(wheels):
            others = {"better than the student alone": _of(here, "student") if point.budget else []}
            others["better than the budget below"] = wheels[i - 1 : i] if i else []
            for control in ("random", "entropy"):
                matched = [p for p in _of(here, control) if p.budget == point.budget]
                others[f"better than {control} calls at equal use"] = matched
            if point.latency is not None:
                others[f"better than {rival_name} at no more latency"] = _best(lossy, point, metric)
            for question, rivals in others.items():
                found += [compare_quality(drawn, question, point.id, rival.id, metric) for rival in rivals[:1]]
            for question, rivals in (
                (f"faster than {rival_name} at no less quality", _fastest(lossy, point, metric)),
                (f"faster than the fastest of {rival_name}", pareto(lossy, metric)),
            ):
                found += [compare_latency(records, question, point.id, rival.id) for rival in rivals[:1]]
    return [comparison for comparison in found if comparison is not None]


def rival(points: Sequence[Point], pair: str) -> str | None:
    """What a pair's lossy speculative points are called: DistillSpec where a GKD student drafts; None without any."""
    lossy = [point for point in points if point.pair == pair and point.group == "distillspec"]
    return ("DistillSpec" if any("drafter" in point.settings for point in lossy) else OWN_DRAFTS) if lossy else None


def _of(points: Sequence[Point], group: str) -> list[Point]:
    return [point for point in points if point.group == group]


def _best(points: Sequence[Point], like: Point, metric: str) -> list[Point]:
    """The point of best quality that is not slower than ``like``."""
    assert like.latency is not None
    limit = like.latency.ms_per_token.median
    front = [p for p in pareto(points, metric) if p.latency is not None and p.latency.ms_per_token.median <= limit]
    return front[-1:]


def _fastest(points: Sequence[Point], like: Point, metric: str) -> list[Point]:
    """The fastest point whose quality is not below that of ``like``."""
    return [p for p in pareto(points, metric) if p.quality[metric].value >= like.quality[metric].value][:1]


def claims_tables(
    records: Records,
    samples: Mapping[str, Samples],
    points: Sequence[Point],
    comparisons: Sequence[Comparison],
    metric: str,
) -> str:
    """For each pair a table of claims by budgets, for reading.

    Args:
        records: of a results file.
        samples: of `sample`, by pair.
        points: of `summarise`.
        comparisons: of `claims`, in the same metric.
        metric: of :data:`kdtw_fast.comparison.quality.METRICS`.
    """
    blocks = []
    for pair in records.pairs:
        wheels = [point for point in points if point.pair == pair and point.group == "training-wheels"]
        wheels.sort(key=lambda point: point.budget or 0.0)
        if not wheels:
            continue
        rows = [_kept("share of all tokens", [point.teacher_use for point in wheels], wheels)]
        rows.append(_kept("mean over outputs", [point.mean_use for point in wheels], wheels))
        for question in dict.fromkeys(c.question for c in comparisons):
            by_point = {c.this: c for c in comparisons if c.question == question}
            found = [by_point.get(point.id) for point in wheels]
            if any(found):
                rows.append(_compared(question, found, samples[pair]))
        budgets = [f"{point.settings.get('budget', point.label)} ({point.budget:g})" for point in wheels]
        blocks += [f"**{wheels[0].task} ({pair})**: {_costs(records, pair)}", ""]
        blocks += [*markdown_table(("claim", "holds", *budgets, "mean"), rows, text_columns=2), ""]
    return "\n".join([*blocks, _note(metric, {rival(points, pair) for pair in records.pairs} - {None})])


def _kept(what: str, uses: Sequence[Interval | None], wheels: Sequence[Point]) -> list[str]:
    excess = [use and _moved(use, -(point.budget or 0.0)) for use, point in zip(uses, wheels)]
    held = [one is not None and abs(one.value) <= KEPT + 1e-9 for one in excess]
    return [
        f"use − budget, {what}, in points; within {100 * KEPT:g}",
        _words(held, [not one for one in held], wheels),
        *(NONE if one is None else _cell(one, lambda value: f"{100 * value:+.1f}") for one in excess),
        NONE,
    ]


def _moved(interval: Interval, by: float) -> Interval:
    return Interval(interval.value + by, interval.low + by, interval.high + by)


def _compared(question: str, found: Sequence[Comparison | None], samples: Samples) -> list[str]:
    there = [one for one in found if one is not None]
    faster = there[0].metric == "ms_per_token"
    sign = -1 if faster else 1  # of a difference that speaks for the claim
    held = [one is not None and sign * (one.difference.low if sign > 0 else one.difference.high) > 0 for one in found]
    failed = [one is not None and sign * (one.difference.high if sign > 0 else one.difference.low) < 0 for one in found]
    show: Callable[[float], str] = (
        (lambda value: f"{100 * value:+.0f} %") if faster else (lambda value: f"{value:+.1f}")
    )
    unit = "ms/token" if faster else METRICS[there[0].metric]
    cells = [NONE if one is None else _cell(one.difference, show) for one in found]
    mean = NONE if faster else _cell(mean_difference(samples, there), show)
    return [f"{question}, {unit}", _words(held, failed, found), *cells, mean]


def _words(held: Sequence[bool], failed: Sequence[bool], found: Sequence[object | None]) -> str:
    asked = [i for i, one in enumerate(found) if one is not None]
    yes, no = sum(held[i] for i in asked), sum(failed[i] for i in asked)
    if yes == len(asked):
        return "yes"
    if no == len(asked):
        return "no"
    unclear = len(asked) - yes - no
    return f"at {yes} of {len(asked)}" + (f", against it {no}" if no else "") + (f", open {unclear}" if unclear else "")


def _cell(interval: Interval, show: Callable[[float], str]) -> str:
    return f"{show(interval.value)} ({show(interval.low)} to {show(interval.high)})"


def _costs(records: Records, pair: str) -> str:
    """What the teacher's pass takes against the student's."""
    passes = [one for (name, _), one in records.passes.items() if name == pair]
    if not passes:
        return "no passes were timed"
    step = {
        role: 1e6 * float(np.median([dict(map(tuple, getattr(one, role)["alone"]))[1] for one in passes]))
        for role in ("student", "teacher")
    }
    return (
        f"a step of the teacher takes {step['teacher']:.0f} µs, of the student {step['student']:.0f} µs: "
        f"{step['teacher'] / step['student']:.1f} times as long"
    )


def _note(metric: str, rivals: set[str | None]) -> str:
    lacking = "".join(f": {name} has none as good, or none as fast" for name in sorted(map(str, rivals)))
    return (
        f"Differences in {METRICS[metric]} are paired over sentences, those in latency over turns; in brackets 95 % "
        "bootstrap intervals. A claim holds at a budget where the whole interval speaks for it, and is open where the "
        f"interval holds 0. {NONE}: there is no point to compare with{lacking}. "
        "The mean is that of the differences in quality on its left."
    )
