"""The cost model: what model passes take here, measured once, and what each method would then take per token.

Measuring needs the native core; predicting is arithmetic on a few numbers. docs/profiling.md derives the formulas.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from kdtw_fast import _core
from kdtw_fast.decoders import GreedyDecoder, ModelLike
from kdtw_fast.model import NativeT5, load
from kdtw_fast.options import check_int, check_real, nearest

# Tokens per row of the passes that are measured; others are interpolated. Two points tell most: they come first.
POINTS = (1, 17, 5, 9, 3, 2)
PASS_TOKENS = 256  # longer passes are cut into such (csrc/model/t5.h), so that beyond it time grows with the tokens
MAX_DRAFT_LENGTH = 16
# Steps that a CUDA device takes by itself are timed so many at once; noise makes no step shorter than this, in seconds.
DRAFTED, SHORTEST = 32, 1e-7
SHORT, SHORT_REPEATS = 0.005, 3  # seconds of a pass that is repeated in its turn, and how often


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
        """Seconds of reading ``tokens`` per row, a mean and so not always whole, and answering about the last."""
        return interpolate(self.catch_up, tokens)

    def verifying(self, tokens: float) -> float:
        """Seconds of reading ``tokens`` per row and answering about each of them."""
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
        needed, optional, formula = _FORMULAS[method]
        for name in settings:
            if name not in needed + optional:
                raise TypeError(f"the costs of {method!r} have no setting {name!r}{nearest(name, needed + optional)}")
        for name in needed:
            if name not in settings:
                raise TypeError(f"the costs of {method!r} need {name}")
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


# method -> (settings it needs, settings it may have, formula)
_FORMULAS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[..., _Parts]]] = {
    "greedy-student": ((), (), _student_alone),
    "greedy-teacher": ((), (), _teacher_alone),
    "training-wheels": (("use",), (), _training_wheels),
    "speculative": (("draft_length", "acceptance"), (), _speculative),
    "bild": (("call_rate",), ("rolled_back",), _bild),
}


def measure_costs(
    student: ModelLike,
    teacher: ModelLike,
    *,
    rows: int = 1,
    source_tokens: int = 64,
    new_tokens: int = 64,
    num_threads: int | None = None,
    seconds: float = 1.0,
) -> Costs:
    """Times the passes of a pair on random tokens, in turns, after a history of half the new tokens.

    Every number is the median of as many turns as ``seconds`` allow. What a slow pair cannot do without (the
    encoders, a step, the longest pass of each kind) is timed at least once even when that takes longer; the points
    in between are then interpolated. No pass is longer than 256 tokens if it can be less: the rest is extended.
    Passes are those that the host enqueues; a CUDA device takes the steps of a draft by itself (docs/cuda.md), and
    so a step there is what further tokens add to a greedy decode.

    Args:
        student: NativeT5, Hugging Face T5 or a folder; on any device, which is the teacher's as well.
        teacher: the same.
        rows: rows of the batch, R >= 1.
        source_tokens: length of every source, >= 1.
        new_tokens: expected outputs per row, >= 1.
        num_threads: None = all.
        seconds: time to spend, > 0.
    """
    check_int("rows", rows, 1)
    check_int("source_tokens", source_tokens, 1)
    check_int("new_tokens", new_tokens, 1)
    check_real("seconds", seconds, 0.0, open_low=True)
    threads = _core.hardware_threads() if num_threads is None else check_int("num_threads", num_threads, 1)
    models = {"student": load(student, "student"), "teacher": load(teacher, "teacher")}
    points = [n for n in POINTS if n <= 2 or rows * n <= PASS_TOKENS]
    encoded = max(1, min(rows, PASS_TOKENS // source_tokens))  # rows of an encoder's pass
    passes: dict[_Pass, Callable[[int], Any]] = {}
    for role, model in models.items():
        passes[role, "encode", 0] = _core.Probe(model.device, model.core, encoded, source_tokens, 0, 1, threads).encode
        probe = _core.Probe(model.device, model.core, rows, source_tokens, new_tokens // 2, max(points), threads)
        for n in points:
            if role == "teacher" or n <= 2:  # a student's passes read one token, or two
                passes[role, "catch_up", n] = partial(probe.decode, n, 1)
            if role == "teacher":
                passes[role, "verify", n] = partial(probe.decode, n, n)
        if model.device != "cpu":
            passes[role, "catch_up", 1] = _drafted_step(model, rows, source_tokens, threads)
    recorded = _in_turns(passes, seconds)
    return Costs(
        _model_costs("student", recorded, rows / encoded),
        _model_costs("teacher", recorded, rows / encoded),
        rows=rows,
        source_tokens=source_tokens,
        new_tokens=new_tokens,
        num_threads=threads,
    )


_Pass = tuple[str, str, int]  # student or teacher, what it does, tokens per row


def _in_turns(passes: Mapping[_Pass, Callable[[int], Any]], seconds: float) -> dict[_Pass, list[float]]:
    """Seconds of each pass by turns, all of them in turns until the time is up; ``passes`` take a number of repeats.

    Of several turns the first is not counted. A short pass is repeated in its turn, and the last repeat counts: its
    weights may stay in the cache, as they would in a decode.
    """
    longest = max(tokens for _, _, tokens in passes)
    needed = {key for key in passes if key[0] == "student" or key[2] in (0, 1, longest)}
    recorded: dict[_Pass, list[float]] = {}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not needed <= recorded.keys():
        for key, run in passes.items():
            if time.perf_counter() < end or (key in needed and key not in recorded):
                turns = recorded.setdefault(key, [])
                repeats = SHORT_REPEATS if turns and turns[0] < SHORT else 1
                turns.append(run(repeats)[0][-1])
    return {key: turns[1:] or turns for key, turns in recorded.items()}


def _drafted_step(model: NativeT5, rows: int, source_tokens: int, num_threads: int) -> Callable[[int], Any]:
    """As a pass of `_in_turns`: a step's share of what `DRAFTED` tokens take longer to decode than one."""
    decoder = GreedyDecoder(model, num_threads=num_threads)
    special = {*model.eos_token_ids, *model.tau_token_ids, model.pad_token_id}
    sources = [[next(token for token in range(model.vocab_size) if token not in special)] * source_tokens] * rows

    def seconds(new_tokens: int) -> float:
        start = time.perf_counter()
        decoder.generate(sources, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        return time.perf_counter() - start

    def run(repeats: int) -> tuple[list[float], None]:
        times = [(seconds(1 + DRAFTED) - seconds(1)) / DRAFTED for _ in range(repeats)]
        return [max(step, SHORTEST) for step in times], None

    return run


def _model_costs(role: str, recorded: Mapping[_Pass, list[float]], encoder_passes: float) -> ModelCosts:
    def points(kind: str) -> dict[int, float]:
        return {n: median(times) for (who, what, n), times in recorded.items() if (who, what) == (role, kind)}

    return ModelCosts(encoder_passes * points("encode")[0], points("catch_up"), points("verify"))
