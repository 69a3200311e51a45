"""Drives an algorithm to its last batch: checkpoints, metrics, validation, samples, signals, bad losses.

Knows nothing of what a batch does. A run that is killed and started again ends with the same bits.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from kdtw_fast import files

from . import processes
from .algorithm import Learning
from .checkpoints import load_checkpoint, save_checkpoint
from .evaluate import Table, best_rouge2
from .optimisation import NonFiniteLossError
from .settings import HOUSEKEEPING, LATER, RENAMED, RunSettings

log = logging.getLogger(__name__)

LINE_SECONDS = 60  # from one line of progress to the next

_KEPT = ("step", "validated", "skipped", "sums", "counts", "best")  # what a checkpoint keeps of a Trainer


@dataclass(frozen=True)
class Outcome:
    """How a run ended: batches done, the last validation, the best one, and the signal that stopped it (or None)."""

    step: int
    table: Table
    best: dict[str, Any] | None = None
    stopped_by: int | None = None


class TooManyNonFiniteError(ArithmeticError):
    """The run was stopped because losses or gradients were not finite too often."""


class _StopValidationError(Exception):
    """Raised by the signal handler inside a validation, which changes nothing and is done again later."""


class Trainer:
    """Runs `algorithm` until settings.steps, continuing what settings.out holds.

    OUT/checkpoint.pt (and the one before), OUT/metrics.jsonl, OUT/best (the model that validated best, chosen by the
    algorithm's `rank`), OUT/model (the last). Raises ValueError for a checkpoint of other
    settings or none that is whole, TooManyNonFiniteError with the batch in OUT/non_finite.pt.

    Args:
        algorithm: what a batch does.
        settings: of the run; OUT/recipe.yaml is written from them, and a continuation must have the same (HOUSEKEEPING
            aside).
        name: the algorithm's name in recipes.
        quiet: no progress bar, no samples. Without it stderr shows loss, last validation and time left: a terminal by a
            bar, anything else by a line a minute.
    """

    def __init__(self, algorithm: Learning, settings: RunSettings, name: str, quiet: bool = False):
        if not settings.out:
            raise ValueError("out is empty; name the folder for checkpoints and models (out=runs/NAME)")
        self.algorithm, self.settings, self.quiet = algorithm, settings, quiet
        self.recipe = {"algorithm": name, **asdict(settings)}
        # An empty list is left out: a setting that came later, and is not used, makes no other run of one.
        named = {key: value for key, value in self.recipe.items() if key not in HOUSEKEEPING and value != []}
        self.identity = {key: value for key, value in flat(named).items() if LATER.get(key, ...) != value}
        self.out = Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.writes = processes.rank() == 0
        self.step, self.validated, self.skipped = 0, 0, 0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.best: dict[str, Any] | None = None
        self.told: dict[str, str] = {}  # what stands beside the progress
        self.signal: int | None = None  # what all processes have agreed to stop for
        self._received: int | None = None  # what this one was sent
        self._validating = False
        self._began = time.monotonic()

    # ---------------------------------------------------------------- the loop

    def run(self) -> Outcome:
        """Train; returns the outcome, also when SIGTERM or SIGINT ended the run early (saved, to be continued)."""
        settings = self.settings
        offset = self._resume()
        last = processes.most(self.step)
        first = last - processes.most(last - self.step)
        if first < last:
            raise ValueError(
                f"{self.out}: processes found batches {first} to {last} there, so not all read one folder; give all "
                f"machines one, or copy that with batch {last} to the others"
            )
        records = _Records(self.out, self.recipe, settings, offset, self.step) if self.writes else nullcontext()
        with records as self.records, self._signals():
            if self.step == 0 and offset == 0:
                self._record("start", **self.identity)
            with _progress(self.step, settings.steps, self.quiet or not self.writes) as self.bar:
                while self._validate_if_due() and self.step < settings.steps and self.signal is None:
                    self._batch()
                    self.bar.update()
            if self.signal is not None:
                self._save()
                return Outcome(self.step, [], self.best, self.signal)
            return self._finish()

    def _record(self, event: str, **values: Any) -> None:
        """A line of metrics.jsonl; the first process writes it."""
        if self.records is not None:
            self.records.write(event=event, **values)

    def _batch(self) -> None:
        settings = self.settings
        try:
            values = processes.averaged(self.algorithm.train_batch(self.step))
        except NonFiniteLossError as error:
            self._skip(error)
            values = {}
        self.step += 1
        self._tell(values, "loss")
        self._agree()
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1
        if self.step % settings.log_every == 0 or self.step == settings.steps:
            means = {name: value / self.counts[name] for name, value in self.sums.items()}
            skipped = {"non_finite": self.skipped} if self.skipped else {}
            seconds = round(time.monotonic() - self._began, 3)
            self._record("step", step=self.step, **means, **skipped, seconds=seconds)
            self.sums, self.counts, self._began = {}, {}, time.monotonic()
        if settings.sample_every and self.step % settings.sample_every == 0:
            self._show_samples()
        if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
            self._save()

    def _tell(self, values: dict[str, float], name: str) -> None:
        """Show a value from the next line of progress on."""
        if name in values:
            self.told[name] = f"{values[name]:.4g}"
            self.bar.set_postfix(self.told, refresh=False)

    def _agree(self) -> None:
        """Let a signal that one process was sent stop all of them after the same batch."""
        self.signal = int(processes.most(self._received or 0)) or None

    def _skip(self, error: NonFiniteLossError) -> None:
        self.skipped += 1
        if self.writes:
            scratch = self.out / "non_finite.writing"
            torch.save({"step": self.step, "message": str(error), **error.batch}, scratch)
            os.replace(scratch, self.out / "non_finite.pt")
        self._record("non_finite", step=self.step + 1, message=str(error), count=self.skipped)
        log.warning("skipped an update of batch %d: %s", self.step, error)
        if self.skipped > self.settings.max_non_finite:
            raise TooManyNonFiniteError(
                f"stopped at batch {self.step}: {self.skipped} updates were not finite (max_non_finite is "
                f"{self.settings.max_non_finite}), the last because {error}; {self.out / 'non_finite.pt'} has its "
                f"batch; a lower optimiser.rate or bf16=false may help"
            )

    def _validate_if_due(self) -> bool:
        """Validate if this batch's number says so; False when a signal came in between."""
        every = self.settings.validate_every
        if every and self.step and self.step % every == 0 and self.validated < self.step:
            return self._choose()
        return True

    def _choose(self) -> bool:
        rows = self.settings.validation_rows or None
        table = self._validate(rows)
        if table is None:
            return False
        for row in table:
            self._record("validation", step=self.step, rows=rows, **row)
        self._tell({"validation": best_rouge2(table)[0]}, "validation")
        rank = list(self.algorithm.rank(table))
        if self.best is None or rank > self.best["rank"]:
            self.best = {"step": self.step, "rank": rank, "table": table}
            self._save_model("best")
        self.validated = self.step
        return True

    def _validate(self, rows: int | None) -> Table | None:
        """The algorithm's table, None when a signal interrupted it."""
        table = None
        try:  # a signal may come between any two of these lines
            try:
                self._validating = self.writes
                if self.writes and self._received is None:
                    table = self.algorithm.validate(self.step, rows)
            finally:
                self._validating = False
        except _StopValidationError:
            self._validating = False  # if it came before that line
        self._agree()
        return processes.from_first(table)

    def _finish(self) -> Outcome:
        """The last model, a candidate for the best too, and its validation on all rows."""
        whole = None
        if self.validated == self.step > 0 or self._choose():
            whole = self._validate(None)
        if whole is None:
            self._save()
            return Outcome(self.step, [], self.best, self.signal)
        for row in whole:
            self._record("final", step=self.step, **row)
        if self.writes and (said := self.algorithm.missed(whole)):
            log.warning("%s", said)
        self._save_model("model")
        return Outcome(self.step, whole, self.best)

    def _show_samples(self) -> None:
        wanted = self.settings.samples if self.writes else 0
        for row in self.algorithm.samples(self.step, wanted) if wanted else []:
            self._record("sample", step=self.step, **row)
            if not self.quiet:
                lines = [f"[{self.step}] {row.get('source', '')}", f"written:   {row.get('text', '')}"]
                lines += [f"reference: {row['target']}"] if "target" in row else []
                tqdm.write("\n    ".join(lines), file=sys.stderr)

    # ---------------------------------------------------------------- what survives

    def _save(self) -> None:
        if self.records is None:
            return
        state = {name: getattr(self, name) for name in (*_KEPT, "identity")}
        state["metrics_bytes"] = self.records.sync()
        save_checkpoint(self.out, {**state, "algorithm": self.algorithm.state_dict()})

    def _resume(self) -> int:
        """Take up OUT/checkpoint.pt if there is one; returns how many bytes of metrics.jsonl belong to it."""
        state = load_checkpoint(self.out)
        if state is None:
            return 0
        _same_identity(state["identity"], self.identity, self.out)
        if state["step"] > self.settings.steps:
            raise ValueError(
                f"{self.out} holds batch {state['step']}, but steps={self.settings.steps}; name another folder, "
                f"or more steps"
            )
        for name in _KEPT:
            setattr(self, name, state[name])
        self.algorithm.load_state_dict(state["algorithm"])
        return int(state["metrics_bytes"])

    def _save_model(self, name: str) -> None:
        """Write OUT/name: a killed process leaves no half model under that name."""
        if self.writes:
            with files.replacing_folder(self.out / name) as folder:
                self.algorithm.save_model(folder)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run after the batch (a validation at once); a second one ends the process."""

        def stop(number: int, frame: Any) -> None:
            if self._received is not None:
                raise KeyboardInterrupt
            self._received = number
            log.warning("%s: saving and stopping", signal.Signals(number).name)
            if self._validating:
                raise _StopValidationError

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: signals are somebody else's
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder; ValueError in all processes of a run where another run is in it already."""
    with files.alone_in(out) if processes.rank() == 0 else nullcontext(True) as free:
        if not processes.from_first(free):
            raise ValueError(f"another run is writing to {out}; wait for its end, or name another folder (out=…)")
        yield


class _Lines(io.TextIOBase):
    """Makes a line of every state of a bar, for a stderr that is no terminal."""

    def write(self, text: str) -> int:
        """Write what is not blank."""
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)


def _progress(step: int, steps: int, disable: bool) -> tqdm:
    """A bar on a terminal; elsewhere a line a minute."""
    common: dict[str, Any] = {"initial": step, "total": steps, "disable": disable, "unit": "batch", "miniters": 1}
    if sys.stderr.isatty():
        return tqdm(mininterval=5, **common)
    line = "batch {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}"
    return tqdm(file=_Lines(), mininterval=LINE_SECONDS, maxinterval=0, bar_format=line, **common)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _same_identity(saved: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    saved = {RENAMED.get(name, name): value for name, value in saved.items()}
    differing = sorted(name for name in {*saved, *now} if saved.get(name) != now.get(name))
    if differing:
        was = ", ".join(f"{name}: {saved.get(name)!r} there, {now.get(name)!r} now" for name in differing)
        raise ValueError(f"{out} belongs to a run with other settings ({was}); use another folder or those settings")


class _Records:
    """metrics.jsonl, one JSON object a line, flushed as written; TensorBoard and W&B too where asked for."""

    def __init__(self, out: Path, recipe: dict[str, Any], settings: RunSettings, offset: int, step: int):
        # What is there names the number format that a continuation keeps.
        files.write_whole(out / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(recipe)))
        self.path = out / "metrics.jsonl"
        self.file = self.path.open("ab")
        self.file.truncate(offset)  # lines after the checkpoint will be written again
        self.board, self.project = None, None
        if settings.tensorboard:
            self.board = _needed("torch.utils.tensorboard", "tensorboard=true", "tensorboard").SummaryWriter(
                log_dir=str(out / "tensorboard"), purge_step=step + 1
            )
        if settings.wandb:
            name = str(out.resolve()).strip("/").replace("/", "-")[-64:]  # stays the same when the run is continued
            wandb = _needed("wandb", "wandb=…", "wandb")
            self.project = wandb.init(project=settings.wandb, dir=str(out), id=name, resume="allow")

    def __enter__(self) -> _Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.project is not None:
            self.project.finish()

    def write(self, **values: Any) -> None:
        """Append one line."""
        self.file.write((json.dumps(values, ensure_ascii=False) + "\n").encode())
        self.file.flush()
        scalars = _scalars(values)
        if self.board is not None:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, values.get("step", 0))
            if values["event"] == "sample":
                self.board.add_text("sample", f"{values.get('source')}\n\n{values.get('text')}", values["step"])
        if self.project is not None and scalars:
            self.project.log(scalars, step=values.get("step", 0))

    def sync(self) -> int:
        """Bring what was written to the disk; returns the file's length in bytes."""
        os.fsync(self.file.fileno())
        return self.path.stat().st_size


def _scalars(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line, named event/[budget/]name."""
    if values["event"] not in ("step", "validation", "final"):
        return {}
    budget = f"{values['budget']}/" if "budget" in values else ""
    numbers: Sequence[tuple[str, Any]] = [
        (name, value) for name, value in values.items() if type(value) in (int, float) and name not in ("step", "rows")
    ]
    return {f"{values['event']}/{budget}{name}": float(value) for name, value in numbers}


def _needed(module: str, setting: str, package: str) -> Any:
    """A module that a setting asks for; ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{setting} needs {package}: pip install {package}, or leave it out") from None
