"""Measuring on a machine that drifts: the contestants take turns, and pytest-benchmark gets the recorded times.

A slow minute of a shared machine then hits all of them alike; ratios and medians stay meaningful.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture


@dataclass
class Recorded:
    """Seconds and result of each turn of one contestant."""

    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds of a turn."""
        return median(self.seconds)


def race(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Recorded]:
    """Runs all contestants once unmeasured, then in turns; the first one of a round changes from round to round."""
    names = list(contestants)
    recorded = {name: Recorded() for name in names}
    for contestant in contestants.values():
        contestant()
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            gc.collect()
            before = time.perf_counter()
            result = contestants[name]()
            recorded[name].seconds.append(time.perf_counter() - before)
            recorded[name].results.append(result)
    return recorded


_replayed = 0.0


def replay_timer() -> float:
    """The clock that pytest-benchmark reads: it moves by recorded seconds only."""
    return _replayed


def report(benchmark: BenchmarkFixture, recorded: Recorded) -> None:
    """Hands recorded times to pytest-benchmark; the test must be marked ``benchmark(timer=replay_timer)``."""
    turns = iter(recorded.seconds)

    def replay() -> None:
        global _replayed
        _replayed += next(turns)

    benchmark.pedantic(replay, rounds=len(recorded.seconds))


def memory_reader(threads: int, megabytes: int = 256) -> Callable[[], int]:
    """A contestant that reads ``megabytes`` of memory once with ``threads`` threads; returns the bytes."""
    block = torch.ones(megabytes * 2**18)

    def read() -> int:
        torch.set_num_threads(threads)
        block.sum()
        return block.nbytes

    return read
