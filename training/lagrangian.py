"""One Lagrange multiplier per budget, driven by the excess of teacher use over trailing batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


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

    def __init__(
        self,
        fractions: Sequence[float],
        rate: float = 1e-2,
        cap: float = 2.0,
        initial: Sequence[float] = (0.0,),
        trailing: int = 8,
        proportional: float = 0.0,
        derivative: float = 0.0,
        pooled: bool = False,
        fixed: float | None = None,
    ):
        count = len(fractions)
        first = list(initial) * (count if len(initial) == 1 else 1)
        if len(first) != count:
            raise ValueError(f"initial has {len(first)} values for {count} budgets; give one, or one for each")
        if not cap > 0 or not all(0 <= value <= cap for value in first):
            raise ValueError(f"lambda lies between 0 and a positive cap, got initial={initial} and cap={cap}")
        if trailing < 1:
            raise ValueError(f"trailing must be at least 1 batch, got {trailing}")
        if min(rate, proportional, derivative) < 0 or (fixed is not None and fixed < 0):
            raise ValueError(
                f"rate, proportional, derivative and fixed must not be negative, got {rate}, {proportional}, "
                f"{derivative} and {fixed}"
            )
        self.fractions = tuple(fractions)
        self.rate, self.cap, self.proportional, self.derivative = rate, cap, proportional, derivative
        self.trailing, self.pooled, self.fixed = trailing, pooled, fixed
        self.values = first if fixed is None else [fixed] * count
        # Per budget and batch: episodes, sum of their fractions, calls, tokens.
        self.seen: list[deque[tuple[float, ...]]] = [deque(maxlen=trailing) for _ in range(count)]
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
