"""The paper's six budgets: phrase, fraction of output tokens that the teacher may write, and the prompt."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdtw_fast.messages import Message, OptionName

STUDENT_PROMPT = "With {budget} teacher use, translate: "
TEACHER_PROMPT = "translate: "


@dataclass(frozen=True)
class Budget:
    """How much teacher a student is told to use.

    Attributes:
        phrase: what stands in the student's prompt.
        fraction: the share of the output tokens that it means, 0 to 0.5.
    """

    phrase: str
    fraction: float


BUDGETS: tuple[Budget, ...] = (
    Budget("no", 0.0),
    Budget("light", 0.1),
    Budget("moderate-light", 0.2),
    Budget("moderate", 0.3),
    Budget("high", 0.4),
    Budget("very high", 0.5),
)
"""The paper's six budgets, by which a student is trained and asked."""
_BY_PHRASE = {budget.phrase: budget for budget in BUDGETS}


def _table() -> str:
    return ", ".join(f'"{budget.phrase}" ({budget.fraction:g})' for budget in BUDGETS)


def resolve_budget(budget: str | float | Budget) -> Budget:
    """The budget of :data:`kdtw_fast.BUDGETS` for a phrase ("light") or a fraction (0.1).

    Raises:
        ValueError: a phrase or number that is none of them; the message names the nearest.
        TypeError: anything that is neither.
    """
    if isinstance(budget, Budget):
        budget = budget.phrase
    if isinstance(budget, str):
        words = " ".join(budget.split()).casefold()
        if words in _BY_PHRASE:
            return _BY_PHRASE[words]
        nearest = difflib.get_close_matches(words, list(_BY_PHRASE), n=1, cutoff=0.0)[0]
        raise ValueError(f'unknown budget {budget!r}; did you mean "{nearest}"? The six budgets are {_table()}')
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"budget must be a phrase or a number, got {type(budget).__name__}; the six are {_table()}")
    for known in BUDGETS:
        if math.isclose(known.fraction, budget, abs_tol=1e-9):
            return known
    said = f"budget {budget!r} is none of the six budgets {_table()}; use "
    raise ValueError(Message(said, OptionName("max_teacher_fraction"), " for another bound"))


AnyBudget = str | float | Budget


def resolve_budgets(budget: AnyBudget | Mapping[int, AnyBudget] | Sequence[AnyBudget]) -> tuple[Budget, ...]:
    """One budget, or one for each of several teachers (by number, or in order), as a tuple.

    Raises as `resolve_budget` does, and ValueError for a mapping whose keys are not the teachers' numbers, 1 to n.
    """
    if isinstance(budget, Mapping):
        if set(budget) != set(range(1, 1 + len(budget))) or not budget:
            raise ValueError(f"budget names the teachers by number, from 1 on, each once; got {dict(budget)!r}")
        return tuple(resolve_budget(budget[number]) for number in sorted(budget))
    if isinstance(budget, Sequence) and not isinstance(budget, str) and len(budget) != 1:
        return tuple(resolve_budget(one) for one in budget)
    return (resolve_budget(budget),)  # type: ignore[arg-type]  # a list of one is refused there


def written_budget(text: str) -> str | float | dict[int, str | float]:
    """What a text names: a phrase, a fraction, or with commas between them one for each of several teachers, in order.

    Those are a mapping from the teachers' numbers, as calls take it.
    """

    def one(word: str) -> str | float:
        try:
            return float(word)
        except ValueError:
            return word

    return {k: one(word) for k, word in enumerate(text.split(","), 1)} if "," in text else one(text)


def join_phrases(budgets: Sequence[Budget]) -> str:
    """What stands for "{budget}" in the student's prompt: "light", and of several teachers "light and no"."""
    return " and ".join(budget.phrase for budget in budgets)


def fill_prompt(template: str, phrase: str, needed: bool = False) -> str:
    """A model's prompt with `phrase` in the place of "{budget}", which stands there once and is replaced as text.

    A model that asks no teacher may have a prompt without it; one with ⟨τ⟩, and the prompts of training, have it
    (`needed`). Raises TypeError for what is no text, ValueError for another number of places and for other braces.
    """
    if not isinstance(template, str):
        raise TypeError(f"student_prompt must be a string, got {template!r} of type {type(template).__name__}")
    before, place, after = template.partition("{budget}")
    if "{" in before + after or "}" in before + after or (needed and not place):
        must = "must" if needed else "may"
        raise ValueError(f'student_prompt {must} hold "{{budget}}" once and no other braces, got {template!r}')
    return before + phrase * bool(place) + after


def student_prompt(
    budget: AnyBudget | Mapping[int, AnyBudget] | Sequence[AnyBudget], template: str = STUDENT_PROMPT
) -> str:
    """The student's instruction with the budget's phrase in it, ready to stand before the source text.

    With several teachers, `budget` has one for each. Raises as `fill_prompt` does for a template that needs its place.
    """
    return fill_prompt(template, join_phrases(resolve_budgets(budget)), needed=True)


def wording_place(template: str) -> str:
    """The place of a wording of the student's instruction: "{budget}" (the phrase) or "{percent}" (a whole number).

    Raises ValueError if the template does not hold exactly one of the two, once, or has other braces.
    """
    found = [place for place in ("{budget}", "{percent}") if place in template]
    if len(found) != 1 or not {"{", "}"}.isdisjoint(template.replace(found[0], "", 1)):
        raise ValueError(
            f'a wording of the student prompt holds either "{{budget}}" or "{{percent}}" exactly once and no other '
            f"braces, got {template!r}"
        )
    return found[0]


def worded_prompt(budget: AnyBudget | Mapping[int, AnyBudget] | Sequence[AnyBudget], template: str) -> str:
    """`student_prompt` in any wording: "{percent}" becomes 0, 10, … 50, of several teachers "10 and 0"."""
    place = wording_place(template)
    if place == "{budget}":
        return student_prompt(budget, template)
    return template.replace(place, " and ".join(f"{100 * one.fraction:.0f}" for one in resolve_budgets(budget)))
