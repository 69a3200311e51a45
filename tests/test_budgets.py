"""The six budgets and the prompts built from them."""

import pytest

from kdtw_fast.budgets import BUDGETS, Budget, fill_prompt, resolve_budget, student_prompt, worded_prompt, wording_place


def test_table_is_the_papers():
    assert [(b.phrase, b.fraction) for b in BUDGETS] == [
        ("no", 0.0),
        ("light", 0.1),
        ("moderate-light", 0.2),
        ("moderate", 0.3),
        ("high", 0.4),
        ("very high", 0.5),
    ]


@pytest.mark.parametrize("budget", BUDGETS)
def test_phrase_number_and_budget_resolve_alike(budget):
    assert resolve_budget(budget.phrase) == budget
    assert resolve_budget(budget.fraction) == budget
    assert resolve_budget(budget) is budget
    assert resolve_budget(f"  {budget.phrase.upper()} ") == budget


def test_whole_number_zero_is_no():
    assert resolve_budget(0) == Budget("no", 0.0)


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        ("lihgt", ValueError, ["'lihgt'", '"light"', '"very high" (0.5)']),
        ("moderate light", ValueError, ["'moderate light'", '"moderate-light"']),
        ("", ValueError, ["''", '"no"']),
        (0.15, ValueError, ["0.15", '"very high" (0.5)', "max_teacher_fraction"]),
        (-0.1, ValueError, ["-0.1"]),
        (float("nan"), ValueError, ["nan"]),
        (True, TypeError, ["bool"]),
        (None, TypeError, ["NoneType"]),
    ],
)
def test_anything_else_is_refused_with_the_list(wrong, error, words):
    with pytest.raises(error) as caught:
        resolve_budget(wrong)
    assert all(word in str(caught.value) for word in words)


def test_prompt():
    assert student_prompt("light") == "With light teacher use, translate: "
    assert student_prompt(0.5, "{budget}: ") == "very high: "
    for wrong in ("translate: ", "{x} {budget}: ", "{budget} {budget}", "{budget:>9}"):
        with pytest.raises(ValueError, match=r"must hold .* once and no other braces, got"):
            student_prompt("no", wrong)
    assert fill_prompt("translate: ", "no") == "translate: "  # of a model that asks nobody


def test_prompts_in_other_words():
    assert worded_prompt("light", "{budget}: ") == "light: "
    assert [worded_prompt(budget, "{percent} %: ") for budget in BUDGETS] == [f"{n} %: " for n in range(0, 51, 10)]
    assert worded_prompt(["light", "no"], "{percent}: ") == "10 and 0: "
    assert wording_place("{percent} of words") == "{percent}"
    for wrong in ("translate: ", "{budget} {budget}", "{budget} {percent}", "{percent} and {words}", "{percent}}"):
        with pytest.raises(ValueError, match="exactly once and no other braces, got"):
            wording_place(wrong)
