"""Measures a plan: every point's outputs once, then all points in timed turns, in one process.

Each record is written as soon as it is taken, and what a results file already holds is not measured again.
"""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdtw_fast import _core, peers
from kdtw_fast.machine import processor
from kdtw_fast.paired_timing import wall_clock
from kdtw_fast.pairs import quietly

from .contenders import Contender, chosen
from .controls import ROUNDS, find_threshold, teacher_use
from .passes import PassClock
from .plan import CONTROLS, OUTSIDE, TIMED_ONLY, OperatingPoint, Settings
from .provenance import check_same, provenance, stamped
from .quality import signatures
from .records import Outputs, Records, ResultsFile, Timing
from .systems import PHASES, Native, OutsideSystems, System

WARM_UP = 10  # calls that each point makes before anything is timed
PART = 10  # calls that a point makes before it is the next one's turn
SLOW, SLOW_SHARE = ("hugging-face", "assisted"), 5  # these are timed on every fifth of the timed sentences
# What a sentence costs, roughly, in sentences of a native decode: for the estimate of the time left.
WEIGHTS = {"native": 1.0, "hugging-face": 15.0, "assisted": 15.0, "ctranslate2": 2.0}
BATCHED = 0.5  # times that, where sentences are decoded together

PER_CALL = ("seconds", "tokens", "student_passes", "teacher_passes")  # lists of a Timing, where the system tells
PASS_SECONDS = 3.0  # spent on timing passes in every turn, at least
# Right after another system's calls, ours of half a millisecond took up to 50 % longer, for more than ten calls. Calls
# of several of our methods in between prevent that; a pause does not, nor does one call repeated.
SETTLE_SECONDS = 0.3

Progress = Callable[[float, str], object]  # told of work done, in sentences of a native decode, and what comes


def left_out(plan: Sequence[OperatingPoint], contender: Contender, settings: Settings) -> dict[str, str]:
    """Why a group cannot run here, by group; empty if all can."""
    groups = {point.group for point in plan}
    reasons = {}
    if "ctranslate2" in groups and not peers.has_ctranslate2():
        reasons["ctranslate2"] = "CTranslate2 is not installed (pip install ctranslate2)"
    if reason := peers.out_of_reach(contender.device):
        reasons |= {group: reason for group in OUTSIDE if group in groups}
    if "assisted" in groups and settings.batch_size > 1:
        reasons["assisted"] = f"Hugging Face assisted generation decodes single rows, not {settings.batch_size}"
    if contender.models["student"].tau_token_id is None:
        reason = "the student has no <tau> and cannot ask"
        reasons |= {group: reason for group in ("training-wheels", "verify", *CONTROLS) if group in groups}
    return reasons


class Measurement:
    """One pair's part of a comparison.

    Args:
        contender: the pair and its data.
        plan: what to run; groups that cannot run here must be gone (:func:`left_out`).
        settings: how.
        file: where records go, and what is there already.
        progress: told of the work done.

    Raises:
        ValueError: the file holds results of another pair of this name, or taken with other settings.
    """

    def __init__(
        self,
        contender: Contender,
        plan: Sequence[OperatingPoint],
        settings: Settings,
        file: ResultsFile,
        progress: Progress = lambda work, what: None,
    ):
        self._contender, self._settings, self._file, self._progress = contender, settings, file, progress
        self._threads = settings.threads or _core.hardware_threads()
        self._plan = {f"{contender.name}/{point.name}": point for point in plan}
        identity = contender.identity() | {"max_new_tokens": settings.max_new_tokens}
        self._timed = chosen(range(len(contender.samples)), settings.timed_sentences)
        timing = {
            "threads": self._threads,
            "batch": settings.batch_size,
            "timed sentences": len(self._timed),
            "processor": processor(),
        }
        _check_continues(file.path, file.records, contender.name, identity, timing)
        self._shared = provenance(identity)
        self._timing_shared = {**self._shared, "subject": identity | timing}
        self._outside = OutsideSystems(contender, self._threads, settings.max_new_tokens)
        self._systems: dict[str, System] = {}

    def _missing(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Points whose outputs are not there, and turns that are not."""
        records = self._file.records
        outputs = [name for name in self._plan if name not in records.outputs]
        turns = [(name, r) for r in range(self._settings.repetitions) for name in self._plan]
        return outputs, [turn for turn in turns if turn not in records.timings]

    def work(self) -> float:
        """What is left to do, in sentences of a native decode."""
        outputs, turns = self._missing()
        return sum(map(self._output_work, outputs)) + sum(
            self._turn_work(name) for name in [*dict(turns), *(name for name, _ in turns)]
        )

    def _output_work(self, name: str) -> float:
        group, sentences = self._plan[name].group, len(self._written_by(name))
        rounds = ROUNDS if group in CONTROLS else 1
        return rounds * sentences * WEIGHTS.get(group, 1.0) * (1.0 if group == "assisted" else BATCHED)

    def _turn_work(self, name: str) -> float:
        return len(self._timed_by(name)) * WEIGHTS.get(self._plan[name].group, 1.0)

    def _written_by(self, name: str) -> Sequence[int]:
        """The sentences that a point writes for its quality."""
        return self._timed_by(name) if self._plan[name].group in TIMED_ONLY else range(len(self._contender.samples))

    def _timed_by(self, name: str) -> list[int]:
        """The sentences that a point is timed on."""
        slow = self._plan[name].group in SLOW
        return chosen(self._timed, -(-len(self._timed) // SLOW_SHARE) if slow else 0)

    def run(self) -> None:
        """Measures what the file does not hold yet."""
        with quietly():  # other systems comment on their options
            self._run()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        outputs, turns = self._missing()
        for name in outputs:
            self._progress(0.0, f"outputs: {self._plan[name].label}")
            self._write(name)
        by_repetition: dict[int, list[str]] = defaultdict(list)
        for name, repetition in turns:
            by_repetition[repetition].append(name)
        calls = self._prepared(list(dict(turns)))
        settings = self._settings
        clock = PassClock(self._contender, self._timed, settings.batch_size, self._threads, settings.max_new_tokens)
        gc.collect()
        gc.freeze()  # what is there already is not looked at again between turns
        try:
            for repetition, names in by_repetition.items():
                start = repetition * len(names) // self._settings.repetitions  # no point always follows the same one
                self._repetition(repetition, names[start:] + names[:start], calls, clock)
        finally:
            gc.unfreeze()

    def _system(self, name: str) -> System:
        if name not in self._systems:
            point = self._plan[name]
            if point.group in CONTROLS:
                point = _with_threshold(point, self._file.records.outputs[name].settings["threshold"])
            self._systems[name] = self._outside.make(point) if point.group in OUTSIDE else self._native(point)
        return self._systems[name]

    def _native(self, point: OperatingPoint) -> Native:
        return Native(point, self._contender, self._threads, self._settings.max_new_tokens)

    def _write(self, name: str) -> None:
        point, indices = self._plan[name], self._written_by(name)
        parts = len(indices) * (ROUNDS if point.group in CONTROLS else 1)
        share, done = self._output_work(name) / parts, 0

        def on_done(sentences: int) -> None:
            nonlocal done
            done += sentences
            self._progress(sentences * share, "")

        found: dict[str, Any] = {}
        if point.group in CONTROLS:
            like = next(
                other
                for key, other in self._file.records.outputs.items()
                if key in self._plan and self._plan[key].group == "training-wheels" and other.budget == point.budget
            )
            highest = math.log(self._contender.models["student"].vocab_size) if point.group == "entropy" else 1.0
            sentences, found = find_threshold(
                lambda threshold: self._native(_with_threshold(point, threshold)).write(indices, on_done),
                teacher_use(like.sentences),
                highest,
            )
        else:
            sentences = self._system(name).write(indices, on_done)
        self._progress((parts - done) * share, "")  # a search that ended early
        self._file.append(
            Outputs(
                id=name,
                pair=self._contender.name,
                task=self._contender.task,
                group=point.group,
                method=point.method,
                settings={**point.all_settings, **found},
                label=point.label,
                budget=point.budget,
                signatures=signatures(),
                sentences=sentences,
                provenance=stamped(self._shared),
            )
        )

    def _prepared(self, names: Sequence[str]) -> dict[str, list[Callable[[], Any]]]:
        """The calls of each point, after an unmeasured run of some of them."""
        calls = {}
        for name in names:
            self._progress(0.0, f"warm-up: {self._plan[name].label}")
            calls[name] = self._system(name).calls(self._timed_by(name), self._settings.batch_size)
            for call in calls[name][:WARM_UP]:
                call()
            self._progress(self._turn_work(name), "")
        return calls

    def _repetition(
        self, repetition: int, names: Sequence[str], calls: dict[str, list[Callable[[], Any]]], clock: PassClock
    ) -> None:
        """One turn of each point, cut into parts that take turns themselves, so that a slow moment hits all alike."""
        done: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        parts = max(-(-len(calls[name]) // PART) for name in names)
        outside = True  # whether another system was the last to decode
        for part in range(parts):
            if outside:
                clock.sample(SETTLE_SECONDS, counted=False)
            clock.sample(PASS_SECONDS / parts)
            outside = False
            for name in names:
                total = len(calls[name])
                some = calls[name][part * total // parts : (part + 1) * total // parts]
                if some:
                    what = f"turn {repetition + 1} of {self._settings.repetitions}: {self._plan[name].label}"
                    self._progress(0.0, what)
                    if outside and self._plan[name].group not in OUTSIDE:
                        clock.sample(SETTLE_SECONDS, counted=False)
                    done[name] += self._timed_calls(self._system(name), some)
                    outside = self._plan[name].group in OUTSIDE
                    self._progress(self._turn_work(name) * len(some) / total, "")
        passes = clock.take(repetition, stamped(self._timing_shared))  # which are no part of the next turn's
        if (self._contender.name, repetition) not in self._file.records.passes:
            self._file.append(passes)
        for name in names:
            self._file.append(self._timing(name, repetition, done[name]))

    def _timed_calls(self, system: System, calls: Sequence[Callable[[], Any]]) -> list[dict[str, Any]]:
        gc.collect()
        calls[0]()  # not timed: brings the weights back into the caches
        taken = [wall_clock(call) for call in calls]
        return [{"seconds": seconds} | system.count(result) for seconds, result in taken]

    def _timing(self, name: str, repetition: int, calls: Sequence[dict[str, Any]]) -> Timing:
        indices = self._timed_by(name)
        per_call = {key: [call[key] for call in calls if key in call] for key in PER_CALL}
        return Timing(
            id=name,
            repetition=repetition,
            batch=self._settings.batch_size,
            threads=self._threads,
            sentences=len(indices),
            indices=indices,
            **per_call,
            timings={phase: sum(call[phase] for call in calls) for phase in PHASES if phase in calls[0]},
            provenance=stamped(self._timing_shared),
        )


def _with_threshold(point: OperatingPoint, threshold: float) -> OperatingPoint:
    return replace(point, settings={"threshold": threshold})


def _check_continues(path: Path, records: Records, pair: str, identity: dict[str, Any], timing: dict[str, Any]) -> None:
    """Refuses a file whose records of this pair were taken of something else, or in another way."""
    for outputs in records.outputs.values():
        if outputs.pair == pair:
            check_same(path, outputs.provenance.get("subject", {}), identity)
    for record in records.timings.values():
        if records.outputs[record.id].pair == pair:
            check_same(path, record.provenance.get("subject", {}), identity | timing)
