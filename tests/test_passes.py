"""The door to what models compute in training: every family's logits are transformers', padded, marked and read on."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from kdtw_fast.training.batches import IGNORED, Batch
from kdtw_fast.training.episodes import ValueNetwork
from kdtw_fast.training.models import (
    Reading,
    decoder_states,
    encoded,
    forced_logits,
    logits_at,
    logits_of,
    shifted,
    special_tokens,
)
from kdtw_fast.training.optimisation import use_fast_operators
from kdtw_fast.training.settings import RunSettings
from test_families import FAMILIES, V, rows_of
from test_wheels import logits, random_student

FP32 = RunSettings(bf16=False)


class Case:
    """Three ragged rows, padded behind, and outputs with marks, of a random student."""

    def __init__(self, kind: str):
        self.student: Any = random_student(kind)
        self.rows = rows_of(kind, 1, 3)
        width, pad = max(map(len, self.rows)) + 3, self.student.config.pad_token_id
        self.ids = torch.tensor([row + [pad] * (width - len(row)) for row in self.rows])
        self.mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in self.rows])
        self.start = special_tokens(self.student)[0]
        self.outputs = torch.tensor([random.Random(r).choices(range(3, V - 1), k=7) for r in range(3)])
        self.inputs = torch.cat((torch.full((3, 1), self.start), self.outputs), 1)
        self.marks = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) < 0.5
        self.marks[:, 0] = False

    def expected(self, r: int, marked: bool) -> torch.Tensor:
        first = self.start if self.student.config.is_encoder_decoder else self.rows[r][-1]
        tokens = [first, *self.outputs[r].tolist()]
        return logits(self.student, self.rows[r], tokens, self.marks[r].int().tolist() if marked else None)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("marked", [False, True])
@torch.no_grad()
def test_padded_rows_have_the_logits_of_rows_alone(kind: str, marked: bool) -> None:
    case = Case(kind)
    marks = case.marks if marked else None
    found = logits_of(case.student, decoder_states(case.student, case.ids, case.mask, case.inputs, marks))
    for r in range(3):
        torch.testing.assert_close(found[r], case.expected(r, marked), atol=2e-5, rtol=1e-5)
    use_fast_operators(case.student)
    hidden = encoded(case.student, case.ids, case.mask)
    assert (hidden is None) is not case.student.config.is_encoder_decoder
    states = decoder_states(case.student, case.ids, case.mask, case.inputs, marks, hidden)
    torch.testing.assert_close(logits_of(case.student, states), found, atol=2e-5, rtol=1e-5)
    where = torch.rand(3, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    torch.testing.assert_close(logits_at(case.student, states, where), found[where], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_what_is_read_on_is_what_is_read_at_once(kind: str) -> None:
    case = Case(kind)
    found = logits_of(case.student, decoder_states(case.student, case.ids, case.mask, case.inputs, case.marks))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers' deprecations
        reading = Reading(case.student, case.ids, case.mask, keeps=True)
        parts = [
            logits_of(case.student, reading.states(case.inputs[:, a:b], case.marks[:, a:b]))
            for a, b in ((0, 1), (1, 2), (2, 5), (5, 8))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), found, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_forced_logits_train_every_parameter(kind: str) -> None:
    """Labels padded with IGNORED; beta and the embedding are among what gets a gradient."""
    case = Case(kind)
    labels = case.outputs.clone()
    labels[0, 5:] = IGNORED
    batch = Batch(case.ids, case.mask, labels)
    marks = case.marks[:, :7]
    found = forced_logits(case.student, batch, FP32, marks)
    for r in range(3):
        kept = 5 if r == 0 else 7
        expected = case.expected(r, True)[:kept]
        torch.testing.assert_close(found[r, :kept], expected, atol=2e-5, rtol=1e-5)
    assert shifted(labels, case.start, 9)[0].tolist() == [case.start, *labels[0, :5].tolist(), 9]
    found.square().mean().backward()
    trained = {name for name, p in case.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"teacher_token_embedding"} < trained
    assert any("embed" in name or "shared" in name for name in trained)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_value_network_starts_at_zero_and_learns(kind: str) -> None:
    case = Case(kind)
    value = ValueNetwork(case.student)
    found = value(case.ids, case.mask, case.inputs, case.marks)
    assert found.shape == (3, 8) and not found.any()
    (found - 1).square().mean().backward()
    assert value.head.weight.grad is not None and value.head.weight.grad.abs().sum() > 0
