"""Decisions over vocabularies of several chunks (the native core cuts them every 128 ids), at every SIMD level
and on the simulated CUDA device.

Against the oracle, against rows alone, and with the odd id where chunks meet: ties, bans, NaN.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    EOS,
    RELATIONS,
    SHAPES,
    START,
    chain_student,
    chain_t5,
    mostly_long,
    random_batch,
    random_pair,
    random_t5,
)

import kdtw_fast
from kdtw_fast import InterleavedDecoder, NativeT5, SingleModelDecoder, _core, reference
from kdtw_fast.random import uniform
from kdtw_fast.selftest.agreement import Tally, as_array, compare
from kdtw_fast.selftest.decodes import METHODS

VOCABULARIES = [31, 127, 128, 129, 161, 417]
ALL_METHODS = [*METHODS, ("InterleavedDecoder", {"draft_length": 4, "accept_top_k": 1})]
WARPS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.0, "teacher_temperature": 1.0},
]


def build(package: Any, name: str, models: tuple[Any, Any], options: dict[str, Any]) -> Any:
    return getattr(package, name)(*(models[:1] if name == "SingleModelDecoder" else models), **options)


def some_of(cases: list[Any], place: str, first: int = 0) -> list[Any]:
    """The simulated device is slow: every seventh, which is each warp and, from several first ones, each method."""
    return cases if place == "cpu" else cases[first % 7 :: 7]


@functools.cache
def oracle_cases(vocab_size: int) -> list[tuple[str, dict[str, Any], tuple[Any, Any], dict[str, Any], Any]]:
    """(decoder, its options, models, generate arguments, the oracle's rows) of every method and warp."""
    cases = []
    for index, (name, options) in enumerate(ALL_METHODS):
        models = random_pair(RELATIONS[(vocab_size + index) % 4], seed=index, vocab_size=vocab_size)
        ids, mask = random_batch(np.random.default_rng([vocab_size, index]), 3, vocab_size)
        for case, warp in enumerate(WARPS):
            settings = warp | {"input_ids": ids, "attention_mask": mask, "seed": case}
            settings |= {"max_new_tokens": 8, "min_new_tokens": 3 * (case % 2)}
            expected = build(reference, name, models, options).generate(**settings)
            cases.append((name, options, models, settings, expected))
    return cases


@pytest.mark.parametrize("vocab_size", mostly_long(VOCABULARIES, keep=(3,)))
def test_every_decision_is_the_oracles(vocab_size: int, place: str, oracle_tally: Tally) -> None:
    seen = Tally()
    for name, options, models, settings, expected in some_of(oracle_cases(vocab_size), place, vocab_size):
        output = build(kdtw_fast, name, models, {**options, "device": place}).generate(output_logprobs=True, **settings)
        seen.add(compare(output, expected, f"{name} {options} V={vocab_size} seed={settings['seed']}"))
    oracle_tally.add(seen)
    assert seen.differing <= 1 + seen.rows // 20


@pytest.mark.parametrize("vocab_size", [129, 417])
def test_the_company_changes_no_bit(vocab_size: int, place: str) -> None:
    """Rows alone, in a batch, on one thread and on two: log-probabilities add up over chunks in one order."""
    for index, (name, options) in some_of(list(enumerate(ALL_METHODS)), place):
        pair = random_pair("noisy", seed=index, vocab_size=vocab_size)
        models = tuple(NativeT5.from_model(model, device=place) for model in pair)
        rows = (0, 7, 16) if place == "cpu" else (0, 4)
        ids, mask = random_batch(np.random.default_rng(index), rows[-1] + 1, vocab_size)
        decoder = build(kdtw_fast, name, models, options)
        for warp in WARPS[:2]:
            settings = warp | {"max_new_tokens": 6, "output_logprobs": True}
            batch = decoder.generate(ids, mask, num_threads=2, **settings)
            for row in rows:
                alone = decoder.generate(
                    ids[row : row + 1], mask[row : row + 1], row_ids=[row], num_threads=1, **settings
                )
                end = int(alone.lengths[0]) + 1
                for field in ("sequences", "owners", "student_logprobs", "teacher_logprobs"):
                    one, many = as_array(getattr(alone, field))[0], as_array(getattr(batch, field))[row]
                    np.testing.assert_array_equal(many[:end], one)


# --- Where chunks meet -----------------------------------------------------------------------------------


def picks(model: Any, place: str, **settings: Any) -> list[int]:
    sequences = SingleModelDecoder(model, device=place).generate([[5, EOS]], **settings).sequences
    return as_array(sequences)[0, 1:].tolist()


def test_ties_go_to_the_lowest_id_of_all_chunks(place: str) -> None:
    table = np.zeros((417, 417))
    table[:, [140, 255, 256, 416]] = 5.0
    assert picks(chain_t5(table), place, max_new_tokens=1) == [140]
    assert picks(chain_t5(np.zeros((417, 417))), place, max_new_tokens=1) == [0]
    table[:, EOS] = 5.0
    assert picks(chain_t5(table), place, max_new_tokens=1) == [EOS]
    assert picks(chain_t5(table), place, max_new_tokens=1, min_new_tokens=1) == [140]  # a ban moves the tie on
    table[:, 416] = 5.5  # the last id, beyond whole panels
    assert picks(chain_t5(table), place, max_new_tokens=1) == [416]


@pytest.mark.parametrize(("drafted", "rank"), [(140, 0), (255, 1), (256, 2), (416, 3), (3, 4)])
def test_top_k_counts_ties_by_id_over_all_chunks(drafted: int, rank: int, place: str) -> None:
    table = np.zeros((417, 417))
    table[:, [140, 255, 256, 416]] = 5.0
    table[:, 3] = 4.0
    student = np.zeros((417, 417))
    student[:, drafted] = 9.0
    for accept_top_k in range(1, 6):
        models = chain_t5(student), chain_t5(table)
        decoder = InterleavedDecoder(*models, draft_length=1, accept_top_k=accept_top_k, device=place)
        output = decoder.generate([[5, EOS]], max_new_tokens=1)
        assert as_array(output.sequences)[0, 1] == (drafted if rank < accept_top_k else 140)


@pytest.mark.parametrize("vocab_size", [31, 128, 129, 417])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_logit_that_is_not_finite_is_reported(vocab_size: int, value: float, place: str) -> None:
    for token in sorted({0, EOS, 127, 128, vocab_size // 2, vocab_size - 1}):
        if token >= vocab_size:
            continue
        model = random_t5(SHAPES[1], vocab_size, seed=2)
        with torch.no_grad():
            model.lm_head.weight[token] = value
        decoder = SingleModelDecoder(model, device=place)
        # EOS is banned by min_new_tokens: what takes no part must be finite too.
        for settings in ({}, {"min_new_tokens": 2}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}):
            with pytest.raises(FloatingPointError, match="not finite"):
                decoder.generate([[5, 6, EOS]], max_new_tokens=3, **settings)


@pytest.mark.parametrize("vocab_size", [2, 31, 128, 129, 4063])
def test_entropy_is_that_of_what_is_not_banned(vocab_size: int, place: str) -> None:
    """Against float64, flat and peaked, with banned ids that are the likeliest and a whole chunk of them."""
    rng = np.random.default_rng(vocab_size)
    scales = (0.0, 0.3, 3.0, 60.0)
    logits = np.stack([scale * rng.standard_normal(vocab_size) for scale in scales]).astype(np.float32)
    likeliest = int(logits[1].argmax())
    for banned in ([], [likeliest], list(range(vocab_size // 2, vocab_size))):
        allowed = logits.astype(np.float64)
        allowed[:, banned] = -np.inf
        probabilities = torch.softmax(torch.from_numpy(allowed), dim=1)
        expected = torch.special.entr(probabilities).sum(1)
        request = {"banned": banned, "want_entropy": True}
        hidden = np.eye(len(scales), dtype=np.float32)
        head = np.ascontiguousarray(logits.T)
        answers, _ = _core.Operations(place).pick(head, hidden, [request] * len(scales), "fp32")
        np.testing.assert_allclose([answer[5] for answer in answers], expected, rtol=1e-5, atol=1e-6)


def test_a_sample_is_the_inverse_of_the_keyed_uniform_over_all_chunks(place: str) -> None:
    rng = np.random.default_rng(3)
    table = np.repeat(rng.normal(size=(1, 417)), 417, axis=0)
    for temperature in (0.3, 1.0, 4.0):
        probabilities = torch.softmax(torch.from_numpy(table[START]) / temperature, dim=0)
        output = SingleModelDecoder(chain_t5(table), device=place).generate(
            [[5, EOS]] * (400 if place == "cpu" else 60), temperature=temperature, seed=9, max_new_tokens=1
        )
        drawn = as_array(output.sequences)[:, 1].tolist()
        for row, token in enumerate(drawn):
            expected, close = reference.sample(probabilities, float(uniform(9, row, 0, 0)))
            assert token == expected or close
        assert place != "cpu" or {token // 128 for token in drawn} == {0, 1, 2, 3}


def test_a_chunk_of_banned_ids_is_never_drawn(place: str) -> None:
    """<tau> alone in the last chunk, and the likeliest by far: a decoder of one model never picks it."""
    table = np.zeros((129, 129))
    table[:, 128] = 30.0
    student = chain_student(table, tau=128)
    decoder = SingleModelDecoder(student, device=place)
    rows = [[5, EOS]] * (3000 if place == "cpu" else 100)
    output = decoder.generate(rows, temperature=1.0, max_new_tokens=1, output_logprobs=True)
    drawn = set(as_array(output.sequences)[:, 1].tolist())
    assert drawn == set(range(128)) if place == "cpu" else drawn < set(range(128))
    # Log-probabilities are raw: of a distribution that <tau> takes nearly whole.
    np.testing.assert_allclose(as_array(output.student_logprobs)[:, 1], -30.0, atol=1e-3)
