"""Every method on a CUDA device, batch 1: FLAN-T5-small's and XL's shapes, beside the peers and what bytes must take.

No GPU has run it yet. Needs a CUDA device; with --tiny, where there is none, the simulated one shows that it runs.
Timed by CUDA events where torch has CUDA, else by the wall clock: calls end with a wait for the device, so that both
hold the whole call. The roof is the bytes of the passes that were made over the device's memory rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import kdtw_fast
from bench.models import FLAN_T5_SMALL, FLAN_T5_XL, SMOKE, asking_student, source, teacher_without
from bench.rows import How, Row
from bench.two_models import METHODS, NEW_TOKENS, SOURCE_TOKENS, WHEELS
from gpu_proof.roofline import RATES, decoder_pass
from kdtw_fast.paired_timing import take_turns, wall_clock
from kdtw_fast.peers import CTranslate2, Decoded, has_ctranslate2, hugging_face
from kdtw_fast.shapes import T5Shape

DTYPES = ("fp16", "int8")
PEERS = ("Hugging Face fp16, teacher alone", "Hugging Face fp16, assisted", "CTranslate2 float16, teacher alone")


@dataclass(frozen=True)
class Place:
    """A device by name ("cuda:0") and by its maker, and the bytes that its memory gives a second; None: not known."""

    device: str
    name: str
    rate: float | None


def measure(how: How) -> Iterator[Row]:
    """Kind "cuda"."""
    cuda = kdtw_fast.build_info()["cuda"]
    if not (cuda and cuda["devices"]) and not how.tiny:
        print("there is no CUDA device here; --tiny shows on the simulated one that this benchmark runs")
        return
    with _place(how) as place:
        for dtype in DTYPES:
            yield from _methods(how, place, dtype)


@contextmanager
def _place(how: How) -> Iterator[Place]:
    """The first device; without one the simulated device."""
    cuda = kdtw_fast.build_info()["cuda"]
    if cuda and cuda["devices"]:
        name = cuda["devices"][0]
        known = (rate for words, rate in RATES.items() if all(word in name for word in words.split()))
        rate = how.memory_rate or next(known, None)
        yield Place("cuda:0", name, None if rate is None else 1e9 * rate)
        return
    from gpu_proof.build import build_simulated

    kdtw_fast._core.use_cuda_library(str(build_simulated()))
    try:
        yield Place("cuda:0", "simulated", None)
    finally:
        if cuda is not None:  # the build's own library
            kdtw_fast._core.use_cuda_library("")


def _methods(how: How, place: Place, dtype: str) -> Iterator[Row]:
    small, large = (SMOKE, SMOKE) if how.tiny else (FLAN_T5_SMALL, FLAN_T5_XL)
    asking, asked = asking_student(small), teacher_without(large, tau=small.vocab_size - 1)
    student, teacher = (m.native(n, dtype, place.device) for m, n in ((asking, "student"), (asked, "teacher")))
    ids, length = (source(small, 8), 3) if how.tiny else (source(small, SOURCE_TOKENS), NEW_TOKENS)
    contestants: dict[str, Callable[[], Any]] = {}
    for name, (make, options) in METHODS.items():
        decoder = make(student, teacher, 1)
        contestants[name] = partial(decoder.generate, ids, max_new_tokens=length, min_new_tokens=length, **options)
    theirs = _peers(asking, asked, length) if torch.cuda.is_available() else {}
    contestants |= {name: partial(generate, ids) for name, generate in theirs.items()}
    clock = _by_events if torch.cuda.is_available() else wall_clock
    for method, recorded in take_turns(contestants, how.rounds(11), clock=clock).items():
        out = recorded.results[0]
        tokens = len(out.ids[0]) if isinstance(out, Decoded) else int(out.lengths[0])
        models = {"student": small.name, "teacher": large.name, "dtype": dtype}
        seen = {"new_tokens": tokens, "roof": _roof(place, (small, large), dtype, out)}
        yield Row("cuda", {"device": place.name, **models, "method": method}, recorded.seconds, seen)
        assert method != WHEELS or int(out.teacher_calls[0]) == tokens // 10


def _by_events(call: Callable[[], Any]) -> tuple[float, Any]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000, result


def _peers(student: Any, teacher: Any, length: int) -> dict[str, Any]:
    """Hugging Face's systems and CTranslate2 on the same device, in 16 bits."""
    model, assistant = (made.hugging_face().half().cuda() for made in (teacher, student))
    made: dict[str, Any] = {
        PEERS[0]: hugging_face(model, length, 1),
        PEERS[1]: hugging_face(model, length, 1, assistant_model=assistant),
    }
    if has_ctranslate2():
        import ctranslate2

        if ctranslate2.get_cuda_device_count():
            made[PEERS[2]] = CTranslate2(teacher.hugging_face()).generate(length, 1, "float16", device="cuda")
    return made


def _roof(place: Place, shapes: tuple[T5Shape, T5Shape], dtype: str, out: Any) -> float | None:
    """Seconds that the bytes of the passes take at least; None where the rate or the passes are not known."""
    if place.rate is None or isinstance(out, Decoded):
        return None
    half, passes = int(out.lengths[0]) // 2, (out.student_passes, out.teacher_passes)
    moved = sum(n * decoder_pass(shape, half, SOURCE_TOKENS, dtype).total for shape, n in zip(shapes, passes))
    return moved / place.rate
