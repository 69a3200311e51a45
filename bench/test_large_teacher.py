"""A large teacher in int8 and students that really help: lossless speculative decoding and Training Wheels at 10 %.

The models are random and of full size, but their choices are arranged (`bench.models.walker`, `asking_student`): one
student agrees with the teacher on 80 % of the teacher's own tokens, the other asks for one token in ten. Hugging
Face runs the first pair in fp32, with fewer tokens because it is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.models import FLAN_T5_LARGE, FLAN_T5_SMALL, SMOKE, T5_TINY, asking_student, path, source, strays, walker
from bench.replay import replay_timer, report
from kdtw_fast import SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.peers import Decoded, hugging_face
from kdtw_fast.shapes import T5Shape

SOURCE_TOKENS = NEW_TOKENS = 64
THEIR_NEW_TOKENS = 16
AGREEMENT, DRAFT_LENGTH, USE, DTYPE = 0.8, 5, 0.1, "int8"
TEACHER, LOSSLESS = "teacher alone", f"speculative, K = {DRAFT_LENGTH}, {100 * AGREEMENT:.0f} % agreement"
WHEELS = f"Training Wheels, {100 * USE:.0f} % teacher"
WHEELS_TINY = f"{WHEELS}, tiny student"
THEIR_TEACHER, THEIR_ASSISTED = "Hugging Face fp32, teacher alone", "Hugging Face fp32, assisted"
METHODS = (TEACHER, LOSSLESS, WHEELS, WHEELS_TINY, THEIR_TEACHER, THEIR_ASSISTED)


@dataclass(frozen=True)
class Turns:
    teacher: T5Shape
    students: dict[str, T5Shape]
    recorded: dict[str, Recorded]


@pytest.fixture(scope="module")
def taken(tiny: bool, rounds: int | None, threads: int) -> Turns:
    large, small, least = (SMOKE, SMOKE, SMOKE) if tiny else (FLAN_T5_LARGE, FLAN_T5_SMALL, T5_TINY)
    way = path(large.vocab_size)
    stray = strays(len(way), NEW_TOKENS, 1 - AGREEMENT)
    teacher, agreeing = walker(large, way, seed=0), walker(small, way, seed=1, strays=stray)
    ids = source(large, SOURCE_TOKENS)
    native = teacher.native("teacher", DTYPE)
    decoders = {
        TEACHER: SingleModelDecoder(native, role="teacher", num_threads=threads),
        LOSSLESS: SpeculativeDecoder(
            agreeing.native("student", DTYPE), native, draft_length=DRAFT_LENGTH, num_threads=threads
        ),
        WHEELS: TrainingWheelsDecoder(asking_student(small).native("student", DTYPE), native, num_threads=threads),
        WHEELS_TINY: TrainingWheelsDecoder(asking_student(least).native("student", DTYPE), native, num_threads=threads),
    }
    contestants: dict[str, Callable[[], Any]] = {
        name: partial(
            decoder.generate,
            ids,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            **({"max_teacher_fraction": USE} if name in (WHEELS, WHEELS_TINY) else {}),
        )
        for name, decoder in decoders.items()
    }
    reference, assistant = teacher.hugging_face(), agreeing.hugging_face()
    assistant.generation_config.num_assistant_tokens = DRAFT_LENGTH
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    theirs = {
        THEIR_TEACHER: hugging_face(reference, THEIR_NEW_TOKENS, threads),
        THEIR_ASSISTED: hugging_face(reference, THEIR_NEW_TOKENS, threads, assistant_model=assistant),
    }
    contestants |= {name: partial(generate, ids) for name, generate in theirs.items()}
    students = {LOSSLESS: small, WHEELS: small, WHEELS_TINY: least, THEIR_ASSISTED: small}
    return Turns(large, students, take_turns(contestants, rounds or 5))


def tokens(result: Any) -> list[int]:
    """Output ids of the one row."""
    return result.ids[0] if isinstance(result, Decoded) else result.output_ids[0]


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("method", METHODS)
def test_decoding_with_a_large_teacher(benchmark: BenchmarkFixture, taken: Turns, threads: int, method: str) -> None:
    recorded = taken.recorded[method]
    benchmark.group = f"teacher of {taken.teacher.name}"
    report(benchmark, recorded.seconds)
    out = recorded.results[0]
    written, alone = tokens(out), tokens(taken.recorded[TEACHER].results[0])
    student = taken.students.get(method)
    benchmark.extra_info |= {
        "kind": "large teacher",
        "method": method,
        "dtype": DTYPE,
        "teacher": taken.teacher.name,
        "student": None if student is None else student.name,
        "threads": threads,
        "source_tokens": SOURCE_TOKENS,
        "new_tokens": len(written),
    }
    if isinstance(out, Decoded):
        assert len(written) == THEIR_NEW_TOKENS
    else:
        phases = {name: getattr(out.timings, name) for name in ("encode", "student", "teacher")}
        benchmark.extra_info["shares"] = {name: spent / out.timings.total for name, spent in phases.items()}
        assert len(written) == NEW_TOKENS
    if method in (LOSSLESS, THEIR_TEACHER, THEIR_ASSISTED):
        assert written == alone[: len(written)]
    if method == LOSSLESS:  # each corrected token is one on which the two disagree
        corrected = int((out.owners == 4).sum())
        assert corrected <= round((1 - AGREEMENT) * NEW_TOKENS)
        assert corrected >= round((1 - AGREEMENT) * NEW_TOKENS) / 2  # some fall where the teacher writes anyway
    if method in (WHEELS, WHEELS_TINY):
        assert int(out.teacher_calls[0]) == int(USE * NEW_TOKENS)
