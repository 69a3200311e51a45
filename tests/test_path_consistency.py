"""Phase 2: loss, reward, Lagrangian, replay, rollouts, and the whole of it on toy pairs, to the bit."""

import io
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from factories import EOS, SHAPES, random_t5, scale_row, with_tau
from kdtw_fast.training import losses
from kdtw_fast.training.allocations import Instructions
from kdtw_fast.training.batches import Encoded
from kdtw_fast.training.debian import Example, write_jsonl
from kdtw_fast.training.episodes import (
    Episode,
    ReplayBuffer,
    ValueNetwork,
    collate_episodes,
)
from kdtw_fast.training.evaluate import rank
from kdtw_fast.training.frames import Frame
from kdtw_fast.training.models import decoder_states, logits_at, special_tokens
from kdtw_fast.training.optimisation import NonFiniteLossError
from kdtw_fast.training.path_consistency import PathConsistency, Settings
from kdtw_fast.training.rewards import Lagrangian, RewardStatistics
from kdtw_fast.training.rollouts import Rollouts, Tasks, rollout_seed, without_tokens
from kdtw_fast.training.settings import Data, Model, Optimiser, PhaseSettings
from kdtw_fast.training.tokenizer import padded_vocabulary, train_tokenizer
from toy_training import oracle_positions

from kdtw_fast import reference
from kdtw_fast.budgets import BUDGETS, STUDENT_PROMPT, TEACHER_PROMPT, student_prompt
from kdtw_fast.decoders import SingleModelDecoder
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.outputs import Owner

GERMAN = ["das", "paket", "enthält", "dateien", "für", "die", "bibliothek", "und", "ein", "programm", "mit", "spielen"]
ENGLISH = ["the", "package", "contains", "files", "for", "the", "library", "and", "a", "program", "with", "games"]
QUICK = Settings(
    tasks=6,
    max_new_tokens=10,
    updates_per_batch=2,
    on_policy_rows=4,
    oracle_rows=3,
    replay_rows=3,
    replay_capacity=30,
    value_batches=1,
    optimiser=Optimiser(rate=1e-2, decay=False),
    threads=1,
    multiplier_rate=0.5,
    multiplier_initial=(0.0,),
)


def examples(count, offset=0):
    rows = []
    for i in range(offset, offset + count):
        words = [(i * 7 + j * (1 + i % 3)) % len(GERMAN) for j in range(2 + i % 5)]
        rows.append(Example(" ".join(GERMAN[w] for w in words), " ".join(ENGLISH[w] for w in words), f"p{i}"))
    return rows


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for row in examples(40) for text in (row.source, row.target)]
    return train_tokenizer(texts, 340, [TEACHER_PROMPT, *(student_prompt(budget) for budget in BUDGETS)])


@pytest.fixture
def pair(tokenizer):
    """A random student that asks now and then, and a random teacher."""
    vocabulary, tau = padded_vocabulary(len(tokenizer)), len(tokenizer)
    teacher = random_t5(SHAPES[1], vocabulary, seed=1)
    scale_row(teacher, EOS, 3.0)
    scale_row(teacher, tau, 0.0)
    teacher.config.teacher_prompt = TEACHER_PROMPT
    base = random_t5(SHAPES[2], vocabulary, seed=2)
    scale_row(base, tau, 3.0)
    scale_row(base, EOS, 2.5)
    return with_tau(base, tau, beta_scale=1.0, seed=3), teacher


@pytest.fixture
def prompts(tokenizer):
    return Frame(tokenizer).prompts(Instructions(STUDENT_PROMPT).texts), Frame(tokenizer).prompts([TEACHER_PROMPT])[0]


def rolling(pair, prompts, max_new_tokens=10, rollout_device="cpu", **wanted):
    student, teacher = pair
    fractions = Instructions(STUDENT_PROMPT).fractions
    settings = PhaseSettings(max_new_tokens=max_new_tokens, threads=1, rollout_device=rollout_device)
    return Rollouts(student, [teacher], *prompts, fractions, settings, **wanted)


def copied(state):
    """A state as a checkpoint would give it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---------------------------------------------------------------- the loss


def soft_optimal_paths(discount, entropy_weight, rows=40, horizon=6, states=5, actions=4):
    """Random paths through a random MDP with everything that is optimal at each of their states.

    Action 0 ends a path; those that are still under way at a random limit are cut off. Returns the arguments of the
    loss, padded with nonsense.
    """
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(horizon, states, actions))
    following = rng.integers(states, size=(horizon, states, actions))
    value = np.zeros((horizon + 1, states))
    q = np.zeros((horizon, states, actions))
    for t in reversed(range(horizon)):
        after = value[t + 1][following[t]]
        after[:, 0] = 0.0  # ended
        q[t] = reward[t] + discount * after
        value[t] = entropy_weight * np.log(np.exp(q[t] / entropy_weight).sum(-1))
    log_pi = (q - value[:-1, :, None]) / entropy_weight
    found = {name: np.full((rows, horizon), 7.0) for name in ("log_pi", "reward")}
    values, kept, ended = np.full((rows, horizon + 1), 7.0), np.zeros((rows, horizon), bool), np.zeros(rows, bool)
    for r in range(rows):
        state = rng.integers(states)
        for t in range(rng.integers(1, horizon + 1)):
            action = rng.integers(actions)
            found["log_pi"][r, t], found["reward"][r, t] = log_pi[t, state, action], reward[t, state, action]
            values[r, t], kept[r, t] = value[t, state], True
            state, ended[r] = following[t, state, action], action == 0
            values[r, t + 1] = 7.0 if ended[r] else value[t + 1, state]
            if ended[r]:
                break
    assert ended.any() and not ended.all()
    return [torch.from_numpy(x) for x in (found["log_pi"], found["reward"], values, kept, ended)]


@pytest.mark.parametrize("window", [1, 2, 3, None])
@pytest.mark.parametrize("discount, entropy_weight", [(1.0, 1.0), (1.0, 0.3), (0.8, 0.5)])
def test_error_is_zero_at_the_soft_optimal_policy_only(window, discount, entropy_weight):
    paths = soft_optimal_paths(discount, entropy_weight)
    found = losses.path_consistency(*paths, entropy_weight, window, discount)
    assert float(found["loss"]) < 1e-20 and float(found["error"]) < 1e-10
    for i in (0, 1, 2):  # another policy, another reward, other values
        wrong = [x.clone() for x in paths]
        wrong[i] += 0.3 * torch.randn(wrong[i].shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        assert float(losses.path_consistency(*wrong, entropy_weight, window, discount)["error"]) > 0.02
    assert float(losses.path_consistency(*paths, 2 * entropy_weight, window, discount)["error"]) > 0.02


def random_paths(seed, rows=5, steps=7):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([steps, 1, 3, steps - 1, 2])[:rows]
    kept = torch.arange(steps) < lengths[:, None]
    ended = torch.tensor([False, True, False, True, False])[:rows]
    normal = [torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (steps, steps, steps + 1)]
    return [-normal[0].abs(), normal[1], normal[2], kept, ended]


def numpy_twin(log_pi, reward, value, kept, ended, entropy_weight, window, discount):
    """The same loss, with loops."""
    squares, absolute, count = 0.0, 0.0, 0
    for r in range(len(log_pi)):
        length = int(kept[r].sum())
        for i in range(length):
            end = length if window is None else min(i + window, length)
            c = -value[r, i]
            for k in range(i, end):
                c += discount ** (k - i) * (reward[r, k] - entropy_weight * log_pi[r, k])
            c += 0.0 if end == length and ended[r] else discount ** (end - i) * value[r, end]
            squares, absolute, count = squares + c * c, absolute + abs(c), count + 1
    return squares / count / 2, absolute / count


@pytest.mark.parametrize("window", [1, 2, 4, 7, 50, None])
@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_loss_against_loops(window, discount):
    paths = random_paths(0)
    found = losses.path_consistency(*paths, 0.4, window, discount)
    loss, error = numpy_twin(*(x.numpy() for x in paths), 0.4, window, discount)
    assert float(found["loss"]) == pytest.approx(loss, rel=1e-12)
    assert float(found["error"]) == pytest.approx(error, rel=1e-12)


def test_loss_ignores_padding_and_what_lies_behind_the_end():
    log_pi, reward, value, kept, ended = random_paths(1)
    expected = losses.path_consistency(log_pi, reward, value, kept, ended, 0.4)["loss"]
    padding = ~kept
    behind = torch.cat((padding, torch.ones(5, 1, dtype=torch.bool)), 1)
    behind &= ~((torch.arange(8) == kept.sum(1, keepdim=True)) & ~ended[:, None])  # but a cut row's last state counts
    for x, where in ((log_pi, padding), (reward, padding), (value, behind)):
        x[where] = math.nan
    log_pi.requires_grad_()
    value.requires_grad_()
    found = losses.path_consistency(log_pi, reward, value, kept, ended, 0.4)["loss"]
    assert torch.equal(found, expected)
    for gradient, where in zip(torch.autograd.grad(found, (log_pi, value)), (padding, behind), strict=True):
        assert bool((gradient[where] == 0).all()) and bool((gradient[~where] != 0).all())


@pytest.mark.parametrize("window, discount", [(None, 1.0), (2, 0.7)])
def test_gradients_of_the_loss(window, discount):
    log_pi, reward, value, kept, ended = random_paths(2)
    log_pi.requires_grad_()
    value.requires_grad_()

    def loss(log_pi, value):
        return losses.path_consistency(log_pi, reward, value, kept, ended, 0.4, window, discount)["loss"]

    assert torch.autograd.gradcheck(loss, (log_pi, value))


def test_loss_refuses_what_does_not_fit():
    paths = random_paths(0)
    with pytest.raises(ValueError, match=r"\[5, 8\], got \(5, 7\)"):
        losses.path_consistency(*paths[:2], paths[2][:, :7], *paths[3:])
    with pytest.raises(ValueError, match="got 0"):
        losses.path_consistency(*paths, window=0)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        losses.path_consistency(*paths, discount=1.5)


# ---------------------------------------------------------------- reward and its statistics


def test_reward_by_hand():
    logprobs = torch.tensor([[-1.0, -9.0, -3.0, -50.0], [-2.0, math.nan, 0.0, 0.0]])
    asked = torch.tensor([[False, True, False, False], [False, True, False, False]])
    kept = torch.tensor([[True] * 4, [True, True, False, False]])
    found = losses.training_wheels_reward(
        logprobs, asked, kept, torch.tensor([0.5, 2.0]), torch.tensor([0.2, 0.5]), mean=-2.0, deviation=4.0
    )
    # (log p + 2) / 4 where the student wrote; 0.5 (0.2 - 1[tau]) and 2 (0.5 - 1[tau])
    assert torch.allclose(found["likelihood"], torch.tensor([[0.25, 0, -0.25, -12.0], [0, 0, 0, 0]]))
    assert torch.allclose(found["budget"], torch.tensor([[0.1, -0.4, 0.1, 0.1], [1.0, -1.0, 0, 0]]))
    assert torch.allclose(found["total"], torch.tensor([[0.35, -0.4, -0.15, -2.0], [1.0, -1.0, 0, 0]]))
    with pytest.raises(ValueError, match="deviation=0"):
        losses.training_wheels_reward(logprobs, asked, kept, torch.zeros(2), torch.zeros(2), 0.0, 0.0)


def test_budget_reward_cancels_at_the_budget():
    asked = torch.tensor([[True, False, False, False, True]])
    kept = torch.ones(1, 5, dtype=torch.bool)
    for budget, sign in ((0.4, 0.0), (0.3, -1.0), (0.5, 1.0)):
        found = losses.training_wheels_reward(
            torch.zeros(1, 5), asked, kept, torch.tensor([1.5]), torch.tensor([budget]), 0.0, 1.0
        )["budget"]
        assert float(found.sum()) == pytest.approx(sign * 1.5 * 0.1 * 5, abs=1e-6)


def test_statistics():
    statistics = RewardStatistics(decay=0.5)
    assert (statistics.mean, statistics.deviation) == (0.0, 1.0)
    first, second = np.array([-1.0, -3.0]), np.array([-5.0])
    statistics.update(first, np.array([-2.0, -4.0], np.float32))
    assert (statistics.mean, statistics.deviation) == (-2.0, 1.0)
    statistics.update(second, np.array([-8.0]))
    assert statistics.mean == pytest.approx((0.5 * (-4) - 5) / 2)
    weights, values = np.array([0.5, 0.5, 1.0]), np.array([-2.0, -4.0, -8.0])
    mean = np.average(values, weights=weights)
    assert statistics.deviation == pytest.approx(math.sqrt(np.average((values - mean) ** 2, weights=weights)))
    other = RewardStatistics(decay=0.5)
    other.load_state_dict(copied(statistics.state_dict()))
    assert (other.mean, other.deviation) == (statistics.mean, statistics.deviation)
    with pytest.raises(ValueError, match="1 log-likelihoods of student tokens"):
        statistics.update(first, np.array([-1.0, math.nan]))


# ---------------------------------------------------------------- Lagrangian


def test_multiplier_follows_the_excess_and_stays_between_its_bounds():
    multipliers = Lagrangian([0.1, 0.4], rate=0.5, initial=(0.3,), trailing=1)
    multipliers.update([0, 1, 0], calls=[3, 1, 5], lengths=[10, 10, 10])
    assert multipliers.use(0) == pytest.approx(0.4) and multipliers.use(1) == pytest.approx(0.1)
    assert multipliers.values == pytest.approx([0.3 + 0.5 * 0.3, 0.3 - 0.5 * 0.3])
    for _ in range(20):
        multipliers.update([0, 1], [10, 0], [10, 10])
    assert multipliers.values == [2.0, 0.0]
    multipliers.update([1], [10], [10])  # nothing of the first budget
    assert multipliers.values == pytest.approx([2.0, 0.3])


def test_use_is_averaged_over_trailing_batches():
    by_rows, pooled = (Lagrangian([0.0], trailing=2, pooled=pooled) for pooled in (False, True))
    for calls, lengths in (([9], [9]), ([1, 0], [1, 9]), ([3], [10])):  # the first has left again
        for multipliers in (by_rows, pooled):
            multipliers.update([0] * len(calls), calls, lengths)
    assert by_rows.use(0) == pytest.approx((1 + 0 + 0.3) / 3)
    assert pooled.use(0) == pytest.approx(4 / 20)
    assert Lagrangian([0.0]).use(0) is None


def test_proportional_and_derivative_parts():
    multipliers = Lagrangian([0.0], rate=0.1, trailing=1, proportional=1.0, derivative=0.5, initial=(1.0,))
    found, expected, last = [], 1.0, [0.2, 0.2]
    for use in (0.2, 0.5, 0.4):
        multipliers.update([0], [int(10 * use)], [10])
        found.append(multipliers.values[0])
        expected += 0.1 * use + (use - last[0]) + 0.5 * (use - 2 * last[0] + last[1])
        last = [use, last[0]]
    assert found[0] == pytest.approx(1.02) and found[-1] == pytest.approx(expected)


def test_fixed_multiplier_and_state():
    fixed = Lagrangian([0.0, 0.5], fixed=0.7)
    fixed.update([0, 1], [5, 5], [5, 5])
    assert fixed.values == [0.7, 0.7] and fixed.use(0) == 1.0
    a = Lagrangian([0.0, 0.5], trailing=3, proportional=0.3)
    for calls in (4, 2, 1, 0):
        a.update([0, 1], [calls, 1], [5, 6])
    b = Lagrangian([0.0, 0.5], trailing=3, proportional=0.3)
    b.load_state_dict(copied(a.state_dict()))
    for multipliers in (a, b):
        multipliers.update([0, 1], [3, 3], [7, 7])
    assert a.values == b.values and a.use(1) == b.use(1)
    with pytest.raises(ValueError, match="2 budgets, this run 1"):
        Lagrangian([0.0]).load_state_dict(a.state_dict())
    assert Lagrangian([0.0, 0.5], initial=(2.0, 0.3)).values == [2.0, 0.3]
    with pytest.raises(ValueError, match=r"initial=\(3"):
        Lagrangian([0.0], initial=(3.0,))
    with pytest.raises(ValueError, match="2 values for 1 budgets"):
        Lagrangian([0.0], initial=(1.0, 1.0))


# ---------------------------------------------------------------- replay


def toy_episode(i):
    rng = np.random.default_rng(i)
    length = 1 + i % 4
    marks = rng.integers(2, size=length).astype(bool)
    logprobs = rng.normal(size=length).astype(np.float32)
    return Episode(
        rng.integers(9, size=2 + i % 3).astype(np.int32),
        i % 6,
        np.full(length, i, np.int32),
        marks,
        logprobs,
        i % 2 == 0,
    )


def test_replay_samples_by_key_and_forgets_the_oldest():
    buffer = ReplayBuffer(5)
    assert buffer.sample(3, 0, 0) == []
    buffer.add(map(toy_episode, range(8)))
    names = [int(e.tokens[0]) for e in buffer.sample(9, 0, 1)]
    assert sorted(names) == [3, 4, 5, 6, 7]
    assert [int(e.tokens[0]) for e in buffer.sample(3, 0, 1)] == names[:3]
    draws = {tuple(int(e.tokens[0]) for e in buffer.sample(3, seed, step)) for seed in range(4) for step in range(4)}
    assert len(draws) > 8


@pytest.mark.parametrize("count", [0, 1, 7])
def test_replay_state(count):
    buffer, other = ReplayBuffer(6), ReplayBuffer(6)
    buffer.add(map(toy_episode, range(count)))
    other.load_state_dict(copied(buffer.state_dict()))
    assert len(other) == min(6, count) and same(other.state_dict(), buffer.state_dict())
    for a, b in zip(buffer.sample(6, 1, 2), other.sample(6, 1, 2), strict=True):
        assert (a.budget, a.ended) == (b.budget, b.ended)
        for name in ("source", "tokens", "from_teacher", "teacher_logprobs"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
    if count > 1:
        with pytest.raises(ValueError, match="capacity of 1"):
            ReplayBuffer(1).load_state_dict(buffer.state_dict())


# ---------------------------------------------------------------- rollouts


def test_rollouts_are_decoded_where_the_run_says(pair, tokenizer, prompts, simulated):
    rows, budgets = Frame(tokenizer).encode(examples(2)), [3, 5]
    here, there = rolling(pair, prompts), rolling(pair, prompts, rollout_device="cuda")
    assert {model.device for model in [*there.native_teachers, there.decoder.student]} == {simulated}
    for episodes in (
        lambda made: made.on_policy(Tasks(rows, budgets)),
        lambda made: made.of_judge(Tasks(rows, [0, 0])),
    ):
        for a, b in zip(episodes(here), episodes(there), strict=True):
            assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.from_teacher, b.from_teacher)
    there.decoder.student.update_weights(pair[0])


@pytest.mark.parametrize("temperature, teacher_temperature", [(0.0, 0.0), (1.0, 0.0), (0.7, 1.3)])
def test_episodes_are_what_the_reference_decoder_says(pair, tokenizer, prompts, temperature, teacher_temperature):
    student, teacher = pair
    (own, told), rows, budgets = prompts, Frame(tokenizer).encode(examples(8)), [0, 1, 2, 3, 4, 5, 1, 2]
    seed = rollout_seed(3, 4)
    rollouts = rolling(pair, prompts, teacher_temperature=teacher_temperature)
    found = rollouts.on_policy(Tasks(rows, budgets), temperature, seed)
    oracle = reference.TrainingWheelsDecoder(student, teacher)
    compared, asked, written, cut = 0, 0, 0, 0
    for r, (row, budget, episode) in enumerate(zip(rows, budgets, found, strict=True)):
        (expected,) = oracle.generate(
            [[*own[budget], *row.source, EOS]],
            teacher_inputs={"input_ids": [[*told, *row.source, EOS]]},
            max_new_tokens=10,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            seed=seed,
            row_ids=[r],
        )
        if expected.near_ties:
            continue
        compared += 1
        assert episode.tokens.tolist() == expected.tokens
        assert episode.from_teacher.tolist() == [owner == Owner.TEACHER for owner in expected.owners]
        assert np.allclose(episode.teacher_logprobs, expected.teacher_logprobs, atol=1e-4, equal_nan=True)
        assert episode.ended == (expected.tokens[-1] == EOS) and episode.budget == budget
        assert episode.source.tolist() == list(row.source)
        actions = episode.actions(student.config.tau_token_id)
        assert ((actions == student.config.tau_token_id) == episode.from_teacher).all()
        asked, written, cut = asked + episode.calls, written + len(episode), cut + (not episode.ended)
    assert compared >= 4 and 0 < asked < written and (cut or temperature)


def test_scoring_fills_what_was_never_read_and_keeps_the_rest(pair, tokenizer, prompts):
    _, teacher = pair
    _, told = prompts
    rows = Frame(tokenizer).encode(examples(12))
    rollouts = rolling(pair, prompts)
    raw = rollouts.on_policy(Tasks(rows, [1] * 12), temperature=1.0, seed=5)
    scored = rollouts.scored(raw)
    blank = [replace(e, teacher_logprobs=np.full(len(e), np.nan, np.float32)) for e in raw]
    unread = 0
    for before, after, again, row in zip(raw, scored, rollouts.scored(blank), rows, strict=True):
        missing = np.isnan(before.teacher_logprobs)
        unread += missing.sum()
        assert np.array_equal(before.teacher_logprobs[~missing], after.teacher_logprobs[~missing])
        source = torch.tensor([[*told, *row.source, EOS]])
        inputs = torch.tensor([[0, *before.tokens[:-1].tolist()]])
        with torch.no_grad():
            logits = teacher(input_ids=source, decoder_input_ids=inputs).logits[0].double()
        expected = logits.log_softmax(-1)[torch.arange(len(before)), before.tokens.astype(np.int64)].numpy()
        assert np.allclose(after.teacher_logprobs, expected, atol=1e-4)
        assert np.allclose(again.teacher_logprobs, expected, atol=1e-4)
    assert 0 < unread < sum(map(len, raw))


def test_oracle_rollouts(pair, tokenizer, prompts):
    student, teacher = pair
    own, told = prompts
    rows, budgets = Frame(tokenizer).encode(examples(9)), [0, 1, 2, 3, 4, 5, 5, 5, 3]
    decoder = SingleModelDecoder(teacher, role="teacher", num_threads=1)
    rollouts = rolling(pair, prompts)
    plain = rollouts.of_judge(Tasks(rows, budgets))
    alone = decoder.generate([[*told, *row.source, EOS] for row in rows], max_new_tokens=10)
    assert [e.tokens.tolist() for e in plain] == [
        ids[1 : 1 + n] for ids, n in zip(alone.sequences.tolist(), alone.lengths.tolist(), strict=True)
    ]
    found, divergence = rollouts.asked_by_oracle(plain)
    kls = []
    for row, episode, budget in zip(rows, found, budgets, strict=True):
        inputs = torch.tensor([[0, *episode.tokens[:-1].tolist()]])
        with torch.no_grad():
            mine = student(torch.tensor([[*own[budget], *row.source, EOS]]), decoder_input_ids=inputs).logits
            theirs = teacher(torch.tensor([[*told, *row.source, EOS]]), decoder_input_ids=inputs).logits
        kl = losses.position_divergence(mine, theirs, student.config.tau_token_id)
        kls += kl.flatten().tolist()
        fraction = torch.tensor([BUDGETS[budget].fraction])
        marks = oracle_positions(kl, torch.ones(kl.shape, dtype=torch.bool), fraction)[0]
        assert episode.from_teacher.tolist() == marks.tolist()
        logprobs = theirs.log_softmax(-1)[0].gather(1, torch.tensor(episode.tokens[:, None].astype(np.int64)))
        assert np.allclose(episode.teacher_logprobs, logprobs.squeeze(1).numpy(), atol=1e-4)
    assert sum(e.calls for e in found) > 0
    assert divergence == pytest.approx(np.mean(kls), rel=1e-3)


def test_trajectories_with_tau_are_left_out(pair, tokenizer, prompts):
    rows = Frame(tokenizer).encode(examples(6))
    every = rolling(pair, prompts).of_judge(Tasks(rows, [0] * 6))
    first = int(every[0].tokens[0])
    left = without_tokens(every, first)
    expected = [e.tokens.tolist() for e in every if first not in e.tokens]
    assert [e.tokens.tolist() for e in left] == expected and len(expected) < 6


def test_sources_longer_than_the_decoders_default_are_rolled_out(pair, prompts):
    """XSum's are: 512 tokens, a prompt and EOS."""
    long = Tasks([Encoded(tuple(7 + i % 30 for i in range(520)), (EOS,))], [0])
    rollouts = rolling(pair, prompts, max_new_tokens=4)
    assert len(rollouts.on_policy(long)) == len(rollouts.of_judge(long)) == 1


# ---------------------------------------------------------------- batches and the value network


def test_a_batch_of_episodes_reads_what_the_student_read(pair, prompts):
    student, _ = pair
    tau, special = student.config.tau_token_id, special_tokens(student)
    episodes = [toy_episode(i) for i in (3, 4, 9)]
    batch = collate_episodes(episodes, prompts[0], tau, *special)
    states = decoder_states(student, batch.source_ids, batch.source_mask, batch.inputs[:, :-1], batch.marks[:, :-1])
    found = logits_at(student, states, batch.kept)
    expected = []
    for episode in episodes:
        inputs = torch.tensor([[0, *episode.tokens[:-1].tolist()]])
        marks = torch.tensor([[False, *episode.from_teacher[:-1].tolist()]])
        source = torch.tensor([[*prompts[0][episode.budget], *episode.source.tolist(), EOS]])
        expected.append(student(source, decoder_input_ids=inputs, decoder_from_teacher=marks).logits[0])
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)
    assert batch.kept.sum(1).tolist() == [len(e) for e in episodes]
    assert batch.actions[batch.kept].tolist() == [a for e in episodes for a in e.actions(tau).tolist()]
    assert batch.asked[batch.kept].tolist() == [m for e in episodes for m in e.from_teacher.tolist()]
    with pytest.raises(ValueError, match="at least one"):
        collate_episodes([], prompts[0], tau, *special)


def test_value_network_starts_at_zero_and_sees_marks(pair):
    student, _ = pair
    value = ValueNetwork(student)
    ids, mask = torch.tensor([[5, 6, EOS]]), torch.ones(1, 3, dtype=torch.long)
    inputs, marks = torch.tensor([[0, 7, 8]]), torch.tensor([[False, True, False]])
    assert torch.equal(value(ids, mask, inputs, marks), torch.zeros(1, 3))
    torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(0))
    marked, plain = value(ids, mask, inputs, marks), value(ids, mask, inputs, torch.zeros_like(marks))
    assert torch.equal(marked[:, 0], plain[:, 0]) and not torch.allclose(marked[:, 1:], plain[:, 1:])
    assert not value.train().training
    value.body.shared.weight.data.zero_()
    assert float(student.shared.weight.detach().abs().sum()) > 0  # a copy


# ---------------------------------------------------------------- the whole


def make(pair, tokenizer, settings=QUICK):
    with TemporaryDirectory() as name:
        folder = Path(name)
        for model, role in zip(pair, ("student", "teacher")):
            model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / "tokenizer")
        write_jsonl(folder / "train.jsonl", examples(16))
        write_jsonl(folder / "validation.jsonl", examples(4, 16))
        places = {role: Model(path=str(folder / role)) for role in ("student", "teacher")}
        data = Data(folder=name)
        return PathConsistency(replace(settings, data=data, tokenizer=str(folder / "tokenizer"), **places))


def test_a_batch_is_a_function_of_state_and_index(pair, tokenizer):
    phase = make(pair, tokenizer)
    for index in (0, 1):
        phase.train_batch(index)
    state = copied(phase.state_dict())
    metrics = [phase.train_batch(2)]
    first = copied(phase.state_dict())
    phase.load_state_dict(state)
    metrics.append(phase.train_batch(2))
    assert same(first, phase.state_dict())
    assert not same(state["student"], first["student"]) and not same(state["value"], first["value"])
    a, b = ({k: v for k, v in m.items() if not k.startswith("seconds")} for m in metrics)
    assert a == b
    phase.load_state_dict(state)
    phase.train_batch(3)
    assert not same(first["student"], phase.state_dict()["student"])


def test_use_of_held_out_sources_can_drive_the_multipliers(pair, tokenizer):
    phase = make(pair, tokenizer, replace(QUICK, held_out_rows=4))
    metrics = phase.train_batch(0)
    counted = [int(batch[0]) for seen in phase.lagrangian.seen for batch in seen]
    assert sum(counted) == 4 and len(make(pair, tokenizer).watched) == 0
    episodes = phase._use_of_held_out(0)
    assert {tuple(e.source.tolist()) for e in episodes} == {row.source for row in phase.watched}
    uses = {name: value for name, value in metrics.items() if name.startswith("use/")}
    assert uses == {f"use/{BUDGETS[e.budget].phrase}": e.calls_of(1) / len(e) for e in episodes}
    with pytest.raises(ValueError, match=r"held_out_rows=5 of a batch, but only 4 validation examples"):
        make(pair, tokenizer, replace(QUICK, held_out_rows=5))


def test_resuming_gives_the_same_bits(pair, tokenizer):
    whole, before, after = (make(pair, tokenizer) for _ in range(3))
    for index in range(4):
        whole.train_batch(index)
    for index in range(2):
        before.train_batch(index)
    after.load_state_dict(copied(before.state_dict()))
    for index in range(2, 4):
        after.train_batch(index)
    assert same(whole.state_dict(), after.state_dict())
    assert whole.lagrangian.values != [0.0] * 6 and len(whole.replay) == 30


def test_only_the_value_network_learns_at_first(pair, tokenizer):
    phase = make(pair, tokenizer, replace(QUICK, value_batches=2))
    start = copied(phase.state_dict())
    phase.train_batch(0)
    phase.train_batch(1)
    middle = copied(phase.state_dict())
    assert same(start["student"], middle["student"]) and not same(start["value"], middle["value"])
    phase.train_batch(2)
    assert not same(middle["student"], phase.state_dict()["student"])
    beta = "teacher_token_embedding"
    assert not torch.equal(start["student"][beta], phase.student.state_dict()[beta])  # beta is trained


@pytest.mark.parametrize(
    "changes",
    [
        {"temperatures": (0.0,), "oracle_rows": 0},
        {"temperatures": (1.0,), "on_policy_rows": 0, "window": 3},
        {"replay_rows": 0, "replay_capacity": 0, "teacher_temperature": 1.0, "multiplier_fixed": 0.5, "bf16": True},
    ],
)
def test_other_kinds_of_batches_run_and_report(pair, tokenizer, changes):
    phase = make(pair, tokenizer, replace(QUICK, **changes))
    for index in range(2):
        metrics = phase.train_batch(index)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert ("divergence" in metrics) == bool(phase.settings.oracle_rows)
    assert 0 < metrics["unread"] < 1 and metrics["consistency_error"] > 0
    for budget in BUDGETS:
        assert 0 <= metrics[f"use/{budget.phrase}"] <= 1 and 0 <= metrics[f"lambda/{budget.phrase}"] <= 2


def test_rewards_without_normalisation_are_log_likelihoods(pair, tokenizer):
    settings = replace(QUICK, replay_rows=0, oracle_rows=0, temperatures=(0.0,), updates_per_batch=1, reward_clip=99.0)
    plain = make(pair, tokenizer, replace(settings, normalise=False, on_policy_rows=settings.tasks)).train_batch(0)
    same = make(pair, tokenizer, replace(settings, on_policy_rows=settings.tasks))
    normalised = same.train_batch(0)
    mean, deviation = same.statistics.mean, same.statistics.deviation
    asked = normalised["reward_likelihood"] * deviation - plain["reward_likelihood"]  # 0 where the teacher wrote
    assert plain["reward_likelihood"] < -1
    assert asked == pytest.approx(-mean * (1 - sum_of_use(same)), rel=1e-4)


def sum_of_use(phase):
    calls, tokens = (sum(batch[i] for seen in phase.lagrangian.seen for batch in seen) for i in (2, 3))
    return calls / tokens


def test_rates_warm_up_and_decay(pair, tokenizer):
    schedule = {"optimiser": Optimiser(rate=1e-2, warmup=2, scaled=False), "value_optimiser": Optimiser(rate=1e-3)}
    phase = make(pair, tokenizer, replace(QUICK, steps=5, value_batches=1, **schedule))
    rates, value_rates = [], []
    for index in range(5):
        phase.train_batch(index)
        rates.append({group["lr"] for group in phase.optimiser.param_groups}.pop())
        value_rates.append(phase.value_optimiser.param_groups[0]["lr"] / phase.value_optimiser.param_groups[0]["scale"])
    assert rates[1] == pytest.approx(5e-3) and rates[2] == pytest.approx(1e-2) and rates[4] == pytest.approx(5e-3)
    assert value_rates == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4])


def test_a_loss_that_is_not_finite_is_refused_before_it_spoils_anything(pair, tokenizer):
    phase = make(pair, tokenizer, replace(QUICK, value_batches=0))
    phase.value.head.bias.data.fill_(math.inf)
    before = copied(phase.student.state_dict())
    with pytest.raises(NonFiniteLossError, match="loss is") as caught:
        phase.train_batch(0)
    assert same(before, phase.student.state_dict()) and "source_ids" in caught.value.batch


def test_path_consistency_learns_to_stop_asking(pair, tokenizer):
    """With a large fixed lambda each call costs: the student must come to call less than it did."""
    settings = replace(
        QUICK,
        tasks=12,
        temperatures=(1.0,),
        on_policy_rows=12,
        updates_per_batch=4,
        multiplier_fixed=8.0,
        reward_clip=10.0,
        value_batches=0,
        optimiser=Optimiser(rate=3e-2, decay=False),
        entropy_weight=0.1,
        window=2,
    )
    phase = make(pair, tokenizer, settings)
    probabilities = [phase.train_batch(index)["tau_probability"] for index in range(12)]
    assert probabilities[-1] < 0.5 * probabilities[0]


def test_validation_and_saving(pair, tokenizer, tmp_path):
    phase = make(pair, tokenizer)
    phase.train_batch(0)
    table = phase.validate(1, None)
    assert [row["asked"] for row in table] == [budget.fraction for budget in BUDGETS]
    assert phase.rank([{**row, "achieved": row["asked"]} for row in table]) > phase.rank(table)
    phase.save_model(tmp_path)
    saved = TrainingWheelsT5.from_pretrained(tmp_path)
    assert same(dict(saved.state_dict()), dict(phase.student.state_dict()))


def test_settings_are_checked():
    for changes, words in (
        ({"temperatures": ()}, "at least one"),
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"on_policy_rows": 0, "oracle_rows": 0}, r"got \(0, 0, 12\)"),
        ({"entropy_weight": -1.0}, "entropy_weight must be in .*got -1.0"),
        ({"temperatures": (1.0, math.inf)}, "temperatures must be in .*got inf"),
        ({"teacher_temperature": math.nan}, "teacher_temperature must be in .*got nan"),
        ({"replay_rows": -1}, "replay_rows must be at least 0, got -1"),
        ({"replay_capacity": -1}, "replay_capacity must be at least 0, got -1"),
        ({"replay_capacity": 2**40}, "replay_capacity must be at most 2147483647"),
        ({"window": -1}, "window must be at least 1, got -1"),
        ({"discount": math.inf}, r"discount must be in \[0, 1\], got inf"),
        ({"reward_clip": math.nan}, "reward_clip must be in .*got nan"),
        ({"reward_clip": 0.0}, "reward_clip must be in .*got 0"),
        ({"statistics_decay": 0.0}, r"statistics_decay must be in \(0, 1\], got 0"),
        ({"trailing_batches": 0}, "trailing_batches must be at least 1, got 0"),
        ({"multiplier_initial": (math.nan,)}, r"multiplier_initial must be in \[0, 2\], got nan"),
        ({"multiplier_initial": (3.0,)}, r"multiplier_initial must be in \[0, 2\], got 3"),
        ({"multiplier_initial": (1.0, 1.0)}, "multiplier_initial has 2 values; give 1 or 6"),
        ({"teachers": [Model(path="x")], "multiplier_initial": ()}, "has 0 values; give 1 or 6 or 12"),
        ({"multiplier_cap": 0.0}, "multiplier_cap must be in .*got 0"),
        ({"multiplier_rate": math.inf}, "multiplier_rate must be in .*got inf"),
        ({"multiplier_proportional": -1.0}, "multiplier_proportional must be in .*got -1"),
        ({"multiplier_derivative": math.nan}, "multiplier_derivative must be in .*got nan"),
        ({"multiplier_fixed": math.inf}, "multiplier_fixed must be in .*got inf"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(Settings(), **changes)


def test_the_best_checkpoint_holds_its_budgets_first():
    def table(uses, rouge2):
        return [
            {"asked": b.fraction, "achieved": b.fraction + use, "rouge2": rouge2}
            for b, use in zip(BUDGETS, uses, strict=True)
        ]

    holds, better, fails = table([0.01] * 6, 10.0), table([0, 0.03, -0.03, 0, 0, 0], 11.0), table([0] * 5 + [0.2], 50.0)
    assert sorted([holds, better, fails], key=rank) == [fails, holds, better]
    assert sorted([holds, better, fails], key=lambda found: rank(found, 0.02)) == [fails, better, holds]
    assert rank(fails) < rank(table([0.1] * 6, 1.0))  # the least broken
