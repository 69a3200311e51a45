"""Mixes: what a student of n teachers is told, a budget for each. Of one teacher, the six budgets.

Teachers are numbered 1 to n as their <tau>s; the last is the judge: the student imitates it where it does not ask, its
trajectories are the oracle's, and its log-likelihoods are the reward. Depends on budgets only.
"""

from __future__ import annotations

from itertools import product

import torch

from kdtw_fast.budgets import BUDGETS, Budget, resolve_budget

Mix = tuple[Budget, ...]


def mixes(experts: int) -> list[Mix]:
    """All mixes of `experts` budgets that sum to 1 at most, in the table's order; an episode has its mix's number."""
    return [mix for mix in product(BUDGETS, repeat=experts) if sum(budget.fraction for budget in mix) <= 1 + 1e-9]


def told(mix: Mix) -> str | list[str]:
    """A mix as decoders take it."""
    return mix[0].phrase if len(mix) == 1 else [budget.phrase for budget in mix]


def measured(experts: int) -> list[Mix]:
    """The mixes that validation measures: a budget for one teacher alone, or the same for all of them."""

    def few(mix: Mix) -> bool:
        return len(set(mix)) == 1 or sum(budget.fraction > 0 for budget in mix) == 1

    return [mix for mix in mixes(experts) if few(mix)]


def moderate(experts: int) -> Mix:
    """The mix that samples are shown at: a moderate budget for the judge, light ones for the others."""
    phrases = ["light"] * (experts - 1) + ["moderate"]
    return tuple(resolve_budget(phrase) for phrase in phrases)


def fractions(experts: int) -> torch.Tensor:
    """The mixes' fractions of output tokens, float32 [mixes, experts]."""
    return torch.tensor([[budget.fraction for budget in mix] for mix in mixes(experts)])


def budget_numbers(experts: int) -> torch.Tensor:
    """The mixes as numbers of budgets in the table, int64 [mixes, experts]."""
    return torch.tensor([[BUDGETS.index(budget) for budget in mix] for mix in mixes(experts)])
