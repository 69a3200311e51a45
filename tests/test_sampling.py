"""Sampled output against the exact distributions: G-tests with fixed seeds over many row keys in one batch.

Chain models make the distributions known: after token i a model draws from softmax(table[i]).
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, START, chain_student, chain_t5, mostly_long
from scipy import stats

from kdtw_fast import InterleavedDecoder, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder, _core
from kdtw_fast.random import uniform
from kdtw_fast.reference import Warp, ban, sample, warp
from kdtw_fast.selftest.agreement import as_array

VOCAB = 8
TAU = 7
ROWS, ROWS_SIMULATED = 20_000, 120
SOURCE = [5, EOS]
LEVEL = 1e-3  # a right sampler fails a test at a fixed seed with this probability


def tables(closeness: float) -> tuple[np.ndarray, np.ndarray]:
    """Random student and teacher logits [V, V]; closeness 1 makes them equal."""
    rng = np.random.default_rng(7)
    teacher = rng.normal(size=(VOCAB, VOCAB))
    student = closeness * teacher + (1.0 - closeness) * 1.5 * rng.normal(size=(VOCAB, VOCAB))
    return student, teacher


def distribution(table: np.ndarray, token: int, banned: tuple[int, ...] = (), how: Warp | None = None) -> np.ndarray:
    """Exact probabilities [V] after `token`."""
    logits = ban(torch.from_numpy(table[token]).float(), banned)
    return warp(logits, how or Warp(1.0, 0, 1.0))[0].numpy()


def outcomes(output: Any, *fields: tuple[str, int]) -> Counter[tuple[int, ...]]:
    """Counts of the rows' values of (field, output position) pairs; -1 beyond a row's end."""
    columns = []
    for name, position in fields:
        values = as_array(getattr(output, name))[:, 1 + position].astype(np.int64)
        columns.append(np.where(as_array(output.lengths) > position, values, -1))
    return Counter(map(tuple, np.stack(columns, axis=1).tolist()))


def assert_follows(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> None:
    """G-test of counts against probabilities; cells that expect fewer than 5 are pooled, impossible ones empty."""
    assert sum(expected.values()) == pytest.approx(1.0)
    total = sum(counts.values())
    assert all(expected.get(cell, 0.0) > 0.0 for cell in counts), "something impossible was drawn"
    big = [cell for cell, probability in expected.items() if probability * total >= 5]
    observed = [counts[cell] for cell in big]
    wanted = [expected[cell] * total for cell in big]
    rest = total - sum(wanted)
    if rest >= 5:
        observed.append(total - sum(observed))
        wanted.append(rest)
    else:  # too little for a cell of its own
        wanted = [value * sum(observed) / sum(wanted) for value in wanted]
    assert len(wanted) > 1
    result = stats.power_divergence(observed, wanted, lambda_="log-likelihood")
    assert result.pvalue > LEVEL, (result, dict(zip(big, zip(observed, wanted, strict=False), strict=False)))


def sampled(decoder: Any, **settings: Any) -> Any:
    rows = ROWS if decoder.student.device == "cpu" else ROWS_SIMULATED
    return decoder.generate([SOURCE] * rows, **({"temperature": 1.0, "max_new_tokens": 3} | settings))


def chain_probabilities(table: np.ndarray, length: int, **options: Any) -> dict[tuple[int, ...], float]:
    """Exact probabilities of the first `length` tokens drawn from one chain; -1 after EOS."""
    result: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for prefix, probability in result.items():
            if prefix and prefix[-1] in (EOS, -1):
                longer[(*prefix, -1)] = probability
                continue
            after = distribution(table, prefix[-1] if prefix else START, **options)
            for token in range(VOCAB):
                if after[token] > 0.0:
                    longer[(*prefix, token)] = probability * float(after[token])
        result = longer
    return result


# --- One model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, Warp(1.0, 0, 1.0)),
        ({"temperature": 0.6}, Warp(0.6, 0, 1.0)),
        ({"temperature": 1.7, "top_k": 3}, Warp(1.7, 3, 1.0)),
        ({"top_p": 0.7}, Warp(1.0, 0, 0.7)),
        ({"temperature": 1.3, "top_k": 5, "top_p": 0.8}, Warp(1.3, 5, 0.8)),
    ],
)
def test_one_model_draws_from_its_distribution(settings: dict[str, Any], how: Warp, device: str) -> None:
    _, teacher = tables(0.0)
    output = sampled(SingleModelDecoder(chain_t5(teacher), device=device), **settings)
    counts = outcomes(output, ("sequences", 0), ("sequences", 1))
    assert_follows(counts, chain_probabilities(teacher, 2, how=how))


def test_draws_are_the_keyed_uniforms(device: str) -> None:
    """Row key, position and stream decide each draw: the inverse CDF of Philox's number, token by token."""
    _, teacher = tables(0.0)
    keys = [0, 1, 2**33 + 5, 2**64 - 1, *range(100, 300)]
    output = SingleModelDecoder(chain_t5(teacher), device=device).generate(
        [SOURCE] * len(keys), temperature=1.0, seed=2**63 + 11, row_ids=keys, max_new_tokens=6
    )
    checked = 0
    for row, key in enumerate(keys):
        here = START
        for position in range(int(output.lengths[row])):
            u = float(uniform(2**63 + 11, key, position, 0))
            assert _core.uniform(2**63 + 11, key, position, 0) == u
            token, close = sample(torch.from_numpy(distribution(teacher, here)), u)
            here = int(output.sequences[row, 1 + position])
            assert here == token or close
            checked += 1
    assert checked > 500


def test_native_philox_is_its_python_twin() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        seed, row = (int(value) for value in rng.integers(0, 2**64, size=2, dtype=np.uint64))
        position, stream = int(rng.integers(0, 2**32)), int(rng.integers(0, 3))
        assert _core.uniform(seed, row, position, stream) == float(uniform(seed, row, position, stream))


def test_return_sequences_differ_and_equal_rows_of_their_own(device: str) -> None:
    _, teacher = tables(0.0)
    decoder = SingleModelDecoder(chain_t5(teacher), device=device)
    sources = [[5, EOS], [6, 2, EOS]]
    together = decoder.generate(sources, temperature=1.0, num_return_sequences=50, max_new_tokens=8, seed=3)
    assert together.sequences.shape[0] == 100
    assert len({tuple(row) for row in together.sequences.tolist()}) > 50
    for row in (0, 1, 49, 50, 99):
        alone = decoder.generate([sources[row // 50]], temperature=1.0, row_ids=[row], max_new_tokens=8, seed=3)
        end = int(alone.lengths[0]) + 1
        assert together.sequences[row, :end].tolist() == alone.sequences[0].tolist()


def test_the_seed_matters_and_repeats(device: str) -> None:
    _, teacher = tables(0.0)
    decoder = SingleModelDecoder(chain_t5(teacher), device=device)
    first, again, other = (
        decoder.generate([SOURCE] * 50, temperature=1.0, seed=seed, max_new_tokens=8).sequences.tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other


# --- Speculative sampling ---------------------------------------------------------------------------------


def speculative_table(
    student: np.ndarray, teacher: np.ndarray, lenience: float, how: Warp | None = None
) -> list[dict[tuple[int, int], float]]:
    """For each last token: exact probabilities of (token, owner) at the first drafted position of a cycle."""
    result = []
    for token in range(VOCAB):
        q, p = distribution(student, token, how=how), distribution(teacher, token, how=how)
        with np.errstate(divide="ignore", invalid="ignore"):
            accepted = q * np.where(lenience * q > 0, np.minimum(1.0, p / (lenience * q)), 1.0)
        residual = np.maximum(0.0, p - lenience * q)
        corrected = (1.0 - accepted.sum()) * (residual / residual.sum() if residual.sum() > 0 else p)
        cells = {(t, 3): float(accepted[t]) for t in range(VOCAB)}
        cells |= {(t, 4): float(corrected[t]) for t in range(VOCAB)}
        result.append({cell: probability for cell, probability in cells.items() if probability > 1e-12})
    return result


@pytest.mark.parametrize(
    ("closeness", "draft_length"), mostly_long(itertools.product((0.0, 0.6, 1.0), (1, 2, 5)), keep=(2, 4, 6))
)
def test_lossless_speculative_sampling_draws_from_the_teacher(closeness: float, draft_length: int, device: str) -> None:
    student, teacher = tables(closeness)
    decoder = SpeculativeDecoder(chain_t5(student), chain_t5(teacher), draft_length=draft_length, device=device)
    output = sampled(decoder, max_new_tokens=4, seed=draft_length)
    counts = outcomes(output, ("sequences", 0), ("sequences", 1), ("sequences", 2))
    assert_follows(counts, chain_probabilities(teacher, 3))


def test_lossless_with_other_warps_for_student_and_teacher(device: str) -> None:
    student, teacher = tables(0.5)
    decoder = SpeculativeDecoder(chain_t5(student), chain_t5(teacher), draft_length=2, device=device)
    output = sampled(
        decoder,
        temperature=1.6,
        top_k=4,
        teacher_temperature=0.8,
        teacher_top_k=0,
        teacher_top_p=0.85,
        max_new_tokens=4,
    )
    counts = outcomes(output, ("sequences", 0), ("sequences", 1), ("sequences", 2))
    assert_follows(counts, chain_probabilities(teacher, 3, how=Warp(0.8, 0, 0.85)))


def test_greedy_student_under_a_sampling_teacher_is_lossless_too(device: str) -> None:
    student, teacher = tables(0.5)
    decoder = SpeculativeDecoder(chain_t5(student), chain_t5(teacher), draft_length=3, device=device)
    output = sampled(decoder, temperature=0.0, teacher_temperature=1.0, max_new_tokens=4)
    counts = outcomes(output, ("sequences", 0), ("sequences", 1), ("sequences", 2))
    assert_follows(counts, chain_probabilities(teacher, 3))


@pytest.mark.parametrize(
    ("closeness", "lenience"), mostly_long(itertools.product((0.0, 0.6), (0.0, 0.3, 0.7, 1.0)), keep=(1, 3, 4, 6))
)
def test_acceptance_rate_and_replacements(closeness: float, lenience: float, device: str) -> None:
    """(token, owner) of the first two positions, K = 1: accepted with min(1, p / l q), else from max(0, p - l q)."""
    student, teacher = tables(closeness)
    models = chain_t5(student), chain_t5(teacher)
    decoder = SpeculativeDecoder(*models, draft_length=1, lenience=lenience, device=device)
    output = sampled(decoder, max_new_tokens=5)
    first = speculative_table(student, teacher, lenience)
    expected: dict[tuple[int, ...], float] = {}
    for (token, owner), probability in first[START].items():
        if token == EOS:
            expected[(token, owner, -1, -1)] = probability
        elif owner == 3:  # the bonus token follows
            for following, after in enumerate(distribution(teacher, token)):
                expected[(token, owner, following, 2)] = probability * float(after)
        else:  # the next cycle follows
            for (following, next_owner), after in first[token].items():
                expected[(token, owner, following, next_owner)] = probability * after
    counts = outcomes(output, ("sequences", 0), ("owners", 0), ("sequences", 1), ("owners", 1))
    assert_follows(counts, expected)
    # The acceptance rate itself, against its exact value: a binomial test.
    rows = sum(counts.values())
    exact = sum(probability for (_, owner), probability in first[START].items() if owner == 3)
    accepted = sum(count for cell, count in counts.items() if cell[1] == 3)
    if 0.0 < exact < 1.0 - 1e-9:
        assert stats.binomtest(accepted, rows, exact).pvalue > LEVEL
    else:
        assert accepted == round(exact) * rows


# --- Training Wheels and SKD ------------------------------------------------------------------------------


def test_training_wheels_samples_tau_like_any_action(device: str) -> None:
    """(token, owner): the student's own tokens with pi(x), the teacher's with pi(tau) p(x); tau is never drawn."""
    student, teacher = tables(0.0)
    student[:, TAU] += 1.0
    decoder = TrainingWheelsDecoder(chain_student(student, TAU), chain_t5(teacher), device=device)
    output = sampled(decoder, temperature=0.9, teacher_temperature=1.2)
    expected: dict[tuple[int, ...], float] = {}

    def cells(here: int) -> dict[tuple[int, int], float]:
        actions = distribution(student, here, how=Warp(0.9, 0, 1.0))
        answers = distribution(teacher, here, (TAU,), Warp(1.2, 0, 1.0))
        own = {(token, 1): float(actions[token]) for token in range(VOCAB) if token != TAU}
        return own | {(token, 2): float(actions[TAU] * answers[token]) for token in range(VOCAB) if token != TAU}

    for (token, owner), probability in cells(START).items():
        if token == EOS:
            expected[(token, owner, -1, -1)] = probability
            continue
        for (following, next_owner), after in cells(token).items():
            expected[(token, owner, following, next_owner)] = probability * after
    counts = outcomes(output, ("sequences", 0), ("owners", 0), ("sequences", 1), ("owners", 1))
    assert_follows(counts, expected)


def test_interleaved_sampling(device: str) -> None:
    """(token, owner) at position 0: the student's draw if it is in the teacher's top 3, else the teacher's."""
    student, teacher = tables(0.3)
    decoder = InterleavedDecoder(chain_t5(student), chain_t5(teacher), draft_length=1, accept_top_k=3, device=device)
    output = sampled(decoder)
    q, p = distribution(student, START), distribution(teacher, START)
    inside = np.isin(np.arange(VOCAB), np.argsort(-p, kind="stable")[:3])
    expected: dict[tuple[int, ...], float] = {(t, 3): float(q[t]) for t in range(VOCAB) if inside[t]}
    expected |= {(t, 4): float(q[~inside].sum() * p[t]) for t in range(VOCAB)}
    assert_follows(outcomes(output, ("sequences", 0), ("owners", 0)), expected)


# --- The ledger --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", pytest.param("simulated", marks=pytest.mark.gpu_proof)], indirect=True)
def test_no_row_ever_exceeds_its_ledger(device: str) -> None:
    """10,000 rows with their own limits, greedy and sampled, checked or not: at no prefix, in no count."""
    share = 1 if device == "cpu" else 50  # of the rows
    student, teacher = tables(0.5)
    student[:, TAU] += 1.5
    models = chain_student(student, TAU), chain_t5(teacher)
    rng = np.random.default_rng(12)
    rows, asked, corrected, full = 0, 0, 0, 0
    for lenience in (0.0, 0.2, 0.6, 1.0):
        decoder = TrainingWheelsDecoder(*models, verify_lenience=lenience, device=device)
        for temperature in (0.0, 0.7, 1.0, 1.5, 3.0):
            count = 500 // share
            fractions = rng.choice([0.0, 0.05, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.77, 1.0], size=count)
            calls = rng.integers(0, 12, size=count)
            output = decoder.generate(
                [SOURCE] * count,
                temperature=temperature,
                seed=rows,
                min_new_tokens=int(rng.integers(0, 20)),
                max_new_tokens=int(rng.integers(20, 40)),
                max_teacher_fraction=fractions.tolist(),
                max_teacher_calls=calls.tolist(),
                forced_tokens=[2, 3] if temperature == 1.5 else [],
            )
            owners = as_array(output.owners)[:, 1:]
            by_teacher = np.cumsum((owners == 2) | (owners == 4), axis=1)
            allowed = np.floor(fractions[:, None] * np.arange(1, owners.shape[1] + 1) + 1e-9)
            assert (by_teacher <= allowed).all()
            assert (by_teacher[:, -1] <= calls).all()
            np.testing.assert_array_equal(as_array(output.teacher_calls), by_teacher[:, -1])
            spent = np.minimum(calls, allowed[np.arange(count), as_array(output.lengths) - 1])
            full += int((by_teacher[:, -1] == spent).sum())
            asked += int((owners == 2).sum())
            corrected += int((owners == 4).sum())
            rows += count
    assert rows == 10_000 // share
    # The limits were really pressed against.
    assert asked > 5_000 // share and corrected > 500 // share and full > 2_000 // share
