"""Uniform random numbers that depend on nothing but their key: Philox4x32-10.

The Python twin of `csrc/core/philox.h`. A number is a pure function of (seed, row, position, stream), so a
row samples the same alone, in any batch and on any number of threads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", and its Random123 library.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_ROUNDS = 10

STREAM_STUDENT = 0
STREAM_TEACHER = 1
STREAM_ACCEPT = 2
STREAM_CALL = 3

Words = npt.NDArray[np.uint64]


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of `counter` [..., 4] under `key` [..., 2]; returns four 32-bit words [..., 4].

    The leading axes broadcast. Values are taken modulo 2^32.
    """
    counter_words = np.asarray(counter, dtype=np.uint64) & _LOW
    key_words = np.asarray(key, dtype=np.uint64) & _LOW
    x0, x1, x2, x3 = np.moveaxis(counter_words, -1, 0)
    k0, k1 = np.moveaxis(key_words, -1, 0)
    for _ in range(_ROUNDS):
        # 32-bit factors: the 64-bit products are exact.
        product0 = _MULTIPLIERS[0] * x0
        product1 = _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (product1 >> _WORD) ^ x1 ^ k0,
            product1 & _LOW,
            (product0 >> _WORD) ^ x3 ^ k1,
            product0 & _LOW,
        )
        k0 = (k0 + _KEY_STEPS[0]) & _LOW
        k1 = (k1 + _KEY_STEPS[1]) & _LOW
    return np.stack(np.broadcast_arrays(x0, x1, x2, x3), axis=-1).astype(np.uint32)


def uniform(seed: int, row: npt.ArrayLike, position: npt.ArrayLike, stream: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), multiples of 2^-53, one for each (row, position, stream).

    `seed` and `row` are unsigned 64-bit, `position` and `stream` unsigned 32-bit; row, position and stream
    broadcast. key = (seed low, seed high), counter = (position, row low, row high, stream), and the first
    two words of the block give u = ((x0 >> 5) 2^26 + (x1 >> 6)) / 2^53.

    Raises ValueError where a value does not fit its width.
    """
    seed_words = _checked("seed", seed, 64)
    rows = _checked("row", row, 64)
    positions = _checked("position", position, 32)
    streams = _checked("stream", stream, 32)
    counter = np.stack(np.broadcast_arrays(positions, rows & _LOW, rows >> _WORD, streams), axis=-1)
    key = np.stack([seed_words & _LOW, seed_words >> _WORD], axis=-1)
    words = philox4x32(counter, key).astype(np.uint64)
    high = words[..., 0] >> np.uint64(5)
    low = words[..., 1] >> np.uint64(6)
    return (high * np.uint64(1 << 26) + low).astype(np.float64) / float(1 << 53)


def _checked(name: str, value: npt.ArrayLike, bits: int) -> Words:
    values = np.asarray(value)
    if values.dtype.kind not in "iu" and values.dtype != object:
        raise TypeError(f"{name} must be an integer or integers, got {value!r}")
    for item in (values.min(initial=0), values.max(initial=0)):
        if not 0 <= int(item) < (1 << bits):
            raise ValueError(f"{name} must lie in 0 ... 2^{bits} - 1, got {int(item)}")
    return values.astype(np.uint64)
