"""MiniLLM-style policy gradient of the reverse KL (Gu et al. 2024), on the student's own samples.

Of the paper: the single-step term in closed form, the length-normalised return, clipping over several updates, and
cross-entropy on references beside it. Left out: sampling from a mixture of teacher and student, which needs both
models' distributions at every token; the samples here are the student's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdtw_fast.options import check_real

from . import distillation, processes
from .batches import IGNORED
from .losses import (
    clipped_policy_gradient,
    cross_entropy,
    kept_mean,
    rewards_to_come,
    token_divergence,
    token_log_probs,
)
from .models import forced_logits


@dataclass(frozen=True)
class Settings(distillation.Settings):
    """MiniLLM."""

    fixed: str = "data"  # what the cross-entropy beside the policy gradient is on: the references
    clip: float = 0.2  # of the importance weight of later updates
    reward_clip: float = 10.0  # bound on |log p/q| of a token, for rare tokens that would outweigh all others
    data_weight: float = 1.0  # of that cross-entropy; 0 = without

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("clip", self.clip, 0.0, 1.0)
        check_real("reward_clip", self.reward_clip, 0.0, open_low=True)
        check_real("data_weight", self.data_weight, 0.0)


class MiniLLM(distillation.Distillation):
    """The algorithm of this file, for the trainer."""

    settings: Settings

    def train_batch(self, index: int) -> dict[str, float]:
        """Sample once, score once, and make `updates_per_batch` clipped updates."""
        settings = self.settings
        self.begin(index)
        fixed = self.batches.rows_at(index)
        sampled = self.sampled(fixed, index)
        rows = list(processes.mine(sampled))
        batch, data = (self.collated(some, self.student_prompt) for some in (rows, processes.mine(fixed)))
        kept = batch.labels != IGNORED
        share, data_share = (processes.share(int((labels != IGNORED).sum())) for labels in (batch.labels, data.labels))
        teacher_logits = self.teacher_logits(rows)
        with torch.no_grad(), self.timed("scoring"):
            sampled_log_q = token_log_probs(forced_logits(self.student, batch, settings), batch.labels)
            log_ratio = token_log_probs(teacher_logits, batch.labels) - sampled_log_q
            rewards = rewards_to_come(log_ratio.clamp(-settings.reward_clip, settings.reward_clip), kept)
        sums = dict.fromkeys(("loss", "single_step", "policy", "data", "grad_norm"), 0.0)
        for _ in range(settings.updates_per_batch):
            with self.timed("update"):
                logits = forced_logits(self.student, batch, settings)
                single = share * kept_mean(token_divergence(logits, teacher_logits, "reverse"), kept)
                log_q = token_log_probs(logits, batch.labels)
                policy = share * clipped_policy_gradient(log_q, sampled_log_q, rewards, kept, settings.clip)
                loss = single + policy
                if settings.data_weight:
                    references = cross_entropy(forced_logits(self.student, data, settings), data.labels)
                    references = data_share * references
                    loss = loss + settings.data_weight * references
                    sums["data"] += float(references.detach())
                sums["grad_norm"] += self.update(loss, vars(batch))
                for name, value in (("loss", loss), ("single_step", single), ("policy", policy)):
                    sums[name] += float(value.detach())
        means = {name: value / settings.updates_per_batch for name, value in sums.items()}
        length = sum(len(row.target) for row in sampled) / len(sampled)
        return {**means, "reward": share * float(kept_mean(log_ratio, kept)), "sampled_length": length, **self.seconds}


build = MiniLLM
