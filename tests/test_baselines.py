"""Every baseline for real on toy data: it learns, it resumes to the bit, its samples are a function of the batch."""

import copy
import json

import pytest
import torch
from factories import mostly_long
from kdtw_fast.training import recipes
from kdtw_fast.training.batches import Encoded
from kdtw_fast.training.checkpoints import load_checkpoint
from kdtw_fast.training.distillation import sample
from test_training_smoke import same
from toy_training import toy_recipe
from transformers import T5ForConditionalGeneration

from kdtw_fast.decoders import InterleavedDecoder, SingleModelDecoder

BASELINES = ["gkd", "on-policy-kd", "distillspec", "skd", "minillm"]
CONSTANT = {"optimiser__decay": "false", "target_tokens": 64, "updates_per_batch": 2}


@pytest.mark.parametrize("name", BASELINES)
def test_it_runs_and_resumes_to_the_bit(name, toy, tmp_path):
    def run(out, steps):
        recipe = toy_recipe(toy, f"debian-de-en/{name}", out=tmp_path / out, steps=steps, **CONSTANT)
        return recipes.train(recipe, quiet=True)

    whole = run("whole", 4)
    run("parts", 3)
    parts = run("parts", 4)
    states = [load_checkpoint(tmp_path / out)["algorithm"] for out in ("whole", "parts")]
    assert same(*states) and whole.table == parts.table
    T5ForConditionalGeneration.from_pretrained(tmp_path / "whole/model")
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["event"] == "step")
    assert {"loss", "grad_norm", "seconds_rollout", "seconds_scoring", "seconds_update"} <= set(step)
    sample = next(line for line in lines if line["event"] == "sample")
    assert sample["source"] and sample["text"]
    if name == "distillspec":
        assert 0 <= whole.table[0]["acceptance"] <= 1 and whole.table[0]["tokens_per_teacher_pass"] >= 1


def divergence_along_the_way(recipe, batches):
    """The mean loss of the first and of the last five batches."""
    algorithm = recipe.build()
    found = [algorithm.train_batch(index)["loss"] for index in range(batches)]
    return sum(found[:5]) / 5, sum(found[-5:]) / 5


@pytest.mark.parametrize("divergence", mostly_long(["jsd", "reverse", "forward"]))
def test_gkd_lowers_its_divergence(divergence, toy, tmp_path):
    settings = {"out": tmp_path, "divergence": divergence, "optimiser__rate": 2e-2, "bf16": "false"}
    before, after = divergence_along_the_way(toy_recipe(toy, "debian-de-en/gkd", **settings, steps=30), 30)
    assert after < 0.7 * before


def test_minillm_learns(toy, tmp_path):
    settings = {"out": tmp_path, "optimiser__rate": 2e-2, "bf16": "false", "steps": 30}
    algorithm = toy_recipe(toy, "debian-de-en/minillm", **settings).build()
    found = [algorithm.train_batch(index) for index in range(30)]
    for name, factor in (("single_step", 0.8), ("data", 0.7)):
        values = [row[name] for row in found]
        assert sum(values[-5:]) < factor * sum(values[:5])
    assert sum(row["reward"] for row in found[-5:]) > sum(row["reward"] for row in found[:5])


@pytest.mark.parametrize("fraction, rollouts", [(0.0, False), (0.5, True), (1.0, True)])
def test_the_students_share_of_a_batch(fraction, rollouts, toy, tmp_path):
    recipe = toy_recipe(toy, "debian-de-en/gkd", out=tmp_path, student_fraction=fraction)
    algorithm = recipe.build()
    seen = []
    algorithm.collated = lambda rows, prompt, real=algorithm.collated: seen.append(list(rows)) or real(rows, prompt)
    values = algorithm.train_batch(0)
    assert ("seconds_rollout" in values) is rollouts
    fixed = algorithm.batches.rows_at(0)
    updates = seen[-recipe.settings.updates_per_batch :]
    for rows in updates:
        assert len(rows) == len(fixed)
        assert sum(row not in fixed for row in rows) == round(fraction * len(fixed))
    assert fraction == 1.0 or len({tuple(rows) for rows in updates}) > 1  # updates draw differently


def test_updates_count(toy, tmp_path):
    recipe = toy_recipe(toy, "debian-de-en/gkd", out=tmp_path, updates_per_batch=3)
    algorithm = recipe.build()
    algorithm.train_batch(0)
    assert {int(state["step"]) for state in algorithm.optimiser.state.values()} == {3}


def test_samples_depend_on_seed_and_batch_and_weights(toy):
    student, other = (T5ForConditionalGeneration.from_pretrained(toy / "student/model") for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model")
    rows = [Encoded((20 + i, 21, 30), (1,)) for i in range(5)]
    for decoder in (SingleModelDecoder(student), InterleavedDecoder(student, teacher, draft_length=3, accept_top_k=9)):
        again = copy.copy(decoder)
        options = {"temperature": 1.0, "max_new_tokens": 12}
        one = sample(decoder, rows, [4], [5], 1, (0, 7), **options)
        assert one == sample(again, rows, [4], [5], 1, (0, 7), **options)
        assert one == sample(again, rows[:3], [4], [5], 1, (0, 7), **options) + one[3:]
        for different in ((0, 8), (1, 7)):
            assert one != sample(again, rows, [4], [5], 1, different, **options)
        decoder.student.update_weights(other)
        assert one != sample(decoder, rows, [4], [5], 1, (0, 7), **options)
        assert [row.source for row in one] == [row.source for row in rows]


def test_a_gradient_that_is_not_finite_skips_the_batch(toy, tmp_path):
    recipe = toy_recipe(toy, "debian-de-en/gkd", out=tmp_path, steps=3, student_fraction=0.0)
    algorithm = recipe.build()
    real = algorithm._teacher_logits
    algorithm._teacher_logits = lambda *rows: {i: row * float("nan") for i, row in real(*rows).items()}
    from kdtw_fast.training.trainer import Trainer

    before = {name: value.clone() for name, value in algorithm.student.state_dict().items()}
    outcome = Trainer(algorithm, recipe.settings, "gkd", quiet=True).run()
    assert outcome.step == 3 and same(before, algorithm.student.state_dict())
    saved = torch.load(tmp_path / "non_finite.pt", weights_only=True)
    assert {"source_ids", "source_mask", "labels", "message"} <= set(saved)
