"""SKD (Xu et al. 2025): GKD along outputs that student and teacher write together.

The student proposes, and what is not among the teacher's top k the teacher replaces (`InterleavedDecoder`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kdtw_fast.decoders import InterleavedDecoder
from kdtw_fast.options import check_int

from . import gkd
from .decoders import decoder_of
from .distillation import Sampler


@dataclass(frozen=True)
class Settings(gkd.Settings):
    """SKD: GKD's settings, and those of interleaved sampling."""

    divergence: str = "forward"
    student_fraction: float = 1.0  # of each update's rows that student and teacher sampled together
    draft_length: int = 5  # tokens proposed per pass of the teacher
    accept_top_k: int = 25  # proposals among the teacher's so many best stay

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("draft_length", self.draft_length, 1)
        check_int("accept_top_k", self.accept_top_k, 1)


class SKD(gkd.GKD):
    """The algorithm of this file, for the trainer."""

    settings: Settings
    teacher_decodes = True

    def make_sampler(self) -> Sampler:
        """Student and teacher together."""
        assert self.native_teacher is not None
        return decoder_of(
            InterleavedDecoder,
            self.student,
            self.native_teacher,
            draft_length=self.settings.draft_length,
            accept_top_k=self.settings.accept_top_k,
            tokenizer=self.tokenizer,
            num_threads=torch.get_num_threads(),
            device=self.settings.rollout_device,
        )

    def shown_by(self, index: int) -> tuple[Sampler, dict[str, Any]]:
        """Both, as they sample in training, with this batch's seed."""
        return self.make_sampler(), {"temperature": self.settings.temperature, "seed": index}


build = SKD
