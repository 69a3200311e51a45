"""Philox against Random123's published vectors, and the properties of `uniform` that decoding relies on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdtw_fast.random import STREAM_ACCEPT, STREAM_CALL, STREAM_STUDENT, STREAM_TEACHER, philox4x32, uniform

# Random123's kat_vectors, "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    assert philox4x32(words(counter), words(key)).tolist() == words(expected)


def test_uniform_packs_key_counter_and_word_as_written() -> None:
    """The third known answer read through `uniform`: counter (position, row lo, row hi, stream)."""
    value = uniform(seed=0x299F31D0_A4093822, row=0x13198A2E_85A308D3, position=0x243F6A88, stream=0x03707344)
    assert float(value) == ((0xD16CFE09 >> 5) * 2**26 + (0x94FDCCEB >> 6)) / 2**53


def test_broadcasting_equals_one_by_one() -> None:
    rows = np.array([0, 1, 7, 2**32, 2**63 + 5], dtype=np.uint64)
    positions = np.arange(4)
    together = uniform(11, rows[:, None], positions, STREAM_TEACHER)
    assert together.shape == (5, 4)
    for r, row in enumerate(rows):
        for p in range(4):
            assert together[r, p] == uniform(11, int(row), p, STREAM_TEACHER)


def test_every_part_of_the_key_matters() -> None:
    base = float(uniform(5, 6, 7, STREAM_STUDENT))
    others = [
        uniform(5 + 2**32, 6, 7, STREAM_STUDENT),
        uniform(4, 6, 7, STREAM_STUDENT),
        uniform(5, 6 + 2**32, 7, STREAM_STUDENT),
        uniform(5, 5, 7, STREAM_STUDENT),
        uniform(5, 6, 8, STREAM_STUDENT),
        uniform(5, 6, 7, STREAM_TEACHER),
        uniform(5, 6, 7, STREAM_ACCEPT),
        uniform(5, 6, 7, STREAM_CALL),
    ]
    assert len({base, *map(float, others)}) == 9


@pytest.mark.parametrize("stream", [STREAM_STUDENT, STREAM_TEACHER, STREAM_ACCEPT, STREAM_CALL])
def test_uniform_over_rows_and_over_positions(stream: int) -> None:
    over_rows = uniform(3, np.arange(20_000), 9, stream)
    over_positions = uniform(3, 9, np.arange(20_000), stream)
    for values in (over_rows, over_positions):
        assert values.min() >= 0.0 and values.max() < 1.0
        assert stats.kstest(values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 0, 0, 0), "seed must lie in 0 ... 2^64 - 1, got -1"),
        ((2**64, 0, 0, 0), f"got {2**64}"),
        ((0, -2, 0, 0), "row must lie in 0 ... 2^64 - 1, got -2"),
        ((0, 0, 2**32, 0), f"position must lie in 0 ... 2^32 - 1, got {2**32}"),
    ],
)
def test_out_of_range_is_refused(arguments: tuple[int, int, int, int], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        uniform(*arguments)
    assert named in str(caught.value)


def test_a_float_seed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"seed must be an integer or integers, got 1\.5"):
        uniform(1.5, 0, 0, 0)  # type: ignore[arg-type]
