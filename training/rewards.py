"""Running statistics that normalise the reward's log-likelihoods. Depends on numpy only."""

from __future__ import annotations

import math

import numpy as np

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
