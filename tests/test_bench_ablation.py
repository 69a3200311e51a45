"""Runs at equal use: what lies on the base's line is no better than it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.ablation import Curve, at_equal_use


def made(budgets: list[float], use: list[float], quality: list[float]) -> Curve:
    drawn = [np.tile(values, (5, 1)) for values in (use, quality)]
    return Curve(budgets, np.array(use), drawn[0], np.array(quality), drawn[1])


def test_quality_is_compared_at_the_use_that_there_was() -> None:
    base = made([0.0, 0.5], [0.0, 0.4, 1.0], [10.0, 20.0, 26.0])
    same_line = made([0.0, 0.1, 0.5], [0.0, 0.2, 0.7, 1.0], [9.0, 15.0, 23.0, 26.0])
    assert at_equal_use(same_line, base).value == pytest.approx(0)  # "no" is not counted
    better = made([0.1], [0.3, 1.0], [18.5, 26.0])
    found = at_equal_use(better, base)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
