"""Times the passes of a pair between the timed calls of a comparison, so that predictions can be checked against them.

Passes are timed inside whole calls, because what a pass takes depends on what came before it: the other model pushes a
model's weights out of the nearer caches. The calls are of methods whose passes are nearly alike, so a call's seconds
divided by its passes are the seconds of a pass.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import mean
from typing import Any

from kdtw_fast.budgets import resolve_budget
from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.paired_timing import wall_clock

from .contenders import Contender
from .plan import OperatingPoint
from .records import Passes
from .systems import Native

DRAFTS = (1, 4, 16)  # tokens between verifications; every draft stands
ASKING = ("light", "very high")  # budgets of the calls whose catch-ups are timed: longer ones, and shorter ones
KINDS = {"student": ("alone", "switched"), "teacher": ("alone", "catch_up", "verify")}  # of passes, as Passes says
CALLS = 11  # of a method in a row, as of a point; the first brings its weights into the caches and is not counted


@dataclass
class _Method:
    """Calls of a method: of what kind, and for each model that decodes in it the kind of pass that they time."""

    calls: Sequence[Callable[[], GenerationOutput]]
    source_tokens: Sequence[dict[str, int]]  # of each sentence
    call: str
    kinds: dict[str, str]
    called: int = 0


@dataclass
class _Sum:
    """Passes of one kind in the calls of one method: how many, tokens that they read of a row, seconds."""

    passes: int = 0
    tokens: float = 0.0
    seconds: float = 0.0


class PassClock:
    """Takes samples of pass times, and makes one record of those of a turn.

    Args:
        contender: the pair.
        indices: of the examples that are decoded, at least one.
        batch: rows of a call.
        threads: of every pass.
        max_new_tokens: of every output.
    """

    def __init__(self, contender: Contender, indices: Sequence[int], batch: int, threads: int, max_new_tokens: int):
        self._contender, self._batch, self._threads = contender, batch, threads

        def method(
            call: str, kinds: dict[str, str], name: str, settings: Any = None, budget: str | None = None
        ) -> _Method:
            share = None if budget is None else resolve_budget(budget).fraction
            point = OperatingPoint("", name, "", settings or {}, {} if budget is None else {"budget": budget}, share)
            native = Native(point, contender, threads, max_new_tokens, output_reads=True)
            return _Method(native.calls(indices, batch), native.source_tokens(indices), call, kinds)

        self._methods = [
            method("student", {"student": "alone"}, "greedy-student"),
            method("teacher", {"teacher": "alone"}, "greedy-teacher"),
            # With one draft to a verification every pass of either model follows one of the other.
            *(
                method(
                    "pair",
                    {"teacher": "verify"} | ({"student": "switched"} if length == 1 else {}),
                    "speculative",
                    {"draft_length": length, "lenience": 0.0},
                )
                for length in DRAFTS
            ),
        ]
        if contender.models["student"].tau_token_id is not None:
            asking = "training-wheels"
            self._methods += [method("pair", {"teacher": "catch_up"}, asking, None, budget) for budget in ASKING]
            self._methods += [method("unasked", {}, asking, None, "no")]
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[tuple[str, str], dict[int, _Sum]] = defaultdict(lambda: defaultdict(_Sum))
        self._encode: dict[str, _Sum] = defaultdict(_Sum)
        self._call: dict[str, list[float]] = defaultdict(list)

    def sample(self, seconds: float, counted: bool = True) -> None:
        """Times calls of all methods in turns, once at least, until so many seconds are over.

        Those that are not counted are made for what they leave behind.
        """
        end = time.perf_counter() + seconds
        while True:
            for number, method in enumerate(self._methods):
                for repeat in range(CALLS):
                    which = (method.called + repeat) % len(method.calls)
                    taken, out = wall_clock(method.calls[which])
                    if counted and repeat > 0:
                        self._count(number, method, which, out, taken)
                method.called += CALLS - 1
            if time.perf_counter() >= end:
                return

    def _count(self, number: int, method: _Method, which: int, out: GenerationOutput, taken: float) -> None:
        timings = out.timings
        assert timings is not None
        alone = "alone" in method.kinds.values()
        self._call[method.call].append(taken - timings.encode - timings.student - timings.teacher)
        for role, kind in method.kinds.items():
            passes = getattr(out, f"{role}_passes")
            if not passes:
                continue
            total = self._sums[role, kind][number]
            total.passes += passes
            total.tokens += passes * mean(chain.from_iterable(getattr(out, f"{role}_reads")))
            total.seconds += getattr(timings, role)
            if alone:
                sources = method.source_tokens[which * self._batch : (which + 1) * self._batch]
                self._encode[role].tokens += sum(source[role] for source in sources)
                self._encode[role].seconds += timings.encode

    def take(self, repetition: int, provenance: dict[str, Any]) -> Passes:
        """The means of the samples since the last call, of which there must be one.

        Means, because a point's latency is a sum over calls, too, and holds what slows single ones.
        """

        def points(role: str, kind: str) -> list[list[float]]:
            found = self._sums[role, kind].values()
            return sorted([total.tokens / total.passes, total.seconds / total.passes] for total in found)

        def encode(role: str) -> float:
            return self._encode[role].seconds / self._encode[role].tokens

        record = Passes(
            pair=self._contender.name,
            repetition=repetition,
            batch=self._batch,
            threads=self._threads,
            **{
                role: {"encode": encode(role), **{kind: points(role, kind) for kind in kinds}}
                for role, kinds in KINDS.items()
            },
            call={kind: mean(seconds) for kind, seconds in self._call.items()},
            provenance=provenance,
        )
        self._reset()
        return record
