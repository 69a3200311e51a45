"""What this machine is and the most it can do: its processor and memory, and the roofs that passes are held against."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from kdtw_fast import _core

READ_BYTES = 256 << 20  # of the array that the reading roof is measured on
GEMM_SIZE = 1536


def machine() -> dict[str, Any]:
    """Processor, cores, memory, build and versions; not the machine's name."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "system": platform.system(),
        "build": _core.build_info(),
        "versions": {"python": platform.python_version()}
        | versions("kdtw_fast", "torch", "transformers", "ctranslate2"),
    }


def versions(*names: str) -> dict[str, str]:
    """Version by name of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name as Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    path = Path("/proc/self/status")  # getrusage also counts what a large parent had when it started this process
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_memory() -> int:
    """Bytes that new allocations can have without swapping."""
    return psutil.virtual_memory().available


@dataclass(frozen=True)
class Roof:
    """What the machine can do at most with so many threads: bytes per second read, fp32 operations per second."""

    threads: int
    read: float
    gemm: float

    @classmethod
    def measure(cls, threads: int, rounds: int = 3, read_bytes: int = READ_BYTES, size: int = GEMM_SIZE) -> Roof:
        """The best of a few rounds: reading an array natively and with torch, multiplying square matrices with torch.

        Args:
            threads: of everything.
            rounds: of each.
            read_bytes: size of the array; several times the last-level cache, or the cache is measured.
            size: of the matrices [size, size].
        """
        return cls(threads, read_rate(threads, rounds, read_bytes), gemm_rate(threads, rounds, size))

    def seconds(self, weight_bytes: float, flops: float) -> tuple[float, str]:
        """The least time that so many bytes and operations take, and what bounds it: "memory" or "compute"."""
        return max((weight_bytes / self.read, "memory"), (flops / self.gemm, "compute"))


def read_rate(threads: int, rounds: int = 1, read_bytes: int = READ_BYTES) -> float:
    """Bytes per second: the best of reading an array natively and of summing it with torch."""
    block = torch.ones(read_bytes // 4)
    return max(_core.read_rate(read_bytes, threads, rounds), block.nbytes / _best(threads, rounds, block.sum))


def gemm_rate(threads: int, rounds: int = 1, size: int = GEMM_SIZE) -> float:
    """fp32 operations per second of torch's product of two square matrices, the best of a few."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2.0 * size**3 / _best(threads, rounds, lambda: a @ b)


def _best(threads: int, rounds: int, run: Callable[[], Any]) -> float:
    """Least seconds of ``rounds`` runs by torch with so many threads, after one that is not counted."""
    with torch_threads(threads):
        times = []
        for _ in range(1 + rounds):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times[1:])


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs torch with so many threads, and then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
