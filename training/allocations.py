"""What a student of n teachers is told: a budget for each of them, an allocation, in some wording.

Teachers are numbered 1 to n as their <tau>s; the last is the judge: the student imitates it where it does not ask, its
trajectories are the oracle's, and its log-likelihoods are the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from kdtw_fast.budgets import BUDGETS, Budget, resolve_budget, worded_prompt

Allocation = tuple[Budget, ...]


def allocations(teachers: int, budgets: Sequence[Budget] = BUDGETS) -> list[Allocation]:
    """All allocations of the budgets to so many teachers that sum to 1 at most, in the table's order."""
    return [found for found in product(budgets, repeat=teachers) if sum(one.fraction for one in found) <= 1 + 1e-9]


def as_option(allocation: Allocation) -> str | dict[int, str]:
    """An allocation as decoders take it: `budget=…`, of several teachers by their numbers."""
    return allocation[0].phrase if len(allocation) == 1 else {k: one.phrase for k, one in enumerate(allocation, 1)}


def measured(teachers: int, budgets: Sequence[Budget] = BUDGETS) -> list[Allocation]:
    """Those that validation measures: a budget for one teacher alone, or the same for all of them."""
    return [
        found
        for found in allocations(teachers, budgets)
        if len(set(found)) == 1 or sum(budget.fraction > 0 for budget in found) == 1
    ]


def moderate(teachers: int, budgets: Sequence[Budget] = BUDGETS) -> Allocation:
    """The one that samples are shown at: moderate for the judge, light for the others, or what is nearest to that."""
    wanted = [resolve_budget(phrase).fraction for phrase in ["light"] * (teachers - 1) + ["moderate"]]
    return min(
        allocations(teachers, budgets), key=lambda found: sum(abs(b.fraction - f) for b, f in zip(found, wanted))
    )


class Instructions:
    """What a run tells its student: each allocation of its budgets in each wording. An episode carries one's number.

    Number i is allocation i % M of M in wording i // M.

    Args:
        template: wording 0, the student's prompt with "{budget}" in it.
        teachers: n, how many the student has.
        paraphrases: further wordings, each with "{budget}" or "{percent}" in it (see `wording_place`).
        phrases: of the budgets that allocations are made of; none = all six.

    Attributes:
        budgets: those of `phrases`, in the table's order.
        wordings: `template` and the paraphrases.
        texts: one for each instruction, ready to stand before a source.
        fractions: float32 [instructions, n], of output tokens.
        budget_numbers: int64 [instructions, n], numbers of budgets in the table of all six.

    Raises ValueError for an unknown phrase, a wording with no place, or budgets that n teachers cannot have together.
    """

    def __init__(self, template: str, teachers: int = 1, paraphrases: Sequence[str] = (), phrases: Sequence[str] = ()):
        named = {resolve_budget(phrase) for phrase in phrases}
        self.budgets = tuple(budget for budget in BUDGETS if budget in named) or BUDGETS
        self.wordings = (template, *paraphrases)
        found = allocations(teachers, self.budgets)
        if not found:
            raise ValueError(
                f"budgets={[budget.phrase for budget in self.budgets]} of {teachers} teachers always sum to more than "
                f"1; add a smaller budget"
            )
        self.texts = [worded_prompt(as_option(one), wording) for wording in self.wordings for one in found]
        self.fractions = torch.tensor([[b.fraction for b in one] for one in found]).repeat(len(self.wordings), 1)
        numbers = torch.tensor([[BUDGETS.index(b) for b in one] for one in found])
        self.budget_numbers = numbers.repeat(len(self.wordings), 1)
        self._numbers = {one: number for number, one in enumerate(found)}

    def number(self, allocation: Allocation, wording: int = 0) -> int:
        """An allocation's number in a wording; one that sums to more than 1 counts as the first, the smallest."""
        return wording * len(self._numbers) + self._numbers.get(allocation, 0)
