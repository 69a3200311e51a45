"""What phase 2 makes its rewards with: statistics that normalise log-likelihoods, and a multiplier per budget."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdtw_fast.options import check_int, check_real

SMALLEST_DEVIATION = 1e-3


class RewardStatistics:
    """mu_r: mean log-likelihood of the teacher's tokens; sigma_r: deviation of that of the student's (paper, 2.4.2).

    Both are under the teacher. Older batches fade by `decay` in (0, 1] with each update; 1 weighs all tokens alike.
    Before the first token mu_r is 0 and sigma_r is 1.
    """

    def __init__(self, decay: float = 0.99):
        if not 0 < decay <= 1:
            raise ValueError(f"the decay of the reward statistics must be in (0, 1], got {decay}")
        self.decay = decay
        self.teacher = [0.0, 0.0]  # faded count and sum
        self.student = [0.0, 0.0, 0.0]  # faded count, sum and sum of squares

    def update(self, teacher_tokens: np.ndarray, student_tokens: np.ndarray) -> None:
        """Take in one batch: log-likelihoods of tokens that the teacher and that the student wrote, any number of each.

        Raises ValueError if one is not finite.
        """
        for name, found in (("teacher", teacher_tokens), ("student", student_tokens)):
            if not np.isfinite(found).all():
                raise ValueError(f"{int((~np.isfinite(found)).sum())} log-likelihoods of {name} tokens are not finite")
        teacher, student = teacher_tokens.astype(np.float64), student_tokens.astype(np.float64)
        self._fade(self.teacher, [teacher.size, teacher.sum()])
        self._fade(self.student, [student.size, student.sum(), (student**2).sum()])

    def _fade(self, sums: list[float], new: list[float]) -> None:
        sums[:] = [self.decay * old + float(value) for old, value in zip(sums, new, strict=True)]

    @property
    def mean(self) -> float:
        """mu_r."""
        count, total = self.teacher
        return total / count if count else 0.0

    @property
    def deviation(self) -> float:
        """sigma_r, at least 1e-3."""
        count, total, squares = self.student
        if not count:
            return 1.0
        return max(SMALLEST_DEVIATION, math.sqrt(max(0.0, squares / count - (total / count) ** 2)))

    def state_dict(self) -> dict[str, list[float]]:
        """The sums."""
        return {"teacher": list(self.teacher), "student": list(self.student)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take over saved sums."""
        self.teacher, self.student = list(state["teacher"]), list(state["student"])


@dataclass(eq=False)
class Lagrangian:
    """lambda of each budget: lambda <- clip(lambda + rate e, 0, cap), e the excess use (Eq. 10 and O_C, as corrected).

    Args:
        fractions: the budgets b.
        rate: eta, the step per unit of excess.
        cap: largest lambda.
        initial: lambda before the first update; one number for all budgets, or one for each.
        trailing: batches over which use is averaged, at least 1.
        proportional: adds proportional (e - e_before): a PI controller, which does not overshoot as eta alone does.
        derivative: adds derivative (e - 2 e_before + e_before_that).
        pooled: use is calls over tokens of all episodes together (as evaluation counts it), instead of the mean of each
            episode's fraction.
        fixed: lambda of every budget, never updated; None = learn it.

    Raises ValueError for values out of range.
    """

    fractions: Sequence[float]
    rate: float = 1e-2
    cap: float = 2.0
    initial: Sequence[float] = (0.0,)
    trailing: int = 8
    proportional: float = 0.0
    derivative: float = 0.0
    pooled: bool = False
    fixed: float | None = None

    def __post_init__(self) -> None:
        count = len(self.fractions)
        first = list(self.initial) * (count if len(self.initial) == 1 else 1)
        if len(first) != count:
            raise ValueError(f"initial has {len(first)} values for {count} budgets; give one, or one for each")
        if not self.cap > 0 or not all(0 <= value <= self.cap for value in first):
            raise ValueError(f"lambda lies between 0 and a positive cap, got initial={self.initial} and cap={self.cap}")
        check_int("trailing", self.trailing, 1)
        for name in ("rate", "proportional", "derivative", "fixed"):
            if getattr(self, name) is not None:
                check_real(name, getattr(self, name), 0.0)
        self.values = first if self.fixed is None else [self.fixed] * count
        # Per budget and batch: episodes, sum of their fractions, calls, tokens.
        self.seen: list[deque[tuple[float, ...]]] = [deque(maxlen=self.trailing) for _ in range(count)]
        self.errors: list[list[float]] = [[] for _ in range(count)]  # the last two excesses, newest first

    def use(self, budget: int) -> float | None:
        """Teacher use of budget number `budget` over the trailing batches; None before its first episode."""
        if not self.seen[budget]:
            return None
        episodes, fractions, calls, tokens = map(sum, zip(*self.seen[budget], strict=True))
        return calls / tokens if self.pooled else fractions / episodes

    def update(self, budgets: Sequence[int], calls: Sequence[int], lengths: Sequence[int]) -> None:
        """Take in a batch of episodes: budget number, teacher's tokens and length (at least 1) of each.

        The lambda of a budget without an episode in the batch stays.
        """
        for number, fraction in enumerate(self.fractions):
            own = [(c, n) for b, c, n in zip(budgets, calls, lengths, strict=True) if b == number]
            if not own:
                continue
            calls_sum, tokens = sum(c for c, _ in own), sum(n for _, n in own)
            self.seen[number].append((float(len(own)), sum(c / n for c, n in own), float(calls_sum), float(tokens)))
            use = self.use(number)
            assert use is not None
            self._step(number, use - fraction)

    def _step(self, number: int, excess: float) -> None:
        before = self.errors[number] or [excess]
        earlier = before[1] if len(before) > 1 else before[0]
        change = self.rate * excess + self.proportional * (excess - before[0])
        change += self.derivative * (excess - 2 * before[0] + earlier)
        if self.fixed is None:
            self.values[number] = min(self.cap, max(0.0, self.values[number] + change))
        self.errors[number] = [excess, before[0]]

    def state_dict(self) -> dict[str, list]:
        """Multipliers, what the trailing batches used, and the last excesses."""
        return {
            "values": list(self.values),
            "seen": [[list(batch) for batch in seen] for seen in self.seen],
            "errors": [list(pair) for pair in self.errors],
        }

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Take over what `state_dict` gave; ValueError if it has another number of budgets."""
        if len(state["values"]) != len(self.fractions):
            raise ValueError(f"the state has {len(state['values'])} budgets, this run {len(self.fractions)}")
        self.values = list(state["values"])
        self.seen = [deque((tuple(b) for b in seen), maxlen=self.trailing) for seen in state["seen"]]
        self.errors = [list(pair) for pair in state["errors"]]
