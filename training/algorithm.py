"""What all algorithms share: their task, the model that learns, its state in checkpoints, and how it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from kdtw_fast.decoders import SingleModelDecoder, TrainingWheelsDecoder
from kdtw_fast.model import NativeT5
from kdtw_fast.modeling import TrainingWheelsT5

from .allocations import Instructions, as_option, moderate
from .debian import Example
from .evaluate import measure_budgets, shown
from .models import save_pair_member
from .optimisation import rate_at, seed_batch, set_rate
from .selection import rank
from .settings import PhaseSettings, RunSettings
from .tasks import Task
from .trainer import Table


class Learning:
    """A model that learns; an algorithm makes the attributes, and adds `train_batch` and `validate`."""

    settings: RunSettings
    tokenizer: Any
    task: Task
    model: PreTrainedModel
    optimiser: torch.optim.Optimizer
    state_parts: ClassVar[tuple[str, ...]] = ("model", "optimiser")  # the attributes that make a checkpoint

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
        return SingleModelDecoder(self.model, tokenizer=self.tokenizer), {}

    def samples(self, index: int, count: int) -> list[dict[str, str]]:
        """Decoded validation examples, what a teacher wrote in brackets."""
        decoder, options = self.shown_by(index)
        return shown(decoder, self.held_out(count), self.settings.max_new_tokens, **options)

    def state_dict(self) -> dict[str, Any]:
        """All that `train_batch` depends on: tensors, numbers, lists and dicts of them."""
        return {name: getattr(self, name).state_dict() for name in self.state_parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of the same settings; what follows is the same to the bit as without the interruption."""
        for name in self.state_parts:
            getattr(self, name).load_state_dict(state[name])

    def save_model(self, folder: Path) -> None:
        """The model, as every T5 loader takes it, and its tokenizer."""
        save_pair_member(self.model, self.tokenizer, folder)


class LearningToAsk(Learning):
    """A student that asks its teachers, which both phases train: measured at its budgets."""

    settings: PhaseSettings
    student: TrainingWheelsT5
    native_teachers: Sequence[NativeT5]
    instructions: Instructions

    def shown_by(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Student and teachers, at a moderate budget."""
        decoder = TrainingWheelsDecoder(self.student, self.native_teachers, tokenizer=self.tokenizer)
        return decoder, {"budget": as_option(moderate(len(self.native_teachers), self.instructions.budgets))}

    def validate(self, index: int, rows: int | None) -> Table:
        """Use and quality at the budgets on `rows` validation examples (None = all), greedy; whatever `index` is."""
        decoder = TrainingWheelsDecoder(
            self.student,
            self.native_teachers,
            tokenizer=self.tokenizer,
            num_threads=self.settings.threads or None,
        )
        budgets, limit = self.instructions.budgets, self.settings.max_new_tokens
        return measure_budgets(decoder, self.held_out(rows), budgets, max_new_tokens=limit)

    def rank(self, table: Table) -> tuple[float, ...]:
        """How good a table of `validate` is, larger is better; see selection.py."""
        return rank(table, self.settings.tolerance)
