"""Streams of ragged rows, fp32, sampled: tokens/s by how long rows that wait for the teacher are held.

What comes out is the same whatever the policy, and is asserted to be; the default of ``teacher_batch`` is chosen by
these numbers. The two pairs are the ends of a scale: a teacher that costs little more than the student, and one whose
steps take many times as long.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.models import LARGER_TEACHER, SMOKE, TINY_STUDENT, TINY_TEACHER, ragged_pair, source
from bench.replay import replay_timer, report
from kdtw_fast import SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.shapes import T5Shape

LENGTH = 16  # mean length of a row
# Method -> (decoder, share of the tokens for which the student asks, batch sizes)
METHODS: dict[str, tuple[Any, float, tuple[int, ...]]] = {
    "Training Wheels, 10 % teacher": (TrainingWheelsDecoder, 0.1, (8, 32)),
    "Training Wheels, 30 % teacher": (TrainingWheelsDecoder, 0.3, (8, 32)),
    "speculative, lossless": (SpeculativeDecoder, 0.0, (32,)),
}
# How many of R rows must wait
POLICIES: dict[str, Callable[[int], int | None]] = {
    "at once": lambda rows: 1,
    "a quarter": lambda rows: max(1, rows // 4),
    "half": lambda rows: max(1, rows // 2),
    "three quarters": lambda rows: max(1, 3 * rows // 4),
    "all": lambda rows: rows,
    "default": lambda rows: None,
}
FIXED = "fixed batches"
CASES = [
    (TINY_STUDENT, teacher, method, rows)
    for teacher in (TINY_TEACHER, LARGER_TEACHER)
    for method, (_, _, sizes) in METHODS.items()
    for rows in sizes
]
Texts = list[list[int]]  # the tokens of every item


@dataclass(frozen=True)
class Turns:
    student: T5Shape
    teacher: T5Shape
    method: str
    rows: int
    threads: int
    recorded: dict[str, Recorded]


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case[1].name}-{case[2]}-{case[3]}-rows".replace(" ", "-")
)
def taken(request: pytest.FixtureRequest, tiny: bool, rounds: int | None, threads: int) -> Turns:
    student, teacher, method, rows = request.param
    shapes = (SMOKE, SMOKE) if tiny else (student, teacher)
    rows, length = (rows // 8, 8) if tiny else (rows, LENGTH)
    make, share, _ = METHODS[method]
    asking, asked = ragged_pair(*shapes, share, length)
    decoder = make(asking.native("student"), asked.native("teacher"), num_threads=threads)
    lengths = random.Random(0)
    items = [source(shapes[0], lengths.randint(16, 64), seed=seed)[0].tolist() for seed in range(2 * rows)]
    settings: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 4 * length}

    def stream(teacher_batch: int | None) -> Texts:
        outputs = decoder.stream(items, batch_size=rows, in_order=True, teacher_batch=teacher_batch, **settings)
        return [out.output_ids[0] for out in outputs]

    def fixed() -> Texts:
        texts: Texts = []
        for first in range(0, len(items), rows):
            keys = range(first, first + rows)
            out = decoder.generate(items[first : first + rows], row_ids=keys, **settings)
            texts += out.output_ids
        return texts

    contestants: dict[str, Callable[[], Texts]] = {name: partial(stream, POLICIES[name](rows)) for name in POLICIES}
    return Turns(*shapes, method, rows, threads, take_turns({**contestants, FIXED: fixed}, rounds or 3))


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("contestant", [*POLICIES, FIXED])
def test_stream(benchmark: BenchmarkFixture, taken: Turns, contestant: str) -> None:
    recorded = taken.recorded[contestant]
    benchmark.group = f"{taken.method}, {taken.student.name} + {taken.teacher.name}, {taken.rows} rows"
    report(benchmark, recorded.seconds)
    benchmark.extra_info |= {
        "kind": "stream",
        "contestant": contestant,
        "method": taken.method,
        "student": taken.student.name,
        "teacher": taken.teacher.name,
        "threads": taken.threads,
        "rows": taken.rows,
        "tokens": sum(map(len, recorded.results[0])),
    }
    assert recorded.results[0] == taken.recorded[FIXED].results[0]
