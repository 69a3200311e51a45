"""One model, greedy, one row, every dtype, one thread and two: beside the peers and the rate of reading memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.models import FLAN_T5_SMALL, SMOKE, plain, source
from bench.replay import replay_timer, report
from kdtw_fast.machine import READ_BYTES, read_rate
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.peers import HUGGING_FACE, CTranslate2, Generate, ctranslate2_beside, hugging_face, native
from kdtw_fast.profiling import OURS
from kdtw_fast.shapes import BYTES, T5Shape

SOURCE_TOKENS = NEW_TOKENS = 64
THREADS = range(1, min(2, os.cpu_count() or 1) + 1)
DTYPES = ("fp32", "bf16", "int8")
# (system, dtype) of each contestant
SYSTEMS = [
    *((OURS, dtype) for dtype in DTYPES),
    (HUGGING_FACE, "fp32"),
    *((ctranslate2_beside(dtype), dtype) for dtype in ("fp32", "int8")),
]


@dataclass(frozen=True)
class Turns:
    shape: T5Shape
    recorded: dict[str, Recorded]

    def of(self, system: str, dtype: str, threads: int) -> Recorded:
        return self.recorded[f"{system} {dtype} {threads}"]

    def read_rate(self, threads: int) -> float:
        """Bytes per second that this machine read at best, in the same minutes and with as many threads."""
        return max(self.recorded[f"read {threads}"].results)


@pytest.fixture(scope="module")
def taken(tiny: bool, rounds: int | None) -> Turns:
    shape = SMOKE if tiny else FLAN_T5_SMALL
    model, ids = plain(shape), source(shape, SOURCE_TOKENS)
    ours = {dtype: model.native("model", dtype) for dtype in DTYPES}
    theirs = model.hugging_face()
    converted = CTranslate2(theirs)

    def make(system: str, dtype: str, threads: int) -> Generate:
        if system == OURS:
            return native(ours[dtype], NEW_TOKENS, threads)
        if system == HUGGING_FACE:
            return hugging_face(theirs, NEW_TOKENS, threads)
        return converted.generate(NEW_TOKENS, threads, system.split()[-1])

    contestants: dict[str, Callable[[], Any]] = {}
    for threads in THREADS:
        for system, dtype in SYSTEMS:
            contestants[f"{system} {dtype} {threads}"] = partial(make(system, dtype, threads), ids)
        contestants[f"read {threads}"] = partial(read_rate, threads, read_bytes=2**20 if tiny else READ_BYTES)
    return Turns(shape, take_turns(contestants, rounds or 11))


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("system", "dtype"), SYSTEMS)
def test_greedy_decoding(benchmark: BenchmarkFixture, taken: Turns, system: str, dtype: str, threads: int) -> None:
    recorded = taken.of(system, dtype, threads)
    benchmark.group = f"greedy, {taken.shape.name}, {threads} threads"
    report(benchmark, recorded.seconds)
    (tokens,) = recorded.results[0].ids
    (expected,) = taken.of(HUGGING_FACE, "fp32", threads).results[0].ids
    benchmark.extra_info |= {
        "kind": "one model",
        "system": system,
        "dtype": dtype,
        "shape": taken.shape.name,
        "threads": threads,
        "source_tokens": SOURCE_TOKENS,
        "new_tokens": len(tokens),
        "tokens_as_hugging_face": sum(a == b for a, b in zip(tokens, expected)),
        "read_gb_per_s": taken.read_rate(threads) / 1e9,
        "bytes_per_token": taken.shape.step_parameters * BYTES[dtype],
    }
    if system == OURS:
        seconds = sorted(result.decoder_seconds for result in recorded.results)[len(recorded.results) // 2]
        per_token = benchmark.extra_info["bytes_per_token"] * NEW_TOKENS
        benchmark.extra_info["gb_per_s"] = per_token / seconds / 1e9
    assert len(tokens) == NEW_TOKENS
    if dtype == "fp32":  # random weights in fewer bits are another random model
        assert tokens == expected, f"{system} wrote other tokens than Hugging Face: the systems do not do the same work"
