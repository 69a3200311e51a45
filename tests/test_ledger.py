"""The ledger against exact fractions: it means the decimal that the user wrote, at every prefix."""

from __future__ import annotations

from fractions import Fraction

import pytest

from kdtw_fast import _core

# As decimals that doubles do not hold exactly: the ledger must mean what the user wrote.
FRACTIONS = ["0", "0.05", "0.1", "0.29", "0.3", "0.333", "0.5", "0.7", "0.999", "1"]


@pytest.mark.parametrize("text", FRACTIONS)
def test_ledger_allows_what_the_exact_fraction_allows(text: str) -> None:
    exact, ledger = Fraction(text), _core.Ledger(None, float(text))
    for position in range(400):
        for calls in range(0, position + 1, 7):
            assert ledger.allows(calls, position) == (calls + 1 <= exact * (position + 1)), (calls, position)


@pytest.mark.parametrize("text", FRACTIONS)
def test_no_prefix_exceeds_a_ledger_that_is_used_whenever_it_allows(text: str) -> None:
    exact, ledger, calls = Fraction(text), _core.Ledger(None, float(text)), 0
    for position in range(1000):
        calls += ledger.allows(calls, position)
        assert calls <= exact * (position + 1)
    assert calls == exact * 1000 // 1  # and all of it can be used
