"""Recipes: every shipped one resolves; overrides and mistakes; JSONL, parquet and hub layouts; the command."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, is_dataclass

import pytest
from factories import mostly_long
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from kdtw_fast.training import recipes
from kdtw_fast.training.settings import HOUSEKEEPING, Data, RunSettings
from kdtw_fast.training.tasks import read_examples
from toy_training import SHAPE, overrides, toy_examples, toy_recipe
from typer.testing import CliRunner

from kdtw_fast.cli import app
from kdtw_fast.pairs import DATA

ALL = recipes.recipe_names()


def kdtw(*arguments):
    return CliRunner().invoke(app, ["train", *arguments])


# ---------------------------------------------------------------- shipped recipes


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_resolves(name, tmp_path):
    recipe = recipes.resolve(name)
    assert recipe.settings.out == f"runs/{name}"
    assert 10 < len(recipes.summary(name)) <= 90
    written = tmp_path / "again.yaml"
    written.write_text(recipes.to_yaml(recipe))
    assert recipes.resolve(written) == recipe


@pytest.mark.parametrize("pair", ["debian-de-en", "debian-synopsis"])
def test_the_recipes_of_a_shipped_pair_are_what_trained_it(pair):
    """They are the shipped recipes but for what they name, and these numbers stand in the pair's history."""
    made = {path.stem: recipes.resolve(path).settings for path in (DATA / "pairs" / pair / "recipes").glob("*.yaml")}
    assert set(made) == {"teacher", "student", "phase1", "phase2", "gkd"}
    steps = {"debian-de-en": (6200, 3500, 1200, 1500, 1800), "debian-synopsis": (4600, 3500, 1200, 900, 1200)}[pair]
    assert tuple(made[name].steps for name in ("teacher", "student", "phase1", "phase2", "gkd")) == steps
    for name, settings in made.items():
        assert settings.threads == 1 and settings.bf16 in ((True, False) if name != "phase2" else (False,)), name
        same = {"summary": "", "threads": 0, "bf16": True, "validation_rows": 0, "sample_every": 0}
        assert dataclasses.replace(settings, **same) == dataclasses.replace(
            recipes.resolve(f"{pair}/{name}").settings, **same
        )


def test_recipes_are_there_for_both_tasks_and_the_paper():
    baselines = {"gkd", "on-policy-kd", "distillspec", "skd", "minillm", "supervised-kd", "sequence-kd"}
    phases = {"phase1", "phase1-0", "phase1-100"}
    for task, own in ((name, {"teacher", "student"}) for name in ("debian-de-en", "debian-synopsis", "tech-de-en")):
        assert {f"{task}/{name}" for name in baselines | phases | own} <= set(ALL)
    for task in ("wmt19-de-en", "xsum"):
        assert {f"{task}/{name}" for name in baselines | phases} <= set(ALL)
        for name in baselines | phases:
            settings = recipes.resolve(f"{task}/{name}").settings
            assert (settings.student.path, settings.teacher.path) == ("google/flan-t5-small", "google/flan-t5-xl")
            assert (settings.optimiser.rate, settings.optimiser.weight_decay) == (1e-5, 1e-5)
        phase2 = recipes.resolve(f"{task}/phase2").settings
        assert (phase2.temperatures, phase2.window, phase2.entropy_weight) == ((0.0,), None, 1.0)
    gkd = recipes.resolve("wmt19-de-en/gkd").settings
    assert (gkd.steps, gkd.updates_per_batch, gkd.divergence, gkd.student_fraction) == (5200, 4, "reverse", 0.5)
    assert recipes.resolve("xsum/phase1").settings.steps == 200


@pytest.mark.parametrize(("task", "small"), [("wmt19-de-en", "debian-de-en"), ("xsum", "debian-synopsis")])
def test_what_was_good_on_small_pairs_is_there_for_large_ones_scaled(task, small):
    paper, scaled, found = (
        recipes.resolve(name).settings for name in (f"{task}/phase2", f"{task}/phase2-scaled", f"{small}/phase2")
    )
    same = ("temperatures", "window", "entropy_weight", "multiplier_initial", "multiplier_proportional", "pooled_use")
    for name in (*same, "held_out_rows", "tolerance", "updates_per_batch", "on_policy_rows", "oracle_rows"):
        assert getattr(scaled, name) == getattr(found, name), name
    assert (scaled.steps, scaled.student, scaled.teacher) == (paper.steps, paper.student, paper.teacher)
    longer = scaled.steps / 1500  # batches of debian-de-en/phase2
    assert scaled.value_batches == round(found.value_batches * longer)
    assert scaled.optimiser.warmup == round(found.optimiser.warmup * longer)
    assert scaled.trailing_batches == round(found.trailing_batches * longer)
    assert scaled.multiplier_rate == pytest.approx(found.multiplier_rate / longer)
    assert scaled.optimiser.rate == paper.optimiser.rate and scaled.optimiser.decay and not scaled.optimiser.scaled
    ratio = found.value_optimiser.rate / 3e-3
    assert scaled.value_optimiser.rate / scaled.optimiser.rate == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("task", ["debian-de-en", "debian-synopsis", "tech-de-en"])
@pytest.mark.parametrize("baseline", ["gkd", "on-policy-kd", "distillspec", "skd", "minillm"])
def test_what_is_compared_is_trained_alike(task, baseline):
    """As many updates as both phases of KDTW, from the same start, on the same sources, selected by the same rows."""
    phase1, phase2, other = (recipes.resolve(f"{task}/{name}").settings for name in ("phase1", "phase2", baseline))
    assert other.steps * other.updates_per_batch == phase1.steps + phase2.steps * phase2.updates_per_batch
    assert (other.student, other.teacher) == (phase1.student, phase1.teacher)
    assert other.trajectories == 0 and other.data == phase2.data
    assert other.validation_rows == phase2.validation_rows


@pytest.mark.parametrize("task", ["debian-de-en", "debian-synopsis", "tech-de-en", "wmt19-de-en", "xsum"])
def test_the_recipes_of_a_task_agree_on_the_task(task):
    found = [recipes.resolve(name).settings for name in ALL if name.startswith(task + "/")]
    for name in ("data", "student_prompt", "teacher_prompt", "max_new_tokens", "seed"):
        assert len({repr(getattr(settings, name)) for settings in found}) == 1, name


# The other tasks' recipes are those of debian-de-en with other settings of the same names.
RUN = [name for name in ALL if name.startswith("debian-de-en/")]
RUN += ["debian-synopsis/phase1", "wmt19-de-en/gkd", "xsum/phase1", "xsum/supervised-kd", "xsum/phase2-scaled"]


@pytest.mark.parametrize("name", mostly_long(RUN, range(0, len(RUN), 5)))
def test_a_recipe_runs_on_toy_data(name, toy, tmp_path):
    """The shipped YAML with two batches and toy models; whatever else it says stays as it is."""
    small = {"steps": min(2, recipes.resolve(name).settings.steps), "sample_every": 0, "validation_rows": 0}
    source = {"data__hub": "''", "data__subset": "''", "data__source": "source", "data__target": "target"}
    scratch = name.endswith(("-de-en/teacher", "-synopsis/teacher"))
    if "/teacher" in name or "/student" in name or ("-kd" in name and "policy" not in name):
        small |= {f"{role}__{key}": value for role in ("student", "teacher") for key, value in SHAPE.items()}
    if scratch:
        small |= {"teacher__path": "''"}
    recipe = toy_recipe(toy, name, **{**source, **small, "out": tmp_path, "device": "cpu", "max_new_tokens": 8})
    outcome = recipes.train(recipe, quiet=True)
    assert outcome.step == small["steps"] and "rouge2" in outcome.table[0]
    assert (tmp_path / "model/model.safetensors").exists() and (tmp_path / "best/config.json").exists()
    assert recipes.resolve(tmp_path / "recipe.yaml") == recipe


# ---------------------------------------------------------------- overrides and mistakes


def test_overrides_reach_nested_settings():
    changed = ["steps=10", "student.d_model=64", "optimiser.rate=2e-4", "bf16=false", "data.folder=a b", "dropout=0"]
    settings = recipes.resolve("debian-de-en/student", changed).settings
    assert (settings.steps, settings.student.d_model, settings.optimiser.rate) == (10, 64, 2e-4)
    assert settings.bf16 is False and settings.data.folder == "a b" and settings.dropout == 0.0
    assert recipes.resolve("debian-de-en/student", ["steps=10", "steps=11"]).settings.steps == 11


MISTAKES = [
    (["debian-de-en/teachr"], "unknown recipe 'debian-de-en/teachr'; did you mean 'debian-de-en/teacher'?"),
    (["nowhere.yaml"], "there is no recipe file nowhere.yaml; kdtw train --list shows"),
    (["debian-de-en/teacher", "stepz=10"], "there is no setting 'stepz'; did you mean 'steps'?"),
    (["debian-de-en/teacher", "student.dmodel=1"], "there is no setting 'student.dmodel'; did you mean 'd_model'?"),
    (["debian-de-en/teacher", "data=3"], "override 'data=3': "),
    (["debian-de-en/teacher", "steps=many"], "steps: Value 'many' of type 'str' could not be converted to Integer"),
    (["debian-de-en/teacher", "steps=-1"], "steps must be at least 0, got -1"),
    (["debian-de-en/teacher", "steps"], "an override is written setting=value, got 'steps'"),
    (["debian-de-en/teacher", "=3"], "an override is written setting=value, got '=3'"),
    (["debian-de-en/teacher", "out=[1"], "cannot read the override 'out=[1'; put quotes around its value"),
    (["debian-de-en/teacher", "algorithm=gkd"], "there is no setting 'algorithm'"),
    (["debian-de-en/teacher", "role=tutor"], "role must be teacher or student, got 'tutor'"),
    (["debian-de-en/teacher", "out=''"], "out is empty; name the folder for checkpoints"),
    (["debian-de-en/gkd", "beta=1"], "beta must be between 0 and 1, got 1.0"),
    (["debian-de-en/gkd", "divergence=tv"], "divergence must be forward or reverse or jsd, got 'tv'"),
    (
        ["debian-de-en/teacher", "student_prompt=hello"],
        "student_prompt must hold \"{budget}\" once and no other braces, got 'hello'",
    ),
    (["debian-de-en/phase1", "student_prompt='{x} {budget}: '"], 'student_prompt must hold "{budget}" once'),
    (["debian-de-en/phase1", "paraphrases=['{x} {percent}: ']"], "exactly once and no other braces, got '{x} {perc"),
    (["debian-de-en/teacher", "tokenizer=runs/none"], "tokenizer=runs/none is not a folder; make it first"),
    (["wmt19-de-en/gkd", "data.folder=x"], "give data.folder or data.hub, not both (got 'x' and 'wmt/wmt19')"),
    ([], "name a recipe, such as debian-de-en/teacher"),
]


@pytest.mark.parametrize("arguments, words", MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_one_sentence(arguments, words):
    result = kdtw(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr and result.stderr.startswith("kdtw: ") and result.stderr.count("\n") == 1


def test_an_empty_override_empties_a_text(tmp_path):
    changed = ["data.folder=", "data.hub=wmt/wmt19"]
    assert recipes.resolve("debian-de-en/teacher", changed).settings.data.hub == "wmt/wmt19"
    file = tmp_path / "own.yaml"
    file.write_text("base: debian-de-en/phase1\ndata: {folder: , hub: wmt/wmt19}\nstudent: {path: }\n")
    settings = recipes.resolve(file).settings
    assert (settings.data.folder, settings.data.hub, settings.student.path) == ("", "wmt/wmt19", "")
    assert recipes.resolve("debian-de-en/phase2", ["window="]).settings.window is None


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("steps", "such as steps=1200"),
        ("optimiser.rate", "such as optimiser.rate=0.01"),
        ("budgets", "such as budgets=[]"),
        ("data", "settings by name"),
        ("data.template", "settings by name"),
    ],
)
def test_a_setting_that_is_given_nothing_says_what_it_takes(setting, wanted, tmp_path):
    said = f"{setting} is empty; give a value, {wanted}, or leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(f'override {setting!r}'[:-1])}=': {re.escape(said)}"):
        recipes.resolve("debian-de-en/phase1", [f"{setting}="])
    file = tmp_path / "own.yaml"
    *group, name = setting.split(".")
    file.write_text("base: debian-de-en/phase1\n" + "".join(f"{g}:\n  " for g in group) + f"{name}:\n")
    with pytest.raises(ValueError, match=f"^{re.escape(f'recipe {file}: {setting} is empty')}"):
        recipes.resolve(file)


@pytest.mark.parametrize("setting", ["teacher.path", "student.path", "data.hub", "data.folder", "tokenizer"])
@pytest.mark.parametrize("answer", ["none", "unreachable"])
def test_a_place_that_is_not_there_is_named_at_once(setting, answer, toy, tmp_path, monkeypatch):
    asked = []

    def repo_info(self, name, repo_type, timeout):
        asked.append((name, repo_type))
        raise HFValidationError() if answer == "none" else ConnectionError()

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    places = {"data__folder": "''"} if setting == "data.hub" else {}
    recipe = toy_recipe(toy, "debian-de-en/gkd", out=tmp_path, **places, **{setting.replace(".", "__"): "mdels/mine"})
    monkeypatch.setattr(recipes, "decided", lambda *_: pytest.fail("went on"))
    with pytest.raises(FileNotFoundError) as caught:
        recipes.train(recipe)
    assert str(caught.value).startswith(f"{setting}=mdels/mine is not a folder")
    if setting != "data.folder":
        kind = "dataset" if setting == "data.hub" else "model"
        assert asked == [("mdels/mine", kind)]
        said = f"the hub has no {kind} of that name" if answer == "none" else "the hub cannot be asked for it"
        assert said in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("steps: 3", "names no algorithm"),
        ("algorithm: gkt", "unknown algorithm 'gkt'; did you mean 'gkd'?"),
        ("algorithm: gkd\nstepz: 3", "there is no setting 'stepz'; did you mean 'steps'?"),
        ("algorithm: gkd\nsteps: [", "is not YAML (line 3)"),
        ("- a", "must hold settings by name"),
        ("base: own.yaml\nsteps: 3", "is its own base"),
        ("base: debian-de-en/gdk", "did you mean 'debian-de-en/gkd'?"),
    ],
)
def test_mistakes_in_a_file_are_named(text, words, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        recipes.resolve(path)
    assert words in str(caught.value)


def test_a_base_beside_the_file_comes_before_a_shipped_one(tmp_path):
    (tmp_path / "first.yaml").write_text("base: debian-de-en/gkd\nsteps: 3\nbeta: 0.1\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nsteps: 4\n")
    settings = recipes.resolve(tmp_path / "second.yaml").settings
    assert (settings.steps, settings.beta, settings.updates_per_batch) == (4, 0.1, 4)


def test_a_recipe_is_written_as_what_differs_from_its_base(tmp_path):
    recipe = recipes.resolve("debian-de-en/gkd", ["steps=7", "optimiser.rate=1", "threads=1"])
    short = recipes.to_yaml(recipe, "debian-de-en/gkd")
    lines = [line for line in short.splitlines() if "summary" not in line]
    assert lines == ["base: debian-de-en/gkd", "optimiser:", "  rate: 1.0", "steps: 7", "threads: 1"]
    (tmp_path / "short.yaml").write_text(short)
    assert recipes.resolve(tmp_path / "short.yaml") == recipe


def test_housekeeping_names_settings():
    assert set(HOUSEKEEPING) <= {field.name for field in fields(RunSettings)}
    assert is_dataclass(RunSettings) and "steps" in asdict(RunSettings())


# ---------------------------------------------------------------- data


def written_as(kind, folder):
    import datasets

    rows = toy_examples(7)
    if kind == "hub":
        pairs = [{"translation": {"de": row.source, "en": row.target}} for row in rows]
        (folder / "data").mkdir()
        datasets.Dataset.from_list(pairs).to_parquet(str(folder / "data/train-00000-of-00001.parquet"))
        return Data(hub=str(folder), source="translation.de", target="translation.en")
    pairs = [{"german": row.source, "target": row.target} for row in rows]
    if kind == "parquet":
        datasets.Dataset.from_list(pairs).to_parquet(str(folder / "train.parquet"))
        return Data(folder=str(folder), source="german")
    name = "german" if kind == "columns" else "source"
    lines = [json.dumps({name: row.source, "target": row.target}) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    return Data(folder=str(folder), source=name)


@pytest.mark.parametrize("kind", ["jsonl", "columns", "parquet", "hub"])
def test_examples_come_from_every_layout(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = written_as(kind, tmp_path)
    if kind == "jsonl":
        monkeypatch.setitem(sys.modules, "datasets", None)  # it does without
    expected = [(row.source, row.target) for row in toy_examples(7)]
    assert [(row.source, row.target) for row in read_examples(data, "train")] == expected
    some = [(row.source, row.target) for row in read_examples(data, "train", seed=1, limit=3)]
    assert len(some) == 3 and set(some) <= set(expected)
    assert some == [(row.source, row.target) for row in read_examples(data, "train", seed=1, limit=3)]
    assert some != [(row.source, row.target) for row in read_examples(data, "train", seed=2, limit=3)]


def test_missing_data_and_columns_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no train\.jsonl and no train\.parquet"):
        read_examples(Data(folder=str(tmp_path)), "train")
    data = written_as("columns", tmp_path)
    with pytest.raises(ValueError, match=r"no column 'text\.de': 'text' is not among german, target"):
        read_examples(Data(folder=data.folder, source="text.de"), "train")
    with pytest.raises(ValueError, match=r"column 'german\.de': 'de' is not among str"):
        read_examples(Data(folder=data.folder, source="german.de"), "train")


# ---------------------------------------------------------------- the command


def test_list_and_settings():
    listed = kdtw("--list")
    assert listed.exit_code == 0
    lines = [line for line in listed.stdout.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == ALL  # one line each
    shown = kdtw("debian-de-en/gkd", "steps=7", "--settings")
    assert "steps: 7" in shown.stdout and "algorithm: gkd" in shown.stdout


@pytest.mark.long  # test_trainer.py tries a run that is stopped; this one by the command
def test_the_command_trains_stops_at_sigterm_and_goes_on(toy, tmp_path):
    places = {"data__folder": toy / "data", "tokenizer": toy / "tokenizer", "out": tmp_path / "run"}
    shape = {f"teacher__{name}": value for name, value in SHAPE.items()}
    quick = {"target_tokens": 128, "checkpoint_every": 1000, "validation_rows": 4, "threads": 1, "log_every": 2}
    arguments = ["debian-de-en/teacher", *overrides(**places, **shape, **quick, optimiser__decay="false")]
    command = [sys.executable, "-m", "kdtw_fast", "train", *arguments, "steps=100000"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    metrics = tmp_path / "run/metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and '"step"' in metrics.read_text()):
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    error = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + signal.SIGTERM
    last = error.strip().splitlines()[-1]
    assert last.startswith("kdtw: stopped by SIGTERM at batch") and "goes on from there" in last
    from kdtw_fast.training.checkpoints import load_checkpoint

    step = load_checkpoint(tmp_path / "run")["step"]
    assert step > 0
    result = kdtw(*arguments, f"steps={step + 2}", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "rouge2" in json.loads(result.stdout.splitlines()[-1])
    assert load_checkpoint(tmp_path / "run")["step"] == step + 2
    refused = kdtw(*arguments, f"steps={step + 2}", "seed=5", "--quiet")
    assert refused.exit_code == 2 and "seed: 0 there, 5 now" in refused.stderr


# ---------------------------------------------------------------- old names


def test_recipes_keep_their_old_names_and_folders():
    for old, new in (("expert", "second-teacher"), ("phase1-experts", "phase1-teachers")):
        with pytest.warns(DeprecationWarning, match=f"recipe debian-de-en/{old} is deprecated; use debian-de-en/{new}"):
            before = recipes.resolve(f"debian-de-en/{old}").settings
        assert before.out == f"runs/debian-de-en/{old}" and f"debian-de-en/{old}" not in ALL
        now = recipes.resolve(f"debian-de-en/{new}").settings
        same = {"out": "", **({"teachers": [], "costs": []} if hasattr(now, "teachers") else {})}
        assert dataclasses.replace(before, **same) == dataclasses.replace(now, **same)
    with pytest.warns(DeprecationWarning):
        second = recipes.resolve("debian-de-en/phase2-experts").settings
    assert second.student.path == "runs/debian-de-en/phase1-experts/best"
    assert second.teachers[0].path == "runs/debian-de-en/expert/model"


def test_a_setting_keeps_its_old_name(tmp_path):
    (tmp_path / "old.yaml").write_text("base: debian-de-en/phase1\nexperts: [{path: a/b}]\n")
    with pytest.warns(DeprecationWarning, match="the setting experts is deprecated; use teachers"):
        found = recipes.resolve(tmp_path / "old.yaml").settings
    assert [model.path for model in found.teachers] == ["a/b"]
    with pytest.warns(DeprecationWarning, match="override 'experts="):
        assert recipes.resolve("debian-de-en/phase1", ["experts=[{path: c/d}]"]).settings.teachers[0].path == "c/d"
