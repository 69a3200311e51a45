"""Training of other families than T5: every algorithm on a toy task, recipes, resumed runs, the oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import mostly_long
from kdtw_fast.training import oracle, recipes
from kdtw_fast.training.frames import Frame
from kdtw_fast.training.models import continues_prompts, fit_together, load_plain, load_student
from kdtw_fast.training.tasks import Task
from safetensors.torch import load_file
from toy_decoders import make_decoders
from toy_training import SHAPE, toy_examples, toy_recipe
from transformers import AutoTokenizer

from kdtw_fast import TrainingWheelsDecoder
from kdtw_fast.budgets import TEACHER_PROMPT, student_prompt
from kdtw_fast.modeling import TrainingWheels

KINDS = ("llama", "bart")
SMALL_PHASE2 = {
    "tasks": 4,
    "on_policy_rows": 4,
    "oracle_rows": 2,
    "replay_rows": 2,
    "value_batches": 1,
    "updates_per_batch": 2,
}
RUN = [name for name in recipes.recipe_names() if name.startswith("qwen3-de-en/")] + [
    "smollm2-xsum/phase1",
    "qwen3-xsum/gkd",
]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy pair of each family; not to be written to."""
    return made(request.param, tmp_path_factory)


_MADE: dict[str, Path] = {}


def made(kind: str, factory: pytest.TempPathFactory) -> Path:
    if kind not in _MADE:
        _MADE[kind] = make_decoders(factory.mktemp(kind), kind)
    return _MADE[kind]


def quick(root: Path, name: str, out: Path, **values: Any) -> recipes.Recipe:
    """A shipped recipe for a few batches on the toy task."""
    small: dict[str, Any] = {"steps": 3, "sample_every": 2, "validation_rows": 0, "max_new_tokens": 10, "device": "cpu"}
    if name.endswith("/phase2"):
        small |= SMALL_PHASE2
    small |= {f"{role}__{key}": value for role in ("student", "teacher") for key, value in SHAPE.items()}
    data = {"data__hub": "''", "data__subset": "''", "data__source": "source", "data__target": "target"}
    return toy_recipe(root, name, **{**data, **small, "out": out, "optimiser__scaled": "true", **values})


@pytest.mark.parametrize(
    "name", mostly_long(["phase2", "phase1", "gkd", "skd", "minillm", "supervised-kd", "sequence-kd", "distillspec"])
)
def test_every_algorithm_trains_every_kind_of_pair(name: str, pair: Path, tmp_path: Path) -> None:
    outcome = recipes.train(quick(pair, f"debian-de-en/{name}", tmp_path), quiet=True)
    assert outcome.step == 3 and all(row["bleu"] >= 0 for row in outcome.table)
    tensors = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    before = load_file(pair / "student/model/model.safetensors")
    moved = [key for key in before if key in tensors and tensors[key].shape == before[key].shape]
    assert any(not torch.equal(tensors[key], before[key]) for key in moved)
    if name.startswith("phase"):
        student = TrainingWheels.from_pretrained(tmp_path / "model")
        assert len(outcome.table) == 6
        decoder = TrainingWheelsDecoder(tmp_path / "model", pair / "teacher/model")
        assert decoder.student.tau_token_id == student.config.tau_token_id


@pytest.mark.parametrize("name", mostly_long(RUN, range(0, len(RUN), 4)))
def test_the_recipes_of_decoders_run_on_toy_data(name: str, tmp_path: Path, tmp_path_factory: Any) -> None:
    """The shipped YAML, chat template included, with a few batches and toy models."""
    root = made("qwen3" if name.startswith("qwen3") else "llama", tmp_path_factory)
    recipe = quick(root, name, tmp_path, steps=2, data__template="{}")
    assert recipe.settings.data.chat and continues_prompts(recipe.settings)
    outcome = recipes.train(recipe, quiet=True)
    assert outcome.step == 2 and "rouge2" in outcome.table[0]
    assert recipes.resolve(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", ["phase1", "phase2"])
def test_an_interrupted_run_ends_with_the_same_bits(name: str, tmp_path: Path, tmp_path_factory: Any) -> None:
    root = made("llama", tmp_path_factory)
    whole = quick(root, f"debian-de-en/{name}", tmp_path / "whole", steps=6, optimiser__decay="false", sample_every=0)
    recipes.train(whole, quiet=True)
    parts = replace(whole, settings=replace(whole.settings, out=str(tmp_path / "parts")))
    first = replace(parts, settings=replace(parts.settings, steps=3))
    recipes.train(first, quiet=True)
    recipes.train(parts, quiet=True)
    found, expected = (load_file(tmp_path / part / "model/model.safetensors") for part in ("parts", "whole"))
    if name == "phase1":  # phase 2's value network has a schedule by the number of steps
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_oracle_curve_of_a_pair_without_an_encoder(tmp_path_factory: Any) -> None:
    root = made("llama", tmp_path_factory)
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    teacher = load_plain(str(root / "teacher/model"), "teacher").eval()
    student = load_student(root / "student/model", len(tokenizer)).eval()
    examples = toy_examples(6, 60)
    frame = Frame(tokenizer, False, [student.config.student_prompt, student.config.teacher_prompt])
    references = [example.target for example in examples]
    curve = oracle.oracle_curve(student, teacher, frame, frame.encode(examples), references, max_new_tokens=12)
    assert curve[0]["achieved"] == 0 and curve[-1]["achieved"] > 0


def test_conversations_are_trained_on_as_decoders_read_them(tmp_path: Path, tmp_path_factory: Any) -> None:
    root = made("llama", tmp_path_factory)
    talks = [
        [{"role": "user", "content": e.source}, {"role": "assistant", "content": e.target}] for e in toy_examples(30)
    ]
    for split, part in (("train", talks[:24]), ("validation", talks[24:])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in part))
    given = {"data__folder": tmp_path, "data__source": "messages", "data__target": "''"}
    recipe = quick(root, "debian-de-en/phase1", tmp_path / "out", **given)
    assert recipes.train(recipe, quiet=True).step == 3
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    decoder = TrainingWheelsDecoder(tmp_path / "out/model", root / "teacher/model", tokenizer=tokenizer)
    task = Task(recipe.settings, tokenizer)
    student, teacher = task.frame.prompts([student_prompt("light", recipe.settings.student_prompt), TEACHER_PROMPT])
    for talk, row in zip(talks[:24], task.train, strict=True):
        ((own, theirs),) = decoder.tokenize([talk[:1]], ["light"])
        assert own == task.frame.reads(student, row.source)
        assert theirs == [task.frame.reads(teacher, row.source)]
    assert decoder.chat(talks[24][:1], "light", max_new_tokens=4).texts is not None


def test_a_pair_of_two_kinds_is_not_trained(toy: Path, tmp_path_factory: Any) -> None:
    root = made("llama", tmp_path_factory)
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    one, other = (load_plain(str(place / "student/model"), "student") for place in (root, toy))
    with pytest.raises(ValueError, match="both have an encoder, or both none"):
        fit_together(tokenizer, one, other)
