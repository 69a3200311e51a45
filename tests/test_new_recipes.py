"""`kdtw train --new`: recipes for a pair and data of one's own, which run; and what each setting means."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow
import pytest
import yaml
from kdtw_fast.training import explained, new_recipes, recipes
from kdtw_fast.training.debian import read_jsonl
from kdtw_fast.training.frames import Frame
from kdtw_fast.training.settings import Data, Model, Optimiser
from pyarrow import parquet
from transformers import T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from kdtw_fast import loaders
from kdtw_fast.cli import app
from kdtw_fast.loaders import load_tokenizer

SHORT = ["steps=1", "target_tokens=128", "validation_rows=2", "held_out_rows=2", "bf16=false", "samples=0", "threads=1"]


def kdtw(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture
def examples(toy: Path, tmp_path: Path) -> Path:
    file = tmp_path / "examples.jsonl"
    lines = (toy / "data/train.jsonl").read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join((lines * 60)[:60]) + "\n\n", encoding="utf-8")
    return file


def test_recipes_of_two_folders_and_a_file_run(toy: Path, tmp_path: Path, examples: Path, monkeypatch) -> None:
    mine = tmp_path / "mine"
    pair = ["--teacher", toy / "teacher/model", "--student", toy / "student/model"]
    made = kdtw("--new", mine, *pair, "--data", examples)
    assert made.exit_code == 0, made.stderr
    assert f"kdtw train {mine}/phase1.yaml" in made.stdout and f"kdtw train {mine}/phase2.yaml" in made.stdout
    assert sorted(path.name for path in mine.iterdir()) == ["data", "phase1.yaml", "phase2.yaml"]
    parts = {
        name: (mine / f"data/{name}.jsonl").read_text("utf-8").splitlines() for name in ("train", "validation", "test")
    }
    assert {name: len(lines) for name, lines in parts.items()} == {"train": 44, "validation": 8, "test": 8}
    settings = recipes.resolve(mine / "phase1.yaml").settings
    assert (
        settings.optimiser.scaled
        and settings.data.max_target % 8 == 0
        and settings.student_prompt.endswith("translate: ")
    )
    outcome = recipes.train(mine / "phase1.yaml", *(one for one in SHORT if "held" not in one), quiet=True)
    assert outcome.step == 1 and (mine / "phase1/best/config.json").is_file()
    assert recipes.train(mine / "phase2.yaml", *SHORT, "tasks=2", quiet=True).step == 1
    again = kdtw("--new", mine, *pair, "--data", examples)
    assert again.exit_code == 2 and "phase1.yaml is there already" in again.stderr


def test_a_blank_source_is_no_validation_example(toy: Path, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        lines = (toy / f"data/{name}.jsonl").read_text("utf-8").splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, json.dumps({"source": " ", "target": "the"})]))
    found = new_recipes.look(tmp_path, str(toy / "tokenizer"), str(toy / "teacher/model"), None)
    frame = Frame(load_tokenizer(toy / "tokenizer"))
    encoded = frame.encode(read_jsonl(tmp_path / "validation.jsonl"), found.max_source, found.max_target)
    assert found.held_out == len(encoded) == 6  # as many as held_out_rows may ask for


def test_data_may_be_parquet_and_recipes_run_from_any_folder(toy: Path, tmp_path: Path, examples, monkeypatch) -> None:
    rows = [json.loads(line) for line in examples.read_text(encoding="utf-8").splitlines() if line]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "examples.parquet")
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("train", "validation"):
        parquet.write_table(pyarrow.Table.from_pylist(rows[:30]), folder / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").symlink_to(toy / "teacher/model")
    found = {}
    for data in ("examples.jsonl", "examples.parquet", "parts"):
        written, found[data] = new_recipes.write_recipes(Path(f"of-{data}"), "teacher", None, Path(data))
        settings = recipes.resolve(written[1]).settings
        assert {Path(place).is_absolute() for place in (settings.out, *settings.places().values())} == {True}
        assert settings.sample_every == 100
    assert found["examples.parquet"].rows == found["examples.jsonl"].rows == 44 and found["parts"].rows == 30
    parts = [(tmp_path / f"of-examples.{kind}/data/train.jsonl").read_text("utf-8") for kind in ("jsonl", "parquet")]
    first, second = ([(row["source"], row["target"]) for row in map(json.loads, part.splitlines())] for part in parts)
    assert first == second
    with pytest.raises(FileNotFoundError, match=r"--data .*of-parts has no train.jsonl and no train.parquet"):
        new_recipes.write_recipes(tmp_path / "x", "teacher", None, tmp_path / "of-parts")


def test_a_student_of_other_words_is_refused(toy: Path, tmp_path: Path, examples: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(toy / "student/model", student)
    words = loaders.load_tokenizer(loaders.find_tokenizer(toy / "teacher/model"))
    words.add_tokens(["<one more>"])
    words.save_pretrained(student)
    with pytest.raises(ValueError, match=r"student and teacher must share a vocabulary: .*'<one more>'"):
        new_recipes.write_recipes(tmp_path / "mine", str(toy / "teacher/model"), str(student), examples)
    assert not (tmp_path / "mine").exists()


def test_a_student_on_the_hub_may_have_no_tokenizer(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = toy / "tokenizer"
    other = loaders.load_tokenizer(words)
    other.add_tokens(["<one more>"])

    def load(place: object) -> object:
        if str(place) == "nobody/none":
            raise OSError("no tokenizer")
        return other if str(place) == "nobody/made-up" else load_tokenizer(str(place))

    monkeypatch.setattr(new_recipes, "load_tokenizer", load)
    for name in ("nobody/none", "nobody/made-up"):
        new_recipes._check_same_words(name, str(words))
    monkeypatch.setattr(new_recipes, "has_vocabulary", lambda name: True)
    with pytest.raises(ValueError, match="must share a vocabulary"):
        new_recipes._check_same_words("nobody/made-up", str(words))


def test_without_a_student_one_is_trained_first(toy: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    made = kdtw("--new", mine, "--teacher", toy / "teacher/model", "--data", toy / "data", "--prompt", "shorten: ")
    assert made.exit_code == 0, made.stderr
    student = recipes.resolve(mine / "student.yaml")
    assert (student.algorithm, student.settings.role, student.settings.student.path) == ("fit", "student", "")
    phase1 = recipes.resolve(mine / "phase1.yaml").settings
    assert phase1.student.path == f"{mine}/student/model" and phase1.data.folder == str(toy / "data")
    assert phase1.student_prompt == "With {budget} teacher use, shorten: "


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--new", "x"], "--new needs --teacher and --data"),
        (["--teacher", "x"], "--teacher goes with --new"),
        (["debian-de-en/gkd", "--new", "x"], "--new writes recipes and runs none"),
        (["--new", "{tmp}/x", "--teacher", "./gone", "--data", "{tmp}"], "--teacher=./gone is not a folder"),
        (
            ["--new", "{tmp}/x", "--teacher", "{toy}/teacher/model", "--data", "{tmp}/gone"],
            "is neither a folder nor a file",
        ),
        (
            ["--new", "{tmp}/x", "--teacher", "{toy}/teacher/model", "--data", "{tmp}/few"],
            "has 1 examples; at least 40",
        ),
        (["--new", "{tmp}/x", "--teacher", "{toy}/teacher/model", "--data", "{tmp}/wrong"], "line 2: an example is"),
    ],
)
def test_mistakes_are_one_sentence(toy: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    good = json.dumps({"source": "a", "target": "b"})
    (tmp_path / "few").write_text(good, encoding="utf-8")
    (tmp_path / "wrong").write_text("\n".join([good, '{"source": 3}', *[good] * 40]), encoding="utf-8")
    result = kdtw(*(one.format(tmp=tmp_path, toy=toy) for one in arguments))
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_data_that_is_there_is_not_overwritten(toy: Path, tmp_path: Path, examples: Path) -> None:
    own = tmp_path / "x/data/train.jsonl"
    own.parent.mkdir(parents=True)
    own.write_bytes(examples.read_bytes())
    new = ["--new", tmp_path / "x", "--teacher", toy / "teacher/model", "--student", toy / "student/model"]
    for data in (own, examples):
        result = kdtw(*new, "--data", data)
        assert result.exit_code == 2 and f"into {own}, which is there already; remove it" in result.stderr
        assert own.read_bytes() == examples.read_bytes() and [*own.parent.iterdir()] == [own]
    own.unlink()
    for _ in range(2):  # what is there may be the same
        assert new_recipes.split(examples, own.parent) == own.parent


def test_large_students_get_the_papers_rates_and_memory_bounds_the_batch(tmp_path: Path) -> None:
    found = new_recipes.Found(5000, 200, 64, 48, 20.0, 80_000_000, 800_000_000, 1024)
    for name in ("phase1", "phase2"):
        text = new_recipes.recipe(name, found, tmp_path, tmp_path, "t", "teacher", "student", "translate: ")
        settings = yaml.safe_load(text)
        assert settings["optimiser"]["scaled"] is False and settings["optimiser"]["rate"] == 1e-5
    config = T5Config(vocab_size=100, d_model=16, d_ff=32, d_kv=4, num_heads=4, num_layers=1)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    expected = sum(p.numel() for p in T5ForConditionalGeneration(config).parameters())
    assert new_recipes.parameters(str(tmp_path / "t5")) == expected
    sizes = [new_recipes.room(10**6, 10**7, 32_000, 40, memory) for memory in (0.0, 1e9, 4e9, 1e12)]
    assert sizes == sorted(sizes) and sizes[0] == 256 and sizes[-1] == 2048
    assert new_recipes.room(10**6, 10**7, 32_000, 300, 0.0) == 1200  # four rows


def test_every_setting_says_what_it_is() -> None:
    for cls in [recipes.find_algorithm(name)[0] for name in recipes.ALGORITHMS] + [Data, Model, Optimiser]:
        told = explained.meanings(cls)
        assert [field.name for field in dataclasses.fields(cls) if not told.get(field.name)] == []


@pytest.mark.parametrize("name", ["debian-de-en/phase2", "wmt19-de-en/gkd", "debian-de-en/phase1-teachers"])
def test_explained_settings_are_the_recipe(name: str) -> None:
    shown = kdtw(name, "--settings")
    assert shown.exit_code == 0
    assert yaml.safe_load(shown.stdout) == yaml.safe_load(recipes.to_yaml(recipes.resolve(name)))
    assert "# labels in a batch, padding included" in shown.stdout
