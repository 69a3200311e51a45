"""Trained students of one pair set against each other: use, quality, and quality at equal use.

    kdtw compare runs/A/recipe.yaml runs/B/recipe.yaml … --methods student,teacher,training-wheels --out out/ablation
    python -m bench.record_tables students out/ablation/results.jsonl

The first run is the one that the others are set against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdtw_fast.comparison.quality import Interval
from kdtw_fast.comparison.records import Records
from kdtw_fast.comparison.summary import sample, use
from kdtw_fast.tables import markdown_table

METRIC = "rouge2"


@dataclass(frozen=True)
class Curve:
    """Use and quality of a run at its P budgets from the lowest on: [P], and on B resamples [B, P].

    The last point is the teacher alone, at a use of 1.
    """

    budgets: list[float]
    use: np.ndarray
    uses: np.ndarray
    quality: np.ndarray
    qualities: np.ndarray


def curve(records: Records, run: str) -> Curve:
    """A run's curve; ValueError where the records lack KDTW or the teacher."""
    samples = sample(records, run)
    here = [one for one in records.outputs.values() if one.pair == run]
    wheels = sorted((one for one in here if one.group == "training-wheels"), key=lambda one: one.budget or 0.0)
    teacher = [one for one in here if one.group == "teacher"]
    if not wheels or not teacher:
        raise ValueError(f"the records of {run} lack training-wheels or the teacher alone")
    points = [*wheels, teacher[0]]
    shares = [use(one, samples.counts) for one in points]
    scores = [samples.score(one.id, METRIC) for one in points]
    return Curve(
        [one.budget or 0.0 for one in wheels],
        np.array([share for share, _ in shares]),
        np.stack([drawn for _, drawn in shares], 1),
        np.array([score for score, _ in scores]),
        np.stack([drawn for _, drawn in scores], 1),
    )


def at_equal_use(mine: Curve, base: Curve) -> Interval:
    """Mean over the budgets above 0 of the quality minus the base's at the same use, its points joined by lines."""

    def difference(shares: np.ndarray, quality: np.ndarray, base_use: np.ndarray, base_quality: np.ndarray) -> float:
        order = np.argsort(base_use, kind="stable")
        there = np.interp(shares, base_use[order], base_quality[order])
        asked = np.array(mine.budgets) > 0
        return float(np.mean((quality - there)[: len(asked)][asked]))

    drawn = [difference(*rows) for rows in zip(mine.uses, mine.qualities, base.uses, base.qualities, strict=True)]
    return Interval.of(difference(mine.use, mine.quality, base.use, base.quality), np.array(drawn))


def seeds_text(records: Records) -> str:
    """The table, and how far the runs but for the first lie apart: the same recipe with several seeds."""
    curves = [curve(records, run) for run in records.pairs[1:]]
    shares, scores = (np.ptp([getattr(one, name)[:-1] for one in curves], axis=0) for name in ("use", "quality"))
    use, quality = (f"by up to {values.max():.1f} (mean {values.mean():.1f})" for values in (100 * shares, scores))
    sentence = f"Between the {len(curves)} seeds, at one budget, use differs {use} points and ROUGE-2 {quality}."
    return f"{students_table(records)}\n\n{sentence}"


def students_table(records: Records) -> str:
    """The students' use and quality at every budget, and quality over the first one's at equal use."""
    first, *others = records.pairs
    base = curve(records, first)
    columns = [f"{budget:g}: use, ROUGE-2" for budget in base.budgets]
    rows = []
    for run in (first, *others):
        mine = curve(records, run)
        cells = [f"{100 * share:.1f} %, {quality:.1f}" for share, quality in zip(mine.use, mine.quality)][:-1]
        far = max(abs(share - budget) for share, budget in zip(mine.use, mine.budgets))
        equal = at_equal_use(mine, base)
        better = "–" if run == first else f"{equal.value:+.2f} ({equal.low:+.2f} to {equal.high:+.2f})"
        rows.append([run, *cells, f"{100 * far:.1f}", better])
    header = ("run", *columns, "farthest from a budget, points", f"ROUGE-2 over {first} at equal use")
    sentences = len(next(iter(records.outputs.values())).sentences)
    note = (
        f"{sentences} sentences, greedy; use is the share of all tokens. Over {first} at equal use: the mean over the "
        f"budgets above 0 of the difference to {first}'s points joined by lines (beyond its last one, to the teacher "
        "alone), in brackets the 95 % bootstrap interval over sentences."
    )
    return "\n".join([*markdown_table(header, rows), "", note])
