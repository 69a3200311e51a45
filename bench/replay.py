"""Times that `kdtw_fast.paired_timing` recorded in turns, as pytest-benchmark takes them; and the machine's rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pytest_benchmark.fixture import BenchmarkFixture

from kdtw_fast.machine import GEMM_SIZE, READ_BYTES, gemm_rate, read_rate

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


def rates(threads: int, tiny: bool) -> dict[str, Callable[[], float]]:
    """Two contestants: bytes a second that the machine reads, and operations a second of its products."""
    read = partial(read_rate, threads, read_bytes=2**20 if tiny else READ_BYTES)
    return {f"read {threads}": read, f"gemm {threads}": partial(gemm_rate, threads, size=64 if tiny else GEMM_SIZE)}
