"""Which checkpoint to keep: the one that holds every budget and translates best."""

from __future__ import annotations

from .trainer import Table, best_rouge2


def rank(table: Table, tolerance: float = 0.03) -> tuple[float, ...]:
    """Larger is better: tables that keep every budget within `tolerance` by mean ROUGE-2, others below by excess.

    Rows are those of `measure_budgets`; the excess is the largest |use achieved - use asked|, of any teacher.
    """
    used = [
        pair for row in table for pair in zip(*(row.get(f"{name}_of", [row[name]]) for name in ("achieved", "asked")))
    ]
    excess = max(abs(achieved - asked) for achieved, asked in used)
    if excess > tolerance + 1e-9:
        return 0.0, -excess
    return 1.0, *best_rouge2(table)
