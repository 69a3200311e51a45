"""Memory that one batch frees is kept for the next one.

glibc gives large blocks back to the system as soon as they are freed. A training pass on a CPU frees and takes the
same hundreds of megabytes again and again, and the system clears every page of them each time.
"""

from __future__ import annotations

import ctypes
import sys

# Of glibc's mallopt(3), and what they are set to, in bytes.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
KEPT = {_MMAP_THRESHOLD: 256 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20}


def keep_freed_memory() -> bool:
    """Have this process keep freed blocks of up to 256 MiB, and 1 GiB at its heap's end; False where glibc is not."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(name, size) == 1 for name, size in KEPT.items()]  # all of them, even where one is refused
    return all(taken)
