"""A pair that is exported loads, is measured, and says which runs made it."""

import json
import shutil
import sys

import pytest
import torch
from kdtw_fast.training import oracle, recipes
from kdtw_fast.training.debian import read_jsonl, write_jsonl
from kdtw_fast.training.export import export, runs_behind
from kdtw_fast.training.models import load_plain
from safetensors.torch import load_file
from toy_training import toy_examples, toy_recipe

from kdtw_fast import NativeT5, TrainingWheelsT5
from kdtw_fast.loaders import load_tokenizer


def test_an_export_that_fails_leaves_the_old_pair(toy, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdtw_fast.training.export.measure", lambda *_: {})
    monkeypatch.setattr("kdtw_fast.training.export.measure_budgets", lambda *_, **__: [])
    monkeypatch.setattr("kdtw_fast.training.export.write_custom_generate", fails)
    old = tmp_path / "out/pairs/toy/README.md"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    write_jsonl(tmp_path / "data/test.jsonl", toy_examples(4, 80))
    student, plain = tmp_path / "student", load_plain(str(toy / "student/model"), "student")
    size = len(load_tokenizer(toy / "teacher/model"))
    TrainingWheelsT5.from_t5(plain, tokenizer_size=size).save_pretrained(student)
    with pytest.raises(OSError, match="No space left"):
        export(student, toy / "teacher/model", tmp_path / "data", tmp_path / "out", "toy")
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [old] and old.read_text() == "old"


def test_where_an_oracles_curve_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    data = tmp_path / "data.jsonl"
    data.write_text("old")
    for out, said in ((data, "is the file that is being read"), (tmp_path / "no/out.json", "does not exist")):
        arguments = ["oracle", "--student", "s", "--teacher", "t", "--data", str(data), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            oracle.main()
    assert data.read_text() == "old"


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
