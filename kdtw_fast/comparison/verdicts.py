"""The paper's claims as a table: what each budget's measured difference is, and whether the claim holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdtw_fast.tables import markdown_table

from .claims import Comparison, mean_difference
from .quality import METRICS, Interval
from .records import Records
from .summary import Point, Samples
from .table import NONE

KEPT = 0.03  # how far use may be from a budget that is kept


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
    return "\n".join([*blocks, _note(metric)])


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


def _note(metric: str) -> str:
    return (
        f"Differences in {METRICS[metric]} are paired over sentences, those in latency over turns; in brackets 95 % "
        "bootstrap intervals. A claim holds at a budget where the whole interval speaks for it, and is open where the "
        f"interval holds 0. {NONE}: there is no point to compare with: DistillSpec has none as good, or none as fast. "
        "The mean is that of the differences in quality on its left."
    )
