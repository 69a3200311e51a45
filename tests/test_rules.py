"""Outcomes written down by hand: each method's call and accept rule on chain models, natively and in the oracle.

A chain's next token is a table's choice, and a path's tokens differ, so drafts are wrong exactly where the test says.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, START, chain_student, chain_t5, path_table

import kdtw_fast
from kdtw_fast import _core, reference
from kdtw_fast.random import STREAM_CALL, uniform
from kdtw_fast.selftest.agreement import output_row

VOCAB = 40
TAU = VOCAB - 1
WRONG = 30
SOURCE = [[5, 6, EOS]]
STUDENT, TEACHER, ACCEPTED, CORRECTED, FORCED = 1, 2, 3, 4, 5


class OnDevice:
    """kdtw_fast, whose decoders decode on a device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        return functools.partial(getattr(kdtw_fast, name), device=self.device)


@pytest.fixture(params=["oracle", "native", "simulated"])
def package(request: pytest.FixtureRequest) -> Any:
    if request.param == "oracle":
        return reference
    return OnDevice("cpu" if request.param == "native" else request.getfixturevalue("simulated"))


def decode(package: Any, name: str, models: tuple[Any, ...], settings: dict[str, Any], **options: Any) -> Any:
    """Row 0 of the output as a dict; one source unless the settings hold `input_ids`."""
    decoder = getattr(package, name)(*models, **options)
    output = decoder.generate(**({"input_ids": SOURCE} | settings))
    if package is not reference:
        return output_row(output, 0)
    row = output[0]
    names = ["tokens", "owners", "teacher_calls", "drafted", "accepted", "rolled_back", "teacher_fraction"]
    return {name: getattr(row, name) for name in names}


def path(length: int, end: bool = True) -> list[int]:
    """A path of `length` outputs; the last is EOS where `end`."""
    tokens = list(range(2, 2 + length))
    if end:
        tokens[-1] = EOS
    return tokens


def table(tokens: list[int]) -> np.ndarray:
    return path_table(tokens, VOCAB)


def with_errors(tokens: list[int], positions: set[int]) -> np.ndarray:
    """The table of a student that is wrong exactly at `positions` of the path."""
    errors = table(tokens)
    for position in positions:
        here = tokens[position - 1] if position else START
        errors[here, WRONG] = errors[here].max() + 5.0
    return errors


# --- Speculative decoding ------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_length", range(1, 9))
@pytest.mark.parametrize("length", range(1, 12))
def test_end_at_every_place_of_a_cycle(package: Any, draft_length: int, length: int) -> None:
    """The student agrees everywhere: cycles of K accepted drafts and a bonus token, EOS anywhere in them."""
    tokens = path(length)
    models = (chain_t5(table(tokens)), chain_t5(table(tokens)))
    got = decode(package, "SpeculativeDecoder", models, {"max_new_tokens": 30}, draft_length=draft_length)
    cycle = draft_length + 1
    owners = [TEACHER if position % cycle == draft_length else ACCEPTED for position in range(length)]
    assert got["tokens"] == tokens and got["owners"] == owners
    assert got["teacher_calls"] == math.ceil(length / cycle)
    assert got["drafted"] == got["accepted"] == owners.count(ACCEPTED)
    assert got["rolled_back"] == 0
    assert got["teacher_fraction"] == pytest.approx(owners.count(TEACHER) / length)


@pytest.mark.parametrize("draft_length", range(1, 9))
@pytest.mark.parametrize("limit", range(1, 12))
def test_length_limit_at_every_place_of_a_cycle(package: Any, draft_length: int, limit: int) -> None:
    """The last cycle drafts one token fewer than fit, so that the bonus token is the last."""
    tokens = path(20)
    models = (chain_t5(table(tokens)), chain_t5(table(tokens)))
    got = decode(package, "SpeculativeDecoder", models, {"max_new_tokens": limit}, draft_length=draft_length)
    owners = [TEACHER if p % (draft_length + 1) == draft_length else ACCEPTED for p in range(limit)]
    owners[-1] = TEACHER
    assert got["tokens"] == tokens[:limit] and got["owners"] == owners
    assert got["teacher_calls"] == owners.count(TEACHER)
    assert got["drafted"] == owners.count(ACCEPTED)


@pytest.mark.parametrize("deferral", [0.0, 0.2, 1.0])
def test_a_cascade_lets_a_sure_student_decide(package: Any, deferral: float) -> None:
    """A wrong draft stands where the student is as sure as the teacher, less the deferral times their distance."""
    tokens = path(6)
    drafts = with_errors(tokens, {1, 3})
    drafts[tokens[2]] *= 0.05  # at position 3 it is unsure
    teacher = table(tokens)
    got = decode(
        package, "SpeculativeCascadeDecoder", (chain_t5(drafts), chain_t5(teacher)), {"max_new_tokens": 6},
        draft_length=2, deferral=deferral,
    )  # fmt: skip
    q, p = (torch.softmax(torch.from_numpy(of).double(), dim=1) for of in (drafts, teacher))
    for position, (token, owner) in enumerate(zip(got["tokens"], got["owners"])):
        here = got["tokens"][position - 1] if position else START
        sure = bool(q[here].max() >= p[here].max() - deferral * (p[here] - q[here]).clamp(min=0).sum())
        drafted, wanted = int(q[here].argmax()), int(p[here].argmax())
        if owner == ACCEPTED:
            assert token == drafted and (sure or drafted == wanted)
        else:
            assert token == wanted and (owner == TEACHER or (not sure and drafted != wanted))


def test_wrong_drafts_at_chosen_positions(package: Any) -> None:
    tokens = path(11)
    models = (chain_t5(with_errors(tokens, {1, 4, 10})), chain_t5(table(tokens)))
    got = decode(package, "SpeculativeDecoder", models, {"max_new_tokens": 30}, draft_length=3)
    # Cycles: [0 ok, 1 wrong, 1 more drafted], [2 ok, 3 ok, 4 wrong], [5, 6, 7 ok, bonus 8], [9 ok, 10 wrong, 1 more]
    owners = [ACCEPTED, CORRECTED, ACCEPTED, ACCEPTED, CORRECTED, *[ACCEPTED] * 3, TEACHER, ACCEPTED, CORRECTED]
    assert got["tokens"] == tokens and got["owners"] == owners
    assert (got["teacher_calls"], got["drafted"], got["accepted"], got["rolled_back"]) == (4, 12, 7, 5)


@pytest.mark.parametrize("draft_length", [1, 3, 8])
def test_every_draft_wrong(package: Any, draft_length: int) -> None:
    tokens = path(9)
    models = (chain_t5(with_errors(tokens, set(range(9)))), chain_t5(table(tokens)))
    got = decode(package, "SpeculativeDecoder", models, {"max_new_tokens": 6}, draft_length=draft_length)
    assert got["tokens"] == tokens[:6]
    assert got["owners"] == [*[CORRECTED] * 5, TEACHER]  # the last has no room for a draft
    drafts = sum(min(draft_length, 5 - p) for p in range(5))
    assert (got["teacher_calls"], got["drafted"], got["rolled_back"]) == (6, drafts, drafts)


def test_drafted_end_that_is_wrong_is_taken_back(package: Any) -> None:
    tokens = path(6)
    early = table(tokens)
    early[tokens[1], EOS] = 20.0
    got = decode(package, "SpeculativeDecoder", (chain_t5(early), chain_t5(table(tokens))), {"max_new_tokens": 9})
    assert got["tokens"] == tokens
    assert got["owners"] == [ACCEPTED, ACCEPTED, CORRECTED, ACCEPTED, ACCEPTED, ACCEPTED]
    assert (got["teacher_calls"], got["drafted"], got["rolled_back"]) == (2, 6, 1)  # drafting stops at EOS


def test_correction_can_be_the_end(package: Any) -> None:
    tokens = path(3)
    models = (chain_t5(with_errors(tokens, {2})), chain_t5(table(tokens)))
    got = decode(package, "SpeculativeDecoder", models, {"max_new_tokens": 9}, draft_length=5)
    assert got["tokens"] == tokens and got["owners"] == [ACCEPTED, ACCEPTED, CORRECTED]
    assert (got["drafted"], got["rolled_back"]) == (5, 3)


@pytest.mark.parametrize(("lenience", "stands"), [(1.0, False), (0.31, False), (0.29, True), (0.0, True)])
def test_lenience_is_the_ratio_of_the_probabilities(package: Any, lenience: float, stands: bool) -> None:
    """Algorithm 1: the draft's probability is 0.3 of the best's."""
    tokens = path(4)
    lenient = table(tokens)
    lenient[START, WRONG] = lenient[START, tokens[0]] + math.log(0.3)
    models = (chain_t5(with_errors(tokens, {0})), chain_t5(lenient))
    got = decode(package, "SpeculativeDecoder", models, {"max_new_tokens": 3}, draft_length=1, lenience=lenience)
    assert got["tokens"][0] == (WRONG if stands else tokens[0])
    assert got["owners"][0] == (ACCEPTED if stands else CORRECTED)


def test_lenience_one_is_strict_about_ties(package: Any) -> None:
    """Two tokens tie for the teacher: only the lowest id is its greedy pick."""
    tied = table(path(4))
    tied[START, 20] = tied[START, 10] = 30.0
    for drafted, owner in ((20, CORRECTED), (10, ACCEPTED)):
        draft = table(path(4))
        draft[START, drafted] = 40.0
        got = decode(package, "SpeculativeDecoder", (chain_t5(draft), chain_t5(tied)), {"max_new_tokens": 2})
        assert got["tokens"][0] == 10 and got["owners"][0] == owner


# --- Training Wheels -----------------------------------------------------------------------------------


def asking(tokens: list[int], positions: set[int]) -> np.ndarray:
    """The table of a student that knows the path and asks at `positions` of it."""
    asks = table(tokens)
    for position in range(len(tokens)):
        here = tokens[position - 1] if position else START
        asks[here, TAU] = 20.0 if position in positions else -20.0
    return asks


def test_teacher_writes_where_the_student_asks(package: Any) -> None:
    tokens = path(7)
    other = list(range(10, 17))
    teacher = table(tokens)
    models = (chain_student(asking(tokens, {0, 3, 4}), TAU), chain_t5(teacher))
    got = decode(package, "TrainingWheelsDecoder", models, {"max_new_tokens": 20})
    assert got["tokens"] == tokens
    assert got["owners"] == [TEACHER, STUDENT, STUDENT, TEACHER, TEACHER, STUDENT, STUDENT]
    assert (got["teacher_calls"], got["drafted"], got["rolled_back"]) == (3, 4, 0)
    assert got["teacher_fraction"] == pytest.approx(3 / 7)
    # The teacher's own choice is what is written, not the student's second best.
    teacher[tokens[2], other[0]] = 40.0
    got = decode(package, "TrainingWheelsDecoder", (models[0], chain_t5(teacher)), {"max_new_tokens": 4})
    assert got["tokens"] == [*tokens[:3], other[0]]


def test_teacher_may_end_the_row(package: Any) -> None:
    tokens = path(4)
    models = (chain_student(asking(tokens, {3}), TAU), chain_t5(table(tokens)))
    got = decode(package, "TrainingWheelsDecoder", models, {"max_new_tokens": 20})
    assert got["tokens"] == tokens and got["owners"] == [STUDENT, STUDENT, STUDENT, TEACHER]


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("length", [1, 9, 20])
def test_ledger_fills_exactly(package: Any, fraction: float, length: int) -> None:
    """A student that always asks gets the n-th token as soon as n <= fraction * outputs, and no earlier."""
    tokens = path(length, end=False)
    models = (chain_student(asking(tokens, set(range(length))), TAU), chain_t5(table(tokens)))
    settings = {"max_new_tokens": length, "max_teacher_fraction": fraction}
    got = decode(package, "TrainingWheelsDecoder", models, settings)
    calls = [math.floor(fraction * (position + 1) + 1e-9) for position in range(length)]
    owners = [TEACHER if after > before else STUDENT for before, after in zip([0, *calls], calls, strict=False)]
    assert got["tokens"] == tokens and got["owners"] == owners
    assert got["teacher_calls"] == calls[-1]


@pytest.mark.parametrize("calls", [0, 1, 3, 50])
def test_calls_are_capped(package: Any, calls: int) -> None:
    tokens = path(8, end=False)
    models = (chain_student(asking(tokens, set(range(8))), TAU), chain_t5(table(tokens)))
    got = decode(package, "TrainingWheelsDecoder", models, {"max_new_tokens": 8, "max_teacher_calls": calls})
    spent = min(calls, 8)
    assert got["owners"] == [TEACHER] * spent + [STUDENT] * (8 - spent)


def test_student_reads_who_wrote(package: Any) -> None:
    """Eq. 13 to 15: a student that asks after marked tokens goes on asking once it has asked; no mark, no asking."""
    tokens = path(8, end=False)
    after_marked = np.zeros(VOCAB)
    after_marked[TAU] = 60.0
    student = chain_student(asking(tokens, {2}), TAU, after_marked)
    got = decode(package, "TrainingWheelsDecoder", (student, chain_t5(table(tokens))), {"max_new_tokens": 8})
    assert got["tokens"] == tokens and got["owners"] == [STUDENT, STUDENT, *[TEACHER] * 6]
    # A correction is marked as well: the draft at 1 is wrong, found by the call at 2.
    wrong = asking(tokens, {2})
    wrong[tokens[0], WRONG] = 18.0
    wrong[WRONG] = wrong[tokens[1]]
    student = chain_student(wrong, TAU, after_marked)
    models = (student, chain_t5(table(tokens)))
    got = decode(package, "TrainingWheelsDecoder", models, {"max_new_tokens": 8}, verify_lenience=1.0)
    assert got["tokens"] == tokens and got["owners"] == [ACCEPTED, CORRECTED, *[TEACHER] * 6]
    # Other methods feed plain tokens: the same student speculates as if beta did not exist.
    models = (student, chain_t5(table(tokens)))
    got = decode(package, "SpeculativeDecoder", models, {"max_new_tokens": 8}, draft_length=2)
    assert got["tokens"] == tokens
    assert got["owners"] == [ACCEPTED, CORRECTED, ACCEPTED, ACCEPTED, TEACHER, ACCEPTED, ACCEPTED, TEACHER]


def test_verification_checks_the_drafts_since_the_last_call(package: Any) -> None:
    tokens = path(9)
    # Asks at 2 and 7; wrong at 5. WRONG leads on to where the right token would have led.
    student = asking(tokens, {2, 7})
    student[tokens[4], WRONG] = 18.0
    student[WRONG] = student[tokens[5]]
    models = (chain_student(student, TAU), chain_t5(table(tokens)))
    got = decode(package, "TrainingWheelsDecoder", models, {"max_new_tokens": 20}, verify_lenience=0.5)
    # Call at 2: 0, 1 accepted. Call at 7: 3, 4 accepted, 5 corrected, 6 taken back. Call again at 7: 6 accepted.
    owners = [ACCEPTED, ACCEPTED, TEACHER, ACCEPTED, ACCEPTED, CORRECTED, ACCEPTED, TEACHER, STUDENT]
    assert got["tokens"] == tokens and got["owners"] == owners
    assert (got["teacher_calls"], got["drafted"], got["accepted"], got["rolled_back"]) == (3, 8, 5, 2)
    # Switched off, the wrong token stays, and nothing is checked.
    got = decode(package, "TrainingWheelsDecoder", models, {"max_new_tokens": 20})
    assert got["tokens"] == [*tokens[:5], WRONG, *tokens[6:]]
    assert got["owners"] == [1, 1, 2, 1, 1, 1, 1, 2, 1]


def test_verification_does_not_break_the_ledger(package: Any) -> None:
    """With a quarter of the tokens, a teacher token at position 1 would be one of two: only 3 and later are checked."""
    tokens = path(12, end=False)
    student = asking(tokens, {5})
    for position in (1, 4):
        student[tokens[position - 1], WRONG + position] = 18.0
        student[WRONG + position] = student[tokens[position]]
    models = (chain_student(student, TAU), chain_t5(table(tokens)))
    settings = {"max_new_tokens": 7, "max_teacher_fraction": 0.25}
    got = decode(package, "TrainingWheelsDecoder", models, settings, verify_lenience=1.0)
    assert got["tokens"] == [tokens[0], WRONG + 1, *tokens[2:7]]
    # After the correction at 4 the ledger has no second token for position 5.
    assert got["owners"] == [STUDENT, STUDENT, STUDENT, ACCEPTED, CORRECTED, STUDENT, STUDENT]
    assert (got["teacher_calls"], got["rolled_back"]) == (1, 1)


# --- The controls --------------------------------------------------------------------------------------


def test_random_calls_follow_the_keyed_number_and_nothing_else(package: Any) -> None:
    """The teacher writes where the position's number exceeds the threshold, though the student would ask everywhere."""
    tokens = path(12, end=False)
    models = (chain_student(asking(tokens, set(range(12))), TAU), chain_t5(table(tokens)))
    numbers = uniform(7, 3, np.arange(12), STREAM_CALL)
    for threshold in (0.0, 0.4, float(numbers[5]), 0.8, 1.0):
        settings = {"max_new_tokens": 12, "seed": 7, "row_ids": [3]}
        got = decode(package, "RandomCallDecoder", models, settings, threshold=threshold)
        owners = [TEACHER if number > threshold else STUDENT for number in numbers]
        assert got["tokens"] == tokens and got["owners"] == owners
        assert (got["teacher_calls"], got["drafted"]) == (owners.count(TEACHER), owners.count(STUDENT))


def test_calls_by_entropy_where_the_student_is_undecided(package: Any) -> None:
    """Two tokens nearly tie at 0 and 3: ln 2 = 0.69 nats there, and nearly 0 elsewhere, whatever the logit of tau."""
    tokens = path(7)
    undecided = unsure(tokens, {0, 3})
    undecided[:, TAU] = 12.0
    models = (chain_student(undecided, TAU), chain_t5(table(tokens)))
    got = decode(package, "EntropyCallDecoder", models, {"max_new_tokens": 20}, threshold=0.6)
    assert got["tokens"] == tokens
    assert got["owners"] == [TEACHER, STUDENT, STUDENT, TEACHER, STUDENT, STUDENT, STUDENT]
    assert (got["teacher_calls"], got["drafted"], got["rolled_back"]) == (2, 5, 0)
    got = decode(package, "EntropyCallDecoder", models, {"max_new_tokens": 20}, threshold=0.8)
    assert got["tokens"] == tokens and got["teacher_calls"] == 0


def test_what_is_banned_is_no_doubt(package: Any) -> None:
    """The student wavers between EOS and a token; where EOS is banned, it does not."""
    tokens = path(3)
    wavers = table(tokens)
    wavers[tokens[1], 20] = wavers[tokens[1], EOS]
    models = (chain_student(wavers, TAU), chain_t5(table(tokens)))
    for minimum, owner in ((2, TEACHER), (3, STUDENT)):
        settings = {"max_new_tokens": 3, "min_new_tokens": minimum}
        got = decode(package, "EntropyCallDecoder", models, settings, threshold=0.5)
        assert got["owners"] == [STUDENT, STUDENT, owner]


@pytest.mark.parametrize(("name", "threshold"), [("RandomCallDecoder", 0.0), ("EntropyCallDecoder", 0.5)])
def test_the_ledger_bounds_the_controls(package: Any, name: str, threshold: float) -> None:
    tokens = path(12, end=False)
    models = (chain_student(unsure(tokens, set(range(12))), TAU), chain_t5(table(tokens)))
    for fraction in (0.0, 0.25, 1 / 3, 0.7, 1.0):
        settings = {"max_new_tokens": 12, "max_teacher_fraction": fraction}
        got = decode(package, name, models, settings, threshold=threshold)
        calls = [math.floor(fraction * (position + 1) + 1e-9) for position in range(12)]
        owners = [TEACHER if after > before else STUDENT for before, after in zip([0, *calls], calls, strict=False)]
        assert got["tokens"] == tokens and got["owners"] == owners
    for limit in (3, {1: 3}):
        got = decode(package, name, models, {"max_new_tokens": 12, "max_teacher_calls": limit}, threshold=threshold)
        assert got["owners"] == [TEACHER] * 3 + [STUDENT] * 9


def test_the_student_reads_who_wrote_in_the_controls(package: Any) -> None:
    """After a marked token this student writes WRONG, and only after one."""
    tokens = path(6, end=False)
    undecided = unsure(tokens, {2})
    undecided[WRONG] = undecided[tokens[3]]
    after_marked = np.zeros(VOCAB)
    after_marked[WRONG] = 60.0
    models = (chain_student(undecided, TAU, after_marked), chain_t5(table(tokens)))
    got = decode(package, "EntropyCallDecoder", models, {"max_new_tokens": 5}, threshold=0.5)
    assert got["tokens"] == [*tokens[:3], WRONG, tokens[4]]
    assert got["owners"] == [STUDENT, STUDENT, TEACHER, STUDENT, STUDENT]


# --- BiLD, SKD -----------------------------------------------------------------------------------------


def unsure(tokens: list[int], positions: set[int]) -> np.ndarray:
    """A student whose best probability is just over a half at `positions` and nearly 1 elsewhere."""
    doubts = table(tokens)
    for position in positions:
        here = tokens[position - 1] if position else START
        doubts[here, WRONG] = doubts[here].max() - 0.1
    return doubts


def test_big_little_hands_over_where_unsure(package: Any) -> None:
    tokens = path(7)
    models = (chain_t5(unsure(tokens, {0, 3})), chain_t5(table(tokens)))
    got = decode(package, "BigLittleDecoder", models, {"max_new_tokens": 20}, fallback_threshold=0.6)
    assert got["tokens"] == tokens
    assert got["owners"] == [TEACHER, ACCEPTED, ACCEPTED, TEACHER, STUDENT, STUDENT, STUDENT]
    assert (got["teacher_calls"], got["drafted"], got["rolled_back"]) == (2, 5, 0)


@pytest.mark.parametrize(("rollback", "taken_back"), [(11.0, True), (13.0, False)])
def test_big_little_goes_back_where_the_teacher_disagrees(package: Any, rollback: float, taken_back: bool) -> None:
    """The wrong draft at 1 costs the teacher about 12 nats."""
    tokens = path(6)
    student = unsure(tokens, {4})
    student[tokens[0], WRONG] = 30.0
    student[WRONG] = student[tokens[1]]
    models = (chain_t5(student), chain_t5(table(tokens)))
    got = decode(package, "BigLittleDecoder", models, {"max_new_tokens": 9}, rollback_threshold=rollback)
    if taken_back:
        assert got["tokens"] == tokens
        assert got["owners"] == [ACCEPTED, CORRECTED, ACCEPTED, ACCEPTED, TEACHER, STUDENT]
        assert (got["teacher_calls"], got["drafted"], got["rolled_back"]) == (2, 7, 3)
    else:
        assert got["tokens"] == [tokens[0], WRONG, *tokens[2:]]
        assert got["owners"] == [ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED, TEACHER, STUDENT]


def test_big_little_calls_after_its_longest_draft(package: Any) -> None:
    tokens = path(7)
    models = (chain_t5(table(tokens)), chain_t5(table(tokens)))
    got = decode(package, "BigLittleDecoder", models, {"max_new_tokens": 20}, max_draft_length=2)
    assert got["tokens"] == tokens and got["owners"] == [3, 3, 2, 3, 3, 2, 1]


def test_interleaved_keeps_what_is_in_the_teachers_top_k(package: Any) -> None:
    tokens = path(8)
    ranked = table(tokens)
    ranked[tokens[1], [10, 11, WRONG]] = [9.0, 8.0, 7.0]  # the draft at 2 is the teacher's fourth
    student = with_errors(tokens, {2})
    student[WRONG] = student[tokens[2]]
    ranked[WRONG] = ranked[tokens[2]]
    models = (chain_t5(student), chain_t5(ranked))
    kept = decode(package, "InterleavedDecoder", models, {"max_new_tokens": 20}, draft_length=3, accept_top_k=4)
    assert kept["tokens"] == [*tokens[:2], WRONG, *tokens[3:]]
    assert kept["owners"] == [ACCEPTED] * 8  # no bonus token
    assert (kept["teacher_calls"], kept["drafted"]) == (3, 8)
    lost = decode(package, "InterleavedDecoder", models, {"max_new_tokens": 20}, draft_length=5, accept_top_k=3)
    assert lost["tokens"] == tokens
    assert lost["owners"] == [ACCEPTED, ACCEPTED, CORRECTED, *[ACCEPTED] * 5]
    assert (lost["teacher_calls"], lost["drafted"], lost["rolled_back"]) == (2, 10, 3)


def test_interleaved_ties_in_rank_go_to_the_lowest_id(package: Any) -> None:
    """After the start token the teacher gives all but one token the same logit."""
    flat = table(path(3))
    for drafted, owner in ((10, ACCEPTED), (20, CORRECTED)):
        draft = table(path(3))
        draft[START, drafted] = 40.0
        models = (chain_t5(draft), chain_t5(flat))
        got = decode(package, "InterleavedDecoder", models, {"max_new_tokens": 1}, accept_top_k=12)
        # Best is token 2; then 0, 1, 3, 4, ..., so twelve places reach id 11.
        assert got["owners"] == [owner]


# --- Common options ------------------------------------------------------------------------------------


METHODS = [
    ("SingleModelDecoder", {}),
    ("TrainingWheelsDecoder", {}),
    ("TrainingWheelsDecoder", {"verify_lenience": 1.0}),
    ("RandomCallDecoder", {"threshold": 0.5}),
    ("EntropyCallDecoder", {"threshold": 0.6}),
    ("SpeculativeDecoder", {"draft_length": 3}),
    ("SpeculativeCascadeDecoder", {"draft_length": 3}),
    ("BigLittleDecoder", {"fallback_threshold": 0.6}),
    ("InterleavedDecoder", {"draft_length": 2}),
]


def models_for(name: str, tokens: list[int]) -> tuple[Any, ...]:
    student = chain_student(asking(tokens, {2}), TAU)
    return (student,) if name == "SingleModelDecoder" else (student, chain_t5(table(tokens)))


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_forced_tokens_come_first_and_count(package: Any, name: str, options: dict[str, Any]) -> None:
    tokens = path(9)
    settings = {"max_new_tokens": 6, "forced_tokens": tokens[:3]}
    got = decode(package, name, models_for(name, tokens), settings, **options)
    assert got["tokens"] == tokens[:6]
    assert got["owners"][:3] == [FORCED] * 3 and FORCED not in got["owners"][3:]
    assert got["drafted"] <= 6 and got["rolled_back"] == 0
    assert got["teacher_fraction"] == pytest.approx(got["owners"].count(TEACHER) / 6)


def test_forced_tokens_are_never_checked(package: Any) -> None:
    tokens = path(9)
    settings = {"max_new_tokens": 6, "forced_tokens": [20, tokens[1]]}
    for name, options in METHODS:
        got = decode(package, name, models_for(name, tokens), settings, **options)
        assert got["tokens"] == [20, *tokens[1:6]]


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_no_end_before_min_new_tokens(package: Any, name: str, options: dict[str, Any]) -> None:
    """Both models want to end at 3; their second choice leads on to where they want to end again."""
    tokens = path(4)
    second = table(tokens)
    second[tokens[2], 20] = 6.0
    second[20, EOS] = 30.0
    second[20, 21] = 20.0
    second[21, EOS] = 20.0
    student = chain_student(np.where(np.arange(VOCAB) == TAU, -20.0, second), TAU)
    models = (student,) if name == "SingleModelDecoder" else (student, chain_t5(second))
    for minimum, expected in ((0, tokens), (3, tokens), (4, [*tokens[:3], 20, EOS]), (5, [*tokens[:3], 20, 21, EOS])):
        settings = {"max_new_tokens": 9, "min_new_tokens": minimum}
        assert decode(package, name, models, settings, **options)["tokens"] == expected


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_tau_is_never_written(package: Any, name: str, options: dict[str, Any]) -> None:
    """Student and teacher both like tau best everywhere."""
    tokens = path(8, end=False)
    likes_tau = asking(tokens, set(range(8)))
    models = (chain_student(likes_tau, TAU), chain_t5(likes_tau))
    got = decode(package, name, models[: 1 if name == "SingleModelDecoder" else 2], {"max_new_tokens": 8}, **options)
    assert got["tokens"] == tokens


def test_tau_beyond_the_teachers_vocabulary(package: Any) -> None:
    tokens = path(6)
    teacher = chain_t5(path_table(tokens, VOCAB - 1))
    student = chain_student(asking(tokens, {1, 3}), TAU)
    for name, options in METHODS[1:]:
        got = decode(package, name, (student, teacher), {"max_new_tokens": 8}, **options)
        assert got["tokens"] == tokens


def test_one_budget_per_row(package: Any) -> None:
    tokens = path(10, end=False)
    models = (chain_student(asking(tokens, set(range(10))), TAU), chain_t5(table(tokens)))
    decoder = package.TrainingWheelsDecoder(*models)
    output = decoder.generate(
        SOURCE * 4,
        max_new_tokens=10,
        max_teacher_fraction=[0.0, 0.2, 1.0, 0.5],
        max_teacher_calls=[9, 9, 4, 1],
    )
    rows = output if package is reference else [output_row(output, row) for row in range(4)]
    calls = [row.teacher_calls if package is reference else row["teacher_calls"] for row in rows]
    assert calls == [0, 2, 4, 1]


def test_several_end_tokens(device: str) -> None:
    """A config may list end tokens; any of them ends a row, whoever writes it, and none before min_new_tokens."""
    tokens = path(9)
    teacher = chain_t5(table(tokens))
    student = chain_student(asking(tokens, {1}), TAU)
    for model in (student, teacher):
        model.config.eos_token_id = [EOS, tokens[4]]
    for name, options in METHODS:
        models = (teacher,) if name == "SingleModelDecoder" else (student, teacher)
        got = decode(OnDevice(device), name, models, {"max_new_tokens": 20}, **options)
        assert got["tokens"] == tokens[:5]
        got = decode(OnDevice(device), name, models, {"max_new_tokens": 6, "min_new_tokens": 5}, **options)
        assert tokens[4] not in got["tokens"][:5]


# --- The native rules alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_ledger_arithmetic(fraction: float) -> None:
    """`allows` is the definition; `first_replaceable` is the first position from which it always holds."""
    ledger = _core.Ledger(max_calls=5, max_fraction=fraction)
    free = _core.Ledger()
    for calls in range(8):
        for position in range(40):
            within = calls + 1 <= math.floor(fraction * (position + 1) + 1e-9)
            assert ledger.allows(calls, position) == (within and calls < 5)
            assert free.allows(calls, position) == (calls <= position)
            if within:
                first = ledger.first_replaceable(calls, position)
                allowed = [calls + 1 <= math.floor(fraction * (p + 1) + 1e-9) for p in range(position + 1)]
                assert first == allowed.index(True)
