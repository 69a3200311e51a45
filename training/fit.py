"""Cross-entropy fitting of a model, on references or on the teacher's outputs, mixed with the teacher's distribution.

One algorithm, three baselines: plain fitting, supervised distillation (`distill`) and sequence-level distillation
(`targets: teacher`; Kim & Rush 2016).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from kdtw_fast.options import check_real

from . import processes
from .algorithm import Learning
from .allocations import Instructions
from .batches import IGNORED, Batches
from .evaluate import Table, greedy_scores
from .losses import cross_entropy, distillation
from .models import (
    fit_together,
    forced_logits,
    load_plain,
    load_teacher,
    new_t5,
    prepare_teacher,
)
from .settings import Optimiser, RunSettings, check_wordings, one_of
from .tasks import teacher_trajectories


@dataclass(frozen=True)
class Settings(RunSettings):
    """Fitting: of the teacher, or of a student before it learns to ask."""

    role: str = "teacher"  # which model is fitted; a student sees all six budget prompts, a teacher its own
    targets: str = "data"  # "data": the references; "teacher": the teacher's greedy outputs
    trajectories_file: str = ""  # where those outputs are kept; empty = OUT/trajectories.jsonl
    distill: float = 0.0  # weight of KL(teacher || student) against cross-entropy
    dropout: float = 0.1  # of the model that is fitted, while it is
    # Further wordings of a student's prompt, each with "{budget}" or "{percent}" (0, 10, … 50) in it: every row of a
    # batch draws one of all. Empty = student_prompt alone.
    paraphrases: list[str] = field(default_factory=list)
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=2e-2, warmup=250))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("role", self.role, ("teacher", "student"))
        one_of("targets", self.targets, ("data", "teacher"))
        check_real("distill", self.distill, 0.0, 1.0)
        check_real("dropout", self.dropout, 0.0, 0.99)
        check_wordings(self.student_prompt, self.paraphrases)
        if self.paraphrases and self.role == "teacher":
            raise ValueError("paraphrases are wordings of the student's prompt; set role=student or leave them out")
        if self.needs_teacher and (self.role == "teacher" or not self.teacher.path):
            raise ValueError(
                f"distill={self.distill:g} with targets={self.targets} learns from a teacher; set role=student and "
                f"teacher.path"
            )

    def prompts(self) -> list[str]:
        """The teacher's prompt alone where no student is fitted."""
        return super().prompts() if self.role == "student" else [self.teacher_prompt]

    def places(self) -> dict[str, str]:
        """Those of every run, without a model that is not read."""
        read = {self.role, "teacher"} if self.needs_teacher or not self.tokenizer else {self.role}
        unread = {f"{role}.path" for role in ("student", "teacher") if role not in read}
        return {setting: place for setting, place in super().places().items() if setting not in unread}

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is learned from."""
        return self.distill > 0 or self.targets == "teacher"


class Fitting(Learning):
    """The algorithm of this file, for the trainer."""

    settings: Settings
    model: PreTrainedModel

    def __init__(self, settings: Settings):
        super().__init__(settings)
        wordings = Instructions(settings.student_prompt, paraphrases=settings.paraphrases).texts
        self.prompts = self.task.frame.prompts([settings.teacher_prompt] if settings.role == "teacher" else wordings)
        shape = getattr(settings, settings.role)
        if shape.path:
            model = load_plain(shape.path, f"{settings.role}.path")
        else:
            model = new_t5(shape, len(self.tokenizer), settings.seed)
        model.config.teacher_prompt = settings.teacher_prompt
        if settings.role == "student":
            model.config.student_prompt = settings.student_prompt
        rows = self.task.train
        self.teacher: PreTrainedModel | None = None
        if settings.needs_teacher:
            self.teacher = load_teacher(settings)
            fit_together(self.tokenizer, model, self.teacher, told=bool(settings.tokenizer))
            if settings.targets == "teacher":
                rows = teacher_trajectories(self.teacher, self.task, rows, settings.trajectories_file)
            prepare_teacher(self.teacher, settings)
        self.teach(model, settings.dropout)
        self.batches = self.task.batches(rows, self.prompts)
        held_out = self.task.frame.encode(self.task.validation, settings.data.max_source, settings.data.max_target)
        self.checks: Batches | None = self.task.batches(held_out, self.prompts[:1]) if held_out else None

    def train_batch(self, index: int) -> dict[str, float]:
        """One update."""
        settings = self.settings
        rate = self.begin(index)
        batch = self.batches[index].mine().to(settings.device)
        kept = int((batch.labels != IGNORED).sum())
        logits = forced_logits(self.model, batch, settings)
        loss = cross_entropy(logits, batch.labels)
        if self.teacher is not None and settings.distill:
            with torch.no_grad():
                theirs = self.batches.at(index, self.task.teacher_prompt).mine().to(settings.device)
                teacher_logits = forced_logits(self.teacher, theirs, settings)
            learned = distillation(logits, teacher_logits, batch.labels)
            loss = (1 - settings.distill) * loss + settings.distill * learned
        loss = loss * processes.share(kept)
        norm = self.update(loss, vars(batch))
        return {"loss": float(loss.detach()), "rate": rate, "grad_norm": norm, "tokens": processes.total(kept)}

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Mean cross-entropy over the validation examples within the length bounds; None if there are none."""
        if self.checks is None:
            return None
        self.model.eval()
        total, count = 0.0, 0
        for step in range(self.checks.per_epoch):
            batch = self.checks[step].to(self.settings.device)
            kept = int((batch.labels != IGNORED).sum())
            total += float(cross_entropy(forced_logits(self.model, batch, self.settings), batch.labels)) * kept
            count += kept
        self.model.train()
        return round(total / count, 4)

    def validate(self, index: int, rows: int | None) -> Table:
        """Validation loss, BLEU and ROUGE-2 of greedy outputs, in one row."""
        examples, limit, place = self.held_out(rows), self.settings.max_new_tokens, self.settings.rollout_device
        found = greedy_scores(self.model, self.task.frame, examples, self.prompts[0], limit, place)
        return [{"validation_loss": self.validation_loss(), **found}]


build = Fitting
