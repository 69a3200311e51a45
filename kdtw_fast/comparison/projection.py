"""Latency from recorded passes: each method's passes, priced with what passes take on a machine.

Checked where pass times and latencies were both measured; projected where a device is known by its data sheet only.
docs/projection.md derives the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Protocol

from kdtw_fast.costs import interpolate
from kdtw_fast.shapes import BYTES, T5Shape

from .records import Outputs, Passes, Records, Sentence
from .summary import Latency

# Every pass of their teacher asks the head about all that it reads.
CHECKING = ("speculative", "speculative-cascade", "bild", "interleaved")


class Machine(Protocol):
    """What the passes of one row take."""

    def encode(self, role: str, tokens: int) -> float:
        """Seconds of the encoder of "student" or "teacher" for a source of so many tokens."""

    def read(self, role: str, kind: str, tokens: int, seen: float) -> float:
        """Seconds of a decoder pass over ``tokens`` of an output, each of which sees ``seen`` others and source tokens.

        ``kind`` is one of a role's in :class:`Passes`; only "verify" asks the head about every token.
        """

    def call(self, kind: str) -> float:
        """Seconds of a call beside encoders and passes, by the kinds of :class:`Passes`."""


class Measured:
    """A machine on which the pair's own passes were timed.

    Args:
        passes: of its turns, at least one; the median over them counts.
    """

    def __init__(self, passes: Sequence[Passes]):
        self._passes = passes
        self._at = cache(self._median_at)

    def encode(self, role: str, tokens: int) -> float:
        """See :class:`Machine`; in proportion to the length."""
        return tokens * median(getattr(turn, role)["encode"] for turn in self._passes)

    def read(self, role: str, kind: str, tokens: int, seen: float) -> float:
        """See :class:`Machine`; as in the calls that were timed, wherever the pass is."""
        return self._at(role, kind, tokens)

    def _median_at(self, role: str, kind: str, tokens: int) -> float:
        turns = [dict(getattr(turn, role)[kind]) for turn in self._passes]
        return median(interpolate(points, tokens) for points in turns if points)

    def call(self, kind: str) -> float:
        """See :class:`Machine`."""
        return median(turn.call[kind] for turn in self._passes)


@dataclass(frozen=True)
class Device:
    """A device by its data sheet, and what is assumed of it.

    Args:
        name: for titles.
        bandwidth: bytes per second of its memory.
        flops: operations per second, a multiply-add being two, in the weights' number format.
        memory_efficiency: share of the bandwidth that a product with one row reaches, in (0, 1].
        compute_efficiency: share of the operations that a product with many rows reaches, in (0, 1].
        kernel_seconds: of each kernel, beside memory and arithmetic: its launch.
        dtype: number format of weights, keys and values.
    """

    name: str
    bandwidth: float
    flops: float
    memory_efficiency: float = 0.75
    compute_efficiency: float = 0.4
    kernel_seconds: float = 5e-6
    dtype: str = "fp16"

    def range(self) -> tuple[Device, Device]:
        """The same with every assumption in its favour, and with every one against it."""
        good = replace(self, memory_efficiency=0.9, compute_efficiency=0.6, kernel_seconds=0.4 * self.kernel_seconds)
        bad = replace(self, memory_efficiency=0.5, compute_efficiency=0.2, kernel_seconds=2.0 * self.kernel_seconds)
        return good, bad

    @property
    def assumptions(self) -> str:
        """What is assumed, in words."""
        good, bad = self.range()

        def span(name: str, scale: float) -> str:
            a, b, c = (scale * getattr(device, name) for device in (self, good, bad))
            return f"{a:.3g} ({b:.3g} to {c:.3g})"

        return (
            f"{self.name}: {self.bandwidth / 1e9:.0f} GB/s, of which one-row products reach "
            f"{span('memory_efficiency', 100)} %; {self.flops / 1e12:.3g} TFLOP/s, of which products reach "
            f"{span('compute_efficiency', 100)} %; {span('kernel_seconds', 1e6)} µs for each kernel's launch, which is "
            f"not hidden behind another; {self.dtype} weights, keys and values; nothing stays in a cache between "
            "passes; a call costs nothing beside its passes. In brackets: the ends of the range."
        )


DEVICES = {"t4": Device("NVIDIA T4, fp16", 320e9, 65e12)}


@dataclass(frozen=True)
class Roofline:
    """A machine of the roofline model: a pass takes the longer of its memory traffic and its arithmetic, plus launches.

    Args:
        device: what it runs on.
        shapes: of "student" and "teacher".
    """

    device: Device
    shapes: dict[str, T5Shape]

    def encode(self, role: str, tokens: int) -> float:
        """See :class:`Machine`."""
        shape, dtype = self.shapes[role], self.device.dtype
        attention = shape.stacks["encoder"] * 4 * tokens * tokens * shape.inner
        return self._seconds(shape.encoder_parameters, 0, tokens, attention, shape.encoder_kernels(dtype))

    def read(self, role: str, kind: str, tokens: int, seen: float) -> float:
        """See :class:`Machine`."""
        shape, dtype = self.shapes[role], self.device.dtype
        asked = tokens if kind == "verify" else 1
        extra = 2 * (asked - tokens) * shape.head_parameters  # the head answers for those asked about only
        flops = shape.layers * 4 * tokens * seen * shape.inner + extra
        cached = shape.cached_numbers(seen)
        return self._seconds(shape.step_parameters, cached, tokens, flops, shape.decoder_kernels(dtype))

    def _seconds(self, weights: float, cached: float, tokens: float, other_flops: float, kernels: int) -> float:
        device = self.device
        memory = BYTES[device.dtype] * (weights + cached) / (device.bandwidth * device.memory_efficiency)
        arithmetic = (2 * tokens * weights + other_flops) / (device.flops * device.compute_efficiency)
        return max(memory, arithmetic) + kernels * device.kernel_seconds

    def call(self, kind: str) -> float:
        """See :class:`Machine`: nothing."""
        return 0.0


def has_reads(outputs: Outputs) -> bool:
    """Whether its passes were recorded."""
    return all(None not in (s.source_tokens, s.student_reads, s.teacher_reads) for s in outputs.sentences)


def seconds(outputs: Outputs, sentences: Iterable[Sentence], machine: Machine) -> float:
    """What the sentences of a point would take on a machine, one at a time."""
    checks = outputs.method in CHECKING or bool(outputs.settings.get("verify_lenience"))
    alone = {"greedy-student": "student", "greedy-teacher": "teacher"}.get(outputs.method)
    total = 0.0
    for sentence in sentences:
        middle, sources = len(sentence.tokens) / 2, sentence.source_tokens or {}
        reads = {"student": sentence.student_reads or [], "teacher": sentence.teacher_reads or []}
        total += machine.call(alone or ("pair" if reads["teacher"] else "unasked"))
        for role, passes in reads.items():
            if passes:
                total += machine.encode(role, sources[role])
            for i, tokens in enumerate(passes):
                # Calls at random come before the student has read anything: who reads one token goes on after itself.
                goes_on = outputs.method == "random" and tokens == 1
                if alone or goes_on or (role == "student" and i >= len(reads["teacher"])):
                    kind = "alone"
                elif role == "student":  # as many of its passes follow one of the teacher's
                    kind = "switched"
                else:
                    kind = "verify" if checks else "catch_up"
                total += machine.read(role, kind, tokens, middle + sources[role])
    return total


@dataclass(frozen=True)
class Check:
    """A point where prediction meets measurement.

    Args:
        label: the point's.
        measured: milliseconds per token, the median over the turns.
        predicted: the same from what passes took in the same turns.
    """

    label: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1.0


def check(records: Records, pair: str) -> list[Check]:
    """Predicts the measured latency of every point of a pair from its passes and the pass times of the same turns.

    Raises:
        ValueError: the file holds no pass times of the pair, no timed point with recorded passes, or batches.
    """
    machine, found = Measured(_passes(records, pair)), []
    for outputs in _recorded(records, pair):
        timings = records.timings_of(outputs.id)
        latency = Latency.of(timings)
        if latency is None:
            continue
        if latency.batch != 1:
            raise ValueError(f"{outputs.id} was timed in batches of {latency.batch}; passes are known row by row only")
        timed = [outputs.sentences[i] for i in timings[0].indices]
        predicted = 1000 * seconds(outputs, timed, machine) / max(1, sum(len(s.tokens) for s in timed))
        found.append(Check(outputs.label, latency.ms_per_token.median, predicted))
    if not found:
        raise ValueError(f"the results hold no timed point of {pair}; let kdtw compare finish")
    return found


@dataclass(frozen=True)
class Projected:
    """A point on a device that was not there: milliseconds per token, and the range that the assumptions span.

    Args:
        label: the point's.
        ms_per_token, low, high: with the assumptions as they are, all in the device's favour, all against it.
        speedup: of the teacher alone over it, with the assumptions as they are; None without that point.
    """

    label: str
    ms_per_token: float
    low: float
    high: float
    speedup: float | None


def project(records: Records, pair: str, device: Device, shapes: dict[str, T5Shape]) -> list[Projected]:
    """What every point with recorded passes would take on a device with models of other shapes.

    Args:
        records: of a results file.
        pair: whose recorded passes are taken over.
        device: where.
        shapes: of "student" and "teacher".

    Raises:
        ValueError: no passes were recorded.
    """
    recorded = _recorded(records, pair)
    machines = [Roofline(one, shapes) for one in (device, *device.range())]
    times: dict[str, tuple[float, ...]] = {}
    for outputs in recorded:
        tokens = max(1, sum(len(s.tokens) for s in outputs.sentences))
        times[outputs.id] = tuple(1000 * seconds(outputs, outputs.sentences, m) / tokens for m in machines)
    teacher = times.get(f"{pair}/greedy-teacher/alone")
    projected = []
    for outputs in recorded:
        middle, low, high = times[outputs.id]
        projected.append(Projected(outputs.label, middle, low, high, None if teacher is None else teacher[0] / middle))
    return projected


def _passes(records: Records, pair: str) -> list[Passes]:
    found = [turn for turn in records.passes.values() if turn.pair == pair]
    if not found:
        raise ValueError(f"the results hold no pass times of {pair}; a newer kdtw compare records them")
    if not all(isinstance(turn.call, dict) for turn in found):
        raise ValueError(f"the pass times of {pair} were recorded by an older kdtw compare; compare again")
    return found


def _recorded(records: Records, pair: str) -> list[Outputs]:
    found = [outputs for outputs in records.outputs.values() if outputs.pair == pair and has_reads(outputs)]
    if not found:
        raise ValueError(f"the results of {pair} hold no recorded passes; a newer kdtw compare records them")
    return found
