"""Memory that a training batch frees stays with the process."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from kdtw_fast.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.set_num_threads(1)
def batch():
    for _ in range(8):
        torch.ones(8 << 20)  # 32 MiB
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt is asked for it")
def test_a_batch_does_not_take_the_pages_of_the_last_one_anew() -> None:
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, check=True).stdout)
        for mode in ("plain", "kept")
    }
    pages = 4 * 8 * (32 << 20) // resource.getpagesize()
    assert faults["plain"] > pages / 1024  # huge pages at most: each block was taken anew
    assert faults["kept"] < pages / 1024 / 2
