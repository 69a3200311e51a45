"""From raw records to points: quality, latency and teacher use of every operating point, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .plan import TIMED_ONLY
from .provenance import SEED
from .quality import METRICS, Interval, Statistics, resample
from .records import Outputs, Records, Timing

FEW_TURNS = 5  # of fewer, median and quartiles say little: latencies are called noisy
OWN_DRAFTS = "lossy speculative, own student"  # what stands for DistillSpec where no GKD student was given


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the turns."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        q1, median, q3 = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
        return cls(float(median), float(q1), float(q3))


@dataclass(frozen=True)
class Latency:
    """How fast a point is, over its turns.

    Args:
        ms_per_token: a turn's seconds over its output tokens, in milliseconds.
        ms_per_sentence: over its sentences.
        tokens_per_second: the other way round.
        turns: how many there are.
        batch: sentences a call.
        threads: of every call.
    """

    ms_per_token: Spread
    ms_per_sentence: Spread
    tokens_per_second: Spread
    turns: int
    batch: int
    threads: int

    @property
    def noisy(self) -> bool:
        """Whether there are too few turns to trust the numbers."""
        return self.turns < FEW_TURNS

    @classmethod
    def of(cls, timings: Sequence[Timing]) -> Latency | None:
        """From all turns of one point; None where there are none."""
        turns = [timing for timing in timings if sum(timing.tokens)]
        if not turns:
            return None
        seconds = np.array([sum(timing.seconds) for timing in turns])
        tokens = np.array([sum(timing.tokens) for timing in turns])
        sentences = np.array([timing.sentences for timing in turns])
        return cls(
            Spread.of(1000 * seconds / tokens),
            Spread.of(1000 * seconds / sentences),
            Spread.of(tokens / seconds),
            len(turns),
            turns[0].batch,
            turns[0].threads,
        )


@dataclass(frozen=True)
class Point:
    """One operating point of a comparison.

    Args:
        id, pair, task, group, method, settings, label: as of :class:`kdtw_fast.comparison.records.Outputs`.
        budget: share of the output tokens that the prompt allows the teacher; None where there is none.
        sentences: how many it wrote.
        tokens_per_sentence: mean output length.
        quality: by metric of :data:`kdtw_fast.comparison.quality.METRICS`, 0 to 100; empty where it was not judged.
        latency: None where nothing was timed.
        teacher_use: share of the output tokens that the teacher wrote; None where the system does not tell.
        mean_use: the same share of each sentence, averaged over the sentences (the paper's).
        teacher_passes_per_token: passes of the teacher that served a sentence, over its output tokens.
        gap_closed: by metric, the share of the way from the student's quality to the teacher's; None where either
            is not there or the teacher is not better.
    """

    id: str
    pair: str
    task: str
    group: str
    method: str
    settings: dict[str, Any]
    label: str
    budget: float | None
    sentences: int
    tokens_per_sentence: float
    quality: dict[str, Interval]
    latency: Latency | None
    teacher_use: Interval | None
    mean_use: Interval | None
    teacher_passes_per_token: float | None
    gap_closed: dict[str, Interval] | None


@dataclass
class Samples:
    """What the bootstrap needs of one pair's points.

    Args:
        counts: the resamples [B, N] that all points share.
        statistics: by id.
        quality: by id and metric, the resampled scores [B].
    """

    counts: np.ndarray
    statistics: dict[str, Statistics] = field(default_factory=dict)
    quality: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def score(self, point: str, metric: str) -> tuple[float, np.ndarray]:
        """A metric of a point on all sentences, and on the resamples."""
        if (point, metric) not in self.quality:
            self.quality[point, metric] = self.statistics[point].resampled(metric, self.counts)
        return self.statistics[point].score(metric), self.quality[point, metric]


def sample(records: Records, pair: str) -> Samples:
    """The statistics of a pair's points that are judged, and the resamples.

    Raises ValueError where points have other sentences, or none is judged.
    """
    points = judged(records, pair)
    if not points:
        raise ValueError(f"{pair}: {', '.join(TIMED_ONLY)} alone is not judged; compare another method beside it")
    sources = [sentence.source for sentence in points[0].sentences]
    samples = Samples(resample(len(sources), SEED))
    for outputs in points:
        if [sentence.source for sentence in outputs.sentences] != sources:
            raise ValueError(f"{outputs.id} and {points[0].id} were not judged on the same sentences")
        samples.statistics[outputs.id] = Statistics.of(
            [sentence.text for sentence in outputs.sentences], [sentence.reference for sentence in outputs.sentences]
        )
    return samples


def judged(records: Records, pair: str) -> list[Outputs]:
    """The outputs of a pair that hold all sentences, in the file's order."""
    return [o for o in records.outputs.values() if o.pair == pair and o.group not in TIMED_ONLY]


def summarise(records: Records, samples: dict[str, Samples] | None = None) -> list[Point]:
    """The points of all outputs, in the file's order.

    Args:
        records: of a results file.
        samples: by pair, what :func:`sample` made; None = made here.

    Raises:
        ValueError: the file holds no outputs, or a pair's points have different sentences.
    """
    if not records.outputs:
        raise ValueError("the results hold no outputs yet; run kdtw compare")
    by_pair = {pair: sample(records, pair) for pair in records.pairs} if samples is None else samples
    return [_point(outputs, records, by_pair[outputs.pair]) for outputs in records.outputs.values()]


def _point(outputs: Outputs, records: Records, samples: Samples) -> Point:
    tokens = np.array([len(sentence.tokens) for sentence in outputs.sentences])
    told = all(len(sentence.owners) == len(sentence.tokens) for sentence in outputs.sentences)
    passes = sum(sentence.teacher_calls for sentence in outputs.sentences)
    metrics = METRICS if outputs.id in samples.statistics else ()
    return Point(
        id=outputs.id,
        pair=outputs.pair,
        task=outputs.task,
        group=outputs.group,
        method=outputs.method,
        settings=outputs.settings,
        label=outputs.label,
        budget=outputs.budget,
        sentences=len(tokens),
        tokens_per_sentence=float(tokens.mean()),
        quality={metric: Interval.of(*samples.score(outputs.id, metric)) for metric in metrics},
        latency=Latency.of(records.timings_of(outputs.id)),
        teacher_use=Interval.of(*use(outputs, samples.counts)) if told else None,
        mean_use=_mean_use(outputs, tokens, samples.counts) if told else None,
        teacher_passes_per_token=passes / max(1, int(tokens.sum())) if told else None,
        gap_closed=_gap_closed(outputs.id, f"{outputs.pair}/greedy-", samples),
    )


def _mean_use(outputs: Outputs, tokens: np.ndarray, counts: np.ndarray) -> Interval:
    shares = np.array([sentence.by_teacher for sentence in outputs.sentences]) / np.maximum(1, tokens)
    return Interval.of(shares.mean(), counts @ shares / len(shares))


def use(outputs: Outputs, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """Share of all tokens that the teacher wrote: on all sentences, and on resamples `counts` [B, N] of them, [B]."""
    written, tokens = np.array([(one.by_teacher, len(one.tokens)) for one in outputs.sentences]).T
    return written.sum() / max(1, tokens.sum()), (counts @ written) / np.maximum(1, counts @ tokens)


def _gap_closed(point: str, prefix: str, samples: Samples) -> dict[str, Interval] | None:
    student, teacher = f"{prefix}student/alone", f"{prefix}teacher/alone"
    if not samples.statistics.keys() >= {student, teacher, point}:
        return None
    shares = {}
    for metric in METRICS:
        (low, lows), (high, highs), (value, values) = (samples.score(id, metric) for id in (student, teacher, point))
        if high > low:
            gaps = np.where(highs > lows, highs - lows, np.nan)
            shares[metric] = Interval.of((value - low) / (high - low), (values - lows) / gaps)
    return shares or None


def pareto(points: Sequence[Point], metric: str) -> list[Point]:
    """The timed points that no other beats in quality and latency at once, the fastest first."""
    timed = [point for point in points if point.latency is not None]
    front: list[Point] = []
    for point in sorted(timed, key=lambda p: (_ms(p), -p.quality[metric].value)):
        if not front or point.quality[metric].value > front[-1].quality[metric].value:
            front.append(point)
    return front


def _ms(point: Point) -> float:
    assert point.latency is not None
    return point.latency.ms_per_token.median
