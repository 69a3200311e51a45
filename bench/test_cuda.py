"""Every method on a CUDA device, batch 1: FLAN-T5-small's and XL's shapes, beside the peers and what bytes must take.

No GPU has run it yet. Needs a CUDA device; with --tiny, where there is none, the simulated one shows that it runs.
Timed by CUDA events where torch has CUDA, else by the wall clock: calls end with a wait for the device, so that both
hold the whole call. The roof is the bytes of the passes that were made over the device's memory rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import kdtw_fast
from bench.models import FLAN_T5_SMALL, FLAN_T5_XL, SMOKE, asking_student, source, teacher_without
from bench.replay import replay_timer, report
from bench.test_two_models import METHODS, NEW_TOKENS, SOURCE_TOKENS, WHEELS
from kdtw_fast.paired_timing import Recorded, take_turns, wall_clock
from kdtw_fast.peers import CTranslate2, Decoded, has_ctranslate2, hugging_face
from kdtw_fast.roofline import decoder_pass, memory_rate
from kdtw_fast.shapes import T5Shape

DTYPES = ("fp16", "int8")
PEERS = ("Hugging Face fp16, teacher alone", "Hugging Face fp16, assisted", "CTranslate2 float16, teacher alone")


@dataclass(frozen=True)
class Place:
    """A device by name ("cuda:0") and by its maker, and the bytes that its memory gives a second; None: not known."""

    device: str
    name: str
    rate: float | None


@pytest.fixture(scope="module")
def place(tiny: bool, request: pytest.FixtureRequest) -> Iterator[Place]:
    cuda = kdtw_fast.build_info()["cuda"]
    there = cuda is not None and cuda["devices"]
    if not there and not tiny:
        pytest.skip("there is no CUDA device here; --tiny shows on the simulated one that this benchmark runs")
    if not there:
        from gpu_proof.build import build_simulated

        kdtw_fast._core.use_cuda_library(str(build_simulated()))
        yield Place("cuda:0", "simulated", None)
        if cuda is not None:  # the build's own library
            kdtw_fast._core.use_cuda_library("")
        return
    name = cuda["devices"][0]
    gb_per_s = request.config.getoption("--memory-rate")
    yield Place("cuda:0", name, memory_rate(name) if gb_per_s is None else 1e9 * gb_per_s)


@dataclass(frozen=True)
class Turns:
    place: Place
    dtype: str
    student: T5Shape
    teacher: T5Shape
    recorded: dict[str, Recorded]


@pytest.fixture(scope="module", params=DTYPES)
def taken(request: pytest.FixtureRequest, place: Place, tiny: bool, rounds: int | None) -> Turns:
    small, large = (SMOKE, SMOKE) if tiny else (FLAN_T5_SMALL, FLAN_T5_XL)
    asking, asked = asking_student(small), teacher_without(large, tau=small.vocab_size - 1)
    student, teacher = (m.native(n, request.param, place.device) for m, n in ((asking, "student"), (asked, "teacher")))
    ids, length = (source(small, 8), 3) if tiny else (source(small, SOURCE_TOKENS), NEW_TOKENS)
    contestants: dict[str, Callable[[], Any]] = {}
    for name, (make, options) in METHODS.items():
        decoder = make(student, teacher, 1)
        contestants[name] = partial(decoder.generate, ids, max_new_tokens=length, min_new_tokens=length, **options)
    theirs = _peers(asking, asked, length) if torch.cuda.is_available() else {}
    contestants |= {name: partial(generate, ids) for name, generate in theirs.items()}
    clock = _by_events if torch.cuda.is_available() else wall_clock
    return Turns(place, request.param, small, large, take_turns(contestants, rounds or 11, clock=clock))


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


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("method", [*METHODS, *PEERS])
def test_decoding_on_a_device(benchmark: BenchmarkFixture, taken: Turns, method: str) -> None:
    if method not in taken.recorded:
        pytest.skip("this peer is not installed here, or torch has no CUDA")
    recorded = taken.recorded[method]
    out = recorded.results[0]
    tokens = len(out.ids[0]) if isinstance(out, Decoded) else int(out.lengths[0])
    benchmark.group = f"{taken.place.name}, {taken.student.name} + {taken.teacher.name}, {taken.dtype}"
    report(benchmark, recorded.seconds)
    benchmark.extra_info |= {
        "kind": "cuda",
        "method": method,
        "device": taken.place.name,
        "dtype": taken.dtype,
        "student": taken.student.name,
        "teacher": taken.teacher.name,
        "source_tokens": SOURCE_TOKENS,
        "new_tokens": tokens,
        "roof": _roof(taken, method, out),
    }
    if method == WHEELS:
        assert int(out.teacher_calls[0]) == tokens // 10


def _roof(taken: Turns, method: str, out: Any) -> float | None:
    """Seconds that the bytes of the passes take at least; None where the rate or the passes are not known."""
    if taken.place.rate is None or isinstance(out, Decoded):
        return None
    passes = [(taken.student, out.student_passes), (taken.teacher, out.teacher_passes)]
    half = int(out.lengths[0]) // 2
    moved = sum(n * decoder_pass(shape, half, SOURCE_TOKENS, taken.dtype).total for shape, n in passes)
    return moved / taken.place.rate
