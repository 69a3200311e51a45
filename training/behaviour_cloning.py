"""Phase 1: behaviour cloning of the oracle (Eq. 16, as corrected), the budgets mixed in every batch.

Along the teacher's greedy trajectories the student learns to say <tau> where it diverges most from the teacher,
and to follow the teacher elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS, Budget, join_phrases
from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.model import NativeT5
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.options import check_int, check_real

from . import mixes, processes
from .batches import IGNORED, instruction_prompts
from .debian import Example
from .evaluate import longest_source, scores, shown, texts
from .losses import behaviour_cloning
from .models import load_student, load_teachers, load_tokenizer, save_pair_member, settle_teacher, to_device
from .optimisation import make_optimiser, quicken, rate_at, seed_batch, set_rate, update
from .oracle import expert_gains, oracle_experts, shift_marks
from .selection import rank
from .settings import Optimiser, Pairing, one_of
from .tasks import Task, teacher_trajectories
from .trainer import Table


@dataclass(frozen=True)
class Settings(Pairing):
    """Phase 1."""

    steps: int = 200
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=2e-3, warmup=20))
    # Weight of -log(1 - pi(tau)) where the oracle does not ask; 0 is Eq. 16 as printed. With 1, pi(tau) is a true
    # probability, but greedy decoding then asks for about twice the budget: tau wins as soon as it beats the best
    # single token. With 3 it wins at about even odds.
    abstain: float = 3.0
    rounding: str = "nearest"  # of l x b, the number of positions where the oracle asks; or "floor"
    trajectories: int = 0  # how many training sources the teacher decodes, drawn by the seed; 0 = all
    trajectories_file: str = ""  # where its outputs are kept; empty = OUT/trajectories.jsonl
    tolerance: float = 0.03  # how far use may be from a budget for a checkpoint to count as holding it

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("abstain", self.abstain, 0.0)
        one_of("rounding", self.rounding, ("nearest", "floor"))
        check_int("trajectories", self.trajectories, 0)
        check_real("tolerance", self.tolerance, 0.0, 1.0)


Teacher = T5ForConditionalGeneration | NativeT5


def measure_use(
    decoder: TrainingWheelsDecoder, examples: Sequence[Example], inputs: Iterable[Any], **options: Any
) -> dict[str, Any]:
    """Use, BLEU and ROUGE-2 of what is decoded of `inputs`, a stream's items, one for each example, in order.

    `achieved` is calls over all tokens, `row_mean` the mean of the rows' own, `achieved_of` each of several teachers'.
    `options` are the stream's.
    """
    options = {"max_new_tokens": 96, "batch_size": 64, "in_order": True} | options
    outs = list(decoder.stream(inputs, **options))
    calls, lengths = (np.array([int(out[name][0]) for out in outs]) for name in ("teacher_calls", "lengths"))
    of_each: dict[str, list[float]] = {}
    if len(decoder.teachers) > 1:
        own = np.concatenate([np.asarray(out.calls_by_teacher) for out in outs]).sum(0) / lengths.sum()
        of_each = {"achieved_of": own.round(4).tolist()}
    written = texts(decoder.tokenizer, [out["sequences"][0].tolist() for out in outs])
    return {
        "achieved": round(float(calls.sum() / lengths.sum()), 4),
        "row_mean": round(float((calls / lengths).mean()), 4),
        **of_each,
        **scores(written, [example.target for example in examples]),
    }


def measure_budgets(
    student: TrainingWheelsT5,
    teacher: Teacher | Sequence[Teacher],
    tokenizer: Any,
    examples: Sequence[Example],
    max_new_tokens: int = 96,
    batch_size: int = 64,
    budgets: Sequence[Budget] = BUDGETS,
    **options: Any,
) -> Table:
    """Use asked and achieved, BLEU and ROUGE-2 for each of the budgets, decoded natively; `options` go to the decoder.

    Of several teachers for the mixes of mixes.measured, with the uses of all together, and of each in lists.
    """
    decoder = TrainingWheelsDecoder(student, teacher, tokenizer=tokenizer)
    options |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    table: Table = []
    for mix in mixes.measured(len(decoder.teachers), budgets):
        sources = (example.source for example in examples)
        limit = longest_source(decoder, examples, mixes.told(mix))
        found = measure_use(decoder, examples, sources, budget=mixes.told(mix), max_source_length=limit, **options)
        asked: dict[str, Any] = {"budget": join_phrases(mix), "asked": sum(budget.fraction for budget in mix)}
        if len(mix) > 1:
            asked["asked_of"] = [budget.fraction for budget in mix]
        table.append({**asked, **found})
    return table


class BehaviourCloning:
    """The algorithm of this file, for the trainer."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.tokenizer = load_tokenizer(settings)
        self.task = Task(settings, self.tokenizer)
        self.teachers = load_teachers(settings)
        self.judge = self.teachers[-1]
        n = len(self.teachers)
        self.student = load_student(settings.student.path, len(self.tokenizer), settings, n)
        cache = Path(settings.trajectories_file or Path(settings.out) / "trajectories.jsonl")
        sources = self.task.draw(settings.trajectories)
        names = ["teacher"] if n == 1 else [f"teacher {k}" for k in range(1, 1 + n)]
        self.answering = [
            NativeT5.from_model(teacher, name) for teacher, name in zip(self.teachers, names, strict=True)
        ]
        rows = teacher_trajectories(self.judge, self.task, sources, cache)
        self.instructions = mixes.Instructions(settings.student_prompt, n, settings.paraphrases, settings.budgets)
        self.batches = self.task.batches(rows, instruction_prompts(self.tokenizer, self.instructions))
        self.optimiser = make_optimiser(self.student, settings.optimiser)
        quicken(self.student, 0.0)
        to_device(self.student, settings.device).train()
        for teacher in self.teachers:
            settle_teacher(teacher, settings)

    def train_batch(self, index: int) -> dict[str, float]:
        """One update along R teacher trajectories, each behind an instruction of its own."""
        settings, student = self.settings, self.student
        seed_batch(settings.seed, index)
        set_rate(self.optimiser, rate_at(index, settings.steps, settings.optimiser))
        own = self.batches[index].mine().to(settings.device)
        told = self.batches.at(index, self.task.told).mine().to(settings.device)
        budgets = torch.zeros(len(own.labels), len(self.teachers))
        drawn = torch.tensor(processes.mine(self.batches.draws(index).tolist()), dtype=torch.long)
        budgets[: len(drawn)] = self.instructions.fractions[drawn]
        kept = own.labels != IGNORED
        common = {"decoder_input_ids": student._shift_right(own.labels), "use_cache": False}
        with torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16, enabled=settings.bf16):
            with torch.no_grad():
                answers = [teacher(told.source_ids, told.source_mask, **common).logits for teacher in self.teachers]
            encoded = student.get_encoder()(input_ids=own.source_ids, attention_mask=own.source_mask)
            common |= {"encoder_outputs": encoded, "attention_mask": own.source_mask}
            with torch.no_grad():
                unmarked = student(**common).logits
            gains = expert_gains(unmarked, answers, student.tau_token_ids).transpose(0, 1)
            asked = oracle_experts(gains, kept, budgets.to(settings.device), settings.token_costs, settings.rounding)
            logits = student(**common, decoder_from_teacher=student.as_marks(shift_marks(asked))).logits
        parts = behaviour_cloning(logits, answers[-1], asked, kept, student.tau_token_ids, settings.abstain)
        share = processes.share(int(kept.sum()))
        parts = {name: value * share for name, value in parts.items()}
        norm = update(parts["loss"], student, self.optimiser, settings.optimiser.clip, {**vars(own), "asked": asked})
        return {**{name: float(value.detach()) for name, value in parts.items()}, "grad_norm": norm}

    def validate(self, index: int, rows: int | None) -> Table:
        """Use and quality at the budgets."""
        examples, limit, budgets = self.task.held_out(rows), self.settings.max_new_tokens, self.instructions.budgets
        return measure_budgets(self.student, self.answering, self.tokenizer, examples, limit, budgets=budgets)

    def samples(self, index: int, count: int) -> list[dict[str, str]]:
        """Decoded validation examples at a moderate budget, the teacher's tokens in brackets."""
        decoder = TrainingWheelsDecoder(self.student, self.answering, tokenizer=self.tokenizer)
        budget = mixes.told(mixes.moderate(len(self.teachers), self.instructions.budgets))
        return shown(decoder, self.task.held_out(count), self.settings.max_new_tokens, budget=budget)

    def rank(self, table: Table) -> tuple[float, ...]:
        """How good a table of `validate` is, larger is better; see selection.py."""
        return rank(table, self.settings.tolerance)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"model": self.student.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state again."""
        self.student.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def save_model(self, folder: Path) -> None:
        """The student, a plain T5 checkpoint with beta, and its tokenizer."""
        save_pair_member(self.student, self.tokenizer, folder)


build = BehaviourCloning
