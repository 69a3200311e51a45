"""The oracle's own parts against independent ones: Hugging Face's warpers and generate, and properties of its picks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from factories import EOS, SHAPES, chain_t5, path_table, random_batch, random_pair, random_t5, scale_row
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from kdtw_fast import reference
from kdtw_fast.reference import Warp, ban, greedy_pick, sample, warp


def random_logits(seed: int, size: int = 50) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3.0


@pytest.mark.parametrize("how", [Warp(1.0, 0, 1.0), Warp(0.4, 0, 1.0), Warp(1.0, 7, 1.0), Warp(2.0, 0, 0.8)])
@pytest.mark.parametrize("seed", range(5))
def test_warp_is_hugging_faces(how: Warp, seed: int) -> None:
    logits = random_logits(seed)
    scores = TemperatureLogitsWarper(how.temperature)(None, logits[None].double())
    if how.top_k:
        scores = TopKLogitsWarper(how.top_k)(None, scores)
    if how.top_p < 1.0:
        scores = TopPLogitsWarper(how.top_p)(None, scores)
    probabilities, close = warp(logits.double(), how)
    assert not close
    torch.testing.assert_close(probabilities, torch.softmax(scores[0], dim=0), atol=1e-12, rtol=1e-9)


def test_temperature_zero_is_the_greedy_pick() -> None:
    logits = random_logits(1).double()
    probabilities, _ = warp(logits, Warp(0.0, 3, 0.5))
    assert probabilities.tolist() == [float(token == int(logits.argmax())) for token in range(50)]


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([1.0, 4.0, 4.0, 4.0, 0.0]).double()
    assert greedy_pick(logits) == (1, True)
    assert warp(logits, Warp(1.0, 2, 1.0))[0].nonzero().flatten().tolist() == [1, 2]
    assert warp(logits, Warp(1.0, 0, 0.5))[0].nonzero().flatten().tolist() == [1, 2]
    assert warp(logits, Warp(1.0, 0, 1e-9))[0].nonzero().flatten().tolist() == [1]


def test_top_p_keeps_the_shortest_prefix_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().double()
    for top_p, kept in ((0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        probabilities, close = warp(logits, Warp(1.0, 0, top_p))
        assert int((probabilities > 0).sum()) == kept and not close
        assert float(probabilities.sum()) == pytest.approx(1.0)
    assert warp(logits, Warp(1.0, 0, 0.8))[1]  # at the boundary itself: a near tie


def test_banned_ids_get_nothing() -> None:
    logits = random_logits(3)
    best = int(logits.argmax())
    allowed = ban(logits, [best, 7, 400])
    assert allowed[best] == allowed[7] == -math.inf
    assert greedy_pick(allowed)[0] not in (best, 7)
    probabilities, _ = warp(allowed, Warp(1.5, 49, 0.999))
    assert float(probabilities[best]) == float(probabilities[7]) == 0.0
    assert logits[best] == logits.max()  # the raw logits stay as they were


def test_sample_inverts_the_cdf() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]).double()
    for u, token in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1.0 - 1e-12, 4)):
        assert sample(probabilities, u)[0] == token
    assert sample(probabilities * (1 - 1e-9), 1.0 - 1e-12)[0] == 4  # rounding leaves none: the last possible
    assert sample(probabilities, 0.25 + 5e-6)[1] and not sample(probabilities, 0.26)[1]
    draws = [sample(probabilities, u)[0] for u in np.linspace(0, 1, 4000, endpoint=False)]
    counts = np.bincount(draws, minlength=6)
    assert stats.chisquare(counts[[1, 3, 4]], np.array([0.25, 0.5, 0.25]) * 4000).pvalue > 0.9


def test_near_ties_of_logits() -> None:
    assert greedy_pick(torch.tensor([1.0, 1.00005]).double())[1]
    assert not greedy_pick(torch.tensor([1.0, 1.001]).double())[1]
    assert not greedy_pick(torch.tensor([1.0, -math.inf]).double())[1]


def test_greedy_is_hugging_faces_generate() -> None:
    for seed, shape in enumerate(SHAPES):
        model = random_t5(shape, 43, seed=seed + 50)
        scale_row(model, EOS, 1.5)
        ids, mask = random_batch(np.random.default_rng(seed), 3, 43)
        expected = model.generate(ids, attention_mask=mask, max_new_tokens=12, use_cache=False)
        rows = reference.SingleModelDecoder(model).generate(ids, mask, max_new_tokens=12)
        for row, tokens in zip(rows, expected.tolist(), strict=True):
            assert row.tokens == tokens[1 : 1 + len(row.tokens)]
            assert not any(tokens[1 + len(row.tokens) :])  # what is left is padding


def test_lossless_speculation_is_hugging_faces_generate_of_the_teacher() -> None:
    checked = 0
    for seed in range(30, 45):
        student, teacher = random_pair("noisy", seed)
        if student.config.vocab_size == teacher.config.vocab_size:
            continue  # the oracle bans tau, generate does not
        ids = torch.tensor([[5, 6, 7, EOS]])
        expected = teacher.generate(ids, max_new_tokens=10, use_cache=False)[0].tolist()
        row = reference.SpeculativeDecoder(student, teacher, draft_length=3).generate(ids, max_new_tokens=10)[0]
        assert row.tokens == expected[1:]
        checked += row.teacher_calls > 1
    assert checked >= 4


def test_log_probabilities_of_a_chain() -> None:
    """By hand: the probabilities of a table's softmax, at the positions the docstring names."""
    path = [2, 3, 4, EOS]
    table = path_table(path, 10, height=3.0)
    other = path_table(path, 10, height=5.0)
    own, theirs = (-math.log1p(9 * math.exp(-height)) for height in (3.0, 5.0))
    rows = reference.SpeculativeDecoder(chain_t5(table), chain_t5(other), draft_length=2).generate([[5, EOS]])
    assert rows[0].tokens == path and rows[0].owners == [3, 3, 2, 3]
    student = rows[0].student_logprobs
    assert math.isnan(student[2])
    assert [student[p] for p in (0, 1, 3)] == pytest.approx([own] * 3, abs=1e-5)
    assert rows[0].teacher_logprobs == pytest.approx([theirs] * 4, abs=1e-5)
