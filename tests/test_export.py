"""A pair that is exported loads, is measured, and says which runs made it."""

import json
import shutil

import pytest
import torch
from kdtw_fast.training import recipes
from kdtw_fast.training.debian import read_jsonl, write_jsonl
from kdtw_fast.training.export import export, runs_behind
from safetensors.torch import load_file
from toy_training import toy_examples, toy_recipe

from kdtw_fast import NativeT5


@pytest.fixture
def exported(toy, tmp_path):
    phase1 = toy_recipe(toy, "debian-de-en/phase1", out=tmp_path / "runs/phase1", steps=4, sample_every=0)
    recipes.train(phase1, quiet=True)
    data = tmp_path / "data"
    shutil.copytree(toy / "data", data)
    write_jsonl(data / "test.jsonl", toy_examples(12, 80))
    student, teacher = tmp_path / "runs/phase1/model", toy / "teacher/model"
    numbers = export(
        student, teacher, data, tmp_path / "out", "toy", sample=5, draft_student=toy / "student/model", note="Toys."
    )
    return student, teacher, tmp_path / "out", numbers


def test_export(exported):
    student, teacher, out, numbers = exported
    folder = out / "pairs/toy"
    for role in ("student", "teacher", "gkd"):
        assert {tensor.dtype for tensor in load_file(folder / role / "model.safetensors").values()} == {torch.bfloat16}
        assert NativeT5.from_pretrained(folder / role).dtype == "bf16"
    assert [row["asked"] for row in numbers["budgets"]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert numbers["budgets"][0]["achieved"] == 0.0
    assert json.loads((folder / "metrics.json").read_text())["sentences"] == 12
    assert len(read_jsonl(out / "samples/toy.jsonl")) == 5 and (out / "samples/LICENCE.md").is_file()
    # the toy student was fitted from scratch in a run of its own
    assert list(runs_behind(student, teacher)) == ["teacher", "student", "phase1"]
    card = (folder / "README.md").read_text()
    assert "kdtw train recipes/teacher.yaml\nkdtw train recipes/student.yaml\nkdtw train recipes/phase1.yaml" in card
    assert "Toys." in card and "GKD's student alone" in card
    assert numbers["gkd"]["rouge2"] >= 0 and numbers["parameters"]["gkd"] < numbers["parameters"]["student"]
    assert recipes.resolve(folder / "recipes/phase1.yaml").settings.steps == 4
