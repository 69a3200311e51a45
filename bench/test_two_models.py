"""Two models, batch 1, fp32: every method's time beside the sum of its model passes, and beside the teacher alone.

The models are random and agree on nothing, so checked drafts fail at once unless the check lets all pass:
this measures the loop at its two extremes; what methods gain on real text is `kdtw demo`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.models import (
    FLAN_T5_BASE,
    FLAN_T5_SMALL,
    SMOKE,
    TINY_STUDENT,
    TINY_TEACHER,
    asking_student,
    source,
    teacher_without,
)
from bench.replay import replay_timer, report
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.selftest.first_day.work import METHODS, method_call
from kdtw_fast.shapes import T5Shape

SOURCE_TOKENS = NEW_TOKENS = 64
TEACHER = "teacher alone"
WHEELS = "Training Wheels, 10 % teacher"
LOSSLESS = "speculative, all drafts rejected"

PAIRS = [(FLAN_T5_SMALL, FLAN_T5_BASE), (TINY_STUDENT, TINY_TEACHER)]


@dataclass(frozen=True)
class Turns:
    student: T5Shape
    teacher: T5Shape
    threads: int
    recorded: dict[str, Recorded]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0].name}+{pair[1].name}".replace(" ", "-"))
def taken(request: pytest.FixtureRequest, tiny: bool, rounds: int | None, threads: int) -> Turns:
    shapes = (SMOKE, SMOKE) if tiny else request.param
    made = {"student": asking_student(shapes[0]), "teacher": teacher_without(shapes[1], tau=shapes[0].vocab_size - 1)}
    models, ids = {role: one.native(role) for role, one in made.items()}, source(shapes[0], SOURCE_TOKENS)
    contestants = {name: method_call(name, models, ids, NEW_TOKENS, num_threads=threads) for name in METHODS}
    small = shapes[1].d_model < 512
    return Turns(*shapes, threads, take_turns(contestants, rounds or (41 if small else 7)))


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("method", METHODS)
def test_decoding_loop(benchmark: BenchmarkFixture, taken: Turns, tiny: bool, method: str) -> None:
    recorded = taken.recorded[method]
    benchmark.group = f"two models, {taken.student.name} + {taken.teacher.name}"
    report(benchmark, recorded.seconds)
    out = recorded.results[0]
    passes = [r.timings.encode + r.timings.student + r.timings.teacher for r in recorded.results]
    alone = method in ("student alone", TEACHER)
    benchmark.extra_info |= {
        "kind": "two models",
        "method": method,
        "student": taken.student.name,
        "teacher": taken.teacher.name,
        "threads": taken.threads,
        "source_tokens": SOURCE_TOKENS,
        "new_tokens": int(out.lengths[0]),
        "student_passes": out.student_passes,
        "teacher_passes": out.teacher_passes,
        "teacher_fraction": None if alone else float(out.teacher_fraction[0]),
        # of the wall clock around generate(), Python included
        "overhead": median(1 - inside / wall for inside, wall in zip(passes, recorded.seconds)),
        # of the native call
        "loop_overhead": median(r.timings.other / r.timings.total for r in recorded.results),
    }
    assert int(out.lengths[0]) == NEW_TOKENS
    if method == LOSSLESS:
        assert out.sequences.tolist() == taken.recorded[TEACHER].results[0].sequences.tolist()
    if method == WHEELS:
        assert int(out.teacher_calls[0]) == NEW_TOKENS // 10
    if not tiny:  # the smoke models' passes take microseconds
        assert benchmark.extra_info["loop_overhead"] <= 0.03
