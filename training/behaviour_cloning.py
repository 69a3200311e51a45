"""Phase 1: behaviour cloning of the oracle (Eq. 16, as corrected), the budgets mixed in every batch.

Along the teacher's greedy trajectories the student learns to say <tau> where it diverges most from the teacher,
and to follow the teacher elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kdtw_fast.options import check_int, check_real

from . import processes
from .algorithm import LearningToAsk
from .allocations import Instructions
from .batches import IGNORED
from .losses import behaviour_cloning
from .models import autocast, encoded, forced_logits, pack_teachers, prepare_teacher
from .oracle import oracle_teachers, shift_marks, teacher_gains
from .settings import Optimiser, PhaseSettings
from .tasks import teacher_trajectories


@dataclass(frozen=True)
class Settings(PhaseSettings):
    """Phase 1."""

    steps: int = 200
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=2e-3, warmup=20))
    # Weight of -log(1 - pi(tau)) where the oracle does not ask; 0 is Eq. 16 as printed. With 1, pi(tau) is a true
    # probability, but greedy decoding then asks for about twice the budget: tau wins as soon as it beats the best
    # single token. With 3 it wins at about even odds.
    abstain: float = 3.0
    trajectories: int = 0  # how many training sources the teacher decodes, drawn by the seed; 0 = all
    trajectories_file: str = ""  # where its outputs are kept; empty = OUT/trajectories.jsonl

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("abstain", self.abstain, 0.0)
        check_int("trajectories", self.trajectories, 0)


class BehaviourCloning(LearningToAsk):
    """The algorithm of this file, for the trainer."""

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.moves_use = f"a larger abstain (it is {settings.abstain:g}) lowers use, a smaller one raises it"
        n = len(self.teachers)
        self.costs = tuple(settings.costs) or (1.0,) * n
        self.native_teachers = pack_teachers(self.teachers, settings.rollout_device)
        sources = self.task.draw(settings.trajectories)
        rows = teacher_trajectories(self.teachers[-1], self.task, sources, settings.trajectories_file)
        self.instructions = Instructions(settings.student_prompt, n, settings.paraphrases, settings.budgets)
        self.batches = self.task.batches(rows, self.task.frame.prompts(self.instructions.texts))
        self.teach(self.student)
        for teacher in self.teachers:
            prepare_teacher(teacher, settings)

    def train_batch(self, index: int) -> dict[str, float]:
        """One update along R teacher trajectories, each behind an instruction of its own."""
        settings, student = self.settings, self.student
        self.begin(index)
        own = self.batches[index].mine().to(settings.device)
        theirs = self.batches.at(index, self.task.teacher_prompt).mine().to(settings.device)
        fractions = torch.zeros(len(own.labels), len(self.teachers))
        drawn = processes.mine(self.batches.draws(index).tolist())
        fractions[: len(drawn)] = self.instructions.fractions[drawn]
        kept = own.labels != IGNORED
        with torch.no_grad():
            teacher_logits = [forced_logits(one, theirs, settings) for one in self.teachers]
        with autocast(settings):
            hidden = encoded(student, own.source_ids, own.source_mask)
        with torch.no_grad():
            unmarked = forced_logits(student, own, settings, hidden=hidden)
        with autocast(settings):
            gains = teacher_gains(unmarked, teacher_logits, student.tau_token_ids).transpose(0, 1)
            asked = oracle_teachers(gains, kept, fractions.to(settings.device), self.costs, settings.rounding)
        logits = forced_logits(student, own, settings, student.as_marks(shift_marks(asked)), hidden)
        parts = behaviour_cloning(logits, teacher_logits[-1], asked, kept, student.tau_token_ids, settings.abstain)
        share = processes.share(int(kept.sum()))
        parts = {name: value * share for name, value in parts.items()}
        norm = self.update(parts["loss"], {**vars(own), "asked": asked})
        return {**{name: float(value.detach()) for name, value in parts.items()}, "grad_norm": norm}


build = BehaviourCloning
