"""Hands pytest-benchmark the times that `kdtw_fast.paired_timing` recorded in turns."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

_replayed = 0.0


def replay_timer() -> float:
    """The clock that pytest-benchmark reads: it moves by recorded seconds only."""
    return _replayed


def report(benchmark: BenchmarkFixture, seconds: list[float]) -> None:
    """Hands recorded times to pytest-benchmark; the test must be marked ``benchmark(timer=replay_timer)``."""
    turns = iter(seconds)

    def replay() -> None:
        global _replayed
        _replayed += next(turns)

    benchmark.pedantic(replay, rounds=len(seconds))
