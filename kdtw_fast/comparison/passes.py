"""Times the passes of a pair between the timed calls of a comparison, so that the two can be held together."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from kdtw_fast.costs import Costs, ModelCosts, measure_costs
from kdtw_fast.decoders import GreedyDecoder, SpeculativeDecoder

from .records import Passes
from .subjects import Subject

CALLS = 5  # repeats of a call that is timed for what it takes beside its passes


class PassClock:
    """Takes samples of pass times, and makes one record of those of a turn.

    Args:
        subject: the pair.
        source: token ids of a source of usual length, as the student reads it.
        new_tokens: usual length of the outputs, at least 1.
        batch: rows of a pass.
        threads: of every pass.
    """

    def __init__(self, subject: Subject, source: list[int], new_tokens: int, batch: int, threads: int):
        self._subject, self._source = subject, source
        self._sizes = {"rows": batch, "source_tokens": len(source), "new_tokens": new_tokens, "num_threads": threads}
        student, teacher = subject.models["student"], subject.models["teacher"]
        self._decoders: list[Any] = [
            GreedyDecoder(student, num_threads=threads),
            SpeculativeDecoder(student, teacher, draft_length=1, num_threads=threads),
        ]
        self._samples: list[Costs] = []
        self._calls: list[list[float]] = []

    def sample(self, seconds: float) -> None:
        """Times the passes for about so many seconds."""
        models = self._subject.models
        self._samples.append(measure_costs(models["student"], models["teacher"], seconds=seconds, **self._sizes))
        self._calls.append([median(self._beside(decoder) for _ in range(CALLS)) for decoder in self._decoders])

    def _beside(self, decoder: Any) -> float:
        """Seconds of a call of one token, less those of its encoders and passes."""
        before = time.perf_counter()
        out = decoder.generate([self._source], max_new_tokens=1, max_source_length=len(self._source))
        taken = time.perf_counter() - before
        return taken - out.timings.encode - out.timings.student - out.timings.teacher

    def take(self, repetition: int, provenance: dict[str, Any]) -> Passes:
        """The least of each of the samples since the last call, of which there must be one."""
        samples, self._samples = self._samples, []
        calls, self._calls = self._calls, []
        return Passes(
            pair=self._subject.name,
            repetition=repetition,
            batch=self._sizes["rows"],
            threads=self._sizes["num_threads"],
            source_tokens=self._sizes["source_tokens"],
            new_tokens=self._sizes["new_tokens"],
            student=_least([costs.student for costs in samples]),
            teacher=_least([costs.teacher for costs in samples]),
            call=[min(times) for times in zip(*calls)],
            provenance=provenance,
        )


def _least(samples: list[ModelCosts]) -> dict[str, Any]:
    def points(kind: str) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        for sample in samples:
            for tokens, seconds in getattr(sample, kind).items():
                found.setdefault(tokens, []).append(seconds)
        return [[tokens, min(seconds)] for tokens, seconds in sorted(found.items())]

    return {
        "encode": min(sample.encode for sample in samples),
        "catch_up": points("catch_up"),
        "verify": points("verify"),
    }
