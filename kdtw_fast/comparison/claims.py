"""Paired comparisons between points: is one better than another, or faster at equal quality, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .provenance import SEED
from .quality import RESAMPLES, Interval
from .records import Records
from .summary import OWN_DRAFTS, Point, Samples, pareto


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
        rival_name = "DistillSpec" if any("drafter" in p.settings for p in lossy) else OWN_DRAFTS
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
