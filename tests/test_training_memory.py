"""Blocks of a training batch come from memory that the process keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Asks glibc itself how much the system mapped for one block: what a page fault costs, and whether one is counted,
# differs between kernels.
PROGRAM = """
import ctypes, sys, torch
from kdtw_fast.training.memory import keep_freed_memory

class Account(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
if mallinfo2 is None:
    print(0)
    sys.exit()
mallinfo2.restype = Account
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.set_num_threads(1)
before = mallinfo2().hblkhd
batch = torch.ones(8 << 20)  # 32 MiB
print(mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt is asked for it")
def test_a_large_block_is_not_mapped_anew() -> None:
    mapped = {
        mode: int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, check=True).stdout)
        for mode in ("plain", "kept")
    }
    if mapped["plain"] < 32 << 20:
        pytest.skip("another allocator than glibc's serves this process")
    assert mapped["kept"] == 0
