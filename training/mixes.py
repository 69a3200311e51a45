"""Mixes: what a student of n teachers is told, a budget for each. Of one teacher, the six budgets. And in which words.

Teachers are numbered 1 to n as their <tau>s; the last is the judge: the student imitates it where it does not ask, its
trajectories are the oracle's, and its log-likelihoods are the reward. Depends on budgets only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from kdtw_fast.budgets import BUDGETS, Budget, resolve_budget, worded_prompt

Mix = tuple[Budget, ...]


def chosen_budgets(phrases: Sequence[str] = ()) -> tuple[Budget, ...]:
    """The budgets of these phrases, in the table's order; all six without any. Raises as `resolve_budget` does."""
    named = {resolve_budget(phrase) for phrase in phrases}
    return tuple(budget for budget in BUDGETS if budget in named) or BUDGETS


def mixes(experts: int, budgets: Sequence[Budget] = BUDGETS) -> list[Mix]:
    """All mixes of `experts` of the budgets that sum to 1 at most, in the table's order."""
    return [mix for mix in product(budgets, repeat=experts) if sum(budget.fraction for budget in mix) <= 1 + 1e-9]


def told(mix: Mix) -> str | list[str]:
    """A mix as decoders take it."""
    return mix[0].phrase if len(mix) == 1 else [budget.phrase for budget in mix]


def measured(experts: int, budgets: Sequence[Budget] = BUDGETS) -> list[Mix]:
    """The mixes that validation measures: a budget for one teacher alone, or the same for all of them."""

    def few(mix: Mix) -> bool:
        return len(set(mix)) == 1 or sum(budget.fraction > 0 for budget in mix) == 1

    return [mix for mix in mixes(experts, budgets) if few(mix)]


def moderate(experts: int, budgets: Sequence[Budget] = BUDGETS) -> Mix:
    """The mix that samples are shown at: a moderate budget for the judge, light ones for the others, or the nearest."""
    wanted = [resolve_budget(phrase).fraction for phrase in ["light"] * (experts - 1) + ["moderate"]]

    def distance(mix: Mix) -> float:
        return sum(abs(budget.fraction - fraction) for budget, fraction in zip(mix, wanted, strict=True))

    return min(mixes(experts, budgets), key=distance)


def fractions(experts: int, budgets: Sequence[Budget] = BUDGETS) -> torch.Tensor:
    """The mixes' fractions of output tokens, float32 [mixes, experts]."""
    return torch.tensor([[budget.fraction for budget in mix] for mix in mixes(experts, budgets)])


def budget_numbers(experts: int, budgets: Sequence[Budget] = BUDGETS) -> torch.Tensor:
    """The mixes as numbers of budgets in the table, int64 [mixes, experts]."""
    return torch.tensor([[BUDGETS.index(budget) for budget in mix] for mix in mixes(experts, budgets)])


class Instructions:
    """What a run tells its student: each mix of its budgets in each wording. An episode carries the number of one.

    Number i is mix i % M of M in wording i // M, so that what a mix means is said once more for each wording.

    Args:
        template: wording 0, the student's prompt with "{budget}" in it.
        experts: n, how many teachers the student has.
        paraphrases: further wordings, each with "{budget}" or "{percent}" in it (see `wording_place`).
        phrases: of the budgets that mixes are made of; none = all six.

    Attributes:
        budgets: those of `phrases`, in the table's order.
        wordings: `template` and the paraphrases.
        texts: one for each instruction, ready to stand before a source.
        fractions: float32 [instructions, n], of output tokens.
        budget_numbers: int64 [instructions, n], numbers of budgets in the table of all six.

    Raises ValueError for an unknown phrase, a wording with no place, or budgets that n teachers cannot have together.
    """

    def __init__(self, template: str, experts: int = 1, paraphrases: Sequence[str] = (), phrases: Sequence[str] = ()):
        self.budgets, self.wordings = chosen_budgets(phrases), (template, *paraphrases)
        found = mixes(experts, self.budgets)
        if not found:
            raise ValueError(
                f"budgets={[budget.phrase for budget in self.budgets]} of {experts} teachers always sum to more than "
                f"1; add a smaller budget"
            )
        self.texts = [worded_prompt(told(mix), wording) for wording in self.wordings for mix in found]
        self.fractions = fractions(experts, self.budgets).repeat(len(self.wordings), 1)
        self.budget_numbers = budget_numbers(experts, self.budgets).repeat(len(self.wordings), 1)
        self._numbers = {mix: number for number, mix in enumerate(found)}

    def number(self, mix: Mix, wording: int = 0) -> int:
        """The number of a mix in a wording; a mix of more than 1 counts as the first, the smallest there is."""
        return wording * len(self._numbers) + self._numbers.get(mix, 0)
