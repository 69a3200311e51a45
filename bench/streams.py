"""Streams of ragged rows, fp32, sampled: tokens/s by how long rows that wait for the teacher are held.

What comes out is the same whatever the policy, and is asserted to be; the default of ``teacher_batch`` is chosen by
these numbers. The two pairs are the ends of a scale: a teacher that costs little more than the student, and one whose
steps take many times as long.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench.models import LARGER_TEACHER, SMOKE, TINY_STUDENT, TINY_TEACHER, ragged_pair, source
from bench.rows import How, Row
from kdtw_fast import SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.paired_timing import take_turns
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


def measure(how: How) -> Iterator[Row]:
    """Kind "stream"."""
    for case in CASES:
        yield from _policies(how, *case)


def _policies(how: How, student: T5Shape, teacher: T5Shape, method: str, rows: int) -> Iterator[Row]:
    shapes = (SMOKE, SMOKE) if how.tiny else (student, teacher)
    rows, length = (rows // 8, 8) if how.tiny else (rows, LENGTH)
    make, share, _ = METHODS[method]
    asking, asked = ragged_pair(*shapes, share, length)
    decoder = make(asking.native("student"), asked.native("teacher"), num_threads=how.threads)
    lengths = random.Random(0)
    items = [source(shapes[0], lengths.randint(16, 64), seed=seed)[0].tolist() for seed in range(2 * rows)]
    settings: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 4 * length}

    def stream(teacher_batch: int | None) -> Texts:
        outputs = decoder.stream(items, batch_size=rows, in_order=True, teacher_batch=teacher_batch, **settings)
        return [out.sequences[0, 1:].tolist() for out in outputs]

    def fixed() -> Texts:
        texts: Texts = []
        for first in range(0, len(items), rows):
            keys = range(first, first + rows)
            out = decoder.generate(items[first : first + rows], row_ids=keys, **settings)
            texts += [out.sequences[r, 1 : 1 + length].tolist() for r, length in enumerate(out.lengths.tolist())]
        return texts

    contestants: dict[str, Callable[[], Texts]] = {name: partial(stream, POLICIES[name](rows)) for name in POLICIES}
    taken = take_turns({**contestants, FIXED: fixed}, how.rounds(3))
    for contestant, recorded in taken.items():
        (texts, *_), pair = recorded.results, {"student": shapes[0].name, "teacher": shapes[1].name}
        case = {**pair, "method": method, "rows": rows, "contestant": contestant}
        yield Row("stream", case, recorded.seconds, {"threads": how.threads, "tokens": sum(map(len, texts))})
        assert texts == taken[FIXED].results[0], f"{contestant} changed what was written"
