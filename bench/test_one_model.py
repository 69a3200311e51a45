"""One model, greedy, batch 1, fp32: kdtw_fast beside Hugging Face and CTranslate2, and beside the memory's roof."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.models import FLAN_T5_SMALL, SMOKE, SYSTEMS, Shape, bytes_read_per_token, random_t5, source
from bench.race import Recorded, memory_reader, race, replay_timer, report

SOURCE_TOKENS = NEW_TOKENS = 64
READ = "memory read"


@dataclass(frozen=True)
class Race:
    shape: Shape
    threads: int
    recorded: dict[str, Recorded]

    @property
    def read_gb_per_s(self) -> float:
        """What this machine reads at best, in the same minutes and with as many threads."""
        return self.recorded[READ].results[0] / min(self.recorded[READ].seconds) / 1e9


@pytest.fixture(scope="module", params=range(1, min(2, os.cpu_count() or 1) + 1), ids=lambda n: f"{n}-threads")
def raced(request: pytest.FixtureRequest, tiny: bool, rounds: int | None) -> Iterator[Race]:
    shape, threads = SMOKE if tiny else FLAN_T5_SMALL, request.param
    model, ids = random_t5(shape), source(shape, SOURCE_TOKENS)
    systems = {name: make(model, NEW_TOKENS, threads) for name, make in SYSTEMS.items()}
    contestants = {name: (lambda run=run: run(ids)) for name, run in systems.items()}
    recorded = race({**contestants, READ: memory_reader(threads, 8 if tiny else 256)}, rounds or 11)
    yield Race(shape, threads, recorded)


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("system", SYSTEMS)
def test_greedy_decoding(benchmark: BenchmarkFixture, raced: Race, system: str) -> None:
    recorded = raced.recorded[system]
    benchmark.group = f"greedy, {raced.shape.name}, {raced.threads} threads"
    report(benchmark, recorded)
    tokens = recorded.results[0].ids
    agreed = sum(a == b for a, b in zip(tokens, raced.recorded["Hugging Face generate"].results[0].ids))
    benchmark.extra_info |= {
        "kind": "one model",
        "system": system,
        "shape": raced.shape.name,
        "threads": raced.threads,
        "source_tokens": SOURCE_TOKENS,
        "new_tokens": len(tokens),
        "tokens_as_hugging_face": agreed,
        "read_gb_per_s": raced.read_gb_per_s,
        "bytes_per_token": bytes_read_per_token(raced.shape),
    }
    seconds = sorted(result.decoder_seconds for result in recorded.results if result.decoder_seconds)
    if seconds:
        per_token = seconds[len(seconds) // 2] / NEW_TOKENS
        benchmark.extra_info["gb_per_s"] = bytes_read_per_token(raced.shape) / per_token / 1e9
    assert len(tokens) == NEW_TOKENS
    assert agreed == NEW_TOKENS, f"{system} wrote other tokens than Hugging Face: the systems do not do the same work"
