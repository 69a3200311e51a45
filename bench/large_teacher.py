"""A large teacher in int8 and students that really help: lossless speculative decoding and Training Wheels at 10 %.

The models are random and of full size, but their choices are arranged (`bench.models.walker`, `asking_student`): one
student agrees with the teacher on 80 % of the teacher's own tokens, the other asks for one token in ten. Hugging
Face runs the first pair in fp32, with fewer tokens because it is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench.models import FLAN_T5_LARGE, FLAN_T5_SMALL, SMOKE, T5_TINY, asking_student, path, source, strays, walker
from bench.rows import How, Row
from kdtw_fast import SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.paired_timing import take_turns
from kdtw_fast.peers import Decoded, hugging_face

SOURCE_TOKENS = NEW_TOKENS = 64
THEIR_NEW_TOKENS = 16
AGREEMENT, DRAFT_LENGTH, USE, DTYPE = 0.8, 5, 0.1, "int8"
TEACHER, LOSSLESS = "teacher alone", f"speculative, K = {DRAFT_LENGTH}, {100 * AGREEMENT:.0f} % agreement"
WHEELS = f"Training Wheels, {100 * USE:.0f} % teacher"
WHEELS_TINY = f"{WHEELS}, tiny student"
THEIR_TEACHER, THEIR_ASSISTED = "Hugging Face fp32, teacher alone", "Hugging Face fp32, assisted"


def measure(how: How) -> Iterator[Row]:
    """Kind "large teacher"."""
    large, small, least = (SMOKE, SMOKE, SMOKE) if how.tiny else (FLAN_T5_LARGE, FLAN_T5_SMALL, T5_TINY)
    way = path(large.vocab_size)
    stray = strays(len(way), NEW_TOKENS, 1 - AGREEMENT)
    teacher, agreeing = walker(large, way, seed=0), walker(small, way, seed=1, strays=stray)
    ids = source(large, SOURCE_TOKENS)
    native = teacher.native("teacher", DTYPE)
    student, asking, asking_tiny = (
        made.native("student", DTYPE) for made in (agreeing, asking_student(small), asking_student(least))
    )
    decoders = {
        TEACHER: SingleModelDecoder(native, role="teacher", num_threads=how.threads),
        LOSSLESS: SpeculativeDecoder(student, native, draft_length=DRAFT_LENGTH, num_threads=how.threads),
        WHEELS: TrainingWheelsDecoder(asking, native, num_threads=how.threads),
        WHEELS_TINY: TrainingWheelsDecoder(asking_tiny, native, num_threads=how.threads),
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
        THEIR_TEACHER: hugging_face(reference, THEIR_NEW_TOKENS, how.threads),
        THEIR_ASSISTED: hugging_face(reference, THEIR_NEW_TOKENS, how.threads, assistant_model=assistant),
    }
    contestants |= {name: partial(generate, ids) for name, generate in theirs.items()}
    students = {LOSSLESS: small, WHEELS: small, WHEELS_TINY: least, THEIR_ASSISTED: small}
    taken = take_turns(contestants, how.rounds(5))
    alone = _tokens(taken[TEACHER].results[0])
    for method, recorded in taken.items():
        out = recorded.results[0]
        written, theirs_ran = _tokens(out), isinstance(out, Decoded)
        seen = {
            "dtype": DTYPE,
            "teacher": large.name,
            "student": students[method].name if method in students else None,
            "threads": how.threads,
            "new_tokens": len(written),
        }
        if not theirs_ran:
            phases = {name: getattr(out.timings, name) for name in ("encode", "student", "teacher")}
            seen["shares"] = {name: spent / out.timings.total for name, spent in phases.items()}
        yield Row("large teacher", {"method": method}, recorded.seconds, seen)
        assert len(written) == (THEIR_NEW_TOKENS if theirs_ran else NEW_TOKENS)
        if method in (LOSSLESS, THEIR_TEACHER, THEIR_ASSISTED):
            assert written == alone[: len(written)]
        if method == LOSSLESS:  # each corrected token is one on which the two disagree
            corrected, apart = int((out.owners == 4).sum()), round((1 - AGREEMENT) * NEW_TOKENS)
            assert apart / 2 <= corrected <= apart  # some fall where the teacher writes anyway
        if method in (WHEELS, WHEELS_TINY):
            assert int(out.teacher_calls[0]) == int(USE * NEW_TOKENS)


def _tokens(result: Any) -> list[int]:
    """Output ids of the one row."""
    return result.ids[0] if isinstance(result, Decoded) else result.sequences[0, 1:].tolist()
