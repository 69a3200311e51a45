"""Timing on a machine whose speed drifts: what is compared takes turns, so that a slow moment hits all of it alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Recorded:
    """Seconds and result of each turn of one contestant."""

    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds of a turn."""
        return median(self.seconds)


def wall_clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes, and its result."""
    before = time.perf_counter()
    result = call()
    return time.perf_counter() - before, result


def take_turns(
    contestants: Mapping[str, Callable[[], Any]],
    rounds: int,
    on_turn: Callable[[], object] = lambda: None,
    clock: Callable[[Callable[[], Any]], tuple[float, Any]] = wall_clock,
) -> dict[str, Recorded]:
    """Runs all contestants once unmeasured, then in turns; the first one of a round changes from round to round.

    Args:
        contestants: what to measure, by name.
        rounds: measured turns of each, at least 1.
        on_turn: called after each of the (1 + rounds) * len(contestants) turns.
        clock: makes the call of a turn; gives seconds and result.
    """
    names = list(contestants)
    recorded = {name: Recorded() for name in names}
    for contestant in contestants.values():
        contestant()
        on_turn()
    gc.collect()
    gc.freeze()  # what is there already is not looked at again between turns
    try:
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                gc.collect()
                seconds, result = clock(contestants[name])
                recorded[name].seconds.append(seconds)
                recorded[name].results.append(result)
                on_turn()
    finally:
        gc.unfreeze()
    return recorded
