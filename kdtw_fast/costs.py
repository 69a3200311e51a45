"""The cost model: what each method takes per token, given what the two models' passes take.

Arithmetic only; `kdtw_fast.cost_measuring` times the passes. docs/profiling.md derives the formulas.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any

from kdtw_fast.deprecation import warn_renamed
from kdtw_fast.options import check_int, check_real, nearest

MAX_DRAFT_LENGTH = 16


@dataclass(frozen=True)
class ModelCosts:
    """Seconds of one model's passes over a batch.

    Args:
        encode: the encoder over all sources of the batch.
        catch_up: tokens per row -> a decoder pass that asks the head about each row's last token; has 1, the step.
        verify: tokens per row -> a decoder pass that asks the head about every token; empty = as ``catch_up``.
    """

    encode: float
    catch_up: Mapping[int, float]
    verify: Mapping[int, float] = field(default_factory=dict)

    @property
    def step(self) -> float:
        """Seconds of one token for every row."""
        return self.catch_up[1]

    def catching_up(self, tokens: float) -> float:
        """Seconds of reading ``tokens`` per row, a mean and so not always whole, and picking after the last."""
        return interpolate(self.catch_up, tokens)

    def verifying(self, tokens: float) -> float:
        """Seconds of reading ``tokens`` per row and picking after each of them."""
        return interpolate(self.verify or self.catch_up, tokens)


def interpolate(points: Mapping[Any, float], x: float) -> float:
    """Seconds at x tokens from those at some numbers of tokens, which need not be whole.

    The line through the two measured points around x; outside of them, through the two nearest, never falling.
    """
    xs = sorted(points)
    if len(xs) == 1:
        return points[xs[0]]
    right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    low, high = xs[right - 1], xs[right]
    slope = (points[high] - points[low]) / (high - low)
    if not low <= x <= high:
        slope = max(slope, 0.0)
    return points[low] + slope * (x - low) if x < high else points[high] + slope * (x - high)


@dataclass(frozen=True)
class Prediction:
    """What decoding a batch with a method would take.

    Args:
        method: its name in :data:`kdtw_fast.methods.METHODS`.
        settings: what the prediction assumed: draft_length, acceptance, use, …
        encode: seconds of the encoders for the batch.
        student: seconds of student passes per output position, that is per token of every row.
        teacher: the same of teacher passes.
        rows: rows of the batch.
        new_tokens: tokens per row, over which the encoders' seconds are spread.
    """

    method: str
    settings: Mapping[str, float]
    encode: float
    student: float
    teacher: float
    rows: int
    new_tokens: float

    def seconds(self, new_tokens: float) -> float:
        """Seconds of a call that writes ``new_tokens`` per row."""
        return self.encode + new_tokens * (self.student + self.teacher)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per output token of the batch: the time of the call over the tokens of all rows."""
        return 1000.0 * self.seconds(self.new_tokens) / (self.rows * self.new_tokens)


@dataclass(frozen=True)
class Costs:
    """Costs of a pair at one batch size, source length and number of threads.

    Args:
        student, teacher: seconds of their passes.
        rows: rows of the batch.
        source_tokens: length of the sources.
        new_tokens: expected outputs per row.
        num_threads: threads of every pass.
    """

    student: ModelCosts
    teacher: ModelCosts
    rows: int = 1
    source_tokens: int = 64
    new_tokens: float = 64
    num_threads: int = 1

    def predict(self, method: str, **settings: float) -> Prediction:
        """What ``method`` would take.

        Args:
            method: "greedy-student", "greedy-teacher", "training-wheels", "speculative" or "bild".
            **settings: ``use`` (training-wheels: share of the tokens that the teacher writes, in [0, 1]);
                ``draft_length`` and ``acceptance`` (speculative: K >= 1, and the chance that a draft passes
                where those before it did, in [0, 1]); ``call_rate`` (bild: teacher calls per token, in (0, 1]) and
                ``rolled_back`` (bild: drafts taken back per token, >= 0; default 0).

        Raises:
            ValueError: an unknown method, or a setting out of range.
            TypeError: a setting that is missing or that the method does not have.
        """
        if method not in _FORMULAS:
            raise ValueError(f"no costs are known for method {method!r}{nearest(method, _FORMULAS)}")
        formula = _FORMULAS[method]
        known = list(signature(formula).parameters.values())[1:]
        for name in settings:
            if name not in (names := [one.name for one in known]):
                raise TypeError(f"the costs of {method!r} have no setting {name!r}{nearest(name, names)}")
        for one in known:
            if one.default is one.empty and one.name not in settings:
                raise TypeError(f"the costs of {method!r} need {one.name}")
        encode, student, teacher = formula(self, **settings)
        return Prediction(method, dict(settings), encode, student, teacher, self.rows, self.new_tokens)

    def best_speculative(self, acceptance: float, longest: int = MAX_DRAFT_LENGTH) -> Prediction:
        """The fastest prediction of "speculative" over draft lengths 1..``longest``."""
        predictions = (
            self.predict("speculative", draft_length=k, acceptance=acceptance) for k in range(1, longest + 1)
        )
        return min(predictions, key=lambda prediction: prediction.ms_per_token)


def expected_run(draft_length: int, acceptance: float) -> float:
    """Mean tokens that one round of speculative decoding writes: 1 + a + a^2 + … + a^K."""
    return sum(acceptance**k for k in range(draft_length + 1))


_Parts = tuple[float, float, float]  # seconds: encoders, student per position, teacher per position


def _student_alone(costs: Costs) -> _Parts:
    return costs.student.encode, costs.student.step, 0.0


def _teacher_alone(costs: Costs) -> _Parts:
    return costs.teacher.encode, 0.0, costs.teacher.step


def _training_wheels(costs: Costs, use: float) -> _Parts:
    check_real("use", use, 0.0, 1.0)
    student, teacher = costs.student, costs.teacher
    # Every position costs a student pass, which writes a token or asks; a call reads what came since the last one.
    called = min(1.0, use * costs.new_tokens)
    return (
        student.encode + called * teacher.encode,
        student.step,
        use * teacher.catching_up(1.0 / use) if use > 0 else 0.0,
    )


def _speculative(costs: Costs, draft_length: float, acceptance: float) -> _Parts:
    k = check_int("draft_length", draft_length, 1)
    check_real("acceptance", acceptance, 0.0, 1.0)
    student, teacher = costs.student, costs.teacher
    written = expected_run(k, acceptance)
    # After a draft that passed whole, the student has not read its own last token and reads two.
    drafting = k * student.step + acceptance**k * (student.catching_up(2) - student.step)
    return student.encode + teacher.encode, drafting / written, teacher.verifying(k + 1) / written


def _bild(costs: Costs, call_rate: float, rolled_back: float = 0.0) -> _Parts:
    check_real("call_rate", call_rate, 0.0, 1.0, open_low=True)
    check_real("rolled_back", rolled_back, 0.0)
    student, teacher = costs.student, costs.teacher
    passes = 1.0 + rolled_back
    return (
        student.encode + teacher.encode,
        passes * student.step,
        call_rate * teacher.verifying(passes / call_rate),
    )


_FORMULAS: dict[str, Callable[..., _Parts]] = {
    "greedy-student": _student_alone,
    "greedy-teacher": _teacher_alone,
    "training-wheels": _training_wheels,
    "speculative": _speculative,
    "bild": _bild,
}


def __getattr__(name: str) -> Any:
    if name == "measure_costs":  # it lived here
        warn_renamed("kdtw_fast.costs.measure_costs", "kdtw_fast.cost_measuring.measure_costs")
        return import_module("kdtw_fast.cost_measuring").measure_costs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
