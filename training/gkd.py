"""GKD (Agarwal et al. 2024): a divergence to the teacher along outputs that are partly the student's own.

With `student_fraction` 1 it is on-policy distillation, with 0 (and `fixed: data`) supervised distillation; as a drafter
its student is DistillSpec's (Zhou et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdtw_fast.options import check_real

from . import distillation, processes
from .batches import IGNORED, Encoded, keyed_generator
from .losses import DIVERGENCES, token_divergence
from .models import forced_logits
from .settings import one_of


@dataclass(frozen=True)
class Settings(distillation.Settings):
    """GKD, by default as the KDTW paper trains its baseline."""

    divergence: str = "reverse"  # "reverse" KL(student || teacher), "forward" KL(teacher || student), or "jsd"
    beta: float = 0.5  # of jsd: near 0 it behaves like forward KL, near 1 like reverse
    student_fraction: float = 0.5  # of each update's rows that are sampled; the others are fixed outputs

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("divergence", self.divergence, DIVERGENCES)
        check_real("student_fraction", self.student_fraction, 0.0, 1.0)
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be between 0 and 1, got {self.beta}")


class GKD(distillation.Distillation):
    """The algorithm of this file, for the trainer.

    A batch has R tasks, and for each a sampled output and a fixed one. Each update draws R of them without replacement,
    `student_fraction` of them sampled, and moves the student towards the teacher along them.
    """

    settings: Settings

    def train_batch(self, index: int) -> dict[str, float]:
        """Sample, score with the teacher once, and make `updates_per_batch` updates."""
        settings = self.settings
        self.begin(index)
        fixed = self.batches.rows_at(index)
        count = round(settings.student_fraction * len(fixed))
        first = fixed if count < len(fixed) else []
        second = self.sampled(fixed, index) if count else []
        pool = [*first, *second]
        draws = [self._draw(index, number, len(fixed), count) for number in range(settings.updates_per_batch)]
        along = self._teacher_logits(pool, sorted({i for chosen in draws for i in chosen}))
        sums = {"loss": 0.0, "grad_norm": 0.0}
        for chosen in draws:
            with self.timed("update"):
                batch = self.collated([pool[i] for i in chosen], self.student_prompt)
                logits = forced_logits(self.student, batch, settings, where=batch.labels != IGNORED)
                teacher = torch.cat([logits.new_empty(0, logits.shape[1]), *(along[i] for i in chosen)])
                divergence = token_divergence(logits, teacher, settings.divergence, settings.beta)
                loss = divergence.sum() / max(1, len(divergence)) * processes.share(len(divergence))
                sums["grad_norm"] += self.update(loss, vars(batch))
                sums["loss"] += float(loss.detach())
        means = {name: value / settings.updates_per_batch for name, value in sums.items()}
        lengths = {"sampled_length": sum(len(row.target) for row in second) / len(second)} if second else {}
        return {**means, **lengths, **self.seconds}

    def _draw(self, index: int, number: int, tasks: int, count: int) -> list[int]:
        """This process's rows of the pool in one update: of `tasks` in all, `count` are sampled outputs."""
        draw = keyed_generator(self.settings.seed, index, 2, number)
        some = draw.permutation(tasks)[: tasks - count]
        others = (tasks if count < tasks else 0) + draw.permutation(tasks)[:count]
        return list(processes.mine([*some.tolist(), *others.tolist()]))

    def _teacher_logits(self, pool: list[Encoded], chosen: list[int]) -> dict[int, torch.Tensor]:
        """The teacher's logits along the targets of the pool's chosen rows, [length, V] each.

        A process without rows scores row 0: a sharded teacher runs in all of them or none.
        """
        chosen = chosen or [0]
        rows = [pool[i] for i in chosen]
        with torch.no_grad(), self.timed("scoring"):
            batch = self.collated(rows, self.teacher_prompt)
            logits = forced_logits(self.teacher, batch, self.settings, where=batch.labels != IGNORED)
        return dict(zip(chosen, logits.split([len(row.target) for row in rows]), strict=True))


build = GKD
