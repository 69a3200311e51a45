"""Which checkpoint to keep: the one that holds every budget and translates best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Table = Sequence[Mapping[str, Any]]


def largest_excess(table: Table) -> float:
    """The largest |use achieved - use asked| of a table as `measure_budgets` returns it."""
    return max(abs(row["achieved"] - row["asked"]) for row in table)


def rank(table: Table, tolerance: float = 0.03) -> tuple[float, ...]:
    """Larger is better: tables that keep every budget within `tolerance` by mean ROUGE-2, others below by excess."""
    excess = largest_excess(table)
    if excess > tolerance + 1e-9:
        return 0.0, -excess
    return 1.0, sum(row["rouge2"] for row in table) / len(table)
