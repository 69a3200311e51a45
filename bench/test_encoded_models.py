"""BART's and NLLB's shapes with random weights, greedy, one row and 32: beside CTranslate2, in fp32 and int8."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.family_models import ENCODED_MODELS, EOS, Work, random_model
from bench.replay import rates, replay_timer, report
from kdtw_fast import NativeModel
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.peers import CTranslate2, native
from kdtw_fast.profiling import OURS
from kdtw_fast.shapes import BYTES

SOURCE_TOKENS, NEW_TOKENS = 64, 32
DTYPES, ROWS = ("fp32", "int8"), (1, 32)
CTRANSLATE2 = "CTranslate2"
# (threads of a batch, batches side by side) by rows, for each system
SETTINGS = {1: [(OURS, 1, 1), (OURS, 2, 1), (CTRANSLATE2, 1, 1), (CTRANSLATE2, 2, 1)]}
SETTINGS[32] = [*SETTINGS[1], (CTRANSLATE2, 1, 2)]
CASES = [
    (name, dtype, rows, *setting)
    for name in ENCODED_MODELS
    for dtype in DTYPES
    for rows in ROWS
    for setting in SETTINGS[rows]
]


@dataclass(frozen=True)
class Taken:
    name: str
    dtype: str
    rows: int
    work: Work
    recorded: dict[str, Recorded]


@pytest.fixture(scope="module")
def taken(request: pytest.FixtureRequest, tiny: bool, rounds: int | None) -> Iterator[Taken]:
    """The turns of a model in a format with so many rows."""
    name, dtype, rows = request.param
    model = random_model(name, tiny)
    work, vocabulary = Work.of(model), model.config.vocab_size
    packed = NativeModel.from_model(model, "model", dtype)
    converted = CTranslate2(model)
    del model
    gc.collect()
    ids = torch.randint(4, vocabulary, (rows, SOURCE_TOKENS), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = EOS
    contestants: dict[str, Callable[[], Any]] = {}
    most = os.cpu_count() or 1
    for system, threads, workers in SETTINGS[rows]:
        if threads * workers > most:
            continue
        if system == OURS:
            call = native(packed, NEW_TOKENS, threads)
        else:
            call = converted.generate(NEW_TOKENS, threads, {"fp32": "float32"}.get(dtype, dtype), workers)
        contestants[f"{system} {threads} {workers}"] = partial(call, ids)
    for threads in range(1, min(2, most) + 1):
        contestants |= rates(threads, tiny)
    yield Taken(name, dtype, rows, work, take_turns(contestants, rounds or 5))
    gc.collect()


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize(
    ("taken", "system", "threads", "workers"),
    [(case[:3], *case[3:]) for case in CASES],
    indirect=["taken"],
    ids=["-".join(map(str, case)) for case in CASES],
)
def test_encoded_model(benchmark: BenchmarkFixture, taken: Taken, system: str, threads: int, workers: int) -> None:
    if f"{system} {threads} {workers}" not in taken.recorded:
        pytest.skip(f"{threads * workers} threads are more than the processor has")
    recorded, work, rows = taken.recorded[f"{system} {threads} {workers}"], taken.work, taken.rows
    benchmark.group = f"{taken.name}, {taken.dtype}, {rows} rows"
    report(benchmark, recorded.seconds)
    read, gemm = (max(taken.recorded[f"{rate} {threads * workers}"].results) for rate in ("read", "gemm"))
    size = BYTES[taken.dtype]
    sources = rows * SOURCE_TOKENS
    least = max(work.read * size / read, 2 * work.read * sources / gemm)
    least += NEW_TOKENS * max(work.step * size / read, 2 * work.step * rows / gemm)
    tokens = recorded.results[0].ids
    benchmark.extra_info |= {
        "kind": "encoded model",
        "model": taken.name,
        "dtype": taken.dtype,
        "rows": rows,
        "system": system,
        "threads": threads,
        "workers": workers,
        "source_tokens": SOURCE_TOKENS,
        "tokens": sum(map(len, tokens)),
        "of_roof": least / recorded.median,
    }
    assert [len(row) for row in tokens] == [NEW_TOKENS] * rows
    expected = taken.recorded[f"{OURS} 1 1"].results[0].ids
    agree = sum(row == other for row, other in zip(tokens, expected))
    benchmark.extra_info["rows_as_ours"] = agree
    if taken.dtype == "fp32":  # random weights in fewer bits are another random model
        assert agree >= 0.9 * rows, f"{system} wrote other tokens in {rows - agree} of {rows} rows"
