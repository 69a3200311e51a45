"""What every benchmark here is given, and what it yields."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class How:
    """How to measure.

    Args:
        tiny: on tiny models and in two rounds, which shows that a benchmark runs and measures nothing.
        asked: rounds of each contestant; None = as many as the benchmark thinks right.
        memory_rate: GB/s of the CUDA device, where bench/cuda.py knows none.
        threads: of benchmarks that do not compare numbers of threads.
    """

    tiny: bool = False
    asked: int | None = None
    memory_rate: float | None = None
    threads: int = min(2, os.cpu_count() or 1)

    def rounds(self, usual: int) -> int:
        """Turns of each contestant, where `usual` are right."""
        return self.asked or (2 if self.tiny else usual)


@dataclass(frozen=True)
class Row:
    """One contestant's seconds in each of its turns.

    Args:
        kind: which table it stands in.
        case: what tells it from the others of its kind.
        seconds: of each turn.
        found: what else was set or seen.
    """

    kind: str
    case: dict[str, Any]
    seconds: list[float]
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Kind and case in words."""
        return ", ".join([self.kind, *(f"{name} {value}" for name, value in self.case.items())])

    @property
    def median(self) -> float:
        """Median seconds of a turn."""
        return median(self.seconds)
