"""Which checkpoint to keep: the one that holds every budget and translates best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def largest_excess(table: Sequence[Mapping[str, Any]]) -> float:
    """The largest |use achieved - use asked| of a table as `measure_budgets` returns it."""
    return max(abs(row["achieved"] - row["asked"]) for row in table)


def best_checkpoint(tables: Mapping[int, Sequence[Mapping[str, Any]]], tolerance: float = 0.03) -> int:
    """The key of the best table: of those that keep every budget within `tolerance`, the best mean ROUGE-2.

    Where none does, the one whose worst budget is missed least. Ties go to the smaller key. `tables` maps a number of
    batches to the table measured then. Raises ValueError without tables.
    """
    if not tables:
        raise ValueError("there is no table to choose from")

    def merit(index: int) -> tuple[bool, float, int]:
        table = tables[index]
        holds = largest_excess(table) <= tolerance + 1e-9
        rouge2 = sum(row["rouge2"] for row in table) / len(table)
        return holds, rouge2 if holds else -largest_excess(table), -index

    return max(tables, key=merit)
