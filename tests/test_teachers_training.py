"""Both phases with several teachers, on toy data: the oracle's pairing, loss and reward by hand, real runs."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from factories import random_teachers
from kdtw_fast.training import allocations, losses, oracle, recipes
from kdtw_fast.training.batches import Encoded
from kdtw_fast.training.checkpoints import load_checkpoint
from kdtw_fast.training.episodes import collate_episodes
from kdtw_fast.training.evaluate import rank
from kdtw_fast.training.models import load_student, special_tokens
from kdtw_fast.training.rollouts import Rollouts, Tasks, _readers
from kdtw_fast.training.settings import Model, PhaseSettings
from toy_training import SHAPE, fit, oracle_positions, toy_recipe
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS, STUDENT_PROMPT
from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.modeling import TrainingWheelsT5


def test_allocations_are_budgets_for_each_that_leave_the_student_something():
    assert allocations.allocations(1) == [(budget,) for budget in BUDGETS]
    assert len(allocations.allocations(2)) == 36 and len(allocations.measured(2)) == 16
    assert allocations.allocations(3)[0] == (BUDGETS[0],) * 3
    told = allocations.Instructions(STUDENT_PROMPT, 3)
    assert max(float(row.sum()) for row in told.fractions) <= 1.0 + 1e-6
    for row, numbers in zip(told.fractions, told.budget_numbers, strict=True):
        assert [BUDGETS[b].fraction for b in numbers] == pytest.approx(row.tolist())


def test_the_oracle_pairs_teachers_and_positions_by_gain_per_cost():
    gains = torch.tensor([[[1.0, 4.0, 3.0, 0.5, 9.0], [2.0, 5.0, 6.0, 0.1, 9.0]]])
    kept = torch.tensor([[True, True, True, True, False]])
    both = torch.tensor([[0.5, 0.25]])  # two positions, and one
    asked = oracle.oracle_teachers(gains, kept, both, [1.0, 1.0])
    assert asked.tolist() == [[1, 1, 2, 0, 0]]  # 6 (second at 2), 5 is over its share, 4 and 1 (first at 1 and 0)
    asked = oracle.oracle_teachers(gains, kept, both, [1.0, 4.0])
    assert asked.tolist() == [[2, 1, 1, 0, 0]]  # 4 and 3 for the first, then 2 / 4
    assert oracle.oracle_teachers(gains, kept, torch.zeros(1, 2), [1.0, 1.0]).sum() == 0
    assert oracle.oracle_teachers(gains, kept, torch.ones(1, 2), [1.0, 1.0])[0].tolist() == [2, 2, 2, 1, 0]
    with pytest.raises(ValueError, match="each of 2 teachers"):
        oracle.oracle_teachers(gains, kept, both, [1.0])


def test_one_teachers_oracle_is_the_top_of_its_divergence():
    generator = torch.Generator().manual_seed(0)
    divergence = torch.rand(7, 11, generator=generator)
    kept = torch.arange(11)[None] < torch.randint(1, 12, (7, 1), generator=generator)
    asked = oracle_positions(divergence, kept, torch.full((7,), 0.3))
    for values, inside, found in zip(divergence, kept, asked, strict=True):
        count = int(0.3 * int(inside.sum()) + 0.5)
        best = values.masked_fill(~inside, -1).argsort(descending=True)[:count]
        assert sorted(best.tolist()) == found.nonzero().flatten().tolist()


def test_gains_are_what_the_judge_sees():
    generator = torch.Generator().manual_seed(1)
    student, near, judge = torch.randn(3, 2, 4, 9, generator=generator)
    near = judge + 0.1 * near
    taus = [7, 8]
    gains = oracle.teacher_gains(
        student, [near[..., :8], judge], taus
    )  # the first teacher lacks the student's last row
    assert torch.equal(gains[1], losses.position_divergence(student, judge, taus))
    p, q, s = (x[..., :7].log_softmax(-1) for x in (judge, near, student))
    expected = (p.exp() * (p - s)).sum(-1) - (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(gains[0], expected, atol=1e-5)
    assert bool((gains[0] <= gains[1] + 1e-6).all())  # nobody is closer to the judge than itself


def test_cloning_loss_of_two_teachers_by_hand():
    logits = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    judge = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)).double()
    asked, kept = torch.tensor([[0, 2, 1, 0]]), torch.tensor([[True, True, True, False]])
    parts = losses.behaviour_cloning(logits, judge, asked, kept, [4, 5], abstain=2.0)
    pi = logits.detach()[0].softmax(-1).numpy()
    p, q = judge[0, 0, :4].softmax(-1).numpy(), pi[0, :4] / pi[0, :4].sum()
    ask = -(np.log(pi[1, 5]) + np.log(pi[2, 4])) / 3
    divergence, hush = (p * np.log(p / q)).sum() / 3, -np.log(1 - pi[0, 4] - pi[0, 5]) / 3
    expected = (ask, divergence, hush, ask + divergence + 2 * hush)
    assert [float(parts[n].detach()) for n in ("ask", "divergence", "abstain", "loss")] == pytest.approx(expected)
    assert torch.autograd.gradcheck(
        lambda x: losses.behaviour_cloning(x, judge, asked, kept, [4, 5], abstain=2.0)["loss"], logits
    )


def test_reward_of_two_teachers_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, -5.0]])
    asked, kept = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[True, True, True, False]])
    multipliers, budgets = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.1, 0.2]])
    found = losses.training_wheels_reward(logprobs, asked, kept, multipliers, budgets, -2.0, 2.0, 9.0, [0.4, 1.0])
    # The first teacher's token is judged as the student's, the judge's own is not.
    assert found["likelihood"][0].tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0])
    never = 0.4 * 0.5 * 0.1 + 0.2
    assert found["budget"][0].tolist() == pytest.approx([never, never - 0.4 * 0.5, never - 1.0, 0.0])
    logprobs[0, 1] = -4.0
    found = losses.training_wheels_reward(logprobs, asked, kept, multipliers, budgets, -2.0, 2.0, 9.0, [0.4, 1.0])
    assert float(found["likelihood"][0, 1]) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="1 values for 2 teachers"):
        losses.training_wheels_reward(logprobs, asked, kept, multipliers, budgets, 0.0, 1.0)


def test_a_token_is_read_by_the_next_teacher_that_writes():
    assert _readers(np.array([[0, 0, 2, 0, 1, 0, 0], [3, 0, 0, 0, 0, 0, 0]], np.uint8)).tolist() == [
        [2, 2, 2, 1, 1, 0, 0],
        [3, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_rollouts_are_scored_by_the_judge(seed):
    student, teachers = random_teachers("noisy", seed, 2)
    generator = np.random.default_rng(seed)
    rows = [Encoded(tuple(generator.integers(2, 40, size=5).tolist()), (5, 1)) for _ in range(12)]
    prompts = [[2 + b] for b in range(36)]
    fractions = allocations.Instructions(STUDENT_PROMPT, 2).fractions
    rollouts = Rollouts(student, teachers, prompts, [3], fractions, PhaseSettings(max_new_tokens=16))
    episodes = rollouts.on_policy(Tasks(rows, list(range(12))), temperature=1.0, seed=seed)
    assert any(np.isnan(e.teacher_logprobs).any() for e in episodes)
    if seed == 0:
        assert all(any(e.calls_of(k) for e in episodes) for k in (1, 2))
    scored = rollouts.scored(episodes)
    for before, episode, row in zip(episodes, scored, rows, strict=True):
        known = ~np.isnan(before.teacher_logprobs)
        assert np.array_equal(before.teacher_logprobs[known], episode.teacher_logprobs[known])
        inputs = torch.tensor([[0, *episode.tokens.tolist()]])
        with torch.no_grad():
            logits = teachers[-1](torch.tensor([[3, *row.source, 1]]), decoder_input_ids=inputs).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, inputs[0, 1:, None]).squeeze(1)
        assert np.allclose(episode.teacher_logprobs, expected.numpy(), atol=1e-3)
        assert episode.calls == episode.calls_of(1) + episode.calls_of(2)
    batch = collate_episodes(scored, prompts, student.tau_token_ids, *special_tokens(student))
    assert torch.equal(batch.asked, batch.marks[:, 1:]) and batch.asked.dtype == torch.uint8
    for k, tau in enumerate(student.tau_token_ids, 1):
        assert torch.equal(batch.asked == k, (batch.actions == tau) & (batch.asked > 0))
    oracle_rows, divergence = rollouts.asked_by_oracle(scored)
    assert divergence > 0 and {e.from_teacher.dtype for e in oracle_rows} == {np.dtype(np.uint8)}
    for episode in oracle_rows:
        for k in (1, 2):
            assert episode.calls_of(k) <= int(len(episode) * float(fractions[episode.budget, k - 1]) + 0.5)


def test_selection_holds_every_teacher_to_its_budget():
    row = {"asked": 0.3, "achieved": 0.3, "rouge2": 10.0, "asked_of": [0.2, 0.1]}
    assert rank([row | {"achieved_of": [0.2, 0.1]}], 0.03)[0] == 1.0
    assert rank([row | {"achieved_of": [0.1, 0.2]}], 0.03) == (0.0, pytest.approx(-0.1))


def test_settings_want_a_cost_for_each():
    with pytest.raises(ValueError, match="1 values for 2 teachers"):
        PhaseSettings(teachers=[Model()], costs=[1.0])
    with pytest.raises(ValueError, match="costs"):
        PhaseSettings(costs=[0.0])


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(toy, tmp_path_factory):
    """A second teacher, and a student of both after each phase."""
    root = tmp_path_factory.mktemp("teachers")
    shape = {f"teacher__{name}": value for name, value in (SHAPE | {"d_model": 24}).items()}
    fit(toy, out=root / "second", steps=60, dropout=0.0, bf16="false", **shape)
    teachers = {"teachers": f"[{{path: {root / 'second/model'}}}]", "costs": "[0.5, 1.0]"}
    tables = {}
    for phase, changes in (
        ("phase1", {"steps": 200, "target_tokens": 256, "abstain": 1.0, "sample_every": 0, "optimiser__rate": 2e-2}),
        ("phase2", {"steps": 4, "tasks": 12, "value_batches": 1, "student__path": root / "phase1/model"}),
    ):
        recipe = toy_recipe(
            toy,
            f"debian-de-en/{phase}-teachers",
            **{**teachers, "out": root / phase, "bf16": "false", "validate_every": 0, "validation_rows": 2, **changes},
        )
        tables[phase] = recipes.train(recipe, quiet=True).table
    return root, tables, teachers


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_both_phases_train_a_student_of_two_teachers(runs, toy, phase):
    root, tables, _ = runs
    assert [row["asked_of"] for row in tables[phase]] == [
        [budget.fraction for budget in one] for one in allocations.measured(2)
    ]
    for row in tables[phase]:
        assert row["achieved"] == pytest.approx(sum(row["achieved_of"]), abs=1e-3)
    student = TrainingWheelsT5.from_pretrained(root / phase / "model")
    assert len(student.tau_token_ids) == 2 and float(student.marks.detach().abs().min(1).values.max()) > 0
    decoder = TrainingWheelsDecoder(root / phase / "model", [root / "second/model", toy / "teacher/model"])
    out = decoder(["das paket", "ein programm mit"], budget={1: "very high", 2: "very high"}, max_new_tokens=12)
    assert out.calls_by_teacher.shape == (2, 2)
    T5ForConditionalGeneration.from_pretrained(root / phase / "model")


def test_phase_1_teaches_to_ask_whom_the_prompt_allows(runs):
    table = {tuple(row["asked_of"]): row["achieved_of"] for row in runs[1]["phase1"]}
    assert sum(table[0.5, 0.5]) > sum(table[0.0, 0.0]) + 0.2


def test_phase_2_has_a_multiplier_for_each_teacher_and_budget(runs):
    root, _, _ = runs
    state = load_checkpoint(root / "phase2")["algorithm"]
    assert len(state["lagrangian"]["values"]) == 12
    lines = [json.loads(line) for line in (root / "phase2/metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["event"] == "step"][-1]
    assert {f"lambda/teacher {k}, {b.phrase}" for k in (1, 2) for b in BUDGETS} <= set(last)
    assert np.isfinite(last["loss"])
    assert set(state["replay"]["from_teacher"].unique().tolist()) == {0, 1, 2}


def test_phase_2_resumes_to_the_bit(runs, toy, tmp_path):
    root, _, teachers = runs

    def run(out, steps):
        recipe = toy_recipe(
            toy,
            "debian-de-en/phase2-teachers",
            **{**teachers, "out": out, "steps": steps, "tasks": 6, "student__path": root / "phase1/model"},
            **{"validate_every": 0, "validation_rows": 1, "sample_every": 0, "optimiser__decay": "false"},
            **{"value_optimiser__decay": "false", "value_batches": 0, "checkpoint_every": 1},
        )
        recipes.train(recipe, quiet=True)
        return load_checkpoint(out)["algorithm"]["student"]

    run(tmp_path / "parts", 1)
    for whole, parts in zip(run(tmp_path / "whole", 2).values(), run(tmp_path / "parts", 2).values(), strict=True):
        assert torch.equal(whole, parts)


def test_students_grow_to_more_teachers_but_do_not_shrink(runs, toy):
    root, _, _ = runs
    size = len(AutoTokenizer.from_pretrained(toy / "tokenizer"))
    single = load_student(toy / "student/model", size)
    assert len(single.tau_token_ids) == 1
    for teachers in (1, 2, 3):
        grown = load_student(toy / "student/model", size, teachers=teachers)
        assert all(after == before + 1 for before, after in pairwise(grown.tau_token_ids))
        assert len(grown.tau_token_ids) == teachers
    assert len(load_student(root / "phase1/model", size, teachers=3).tau_token_ids) == 3
    with pytest.raises(ValueError, match="asks 2 teachers, but this run has 1"):
        load_student(root / "phase1/model", size)
