"""Students of several teachers: the native loop against the oracle, ledgers, marks, prompts, and what is refused."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, RELATIONS, START, kept, mostly_long, pack, random_batch, random_pair, random_teachers
from test_families import random_model

from kdtw_fast import NativeT5, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder, reference
from kdtw_fast.modeling import TrainingWheels, TrainingWheelsT5
from kdtw_fast.selftest.agreement import Tally, check_padding, compare

CASES = 24
LIMITS = [None, 0.0, 0.1, 0.3, 0.5, 1.0]


@functools.cache
def student_and_teachers(relation: str, seed: int, count: int) -> tuple[TrainingWheelsT5, list[Any]]:
    return random_teachers(relation, seed, count)


@kept
def native(relation: str, seed: int, count: int, lenience: float, device: str = "cpu") -> TrainingWheelsDecoder:
    student, teachers = student_and_teachers(relation, seed, count)
    return TrainingWheelsDecoder(student, teachers, verify_lenience=lenience, device=device)


def pick(rng: np.random.Generator, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def a_limit(rng: np.random.Generator, count: int, values: list[Any]) -> Any:
    """No limit, one of all teachers together, or one of each of some."""
    if rng.random() < 0.5:
        return pick(rng, values)
    named = {k: pick(rng, values) for k in range(1, 1 + count) if rng.random() < 0.7}
    return {k: value for k, value in named.items() if value is not None}


def random_case(relation: str, count: int, index: int, device: str) -> tuple[Any, Any, dict[str, Any], str]:
    rng = np.random.default_rng([RELATIONS.index(relation), count, index])
    seed, lenience = int(rng.integers(6)), pick(rng, [0.0, 0.0, 0.01, 0.3, 1.0])
    student, teachers = student_and_teachers(relation, seed, count)
    ids, mask = random_batch(rng, pick(rng, [1, 2, 3, 5]), 42)
    settings: dict[str, Any] = {"max_new_tokens": pick(rng, [3, 8, 16, 20]), "seed": int(rng.integers(1 << 40))}
    settings["max_teacher_fraction"] = [a_limit(rng, count, LIMITS) for _ in ids]
    settings["max_teacher_calls"] = a_limit(rng, count, [None, None, 0, 1, 3])
    if rng.random() < 0.7:
        told = [dict(zip(("input_ids", "attention_mask"), random_batch(rng, len(ids), 42))) for _ in teachers]
        told[int(rng.integers(count))] = None if rng.random() < 0.3 else told[0]
        settings["teacher_inputs"] = told[0] if told[0] is not None and rng.random() < 0.3 else told
    if rng.random() < 0.5:
        settings |= {"temperature": pick(rng, [0.5, 1.0, 1.4]), "top_k": pick(rng, [0, 5]), "teacher_temperature": 0.0}
        settings["teacher_temperature"] = pick(rng, [0.0, 1.0])
    if rng.random() < 0.3:
        settings["forced_tokens"] = rng.integers(2, 40, size=2).tolist()
    if rng.random() < 0.3:
        settings["min_new_tokens"] = 3
    settings |= {"input_ids": ids, "attention_mask": mask}
    slow = reference.TrainingWheelsDecoder(student, teachers, verify_lenience=lenience)
    shown = {name: value for name, value in settings.items() if name not in ("input_ids", "teacher_inputs")}
    text = f"{relation} {count} teachers, case {index} (seed {seed}, lenience {lenience}, {shown})"
    return native(relation, seed, count, lenience, device), slow, settings, text


@pytest.mark.parametrize(("relation", "count"), mostly_long(itertools.product(RELATIONS, (2, 3)), keep=(0, 3, 5)))
def test_random_cases(relation: str, count: int, device: str, oracle_tally: Tally) -> None:
    for index in range(CASES if device == "cpu" else 4):
        fast, slow, settings, text = random_case(relation, count, index, device)
        output = fast.generate(output_logprobs=index % 2 == 0, teacher_batch=pick_batch(index), **settings)
        check_padding(output, START, START)
        oracle_tally.add(compare(output, slow.generate(**settings), text))
        check_totals(output)
    assert oracle_tally.near_ties <= 0.08 * oracle_tally.rows
    assert oracle_tally.differing <= 1
    if device != "cpu":
        return
    # Guards the generator: every teacher writes, drafts pass and fail.
    assert min(oracle_tally.by_teacher[k] for k in range(1, 1 + count)) >= 4
    assert {1, 2, 3, 4, 5} <= set(oracle_tally.owners) | ({4} if relation == "same" else set())


def pick_batch(index: int) -> int | None:
    return [None, 1, 2, 100][index % 4]


def check_totals(output: Any) -> None:
    """The sums over teachers are the totals, and what no teacher wrote names none."""
    written = (output.owners == 2) | (output.owners == 4)
    assert torch.equal(output.teacher_index > 0, written)
    assert torch.equal(output.calls_by_teacher.sum(1), output.teacher_calls)
    assert torch.allclose(output.fraction_by_teacher.sum(1), output.teacher_fraction)


@pytest.mark.parametrize("lenience", [0.0, 0.5])
def test_every_prefix_keeps_every_ledger(lenience: float, device: str) -> None:
    ids, mask = random_batch(np.random.default_rng(0), 6, 42)
    limits = {"max_teacher_fraction": {1: 0.3, 2: 0.1}, "max_teacher_calls": 4}
    used = np.zeros(2)
    limit, seeds = (30, 6) if device == "cpu" else (12, 2)
    for seed in range(seeds):
        for relation in RELATIONS:
            decoder = native(relation, seed, 2, lenience, device)
            out = decoder.generate(ids, mask, max_new_tokens=limit, temperature=1.0, seed=seed, **limits)
            for row, length in zip(out.teacher_index.numpy(), out.lengths.tolist()):
                for end in range(1, 1 + length):
                    prefix = row[1 : 1 + end]
                    assert (prefix == 1).sum() <= 0.3 * end + 1e-9 and (prefix == 2).sum() <= 0.1 * end + 1e-9
                assert (row > 0).sum() <= 4
                used += (row == 1).any(), (row == 2).any()
    assert min(used) > 0


def test_a_row_decodes_alike_alone_in_a_batch_and_in_a_stream(device: str) -> None:
    decoder = native("noisy", 1, 3, 0.0, device)
    rng = np.random.default_rng(5)
    rows = [[*rng.integers(2, 41, size=int(rng.integers(2, 9))).tolist(), EOS] for _ in range(9)]
    told = [[*rng.integers(2, 41, size=4).tolist(), EOS] for _ in range(9)]
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3, "max_teacher_fraction": {2: 0.2}}
    together = decoder.generate(rows, teacher_inputs=[None, {"input_ids": told}, None], **options)
    assert set(together.teacher_index.unique().tolist()) == {0, 1, 2, 3}
    items = [{"input_ids": row, "teacher_input_ids": [None, own, None]} for row, own in zip(rows, told)]
    for out in decoder.stream(items, batch_size=4, in_order=True, **options):
        length = int(out.lengths)
        for name in ("sequences", "owners", "teacher_index"):
            assert torch.equal(out[name][0], together[name][out.index, : 1 + length])
        for name in ("calls_by_teacher", "fraction_by_teacher", "teacher_calls"):
            assert torch.equal(out[name][0], together[name][out.index])
    for r, out in enumerate(decoder.stream(rows, in_order=True, **options)):  # the student's sources for all
        expected = decoder.generate([rows[r]], row_ids=[r], **options)
        assert out.sequences.tolist() == expected.sequences.tolist()
    alone = decoder.generate(rows[4:5], teacher_inputs=[None, {"input_ids": told[4:5]}, None], row_ids=[4], **options)
    assert torch.equal(alone.sequences[0], together.sequences[4, : alone.sequences.shape[1]])


def test_a_teacher_that_is_never_asked_never_encodes(device: str) -> None:
    """Only those it may ask count; with none left the student writes alone."""
    decoder = native("noisy", 1, 2, 0.0, device)
    ids, mask = random_batch(np.random.default_rng(1), 4, 42)
    out = decoder.generate(ids, mask, max_teacher_calls={2: 0})
    assert out.calls_by_teacher[:, 0].sum() > 0 and out.calls_by_teacher[:, 1].sum() == 0
    out = decoder.generate(ids, mask, max_teacher_calls=0)
    assert out.teacher_passes == 0 and out.fraction_by_teacher.sum() == 0
    alone = SingleModelDecoder(student_and_teachers("noisy", 1, 2)[0], device=device).generate(ids, mask)
    assert torch.equal(out.sequences, alone.sequences)
    assert alone.calls_by_teacher.shape == (4, 0) and int(alone.teacher_index.sum()) == 0


def test_each_teacher_has_a_mark_of_its_own(device: str) -> None:
    """The student's logits in torch and natively, for marks of every teacher."""
    student, _ = student_and_teachers("unrelated", 2, 3)
    with torch.no_grad():
        student.marks.copy_(torch.randn(student.marks.shape, generator=torch.Generator().manual_seed(0)))
    core = NativeT5.from_model(student, "student", device=device)
    source, tokens, marks = [5, 9, EOS], [START, 7, 8, 9, 10], [0, 1, 3, 2, 0]
    with torch.no_grad():
        expected = student(
            torch.tensor([source]),
            decoder_input_ids=torch.tensor([tokens]),
            decoder_from_teacher=torch.tensor([marks]),
        ).logits[0]
    found = core.decode_logits(source, tokens, from_teacher=marks)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    assert np.abs(found - core.decode_logits(source, tokens, from_teacher=[0, 1, 1, 1, 0])).max() > 1e-2
    with pytest.raises(ValueError, match="names teacher 4, the model has 3"):
        core.decode_logits(source, tokens, from_teacher=[0, 4, 0, 0, 0])
    with pytest.raises(TypeError, match=r"uint8 or int32 or int64, got torch\.bool"):
        student(
            torch.tensor([source]), decoder_input_ids=torch.tensor([tokens]), decoder_from_teacher=torch.ones(1, 5) > 0
        )


def test_a_student_of_several_teachers_is_saved_and_loaded(tmp_path: Any, device: str) -> None:
    student, teachers = student_and_teachers("noisy", 3, 2)
    student.save_pretrained(tmp_path)
    again = TrainingWheelsT5.from_pretrained(tmp_path)
    assert again.tau_token_ids == student.tau_token_ids
    assert torch.equal(again.teacher_token_embedding, student.teacher_token_embedding)
    ids, mask = random_batch(np.random.default_rng(1), 3, 42)
    wanted = TrainingWheelsDecoder(student, teachers, device=device).generate(ids, mask)
    # Without a file of packed weights, writing it, reading it; device memory has none.
    for cache in (None, True, True) if device == "cpu" else (None,):
        packed = NativeT5.from_pretrained(tmp_path, cache=cache, device=device)
        assert packed.tau_token_ids == student.tau_token_ids
        found = TrainingWheelsDecoder(packed, teachers, device=device).generate(ids, mask)
        assert torch.equal(found.teacher_index, wanted.teacher_index)


def test_from_t5_makes_rows_and_marks_for_several() -> None:
    single = student_and_teachers("noisy", 3, 2)[1][0]
    student = TrainingWheelsT5.from_t5(single, teachers=3)
    assert student.tau_token_ids == [43, 44, 45] and student.config.tau_token_id == 43
    assert student.config.vocab_size == 46 and student.lm_head.weight.shape[0] == 46
    assert student.teacher_token_embedding.shape == (3, student.config.d_model)
    with torch.no_grad():
        student.marks[0] = 2.0
    fewer = TrainingWheelsT5.from_t5(student, tau_token_id=43)
    assert not hasattr(fewer.config, "tau_token_ids")
    assert fewer.teacher_token_embedding.shape == (student.config.d_model,) and bool((fewer.marks == 2.0).all())
    more = TrainingWheelsT5.from_t5(fewer, tau_token_id=43, teachers=2)
    assert bool((more.marks[0] == 2.0).all()) and bool((more.marks[1] == 0.0).all())


class Words:
    """A tokenizer of single characters that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        self.seen += texts
        return {"input_ids": [[2 + ord(c) % 30 for c in text] + [EOS] for text in texts]}

    def batch_decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
        return [""] * len(ids)


def test_the_prompt_names_every_budget(device: str) -> None:
    student, teachers = student_and_teachers("noisy", 1, 2)
    words = Words()
    decoder = TrainingWheelsDecoder(student, teachers, tokenizer=words, device=device)
    decoder(["a", "b"], budget={1: "light", 2: 0.5}, max_new_tokens=2)
    assert words.seen[:2] == [f"With light and very high teacher use, translate: {text}" for text in "ab"]
    own = {"text": "d", "budget": {1: "no", 2: "high"}}
    list(decoder.stream(["c", own], budget={1: "light", 2: "light"}, max_new_tokens=2))
    assert "With light and light teacher use, translate: c" in words.seen
    assert "With no and high teacher use, translate: d" in words.seen
    SingleModelDecoder(student, tokenizer=words, device=device)("e", max_new_tokens=2)
    assert words.seen[-1] == "With no and no teacher use, translate: e"
    decoder(["f", "g"], budget=[{1: "no", 2: "light"}, {2: "no", 1: "high"}], max_new_tokens=2)
    assert "With no and light teacher use, translate: f" in words.seen
    assert "With high and no teacher use, translate: g" in words.seen
    for call in (
        lambda: decoder("a", budget="light"),
        lambda: decoder.stream(["a"], budget=dict.fromkeys((1, 2, 3), 0)),
    ):
        with pytest.raises(ValueError, match=r"2 teachers, give a budget for each: \{1: …, 2: …\}"):
            call()
    alone, one = pack(*random_pair("noisy", seed=2), device)
    alone.student_prompt = "With {budget} use: "
    single = TrainingWheelsDecoder(alone, one, tokenizer=words)
    with pytest.raises(ValueError, match=r"has 1 teacher, give one budget; got \['light', 'no'\]"):
        single("a", budget={1: "light", 2: "no"})
    single(["h", "i"], budget=["no", {1: "high"}], max_new_tokens=2)
    assert {"With no use: h", "With high use: i"} <= set(words.seen)


def test_a_list_of_budgets_for_teachers_warns_and_means_them() -> None:
    student, teachers = student_and_teachers("noisy", 1, 2)
    words = Words()
    decoder = TrainingWheelsDecoder(student, teachers, tokenizer=words)
    for call in (
        lambda: decoder(["a"], budget=["light", 0.5], max_new_tokens=2),
        lambda: list(decoder.stream(["a"], budget=("light", 0.5), max_new_tokens=2)),
        lambda: list(decoder.stream([{"text": "a", "budget": ["light", 0.5]}], max_new_tokens=2)),
    ):
        words.seen.clear()
        with pytest.warns(DeprecationWarning, match=r"use budget=\{1: 'light', 2: 0.5\}; a list has one for each text"):
            call()
        assert words.seen[0] == "With light and very high teacher use, translate: a"


STUDENT, TEACHERS = student_and_teachers("noisy", 1, 2)
GOOD = [[5, 6, EOS]]
WRONG = [
    (lambda d: TrainingWheelsDecoder(STUDENT, TEACHERS[0]), ValueError, r"can ask 2 teachers, but 1 were given"),
    (lambda d: TrainingWheelsDecoder(STUDENT, TEACHERS * 2), ValueError, r"can ask 2 teachers, but 4 were given"),
    (lambda d: SpeculativeDecoder(STUDENT, TEACHERS), ValueError, "SpeculativeDecoder has one teacher, got 2"),
    (lambda d: TrainingWheelsDecoder(STUDENT, TEACHERS, teacher_dtype=["int8"]), ValueError, "1 values for 2 teachers"),
    (lambda d: d.generate(GOOD, max_teacher_calls={3: 1}), ValueError, "names teacher 3, but the decoder has 2"),
    (lambda d: d.generate(GOOD, max_teacher_fraction={0: 1}), ValueError, "teacher's number must be at least 1"),
    (lambda d: d.generate(GOOD, max_teacher_fraction={1: 1.5}), ValueError, r"of teacher 1 must be in \[0, 1\]"),
    (lambda d: d.generate(GOOD, teacher_inputs=[None]), ValueError, "1 values for 2 teachers"),
    (lambda d: d.generate(GOOD, teacher_inputs=[None, 5]), TypeError, r"teacher_inputs\[1\] must be a mapping"),
    (lambda d: next(d.stream([{"input_ids": GOOD[0], "teacher_input_ids": [GOOD[0]]}])), ValueError, "1 values for 2"),
    (lambda d: d.generate(GOOD, forced_tokens=[STUDENT.tau_token_ids[0]]), ValueError, "<tau>"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_bad_input_is_one_sentence(call: Any, error: type[Exception], message: str, device: str) -> None:
    decoder = native("noisy", 1, 2, 0.0, device)
    with pytest.raises(error, match=message) as raised:
        call(decoder)
    assert "\n" not in str(raised.value)


def test_teachers_that_begin_with_other_tokens_are_refused() -> None:
    """A student without an encoder has no first token of its own that each teacher's could be held against."""
    student = TrainingWheels.from_model(random_model("llama", 1), teachers=2)
    teachers = [random_model("t5", seed) for seed in (2, 3)]
    teachers[1].config.decoder_start_token_id = teachers[1].generation_config.decoder_start_token_id = 7
    with pytest.raises(ValueError, match="share decoder_start_token_id: teacher 1 has 0, teacher 2 has 7; pass gen"):
        TrainingWheelsDecoder(student, teachers)
    told = TrainingWheelsDecoder(student, teachers, generation_config={"decoder_start_token_id": 7})
    assert [teacher.decoder_start_token_id for teacher in told.teachers] == [7, 7]
    mixed = TrainingWheelsDecoder(student, [random_model("llama", 4), teachers[1]])
    assert mixed.generate([[5, 6]], max_new_tokens=3).lengths.tolist() == [3]


def test_teachers_have_number_formats_of_their_own(device: str) -> None:
    decoder = TrainingWheelsDecoder(STUDENT, TEACHERS, teacher_dtype=["int8", None], device=device)
    assert [teacher.dtype for teacher in decoder.teachers] == ["int8", "fp32"]
    assert decoder.teachers[1].name == "teacher 2"


def test_a_broken_teacher_is_named(device: str) -> None:
    _, teachers = random_teachers("noisy", 1, 2)
    with torch.no_grad():
        teachers[1].lm_head.weight[:] = float("nan")
    decoder = TrainingWheelsDecoder(STUDENT, teachers, device=device)
    with pytest.raises(FloatingPointError, match="the teacher 2's logits are not finite"):
        for seed in range(20):
            decoder.generate(GOOD * 4, temperature=1.5, seed=seed, max_teacher_calls={1: 0})
