"""Single passes: what reading several tokens costs beside a step, and the encoder beside torch's products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.models import FLAN_T5_SMALL, SMOKE, plain
from bench.replay import replay_timer, report
from kdtw_fast import _core
from kdtw_fast.machine import GEMM_SIZE, gemm_rate
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.profiling import REPEATS

SOURCE_TOKENS, HISTORY, ENCODED_TOKENS = 64, 32, 512
DTYPES = ("fp32", "bf16", "int8")
LENGTHS = (1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def taken(tiny: bool, rounds: int | None, threads: int) -> dict[str, Recorded]:
    shape = SMOKE if tiny else FLAN_T5_SMALL
    contestants: dict[str, Callable[[], Any]] = {}
    for dtype in DTYPES:
        model = plain(shape).native("model", dtype)
        probe = _core.Probe(model.device, model.core, 1, SOURCE_TOKENS, HISTORY, max(LENGTHS), threads)
        for length in LENGTHS:
            contestants[f"catch-up {dtype} {length}"] = partial(probe.decode, length, 1, REPEATS)
            contestants[f"verification {dtype} {length}"] = partial(probe.decode, length, length, REPEATS)
        encoder = _core.Probe(model.device, model.core, 1, ENCODED_TOKENS, 0, 1, threads)
        contestants[f"encoder {dtype}"] = partial(encoder.encode, REPEATS)
    contestants["gemm"] = partial(gemm_rate, threads, size=64 if tiny else GEMM_SIZE)
    return take_turns(contestants, rounds or 15)


def seconds(recorded: Recorded) -> list[float]:
    """Seconds of the pass in each turn."""
    return [median(repeats) for repeats, _ in recorded.results]


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["catch-up", "verification"])
@pytest.mark.parametrize("length", LENGTHS)
def test_reading_several_tokens(
    benchmark: BenchmarkFixture,
    taken: dict[str, Recorded],
    tiny: bool,
    threads: int,
    kind: str,
    dtype: str,
    length: int,
) -> None:
    benchmark.group = f"{kind}, {dtype}"
    report(benchmark, seconds(taken[f"{kind} {dtype} {length}"]))
    benchmark.extra_info |= {"kind": kind, "dtype": dtype, "tokens": length, "threads": threads}
    _, operations = taken[f"{kind} {dtype} {length}"].results[0]
    shape, asked = SMOKE if tiny else FLAN_T5_SMALL, length if kind == "verification" else 1
    assert operations["head"][2] == 2 * asked * shape.vocab_size * shape.d_model


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoder(benchmark: BenchmarkFixture, taken: dict[str, Recorded], threads: int, dtype: str) -> None:
    benchmark.group = f"encoder, {ENCODED_TOKENS} tokens"
    recorded = taken[f"encoder {dtype}"]
    report(benchmark, seconds(recorded))
    flops = sum(cost[2] for cost in recorded.results[0][1].values())
    benchmark.extra_info |= {
        "kind": "encoder",
        "dtype": dtype,
        "tokens": ENCODED_TOKENS,
        "threads": threads,
        "gflop_per_s": flops / median(seconds(recorded)) / 1e9,
        "gemm_gflop_per_s": max(taken["gemm"].results) / 1e9,
    }
