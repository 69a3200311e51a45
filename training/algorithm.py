"""What the trainer drives: an algorithm's task, the model that learns, its state in checkpoints, how it is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from kdtw_fast.decoders import SingleModelDecoder, TrainingWheelsDecoder
from kdtw_fast.model import NativeModel

from .allocations import Instructions, as_option, moderate
from .debian import Example
from .decoders import decoder_of
from .evaluate import Table, best_rouge2, excess, measure_budgets, rank, shown
from .models import load_pair, load_tokenizer, save_pair_member, to_device
from .optimisation import make_optimiser, rate_at, seed_batch, set_rate, update, use_fast_operators
from .settings import PhaseSettings, RunSettings
from .tasks import Task


class Learning(ABC):
    """A model that learns; an algorithm adds `train_batch` and `validate`."""

    settings: RunSettings
    tokenizer: Any
    task: Task
    model: PreTrainedModel
    optimiser: torch.optim.Optimizer
    state_parts: ClassVar[tuple[str, ...]] = ("model", "optimiser")  # the attributes that make a checkpoint

    def __init__(self, settings: RunSettings):
        self.settings = settings
        self.tokenizer = load_tokenizer(settings)
        self.task = Task(settings, self.tokenizer)

    @abstractmethod
    def train_batch(self, index: int) -> dict[str, float]:
        """Everything one batch does; a pure function of (state, index). Returns what to log.

        Raises NonFiniteLossError before an optimiser's step that would spoil the weights.
        """

    @abstractmethod
    def validate(self, index: int, rows: int | None) -> Table:
        """Measure on `rows` validation examples (None: all) without changing the state."""

    def rank(self, table: Table) -> tuple[float, ...]:
        """How good a table of `validate` is, larger is better: its mean ROUGE-2."""
        return best_rouge2(table)

    def missed(self, table: Table) -> str:
        """What the last table misses, by how much, and which setting moves it, in a sentence; "" if nothing."""
        return ""

    def teach(self, model: PreTrainedModel, dropout: float = 0.0) -> None:
        """Make `model` the one that learns: on its device, with its optimiser and fast operators, in training mode."""
        self.model = model
        self.optimiser = make_optimiser(model, self.settings.optimiser)
        use_fast_operators(model, dropout)
        to_device(model, self.settings.device).train()

    def update(self, loss: torch.Tensor, batch: Mapping[str, Any]) -> float:
        """One guarded update; returns the gradient's norm."""
        return update(loss, self.model, self.optimiser, self.settings.optimiser.clip, batch)

    def begin(self, index: int) -> float:
        """Make the random numbers of a batch its own, and set its rate, which is returned."""
        seed_batch(self.settings.seed, index)
        rate = rate_at(index, self.settings.steps, self.settings.optimiser)
        set_rate(self.optimiser, rate)
        return rate

    def held_out(self, rows: int | None) -> Sequence[Example]:
        """`rows` validation examples, the same ones in every run; all with None."""
        return self.task.held_out(rows)

    def shown_by(self, index: int) -> tuple[Any, dict[str, Any]]:
        """The decoder that writes the samples of batch `index`, and its options: here the model alone."""
        return decoder_of(
            SingleModelDecoder, self.model, tokenizer=self.tokenizer, device=self.settings.rollout_device
        ), {}

    def samples(self, index: int, count: int) -> list[dict[str, str]]:
        """Decoded validation examples, what a teacher wrote in brackets."""
        decoder, options = self.shown_by(index)
        return shown(decoder, self.held_out(count), self.settings.max_new_tokens, self.task.frame, **options)

    def state_dict(self) -> dict[str, Any]:
        """All that `train_batch` depends on: tensors, numbers, lists and dicts of them."""
        return {name: getattr(self, name).state_dict() for name in self.state_parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of the same settings; what follows is the same to the bit as without the interruption."""
        for name in self.state_parts:
            getattr(self, name).load_state_dict(state[name])

    def save_model(self, folder: Path) -> None:
        """The model, as every loader of such models takes it, and its tokenizer."""
        save_pair_member(self.model, self.tokenizer, folder)


class LearningToAsk(Learning):
    """A student that asks its teachers, which both phases train: measured at its budgets."""

    settings: PhaseSettings
    native_teachers: Sequence[NativeModel]
    instructions: Instructions
    moves_use: str  # which setting does

    def __init__(self, settings: PhaseSettings):
        super().__init__(settings)
        self.student, self.teachers = load_pair(settings, self.tokenizer)

    def shown_by(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Student and teachers, at a moderate budget."""
        place, tokenizer = self.settings.rollout_device, self.tokenizer
        decoder = decoder_of(
            TrainingWheelsDecoder, self.student, self.native_teachers, tokenizer=tokenizer, device=place
        )
        return decoder, {"budget": as_option(moderate(len(self.native_teachers), self.instructions.budgets))}

    def validate(self, index: int, rows: int | None) -> Table:
        """Use and quality at the budgets on `rows` validation examples (None = all), greedy; whatever `index` is."""
        decoder = decoder_of(
            TrainingWheelsDecoder,
            self.student,
            self.native_teachers,
            tokenizer=self.tokenizer,
            num_threads=self.settings.threads or None,
            device=self.settings.rollout_device,
        )
        budgets, limit = self.instructions.budgets, self.settings.max_new_tokens
        return measure_budgets(decoder, self.held_out(rows), budgets, self.task.frame, max_new_tokens=limit)

    def rank(self, table: Table) -> tuple[float, ...]:
        """Tables that hold every budget come first."""
        return rank(table, self.settings.tolerance)

    def missed(self, table: Table) -> str:
        """The budgets that are not held."""
        limit = self.settings.tolerance
        off = [(row["budget"], found) for row in table if abs(found := excess(row)) > limit + 1e-9]
        if not off:
            return ""
        words = ", ".join(f'"{budget}" by {100 * found:+.1f} points' for budget, found in off)
        return (
            f"{len(off)} of {len(table)} budgets are missed by more than tolerance={limit:g} (use minus budget): "
            f"{words}; {self.moves_use}"
        )
