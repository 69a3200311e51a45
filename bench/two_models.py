"""Two models, batch 1, fp32: every method's time beside the sum of its model passes, and beside the teacher alone.

The models are random and agree on nothing, so checked drafts fail at once unless the check lets all pass:
this measures the loop at its two extremes; what methods gain on real text is `kdtw demo`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

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
from bench.rows import How, Row
from kdtw_fast import (
    BigLittleDecoder,
    InterleavedDecoder,
    NativeT5,
    SingleModelDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)
from kdtw_fast.paired_timing import take_turns
from kdtw_fast.shapes import T5Shape

SOURCE_TOKENS = NEW_TOKENS = 64
TEACHER = "teacher alone"
WHEELS = "Training Wheels, 10 % teacher"
LOSSLESS = "speculative, all drafts rejected"

# Method name -> (decoder of student and teacher, options of generate)
METHODS: dict[str, tuple[Callable[[NativeT5, NativeT5, int], Any], dict[str, Any]]] = {
    "student alone": (lambda s, t, n: SingleModelDecoder(s, num_threads=n), {}),
    TEACHER: (lambda s, t, n: SingleModelDecoder(t, role="teacher", num_threads=n), {}),
    WHEELS: (lambda s, t, n: TrainingWheelsDecoder(s, t, num_threads=n), {"max_teacher_fraction": 0.1}),
    LOSSLESS: (lambda s, t, n: SpeculativeDecoder(s, t, lenience=1.0, num_threads=n), {}),
    "speculative, all drafts accepted": (lambda s, t, n: SpeculativeDecoder(s, t, lenience=0.0, num_threads=n), {}),
    "BiLD, drafts of 5": (
        lambda s, t, n: BigLittleDecoder(s, t, fallback_threshold=0.0, max_draft_length=5, num_threads=n),
        {},
    ),
    "interleaved (SKD)": (lambda s, t, n: InterleavedDecoder(s, t, num_threads=n), {}),
}
PAIRS = [(FLAN_T5_SMALL, FLAN_T5_BASE), (TINY_STUDENT, TINY_TEACHER)]


def measure(how: How) -> Iterator[Row]:
    """Kind "two models"."""
    for shapes in PAIRS:
        yield from _pair(how, *((SMOKE, SMOKE) if how.tiny else shapes), rounds=41 if shapes[1].d_model < 512 else 7)


def _pair(how: How, small: T5Shape, large: T5Shape, rounds: int) -> Iterator[Row]:
    student = asking_student(small).native("student")
    teacher = teacher_without(large, tau=small.vocab_size - 1).native("teacher")
    call = {"input_ids": source(small, SOURCE_TOKENS), "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    contestants = {
        name: partial(make(student, teacher, how.threads).generate, **call, **options)
        for name, (make, options) in METHODS.items()
    }
    taken = take_turns(contestants, how.rounds(rounds))
    for method, recorded in taken.items():
        out = recorded.results[0]
        passes = [r.timings.encode + r.timings.student + r.timings.teacher for r in recorded.results]
        case = {"student": small.name, "teacher": large.name, "method": method}
        seen = {
            "threads": how.threads,
            "new_tokens": int(out.lengths[0]),
            "student_passes": out.student_passes,
            "teacher_passes": out.teacher_passes,
            # of the wall clock around generate(), Python included
            "overhead": median(1 - inside / wall for inside, wall in zip(passes, recorded.seconds)),
            # of the native call
            "loop_overhead": median(r.timings.other / r.timings.total for r in recorded.results),
        }
        yield Row("two models", case, recorded.seconds, seen)
        assert seen["new_tokens"] == NEW_TOKENS
        assert method != WHEELS or int(out.teacher_calls[0]) == NEW_TOKENS // 10
        # The smoke models' passes take microseconds.
        assert how.tiny or seen["loop_overhead"] <= 0.03, f"{method}: the loop took {seen['loop_overhead']:.1%}"
    assert taken[LOSSLESS].results[0].sequences.tolist() == taken[TEACHER].results[0].sequences.tolist()
