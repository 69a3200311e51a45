"""Times the passes of a student and a teacher on this machine, for the cost model in `kdtw_fast.costs`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from kdtw_fast import _core
from kdtw_fast.costs import Costs, ModelCosts
from kdtw_fast.decoders import ModelLike, SingleModelDecoder
from kdtw_fast.generation import IGNORE
from kdtw_fast.model import NativeT5, load
from kdtw_fast.options import check_int, check_real

# Tokens per row of the passes that are timed; others are interpolated. The two that tell most come first.
POINTS = (1, 17, 5, 9, 3, 2)
# The core cuts longer passes into passes of this size (csrc/backend/runner.h), so beyond it time grows with the tokens.
PASS_TOKENS = 256
# A CUDA device drafts without the host, so its steps are timed this many at once.
DRAFTED = 32
SHORTEST = 1e-7  # seconds: noise never makes a step shorter than this
# A pass shorter than SHORT seconds is repeated SHORT_REPEATS times in its turn.
SHORT, SHORT_REPEATS = 0.005, 3


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
    decoder = SingleModelDecoder(model, num_threads=num_threads, generation_config=IGNORE)
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
