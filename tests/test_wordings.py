"""Budgets that a run chooses among, wordings that its rows draw, and the command that measures any wording."""

import json

import numpy as np
import pytest
import torch
from factories import scale_row
from kdtw_fast.training import allocations, recipes, wordings
from kdtw_fast.training.batches import keyed_generator
from kdtw_fast.training.checkpoints import load_checkpoint
from kdtw_fast.training.evaluate import measure_budgets
from kdtw_fast.training.models import load_student, save_pair_member
from kdtw_fast.training.settings import Data
from kdtw_fast.training.tasks import read_examples
from toy_training import toy_examples, toy_recipe
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS, STUDENT_PROMPT
from kdtw_fast.decoders import TrainingWheelsDecoder

PARAPHRASES = ["Teacher use: {budget}. Translate: ", "{percent} percent by the teacher: "]
QUOTED = json.dumps(PARAPHRASES)  # as an override
SMALL = {"tasks": 12, "on_policy_rows": 6, "oracle_rows": 3, "replay_rows": 4, "value_batches": 1, "validation_rows": 2}


@pytest.fixture
def tokenizer(toy):
    return AutoTokenizer.from_pretrained(toy / "tokenizer")


def built(toy, tmp_path, name, **values):
    """The algorithm of a recipe on the toy task."""
    return toy_recipe(toy, f"debian-de-en/{name}", **{"out": tmp_path / "run", "bf16": "false", **values}).build()


def lines(folder, event):
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["event"] == event]


# ---------------------------------------------------------------- instructions


def test_without_settings_instructions_are_the_six_budgets(tokenizer):
    for teachers in (1, 2):
        told = allocations.Instructions(STUDENT_PROMPT, teachers)
        assert told.budgets == BUDGETS and len(told.texts) == len(told.fractions) == len(told.budget_numbers)
        assert [told.number(one) for one in allocations.allocations(teachers)] == list(range(len(told.texts)))


def test_an_instruction_is_a_mix_in_a_wording():
    told = allocations.Instructions(STUDENT_PROMPT, 1, PARAPHRASES, ["High", "light"])
    light, high = BUDGETS[1], BUDGETS[4]
    assert told.budgets == (light, high)  # in the table's order
    assert told.texts == [
        "With light teacher use, translate: ",
        "With high teacher use, translate: ",
        "Teacher use: light. Translate: ",
        "Teacher use: high. Translate: ",
        "10 percent by the teacher: ",
        "40 percent by the teacher: ",
    ]
    assert told.fractions.flatten().tolist() == pytest.approx([0.1, 0.4] * 3)
    assert told.budget_numbers.flatten().tolist() == [1, 4] * 3
    assert [told.number((high,), wording) for wording in range(3)] == [1, 3, 5]


def test_allocations_of_several_teachers_are_of_the_chosen_budgets():
    told = allocations.Instructions(STUDENT_PROMPT, 2, PARAPHRASES[1:], ["moderate", "light"])
    assert told.texts[1] == "With light and moderate teacher use, translate: "
    assert told.texts[5] == "10 and 30 percent by the teacher: "
    assert len(allocations.measured(2, told.budgets)) == 2  # the same for both
    largest = allocations.Instructions(STUDENT_PROMPT, 3, (), ["light", "very high"])
    assert largest.number((BUDGETS[5],) * 3) == 0  # more than 1: the smallest there is
    assert allocations.moderate(2) == (BUDGETS[1], BUDGETS[3]) and allocations.moderate(
        1, (BUDGETS[0], BUDGETS[4])
    ) == (BUDGETS[4],)
    with pytest.raises(ValueError, match=r"budgets=\['high'\] of 3 teachers always sum to more than 1; add a smaller"):
        allocations.Instructions(STUDENT_PROMPT, 3, (), ["high"])


# ---------------------------------------------------------------- what rows draw


def test_phase_1_rows_draw_instructions_by_the_key(toy, tmp_path):
    plain = built(toy, tmp_path, "phase1")
    one = built(toy, tmp_path, "phase1-one-budget")
    worded, again = (built(toy, tmp_path, "phase1-paraphrases", budgets="[light,high]") for _ in range(2))
    found = set()
    for step in range(8):
        epoch, index = divmod(step, plain.batches.per_epoch)
        drawn = keyed_generator(0, epoch, 1 + index).integers(6, size=len(plain.batches.rows_at(step)))
        assert np.array_equal(plain.batches.draws(step), drawn)  # as ever
        assert set(one.batches.draws(step)) == {0} and one.instructions.texts == [
            "With moderate teacher use, translate: "
        ]
        assert np.array_equal(worded.batches.draws(step), again.batches.draws(step))
        assert worded.batches.rows_at(step) == plain.batches.rows_at(step)
        found |= set(worded.batches.draws(step).tolist())
    assert found == set(range(10))  # two budgets in five wordings


@pytest.mark.parametrize("key", [(0, 105), (3, 107, 6)])
def test_phase_2_spreads_budgets_and_draws_wordings_by_the_key(toy, tmp_path, key):
    plain = built(toy, tmp_path, "phase2")
    worded, again = (built(toy, tmp_path, "phase2-paraphrases", paraphrases=QUOTED) for _ in range(2))
    few = built(toy, tmp_path, "phase2-one-budget", budgets="[light,high]", paraphrases=QUOTED)
    order = keyed_generator(0, *key).permutation(np.arange(24) % 6).tolist()
    assert plain._spread(24, *key) == order  # as ever
    numbers = worded._spread(24, *key)
    assert [number % 6 for number in numbers] == order  # the same budgets, whatever their wording
    assert {number // 6 for number in numbers} == {0, 1, 2} and again._spread(24, *key) == numbers
    assert worded._spread(24, key[0] + 1, *key[1:]) != numbers
    for part in (numbers[::2], numbers[1::2]):  # two processes' shares
        assert len({number % 6 for number in part}) > 2 and len({number // 6 for number in part}) > 1
    chosen = few.instructions.budget_numbers[few._spread(24, *key), 0].tolist()
    assert sorted(chosen) == [1] * 12 + [4] * 12


def test_a_student_is_fitted_in_all_wordings(toy, tmp_path):
    own = {"student__path": toy / "student/model", "paraphrases": QUOTED, "steps": 2}
    fitting = built(toy, tmp_path, "student", **own)
    assert len(fitting.prompts) == 18 and fitting.prompts[:6] == built(toy, tmp_path, "student", role="student").prompts
    assert np.isfinite(fitting.train_batch(0)["loss"])


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_a_run_of_some_budgets_knows_no_others(toy, tmp_path, phase):
    own = SMALL if phase == "phase2" else {}
    recipe = toy_recipe(
        toy,
        f"debian-de-en/{phase}-one-budget",
        **{**own, "out": tmp_path, "steps": 2, "log_every": 1, "sample_every": 1, "budgets": "['very high',light]"},
    )
    table = recipes.train(recipe, quiet=True).table
    assert [(row["budget"], row["asked"]) for row in table] == [("light", 0.1), ("very high", 0.5)]
    assert len(lines(tmp_path, "sample")) == 2
    if phase == "phase2":
        named = {name.split("/")[1] for line in lines(tmp_path, "step") for name in line if "/" in name}
        assert named == {"light", "very high"}
        state = load_checkpoint(tmp_path)["algorithm"]["lagrangian"]
        assert [bool(seen) for seen in state["seen"]] == [budget.phrase in named for budget in BUDGETS]


def test_both_phases_of_two_teachers_take_both_settings(toy, tmp_path):
    for phase, own in (("phase1", {}), ("phase2", {**SMALL, "held_out_rows": 3})):
        recipe = toy_recipe(
            toy,
            f"debian-de-en/{phase}-teachers",
            **{**own, "out": tmp_path / phase, "steps": 2, "budgets": "[light,'very high']", "paraphrases": QUOTED},
        )
        table = recipes.train(recipe, quiet=True).table
        assert [row["asked_of"] for row in table] == [[0.1, 0.1], [0.5, 0.5]]


def test_phase_2_resumes_to_the_bit_in_several_wordings(toy, tmp_path):
    def run(out, steps):
        fixed = {"optimiser__decay": "false", "value_optimiser__decay": "false", "value_batches": 0}
        own = {"steps": steps, "checkpoint_every": 1, "sample_every": 0, "validate_every": 0}
        recipe = toy_recipe(toy, "debian-de-en/phase2-paraphrases", **{**SMALL, **fixed, **own, "out": tmp_path / out})
        recipes.train(recipe, quiet=True)
        return load_checkpoint(tmp_path / out)["algorithm"]

    run("parts", 1)
    whole, parts = run("whole", 2), run("parts", 2)
    assert all(torch.equal(value, parts["student"][name]) for name, value in whole["student"].items())
    assert whole["lagrangian"] == parts["lagrangian"]


@pytest.mark.parametrize("task", ["debian-de-en", "debian-synopsis"])
def test_the_phases_of_a_question_agree(task):
    for question in ("one-budget", "paraphrases"):
        first, second = (recipes.resolve(f"{task}/{phase}-{question}").settings for phase in ("phase1", "phase2"))
        assert second.student.path == f"{first.out}/best"
        assert (first.budgets, first.paraphrases) == (second.budgets, second.paraphrases)
    assert recipes.resolve(f"{task}/phase2-one-budget", ["budgets=[light]"]).settings.budgets == ["light"]


def test_settings_that_are_not_used_do_not_make_another_run(toy, tmp_path):
    run = toy_recipe(toy, "debian-de-en/phase1", out=tmp_path, steps=1, sample_every=0)
    recipes.train(run, quiet=True)
    assert not {"budgets", "paraphrases"} & set(load_checkpoint(tmp_path)["identity"])
    changed = toy_recipe(toy, "debian-de-en/phase1", out=tmp_path, steps=2, sample_every=0, budgets="[light]")
    with pytest.raises(ValueError, match=r"budgets: None there, \['light'\] now"):
        recipes.train(changed, quiet=True)


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("phase1", "budgets=[lihgt]", r'unknown budget \'lihgt\'; did you mean "light"'),
        ("phase2", "budgets=[no,light]", r"as YAML reads a bare no; put quotes around it: budgets=\['no'\]"),
        ("phase1", "paraphrases=['hello: ']", r"once and no other braces, got \'hello: \'"),
        ("phase2", "paraphrases=['{budget}, {percent}: ']", r"and no other braces, got '{budget}, {percent}: '"),
        ("phase2", "paraphrases=['{percent} {percent}: ']", r"and no other braces, got '{percent} {percent}: '"),
        ("student", "paraphrases=['{budget}: ','{budget}: ']", r"'{budget}: ' is there already"),
        ("phase1", f"paraphrases=['{STUDENT_PROMPT}']", r"is there already \(student_prompt is the first wording\)"),
        ("teacher", "paraphrases=['{budget}: ']", r"wordings of the student's prompt; set role=student"),
        ("gkd", "budgets=[light]", r"there is no setting 'budgets'"),
    ],
)
def test_mistakes_are_named(name, change, words):
    with pytest.raises(ValueError, match=words):
        recipes.resolve(f"debian-de-en/{name}", [change])


def test_a_quoted_no_is_a_budget():
    recipe = recipes.resolve("debian-de-en/phase1", ["budgets=['no',light]"])
    assert recipe.settings.budgets == ["no", "light"]


# ---------------------------------------------------------------- measuring


@pytest.fixture(scope="module")
def asking(toy, tmp_path_factory):
    """A student that asks now and then, and its folder."""
    folder = tmp_path_factory.mktemp("asking")
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    student = load_student(toy / "student/model", len(tokenizer))
    scale_row(student, student.config.tau_token_id, 10.0)
    save_pair_member(student, tokenizer, folder)
    return folder


def arguments(toy, asking):
    pair = ["--student", asking, "--teacher", toy / "teacher/model", "--data", toy / "data", "--split", "validation"]
    return [*map(str, pair), "--threads", "1", "--max-new-tokens", "8"]


def test_the_students_own_prompt_is_measured_as_budgets_are(toy, asking, capsys):
    wordings.main([*arguments(toy, asking), "--rows", "4"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["asked"] for row in found] == [budget.fraction for budget in BUDGETS]
    tokenizer = AutoTokenizer.from_pretrained(asking)
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model")
    examples = read_examples(Data(folder=str(toy / "data")), "validation")
    decoder = TrainingWheelsDecoder(load_student(asking, len(tokenizer)), teacher, tokenizer=tokenizer)
    table = measure_budgets(decoder, examples[:4], max_new_tokens=8)
    for row, expected in list(zip(found, table, strict=True))[1:]:  # a budget of 0 is enforced there
        assert row.pop("prompt") == f"With {expected.pop('budget')} teacher use, translate: "
        assert row == expected
    assert any(row["achieved"] > 0 for row in found)


def test_any_wording_is_measured(toy, asking, capsys):
    own = ["--template", "{percent} percent by the teacher: ", "--template", "Use: {budget}. ", "--percent", "5", "15"]
    wordings.main([*arguments(toy, asking), *own, "--phrase", "hardly any", "high"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["asked"]) for row in found] == [
        ("5 percent by the teacher: ", 0.05),
        ("15 percent by the teacher: ", 0.15),
        ("Use: hardly any. ", None),
        ("Use: high. ", 0.4),
    ]
    for row in found:
        assert 0 <= row["achieved"] <= 1 and 0 <= row["row_mean"] <= 1 and row["bleu"] >= 0 and row["rouge2"] >= 0


@pytest.mark.parametrize(
    "given, words",
    [
        (["--template", "hello"], "exactly once and no other braces, got 'hello'"),
        (["--percent", "5"], 'percent=[5] are given, but no template holds "{percent}"'),
        (["--template", "{percent}: ", "--percent", "101"], "percent must be in 0..100, got 101"),
        (["--rows", "-1"], "--rows must be at least 0, got -1"),
        (["--split", "tset"], "has no tset.jsonl"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(toy, asking, capsys, given, words):
    with pytest.raises(SystemExit) as caught:
        wordings.main([*arguments(toy, asking), *given])
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_words_need_a_tokenizer_one_teacher_and_examples(toy, asking):
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model")
    decoder = TrainingWheelsDecoder(load_student(asking, 1), teacher)
    decoder.tokenizer = None  # its folder has one
    with pytest.raises(ValueError, match="no tokenizer"):
        next(wordings.measure_wordings(decoder, toy_examples(1), [STUDENT_PROMPT]))
    with pytest.raises(ValueError, match="no examples"):
        next(wordings.measure_wordings(decoder, [], [STUDENT_PROMPT]))
    two = TrainingWheelsDecoder(
        load_student(asking, 1, teachers=2), [teacher, teacher], tokenizer=AutoTokenizer.from_pretrained(asking)
    )
    with pytest.raises(ValueError, match="one teacher, the decoder has 2"):
        next(wordings.measure_wordings(two, toy_examples(1), [STUDENT_PROMPT]))
