"""What a decoder returns: tokens, who wrote each of them, counts and times."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from transformers.utils import ModelOutput

if TYPE_CHECKING:
    from kdtw_fast.costs import Prediction


class Owner(IntEnum):
    """Who wrote an output token; the codes of ``GenerationOutput.owners``."""

    NONE = 0  # the start token and padding
    STUDENT = 1  # the student, unchecked
    TEACHER = 2  # the teacher, when asked (or after a fully accepted draft)
    ACCEPTED = 3  # the student, and a check by the teacher let it stand
    CORRECTED = 4  # the teacher, in the place of a draft that it rejected
    FORCED = 5  # the caller (``forced_tokens``)


FINISH_REASONS = ("running", "end", "length", "time")


@dataclass
class Timings:
    """Seconds of one ``generate`` call, by where they went; ``other`` is the loop itself."""

    encode: float
    student: float
    teacher: float
    other: float

    @property
    def total(self) -> float:
        """Seconds of the whole native call."""
        return self.encode + self.student + self.teacher + self.other


@dataclass
class GenerationOutput(ModelOutput):
    """Result of every decoder's ``generate``; R rows, T = 1 + the longest output.

    Args:
        sequences: int64 [R, T], each row its start token, its output (with the end token) and padding,
            as Hugging Face's ``generate`` returns them.
        owners: uint8 [R, T], an :class:`Owner` code per token of ``sequences``.
        lengths: int64 [R], output tokens per row (start token and padding not counted).
        teacher_calls: int64 [R], passes of the teacher that served the row.
        teacher_fraction: float32 [R], tokens written by the teacher over ``lengths``.
        drafted: int64 [R], tokens the student wrote, those later taken back included.
        accepted: int64 [R], student tokens that a check let stand.
        rolled_back: int64 [R], student tokens taken back.
        finish_reasons: per row "end" (end token), "length" or "time".
        student_passes: passes of the student's decoder over the batch.
        teacher_passes: passes of the teacher's decoder over the batch.
        timings: seconds by phase.
        student_logprobs: float32 [R, T], log-probability of the student's action (temperature 1): its
            token, or <tau> where it asked; NaN where it took none. With ``output_logprobs`` only.
        teacher_logprobs: float32 [R, T], the teacher's log-probability of the token where one of its
            passes read that place; NaN elsewhere. With ``output_logprobs`` only.
        texts: decoded outputs, when strings went in.
        prediction: of :class:`kdtw_fast.AutoDecoder`: the method that ran, and its predicted time.
    """

    sequences: torch.Tensor | None = None
    owners: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    teacher_calls: torch.Tensor | None = None
    teacher_fraction: torch.Tensor | None = None
    drafted: torch.Tensor | None = None
    accepted: torch.Tensor | None = None
    rolled_back: torch.Tensor | None = None
    finish_reasons: list[str] | None = None
    student_passes: int | None = None
    teacher_passes: int | None = None
    timings: Timings | None = None
    student_logprobs: torch.Tensor | None = None
    teacher_logprobs: torch.Tensor | None = None
    texts: list[str] | None = None
    prediction: Prediction | None = None

    @property
    def ms_per_token(self) -> float:
        """Milliseconds of the native call per output token of all rows."""
        assert self.timings is not None and self.lengths is not None
        return 1000.0 * self.timings.total / int(self.lengths.sum())
