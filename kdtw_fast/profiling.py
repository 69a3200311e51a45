"""What models cost on this machine, phase by phase, beside the machine's roofs and beside other systems.

`profile` is behind `kdtw bench`; docs/profiling.md says how to read its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median, median_low
from typing import Any

import torch
from rich.table import Table

from kdtw_fast import _core, peers
from kdtw_fast.costs import Costs, ModelCosts, Prediction
from kdtw_fast.machine import Roof, machine, peak_rss
from kdtw_fast.model import NativeT5
from kdtw_fast.paired_timing import take_turns
from kdtw_fast.shapes import cache_bytes
from kdtw_fast.tables import terminal_table

OPERATIONS = ("linear", "head", "attention", "other")
PHASES = ("encoder", "step", "catch-up", "verification")
PASS_LENGTHS = (2, 4, 8, 16)  # tokens of the catch-up and verification passes
REPEATS = 3  # of a pass in a turn: as in a decode, the passes before it were of the same model
OURS = "kdtw_fast"
# What predictions assume of a pair: the share of tokens the teacher writes, and of drafts that pass.
ASSUMED_USE, ASSUMED_ACCEPTANCE = (0.1, 0.3), (0.6, 0.8)


@dataclass
class Phase:
    """A pass of one model, timed.

    Args:
        model: "student", "teacher" or "model".
        name: one of `PHASES`.
        rows: rows of the batch.
        tokens: tokens per row that the pass reads.
        asked: of them, those about which the head is asked.
        seconds: of the pass in each round.
        profiles: seconds, bytes of weights and floating-point operations of the pass in each round, by operation.
    """

    model: str
    name: str
    rows: int
    tokens: int
    asked: int
    seconds: list[float] = field(default_factory=list)
    profiles: list[dict[str, tuple[float, float, float]]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of the pass."""
        return median(self.seconds)

    @property
    def operations(self) -> dict[str, tuple[float, float, float]]:
        """The profile of the middle round."""
        return self.profiles[self.seconds.index(median_low(self.seconds))]

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per token of all rows."""
        return 1000.0 * self.median / (self.rows * self.tokens)

    @property
    def weight_bytes(self) -> float:
        """Bytes of packed weights that the pass reads."""
        return sum(weight_bytes for _, weight_bytes, _ in self.operations.values())

    @property
    def flops(self) -> float:
        """Floating-point operations of its products, two per multiply-add."""
        return sum(flops for _, _, flops in self.operations.values())

    def of_roof(self, roof: Roof) -> tuple[float, str]:
        """The share of the roof that the pass reaches, and which roof it is."""
        least, bound = roof.seconds(self.weight_bytes, self.flops)
        return least / self.median, bound

    def to_json(self, roof: Roof | None) -> dict[str, Any]:
        """Everything that is known of it; without a roof, that is its time."""
        derived: dict[str, Any] = {"ms": 1000.0 * self.median, "ms_per_token": self.ms_per_token}
        if roof is None:
            known = asdict(self)
            del known["profiles"]
            return known | derived
        share, bound = self.of_roof(roof)
        derived |= {
            "gb_per_s": self.weight_bytes / self.median / 1e9,
            "gflop_per_s": self.flops / self.median / 1e9,
            "share_of_roof": share,
            "roof": bound,
        }
        known = asdict(self) | {"operations": self.operations}
        del known["profiles"]
        return known | derived


@dataclass
class Whole:
    """A whole greedy decode by one system: encoder and all steps."""

    model: str
    system: str
    rows: int
    new_tokens: int
    seconds: list[float]

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per output token of all rows."""
        return 1000.0 * median(self.seconds) / (self.rows * self.new_tokens)

    def to_json(self) -> dict[str, Any]:
        """Everything that is known of it."""
        return asdict(self) | {"ms_per_token": self.ms_per_token, "tokens_per_s": 1000.0 / self.ms_per_token}


@dataclass
class Memory:
    """Bytes of a model: packed weights, and by :func:`kdtw_fast.shapes.cache_bytes` the caches of its largest batch.

    On a device `caches` is None.
    """

    model: str
    dtype: str
    weights: int
    cache_rows: int
    caches: int | None


@dataclass
class Report:
    """What `kdtw bench` measured: tables for people, JSON for programs."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    roof: Roof
    phases: list[Phase]
    whole: list[Whole]
    memory: list[Memory]
    peak_rss: int
    """Largest resident memory of the process, or of its time before another system was loaded."""
    device: str = "cpu"
    """Where the models are. Elsewhere than on the CPU a pass is known by its time alone, and nothing is predicted."""

    @property
    def predictions(self) -> list[Prediction]:
        """What each method would take for one row, by the cost model; empty without both models of a pair."""
        if self._roof is None or {"student", "teacher"} - {phase.model for phase in self.phases}:
            return []
        costs = Costs(
            self._costs("student"),
            self._costs("teacher"),
            source_tokens=self.settings["source_tokens"],
            new_tokens=self.settings["new_tokens"],
            num_threads=self.roof.threads,
        )
        return [
            costs.predict("greedy-student"),
            costs.predict("greedy-teacher"),
            *(costs.predict("training-wheels", use=use) for use in ASSUMED_USE),
            *(costs.best_speculative(acceptance) for acceptance in ASSUMED_ACCEPTANCE),
        ]

    @property
    def _roof(self) -> Roof | None:
        return self.roof if self.device == "cpu" else None

    def _costs(self, model: str) -> ModelCosts:
        passes = {(p.name, p.tokens): p.median for p in self.phases if p.model == model and p.rows == 1}

        def points(name: str) -> dict[int, float]:
            return {tokens: seconds for (kind, tokens), seconds in passes.items() if kind in ("step", name)}

        return ModelCosts(passes["encoder", self.settings["source_tokens"]], points("catch-up"), points("verification"))

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes and seconds unless a name says otherwise."""
        return {
            "settings": self.settings,
            "device": self.device,
            "machine": self.machine,
            "roof": {
                "threads": self.roof.threads,
                "gb_per_s": self.roof.read / 1e9,
                "gflop_per_s": self.roof.gemm / 1e9,
            },
            "phases": [phase.to_json(self._roof) for phase in self.phases],
            "generate": [whole.to_json() for whole in self.whole],
            "predictions": [asdict(p) | {"ms_per_token": p.ms_per_token} for p in self.predictions],
            "memory": {"peak_rss": self.peak_rss, "models": [asdict(memory) for memory in self.memory]},
        }

    def tables(self) -> list[Table]:
        """Phases of each model, whole decodes beside the other systems, memory."""
        models = list(dict.fromkeys(phase.model for phase in self.phases))
        predicted = [self._prediction_table()] if self.predictions else []
        return [*map(self._phase_table, models), *predicted, self._whole_table(), self._memory_table()]

    def _phase_table(self, model: str) -> Table:
        def row(phase: Phase) -> list[str]:
            times = [f"{1000 * phase.median:.2f}", f"{phase.ms_per_token:.3f}"]
            known = [phase.name, str(phase.rows), str(phase.tokens), *times]
            if self._roof is None:
                return known
            share, bound = phase.of_roof(self.roof)
            total = sum(seconds for seconds, _, _ in phase.operations.values())
            return [
                *known,
                f"{phase.weight_bytes / phase.median / 1e9:.1f}",
                f"{phase.flops / phase.median / 1e9:.0f}",
                f"{100 * share:.0f} % {bound}",
                *(f"{100 * phase.operations[name][0] / total:.0f} %" for name in OPERATIONS),
            ]

        columns: tuple[str, ...] = ("phase", "rows", "tokens", "ms", "ms/token")
        if self._roof is not None:
            columns += ("GB/s", "GFLOP/s", "of roof", *OPERATIONS)
        dtype = next(memory.dtype for memory in self.memory if memory.model == model)
        return terminal_table(f"{model}, {dtype}", columns, (row(p) for p in self.phases if p.model == model))

    def _whole_table(self) -> Table:
        ours = {(whole.model, whole.rows): whole.ms_per_token for whole in self.whole if whole.system == OURS}

        def row(whole: Whole) -> list[str]:
            factor = whole.ms_per_token / ours[whole.model, whole.rows]
            faster = "" if whole.system == OURS else f"{factor:.2f}×"
            ms = whole.ms_per_token
            return [f"{whole.model}, {whole.system}", str(whole.rows), f"{ms:.3f}", f"{1000 / ms:.0f}", faster]

        columns = ("whole generate", "rows", "ms/token", "tokens/s", f"{OURS} is faster by")
        title = f"{self.settings['source_tokens']} source, {self.settings['new_tokens']} new tokens"
        return terminal_table(title, columns, map(row, self.whole))

    def _prediction_table(self) -> Table:
        (alone,) = (p.ms_per_token for p in self.predictions if p.method == "greedy-teacher")

        def row(p: Prediction) -> list[str]:
            assumed = ", ".join(f"{name} {value:g}" for name, value in p.settings.items())
            return [p.method, assumed, f"{p.ms_per_token:.3f}", f"{alone / p.ms_per_token:.2f}×"]

        columns = ("method", "assumed", "ms/token", "against the teacher")
        return terminal_table("what the methods would take, one row", columns, map(row, self.predictions))

    def _memory_table(self) -> Table:
        title = f"memory (peak of the process: {self.peak_rss / 1e9:.2f} GB)"
        rows = (
            [f"{m.model}, {m.dtype}", f"{m.weights / 1e6:.1f}", _megabytes(m.caches), str(m.cache_rows)]
            for m in self.memory
        )
        return terminal_table(title, ("MB", "weights", "caches", "rows"), rows)

    @property
    def caption(self) -> str:
        """Machine and roofs in one line."""
        machine, threads = self.machine, self.roof.threads
        if self._roof is None:
            return f"{self.device} is {_core.build_info()['cuda']['devices'][int(self.device.partition(':')[2])]}."
        return (
            f"{machine['processor']}, {machine['cores']} cores, {machine['build']['simd']}. Roofs with {threads} "
            f"thread{'s' * (threads > 1)}: {self.roof.read / 1e9:.1f} GB/s read, {self.roof.gemm / 1e9:.0f} GFLOP/s "
            "in fp32 products."
        )


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.1f}"


def random_sources(model: NativeT5, rows: int, length: int) -> torch.Tensor:
    """Random source ids [rows, length] for ``model``, its end token last."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.vocab_size - 1, (rows, length), generator=generator)
    ids[:, -1] = model.eos_token_ids[0]
    return ids


Peers = Mapping[str, Callable[[int, int], peers.Generate]]  # system -> (new tokens, threads) -> a decode


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        rows: batch sizes of steps and whole decodes; other passes are measured with one row.
        source_tokens: length of every source.
        new_tokens: outputs per row.
        rounds: measured turns of everything, after one that is not measured.
        threads: of every system.
    """

    rows: tuple[int, ...] = (1, 4, 8, 32)
    source_tokens: int = 64
    new_tokens: int = 64
    rounds: int = 5
    threads: int = 1

    def turns(self, peer_counts: Sequence[int]) -> int:
        """How often `profile` calls ``on_turn``, with so many other systems beside each model."""
        passes = len(_phases("", 1)) + len({1, *self.rows}) - 1
        return sum(1 + (1 + self.rounds) * (passes + len(self.rows) * (1 + count)) for count in peer_counts)


def profile(
    models: Mapping[str, NativeT5],
    plan: Plan,
    *,
    peers_of: Callable[[str], Peers] = lambda name: {},
    settings: Mapping[str, Any] | None = None,
    on_turn: Callable[[], object] = lambda: None,
) -> Report:
    """Times every phase of every model, then whole decodes beside other systems; whatever is compared takes turns.

    Args:
        models: by the name they have in the report.
        plan: what to measure.
        peers_of: other systems with the weights of the model so named; asked one model at a time, after our own
            memory was read.
        settings: what the report says of how it was asked for, beside the plan.
        on_turn: called after every call that is timed or warms up, `Plan.turns` times.
    """
    roof = Roof.measure(plan.threads)
    phases = [phase for rows in sorted({1, *plan.rows}) for phase in _race_phases(models, rows, plan, on_turn)]
    places = {name: i for i, name in enumerate(models)}
    phases.sort(key=lambda phase: (places[phase.model], PHASES.index(phase.name)))
    sources = {
        name: {rows: random_sources(model, rows, plan.source_tokens) for rows in plan.rows}
        for name, model in models.items()
    }
    most = max(plan.rows)
    memory = []
    for name, model in models.items():
        peers.native(model, plan.new_tokens, plan.threads)(sources[name][most])
        on_turn()
        here = model.device == "cpu"
        caches = cache_bytes(model.spec, most, plan.source_tokens, plan.new_tokens) if here else None
        memory.append(Memory(name, model.dtype, model.num_bytes, most, caches))
    peak = peak_rss()
    whole, alone = [], True
    for name, model in models.items():
        others = peers_of(name)
        alone = alone and not others
        systems: dict[str, Callable[[int, int], peers.Generate]] = {OURS: partial(peers.native, model), **others}
        decodes = {system: make(plan.new_tokens, plan.threads) for system, make in systems.items()}
        for rows in plan.rows:
            contestants = {system: partial(decode, sources[name][rows]) for system, decode in decodes.items()}
            for system, recorded in take_turns(contestants, plan.rounds, on_turn).items():
                whole.append(Whole(name, system, rows, plan.new_tokens, recorded.seconds))
    peak = peak_rss() if alone else peak
    device = next(iter(models.values())).device
    return Report(asdict(plan) | dict(settings or {}), machine(), roof, phases, whole, memory, peak, device)


def _phases(model: str, rows: int) -> list[Phase]:
    """The passes that are measured with so many rows."""
    step = Phase(model, "step", rows, 1, 1)
    if rows > 1:
        return [step]
    catch_ups = [Phase(model, "catch-up", 1, n, 1) for n in PASS_LENGTHS]
    verifications = [Phase(model, "verification", 1, n, n) for n in PASS_LENGTHS]
    return [Phase(model, "encoder", 1, 0, 0), step, *catch_ups, *verifications]


def _race_phases(models: Mapping[str, NativeT5], rows: int, plan: Plan, on_turn: Callable[[], object]) -> list[Phase]:
    phases: list[Phase] = []
    contestants: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        probe = _core.Probe(
            model.device, model.core, rows, plan.source_tokens, plan.new_tokens // 2, max(PASS_LENGTHS), plan.threads
        )
        for phase in _phases(name, rows):
            if phase.name == "encoder":
                phase.tokens = plan.source_tokens
                run = partial(probe.encode, REPEATS)
            else:
                run = partial(probe.decode, phase.tokens, phase.asked, REPEATS)
            contestants[str(len(phases))] = run
            phases.append(phase)
    for i, recorded in enumerate(take_turns(contestants, plan.rounds, on_turn).values()):
        phases[i].seconds = [median(seconds) for seconds, _ in recorded.results]
        phases[i].profiles = [operations for _, operations in recorded.results]
    return phases
