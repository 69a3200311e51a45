"""`AutoDecoder`: its rule with numbers, and its outputs, which for quality "teacher" must not depend on the choice."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, chain_student, chain_t5, kept, pack, path_table, random_batch, random_pair, scale_row

from kdtw_fast import AutoDecoder, NativeT5, Owner, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.auto import FEWEST_CALLS, LAST_CALLS, SPECULATIVE, STUDENT, TEACHER, WHEELS, Chooser
from kdtw_fast.costs import Costs, ModelCosts

VOCAB, TOKENS = 43, 16


def costs(student: float, teacher: float, per_token: float = 0.01) -> Costs:
    """Costs of a pair whose steps take so long; further tokens of a teacher's pass cost ``per_token`` of a step."""
    points = {n: teacher * (1 + per_token * (n - 1)) for n in (1, 17)}
    return Costs(ModelCosts(0.0, {1: student, 2: student}), ModelCosts(0.0, points))


DRAFTING_PAYS, DRAFTING_COSTS = costs(0.001, 1.0), costs(1.0, 1.0)
RELATIONS = ("noisy", "swapped", "unrelated")


def pair(relation: str, seed: int = 2, device: str = "cpu") -> tuple[NativeT5, NativeT5]:
    return pack(*random_pair(relation, seed=seed, vocab_size=VOCAB), device)


# --- the rule ---------------------------------------------------------------------------------------------


def observe(chooser: Chooser, made_of: Costs, slowdowns: list[float]) -> None:
    """Calls that took so many times what was predicted for the method chosen now."""
    prediction = chooser.choose(made_of)
    for slowdown in slowdowns:
        chooser.observe(made_of.rows, prediction, 10, slowdown * prediction.seconds(10))


def test_the_fastest_prediction_is_chosen() -> None:
    chooser = Chooser((SPECULATIVE, TEACHER))
    assert chooser.choose(DRAFTING_PAYS).method == SPECULATIVE
    assert chooser.choose(DRAFTING_COSTS).method == TEACHER
    assert chooser.choose(DRAFTING_PAYS).settings["draft_length"] > 2
    assert Chooser((WHEELS, TEACHER), use=0.1).choose(costs(0.1, 1.0)).method == WHEELS
    assert Chooser((WHEELS, TEACHER), use=0.5).choose(costs(0.6, 1.0)).method == TEACHER


def test_a_method_slower_than_the_plain_teacher_is_predicted_to_be_gives_way() -> None:
    chooser = Chooser((SPECULATIVE, TEACHER))
    predicted = {p.method: p.ms_per_token for p in chooser.predictions(DRAFTING_PAYS)}
    losing = 1.05 * predicted[TEACHER] / predicted[SPECULATIVE]
    observe(chooser, DRAFTING_PAYS, [losing] * (FEWEST_CALLS - 1))
    assert chooser.choose(DRAFTING_PAYS).method == SPECULATIVE  # too few calls to say
    observe(chooser, DRAFTING_PAYS, [losing])
    assert chooser.choose(DRAFTING_PAYS).method == TEACHER
    observe(chooser, DRAFTING_PAYS, [1.0] * 20)  # the teacher is what was predicted: so it stays
    assert chooser.choose(DRAFTING_PAYS).method == TEACHER


def test_a_machine_that_slowed_down_for_all_does_not_change_the_choice_for_good() -> None:
    chooser = Chooser((SPECULATIVE, TEACHER))
    observe(chooser, DRAFTING_PAYS, [5.0] * FEWEST_CALLS)
    assert chooser.choose(DRAFTING_PAYS).method == TEACHER
    observe(chooser, DRAFTING_PAYS, [5.0] * FEWEST_CALLS)
    assert chooser.choose(DRAFTING_PAYS).method == SPECULATIVE


def test_one_slow_call_among_others_says_nothing_and_old_calls_are_forgotten() -> None:
    chooser = Chooser((SPECULATIVE, TEACHER))
    observe(chooser, DRAFTING_PAYS, [1.0, 1000.0, 1.1])
    assert chooser.choose(DRAFTING_PAYS).method == SPECULATIVE
    assert chooser.slowdown(1, SPECULATIVE) == 1.1
    observe(chooser, DRAFTING_PAYS, [1.2] * LAST_CALLS)
    assert chooser.slowdown(1, SPECULATIVE) == pytest.approx(1.2)


def test_slowdowns_belong_to_their_batch_size() -> None:
    chooser = Chooser((SPECULATIVE, TEACHER))
    observe(chooser, DRAFTING_PAYS, [100.0] * FEWEST_CALLS)
    assert chooser.slowdown(1, SPECULATIVE) == pytest.approx(100.0) and chooser.slowdown(8, SPECULATIVE) == 1.0


def test_drafts_behind_a_correction_were_not_tested() -> None:
    student, teacher = (
        chain_student(path_table([5, 6, 7, 9, 10], 16), tau=15),
        chain_t5(path_table([5, 6, 8, 9, 10], 16)),
    )
    out = SpeculativeDecoder(student, teacher, draft_length=4).generate([[3, EOS]], max_new_tokens=5)
    written = [Owner(code) for code in out.owners[0].tolist()]
    assert written[1:4] == [Owner.ACCEPTED, Owner.ACCEPTED, Owner.CORRECTED]
    chooser = Chooser((SPECULATIVE, TEACHER), acceptance=0.5)
    chooser.count(SPECULATIVE, out)
    accepted, corrected = written.count(Owner.ACCEPTED), written.count(Owner.CORRECTED)
    assert chooser.acceptance.value == pytest.approx((0.5 * 20 + accepted) / (20 + accepted + corrected))
    assert int(out.drafted) > accepted + corrected


# --- the decoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_quality_teacher_gives_the_teachers_tokens_whatever_is_chosen(relation: str, seed: int, device: str) -> None:
    student, teacher = pair(relation, seed, device)
    ids, mask = random_batch(np.random.default_rng(seed), 3, VOCAB)
    options = {"max_new_tokens": TOKENS, "output_logprobs": True}
    outs = [
        AutoDecoder(student, teacher, costs=made_of).generate(ids, mask, **options)
        for made_of in (DRAFTING_PAYS, DRAFTING_COSTS)
    ]
    assert [out.prediction.method for out in outs] == [SPECULATIVE, TEACHER]
    assert outs[0].sequences.tolist() == outs[1].sequences.tolist()
    expected = SpeculativeDecoder(student, teacher).generate(ids, mask, **options)
    assert outs[0].sequences.tolist() == expected.sequences.tolist()
    assert torch.equal(outs[0].teacher_logprobs[:, 1:].nan_to_num(9), outs[1].teacher_logprobs[:, 1:].nan_to_num(9))


def test_the_teacher_alone_may_not_write_tau_either(device: str) -> None:
    student, teacher = random_pair("noisy", seed=0, vocab_size=VOCAB)
    while student.config.tau_token_id == VOCAB:  # tau beyond the teacher's rows
        student, teacher = random_pair("noisy", seed=int(torch.randint(1000, ())), vocab_size=VOCAB)
    scale_row(teacher, student.config.tau_token_id, 4.0)
    native = (
        NativeT5.from_model(student, "student", device=device),
        NativeT5.from_model(teacher, "teacher", device=device),
    )
    ids = [[5, 6, 7, EOS], [9, 30, EOS]]
    assert student.config.tau_token_id in SingleModelDecoder(native[1]).generate(ids, max_new_tokens=TOKENS).sequences
    outs = [AutoDecoder(*native, costs=c).generate(ids, max_new_tokens=TOKENS) for c in (DRAFTING_PAYS, DRAFTING_COSTS)]
    assert outs[0].sequences.tolist() == outs[1].sequences.tolist()
    assert native[1].tau_token_id is None


def test_the_teacher_alone_is_reported_as_the_teacher(device: str) -> None:
    student, teacher = pair("noisy", device=device)
    streamed: list[tuple[int, int, int, int]] = []
    out = AutoDecoder(student, teacher, costs=DRAFTING_COSTS).generate(
        [[5, 6, EOS], [7, EOS]],
        max_new_tokens=TOKENS,
        output_logprobs=True,
        streamer=lambda *token: streamed.append(token),
    )
    lengths = out.lengths.tolist()
    assert [row[1 : 1 + n] for row, n in zip(out.owners.tolist(), lengths)] == [[Owner.TEACHER] * n for n in lengths]
    assert {owner for *_, owner in streamed} == {Owner.TEACHER} and len(streamed) == sum(lengths)
    assert out.teacher_calls.tolist() == lengths and out.teacher_fraction.tolist() == [1.0, 1.0]
    assert (out.student_passes, out.drafted.tolist()) == (0, [0, 0]) and out.teacher_passes == max(lengths)
    assert out.timings.student == 0 and out.timings.teacher > 0
    assert out.student_logprobs.isnan().all() and (out.teacher_logprobs[0, 1 : 1 + lengths[0]] <= 0).all()
    assert out.ms_per_token == pytest.approx(1000 * out.timings.total / sum(lengths))


@pytest.mark.parametrize("made_of", [DRAFTING_PAYS, DRAFTING_COSTS])
def test_a_budget_is_training_wheels_or_the_teacher(made_of: Costs, device: str) -> None:
    student, teacher = pair("swapped", device=device)
    ids = [[5, 6, 7, EOS], [9, 30, EOS]]
    out = AutoDecoder(student, teacher, quality="light", costs=made_of).generate(ids, max_new_tokens=TOKENS)
    decoder = TrainingWheelsDecoder(student, teacher) if made_of is DRAFTING_PAYS else SingleModelDecoder(teacher)
    assert out.prediction.method == (WHEELS if made_of is DRAFTING_PAYS else TEACHER)
    assert out.sequences.tolist() == decoder.generate(ids, max_new_tokens=TOKENS).sequences.tolist()
    fixed = AutoDecoder(student, teacher, quality=0.1, method=WHEELS, costs=made_of).generate(
        ids, max_new_tokens=TOKENS
    )
    assert fixed.prediction.method == WHEELS


def test_quality_student_is_the_student(device: str) -> None:
    student, teacher = pair("noisy", device=device)
    out = AutoDecoder(student, teacher, quality="student", costs=DRAFTING_COSTS).generate([[5, EOS]])
    assert out.prediction.method == STUDENT
    assert out.sequences.tolist() == SingleModelDecoder(student).generate([[5, EOS]]).sequences.tolist()


def test_a_sampling_teacher_decodes_alone_so_that_the_tokens_do_not_depend_on_times(device: str) -> None:
    student, teacher = pair("noisy", device=device)
    decoder = AutoDecoder(student, teacher, costs=DRAFTING_PAYS)
    sampled = decoder.generate([[5, 6, EOS]], temperature=0.9, top_k=20, seed=3)
    assert sampled.prediction.method == TEACHER
    expected = SingleModelDecoder(teacher).generate([[5, 6, EOS]], temperature=0.9, top_k=20, seed=3)
    assert sampled.sequences.tolist() == expected.sequences.tolist()
    own = decoder.generate([[5, 6, EOS]], teacher_temperature=0.7, teacher_top_k=5, seed=3)
    expected = SingleModelDecoder(teacher).generate([[5, 6, EOS]], temperature=0.7, top_k=5, seed=3)
    assert own.sequences.tolist() == expected.sequences.tolist()
    greedy = decoder.generate([[5, 6, EOS]], temperature=0.9, teacher_temperature=0.0)
    assert greedy.prediction.method == SPECULATIVE
    assert greedy.sequences.tolist() == SingleModelDecoder(teacher).generate([[5, 6, EOS]]).sequences.tolist()


def test_models_are_packed_for_the_device_that_is_asked_for(simulated: str) -> None:
    student, teacher = random_pair("noisy", seed=2, vocab_size=VOCAB)
    packed = NativeT5.from_model(student, "student", device=simulated)
    for decoder in (AutoDecoder(student, teacher, device=simulated), AutoDecoder(packed, teacher)):
        assert (decoder.student.device, decoder.teachers[0].device) == (simulated, simulated)
    with pytest.raises(ValueError, match="packed for device 'cuda:0', but device='cpu' was asked for"):
        AutoDecoder(packed, teacher, device="cpu")


def test_teacher_inputs_reach_the_teacher(device: str) -> None:
    student, teacher = pair("noisy", device=device)
    other = {"input_ids": [[8, 9, 10, 11, EOS]]}
    expected = SingleModelDecoder(teacher).generate(**other).sequences.tolist()
    for made_of in (DRAFTING_PAYS, DRAFTING_COSTS):
        decoder = AutoDecoder(student, teacher, costs=made_of)
        assert decoder.generate([[5, EOS]], teacher_inputs=other).sequences.tolist() == expected


@pytest.mark.parametrize(("made_of", "method"), [(DRAFTING_PAYS, SPECULATIVE), (DRAFTING_COSTS, TEACHER)])
def test_a_stream_decodes_what_a_batch_does_and_says_how(made_of: Costs, method: str, device: str) -> None:
    student, teacher = pair("noisy", 3, device)
    own, others = [[5, 6, EOS], [9, EOS], [7, 8, 9, EOS]], [[6, EOS], [5, 5, EOS], [9, 8, EOS]]
    batch = SingleModelDecoder(teacher).generate(others, max_new_tokens=TOKENS)
    items = [{"input_ids": a, "teacher_input_ids": b} for a, b in zip(own, others)]
    decoder = AutoDecoder(student, teacher, costs=made_of)
    for r, out in enumerate(decoder.stream(items, batch_size=2, in_order=True, max_new_tokens=TOKENS)):
        length = int(batch.lengths[r])
        assert out.prediction.method == method and out.index == r
        assert out.sequences[0].tolist() == batch.sequences[r, : 1 + length].tolist()
        assert method == SPECULATIVE or int(out.teacher_calls) == length
    with pytest.raises(TypeError, match="max_teacher_calls is a bound"):
        decoder.stream(items, max_teacher_calls=1)


def test_calls_and_calibration_teach_how_often_drafts_pass(device: str) -> None:
    student, teacher = pair("unrelated", 1, device)
    ids = [[5, 6, 7, EOS], [9, 30, EOS], [4, EOS]]
    learnt = AutoDecoder(student, teacher, costs=DRAFTING_PAYS)
    before = learnt.chooser.acceptance.value
    learnt.generate(ids, max_new_tokens=TOKENS)
    assert learnt.chooser.acceptance.value < before
    calibrated = AutoDecoder(student, teacher, costs=DRAFTING_PAYS)
    share = calibrated.calibrate(ids, max_new_tokens=TOKENS)
    out = SpeculativeDecoder(student, teacher, draft_length=5).generate(ids, max_new_tokens=TOKENS)
    accepted, corrected = ((out.owners == o).sum().item() for o in (Owner.ACCEPTED, Owner.CORRECTED))
    assert share == pytest.approx((14 + accepted) / (20 + accepted + corrected))
    # between the two: drafting pays if enough passes, and calibration tells that it does not
    between = costs(0.5, 1.0)
    assert Chooser((SPECULATIVE, TEACHER), acceptance=0.9).choose(between).method == SPECULATIVE
    sceptic = AutoDecoder(student, teacher, acceptance=0.9, costs=between)
    sceptic.calibrate(ids, max_new_tokens=TOKENS)
    assert sceptic.generate(ids, max_new_tokens=TOKENS).prediction.method == TEACHER


def test_a_budgets_use_is_learnt(device: str) -> None:
    student, teacher = pair("swapped", device=device)
    decoder = AutoDecoder(student, teacher, quality="very high", costs=DRAFTING_PAYS)
    out = decoder.generate([[5, 6, 7, EOS]], max_new_tokens=TOKENS)
    teachers = int(out.teacher_calls[0])
    assert decoder.chooser.use.value == pytest.approx((0.5 * 20 + teachers) / (20 + int(out.lengths[0])))
    assert decoder.calibrate([[5, 6, 7, EOS]], max_new_tokens=TOKENS) == decoder.chooser.use.value


def test_costs_are_measured_once_per_batch_bucket(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    student, teacher = pair("noisy", device=device)
    asked: list[tuple[int, int, int]] = []

    def measured(
        *models: Any, rows: int, source_tokens: int, new_tokens: int, num_threads: int, seconds: float
    ) -> Costs:
        asked.append((rows, source_tokens, new_tokens))
        assert models == (student, teacher) and seconds == 0.3
        return costs(0.001 * rows, 1.0)

    monkeypatch.setattr("kdtw_fast.auto.measure_costs", measured)
    decoder = AutoDecoder(student, teacher, measure_seconds=0.3, num_threads=1)
    row = [5, 6, 7, EOS]
    outs = [decoder.generate([row] * n, max_new_tokens=TOKENS) for n in (1, 1, 3, 4, 5)]
    assert asked == [(1, 4, 4), (4, 4, 4), (8, 4, 4)]
    assert [out.prediction.rows for out in outs] == [1, 1, 3, 4, 5]
    decoder.generate([row], max_new_tokens=TOKENS, num_threads=2)
    assert len(asked) == 4
    assert outs[1].prediction.new_tokens == outs[0].lengths.float().mean()


def test_real_costs_are_measured_where_none_are_given(device: str) -> None:
    student, teacher = pair("noisy", device=device)
    out = AutoDecoder(student, teacher, measure_seconds=0.05).generate([[5, EOS]], max_new_tokens=TOKENS)
    assert 0 < out.prediction.ms_per_token < 1000 and out.ms_per_token > 0
    expected = SingleModelDecoder(teacher).generate([[5, EOS]], max_new_tokens=TOKENS)
    assert out.sequences.tolist() == expected.sequences.tolist()


class Letters:
    """Letters to ids 2 ... 27, EOS last."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[2 + ord(letter) % 26 for letter in text] + [EOS] for text in texts]}

    def batch_decode(self, sequences: Any, **_: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in torch.as_tensor(sequences).tolist()]


def test_strings_get_each_models_prompt_and_the_qualitys_budget(device: str) -> None:
    student, teacher = pair("noisy", device=device)
    student.student_prompt, student.teacher_prompt, teacher.teacher_prompt = "a{budget}b", "q", "q"
    for quality, made_of, decoder, budget in [
        ("high", DRAFTING_PAYS, TrainingWheelsDecoder(student, teacher, tokenizer=Letters()), "high"),
        ("high", DRAFTING_COSTS, SingleModelDecoder(teacher, tokenizer=Letters()), None),
        ("teacher", DRAFTING_PAYS, SpeculativeDecoder(student, teacher, tokenizer=Letters()), None),
        ("student", DRAFTING_PAYS, SingleModelDecoder(student, tokenizer=Letters()), None),
    ]:
        auto = AutoDecoder(student, teacher, quality=quality, costs=made_of, tokenizer=Letters())
        out = auto(["some text", "x"], max_new_tokens=TOKENS)
        assert out.texts == decoder(["some text", "x"], budget, max_new_tokens=TOKENS).texts
    assert 0 <= AutoDecoder(student, teacher, costs=DRAFTING_PAYS, tokenizer=Letters()).calibrate(["ab", "c"]) <= 1


def test_the_quality_no_is_kept_to_the_token(device: str) -> None:
    student, teacher = pair("swapped", device=device)
    student.student_prompt = student.teacher_prompt = teacher.teacher_prompt = "{budget}"
    shared: dict[str, Any] = {"method": WHEELS, "costs": DRAFTING_PAYS, "tokenizer": Letters()}
    texts = ["some text", "x"]
    ids = Letters()(["light" + text for text in texts])["input_ids"]
    asked = [
        [
            int(auto.generate(ids, max_new_tokens=TOKENS).teacher_calls.sum()),
            int(auto(texts, max_new_tokens=TOKENS).teacher_calls.sum()),
            *(
                sum(int(out.teacher_calls.sum()) for out in auto.stream(items, max_new_tokens=TOKENS))
                for items in (ids, texts)
            ),
        ]
        for auto in (AutoDecoder(student, teacher, quality=quality, **shared) for quality in ("light", "no"))
    ]
    assert min(asked[0]) > 0 and asked[1] == [0, 0, 0, 0]


@pytest.mark.parametrize("costs", [DRAFTING_PAYS, DRAFTING_COSTS])
@pytest.mark.parametrize("quality", ["teacher", "student", "high"])
def test_an_item_has_neither_budget_nor_limit_whatever_method_is_chosen(quality: str, costs: Costs) -> None:
    student, teacher = pair("noisy")
    student.student_prompt = "a{budget}b"
    auto = AutoDecoder(student, teacher, quality=quality, costs=costs, tokenizer=Letters())
    items = ["ab", {"text": "cd", "budget": "light"}, "ef", {"text": "cd", "max_teacher_calls": 1}]
    first, second, third, fourth = auto.stream(items, in_order=True, on_error="return", max_new_tokens=TOKENS)
    assert first.texts and third.texts and isinstance(second.error, TypeError)
    assert f"item 1 has the budget 'light', but this AutoDecoder was made for one, quality='{quality}'" in str(
        second.error
    )
    assert isinstance(fourth.error, TypeError) and str(fourth.error) == (
        "item 3: max_teacher_calls is a bound that AutoDecoder would break with the teacher alone; it belongs to "
        "TrainingWheelsDecoder, RandomCallDecoder and EntropyCallDecoder"
    )


@kept
def natives(device: str) -> tuple[NativeT5, NativeT5]:
    return pair("noisy", device=device)


def auto(device: str, **options: Any) -> AutoDecoder:
    return AutoDecoder(*natives(device), **({"costs": DRAFTING_PAYS} | options))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda d: auto(d, quality="best"),
            ValueError,
            "quality is 'teacher', 'student' or a budget; unknown budget 'best'",
        ),
        (lambda d: auto(d, quality=0.15), ValueError, "quality is .* budget 0.15 is none of the six"),
        (lambda d: auto(d, quality=None), TypeError, "quality is .* got NoneType"),
        (lambda d: auto(d, qualty="teacher"), TypeError, "no parameter 'qualty'; did you mean 'quality'"),
        (lambda d: auto(d, method="bild"), ValueError, "method 'bild' does not give quality 'teacher'"),
        (lambda d: auto(d, acceptance=2), ValueError, "acceptance must be in"),
        (lambda d: auto(d, measure_seconds=0), ValueError, "measure_seconds must be in"),
        (lambda d: auto(d, num_threads=0), ValueError, "num_threads must be at least 1"),
        (lambda d: AutoDecoder(*natives(d)[1:] * 2, quality="light"), ValueError, "no <tau>"),
        (
            lambda d: auto(d).generate([[5, EOS]], max_teacher_fraction=0.1),
            TypeError,
            "belongs to TrainingWheelsDecoder, RandomCallDecoder and EntropyCallDecoder",
        ),
        (
            lambda d: auto(d, quality="light").generate([[5, EOS]], max_teacher_calls=1),
            TypeError,
            "max_teacher_calls is a",
        ),
        (lambda d: auto(d).generate([]), ValueError, "empty batch"),
        (
            lambda d: auto(d).generate([[5, EOS]], teacher_inputs=[1]),
            TypeError,
            "teacher_inputs must be a mapping",
        ),
        (
            lambda d: auto(d).generate([[5, EOS]], max_tokens=3),
            TypeError,
            "AutoDecoder.generate has no option 'max_tokens'",
        ),
        (
            lambda d: auto(d, tokenizer=Letters())("ab", "light"),
            TypeError,
            "takes its budget as quality='light'",
        ),
        (lambda d: auto(d)("ab"), ValueError, "no tokenizer"),
        (lambda d: auto(d, quality="student").calibrate([[5, EOS]]), ValueError, "nothing to calibrate"),
        (lambda d: auto(d).calibrate([]), ValueError, "empty batch"),
    ],
)
def test_bad_input_is_one_sentence(
    call: Callable[[str], Any], error: type[Exception], message: str, device: str
) -> None:
    with pytest.raises(error, match=message):
        call(device)


def test_a_fork_while_another_thread_measures_does_not_hang() -> None:
    student, teacher = random_pair("noisy", 1, VOCAB)
    auto = AutoDecoder(student, teacher, costs=DRAFTING_PAYS)
    rows = [[5, 6, EOS]]
    expected = auto.generate(rows, max_new_tokens=4).sequences.tolist()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(auto.generate(rows, max_new_tokens=4).sequences.tolist()))
    with auto._lock:  # as the thread that measures has it
        child.start()
    try:
        assert answers.get(timeout=60) == expected
    finally:
        child.join(10)
        child.kill()
