"""The value network: a T5 of the student's shape that reads what the student reads, with one number per state."""

from __future__ import annotations

import copy

import torch
from torch import nn

from kdtw_fast.modeling import TrainingWheelsT5

from .episodes import decoder_states


class ValueNetwork(nn.Module):
    """V(s_i) of the student's states, marks included. The body starts as a copy of `student`, the head at zero.

    Dropout is off whatever the mode, as the paper has it.
    """

    def __init__(self, student: TrainingWheelsT5):
        super().__init__()
        self.body = copy.deepcopy(student)
        if self.body.lm_head.weight is not self.body.shared.weight:
            self.body.lm_head.weight.requires_grad_(False)  # nothing here reads it
        self.head = nn.Linear(student.config.d_model, 1)
        # The states carry the scale of the vocabulary head's input; the head takes it off again.
        self.scale = student.config.d_model**0.5 if student.config.scale_decoder_outputs else 1.0
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    def train(self, mode: bool = True) -> ValueNetwork:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(
        self, source_ids: torch.Tensor, source_mask: torch.Tensor, inputs: torch.Tensor, marks: torch.Tensor
    ) -> torch.Tensor:
        """source_ids, source_mask [R, S], inputs and bool marks [R, T] -> float32 [R, T], V once input i is read."""
        states = decoder_states(self.body, source_ids, source_mask, inputs, marks)
        return self.head(states.float() * self.scale).squeeze(-1)
