"""Runs checks on a device, one after the other, whatever becomes of each; and times a few passes there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from kdtw_fast import _core
from kdtw_fast.decoders import SingleModelDecoder
from kdtw_fast.paired_timing import take_turns
from kdtw_fast.selftest.checks import Check, Checks, Trial
from kdtw_fast.selftest.decodes import DECODES
from kdtw_fast.selftest.operations import OPERATIONS
from kdtw_fast.shapes import SHAPES, random_native

CHECKS = Checks([*OPERATIONS, *DECODES])


@dataclass(frozen=True)
class Item:
    """What came of one check.

    Attributes:
        name: the check's.
        failure: what differed, or what was raised; "" where it passed.
        left_out: the check that lost the device, after which this one could not run; "" where it ran.
        error, permitted: as in :class:`Trial`.
        near_ties: rows that differ from the oracle's where it saw a near tie, which is permitted.
        seconds: it took.
    """

    name: str
    failure: str
    error: float
    permitted: float
    near_ties: int
    seconds: float
    left_out: str = ""


def run_checks(device: str, checks: Iterable[Check] | None = None) -> Iterator[Item]:
    """Runs checks, all that the device can do when left out, and gives what came of each as soon as it is known.

    Args:
        device: "cpu" or "cuda:<index>".
        checks: which.

    Raises:
        RuntimeError: the device cannot be used at all.
    """
    lost = ""
    for check in CHECKS.on(device) if checks is None else checks:
        if lost:
            yield Item(check.name, "", 0.0, 0.0, 0, 0.0, lost)
            continue
        trial = Trial(device)
        start = time.perf_counter()
        failure = ""
        try:
            check.run(trial)
        except AssertionError as error:
            failure = str(error) or "an assertion without words"
        except Exception as error:  # a device that fails in one check may do so in any way
            failure = f"{type(error).__name__}: {error}"
            lost = "" if _answers(device) else check.name
        seconds = time.perf_counter() - start
        yield Item(check.name, failure, trial.error, trial.permitted, trial.tally.differing, seconds)


def _answers(device: str) -> bool:
    """Whether a device still computes: some errors of CUDA stay for the rest of the process, whoever made them."""
    one = np.ones((1, 1), np.float32)
    try:
        return bool(_core.Operations(device).gather(one, [0]) == one)
    except RuntimeError:
        return False


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one row took: to its first token (encoder and a step), and for each token after that."""

    shape: str
    dtype: str
    first: float
    following: float


def measure_latencies(
    device: str, shapes: Iterable[str] = ("flan-t5-small",), source: int = 64, tokens: int = 33, rounds: int = 5
) -> Iterator[Latency]:
    """Times greedy decodes of one row by models with random weights, in every format that the device has.

    Args:
        device: "cpu" or "cuda:<index>".
        shapes: names of kdtw_fast.shapes.SHAPES.
        source: length of the row's source in tokens.
        tokens: written at most; at least 2.
        rounds: the median of so many decodes counts, after one that does not.
    """
    ids = [np.random.default_rng(0).integers(2, 1000, size=source).tolist()]
    for shape in shapes:
        for dtype in ("fp32", "bf16", "int8") if device == "cpu" else ("fp32", "fp16", "bf16", "int8"):
            decoder = SingleModelDecoder(random_native(SHAPES[shape], dtype=dtype, device=device))
            decodes = {
                str(count): partial(decoder.generate, ids, max_new_tokens=count, min_new_tokens=count)
                for count in (1, tokens)
            }
            first, whole = (1e3 * turns.median for turns in take_turns(decodes, rounds).values())
            yield Latency(shape, dtype, first, (whole - first) / (tokens - 1))
