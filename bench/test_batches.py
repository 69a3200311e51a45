"""Throughput of a batch: 32 rows of one model, greedy, beside CTranslate2 at its best setting of one or two threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.models import FLAN_T5_SMALL, SMOKE, plain, source
from bench.replay import replay_timer, report
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.peers import CTranslate2, ctranslate2_beside, native
from kdtw_fast.profiling import OURS

ROWS, SOURCE_TOKENS, NEW_TOKENS = 32, 64, 64
DTYPES = ("fp32", "int8")
# CTranslate2's threads of one batch, and batches side by side
SETTINGS = {"1 thread": (1, 1), "2 threads": (2, 1), "2 workers": (1, 2)}
CONTESTANTS = [(OURS, "2 threads"), *(("CTranslate2", setting) for setting in SETTINGS)]


@pytest.fixture(scope="module")
def taken(tiny: bool, rounds: int | None, threads: int) -> dict[str, Recorded]:
    shape = SMOKE if tiny else FLAN_T5_SMALL
    model, ids = plain(shape), source(shape, SOURCE_TOKENS, ROWS)
    converted = CTranslate2(model.hugging_face())
    contestants: dict[str, Callable[[], Any]] = {}
    for dtype in DTYPES:
        contestants[f"{OURS} {dtype} 2 threads"] = partial(
            native(model.native("model", dtype), NEW_TOKENS, threads), ids
        )
        for setting, (own, workers) in SETTINGS.items():
            compute_type = ctranslate2_beside(dtype).split()[-1]
            contestants[f"CTranslate2 {dtype} {setting}"] = partial(
                converted.generate(NEW_TOKENS, min(own, threads), compute_type, min(workers, threads)), ids
            )
    return take_turns(contestants, rounds or 5)


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("system", "setting"), CONTESTANTS)
def test_batch(benchmark: BenchmarkFixture, taken: dict[str, Recorded], system: str, setting: str, dtype: str) -> None:
    recorded = taken[f"{system} {dtype} {setting}"]
    benchmark.group = f"{ROWS} rows, {dtype}"
    report(benchmark, recorded.seconds)
    tokens = recorded.results[0].ids
    benchmark.extra_info |= {
        "kind": "batch",
        "system": system,
        "setting": setting,
        "dtype": dtype,
        "rows": ROWS,
        "tokens": sum(map(len, tokens)),
    }
    assert [len(row) for row in tokens] == [NEW_TOKENS] * ROWS
    if dtype == "fp32":
        assert tokens == taken[f"{OURS} fp32 2 threads"].results[0].ids
