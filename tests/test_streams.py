"""Continuous batches: a row that comes and goes is the row of `generate`, bit for bit, whatever runs beside it."""

from __future__ import annotations

import gc
import itertools
import math
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    EOS,
    RELATIONS,
    SHAPES,
    START,
    chain_t5,
    path_table,
    random_pair,
    random_t5,
    slow_model,
)
from streaming import (
    METHODS,
    VOCAB,
    Tokenizer,
    assert_rows,
    assert_sentence,
    drain,
    make,
    nan_for,
    natives,
    ragged,
    row_of,
)

from kdtw_fast import GenerationOutput, NativeT5, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder, _core
from kdtw_fast.shapes import T5Shape, random_native

# --- Equal to generate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 40])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_rows_are_those_of_generate(
    method: Any, options: dict[str, Any], batch_size: int, temperature: float, device: str
) -> None:
    rows, limit, relations = (ragged(13), 24, RELATIONS) if device == "cpu" else (ragged(4), 5, ["noisy"])
    for relation in relations:
        decoder = make(method, options, natives(device, relation), num_threads=1)
        settings = {"max_new_tokens": limit, "temperature": temperature, "output_logprobs": True, "seed": 3}
        outputs = list(decoder.stream(iter(rows), batch_size=batch_size, **settings))
        assert_rows(outputs, decoder.generate(rows, **settings))


@pytest.mark.parametrize("relation", RELATIONS)
def test_items_may_have_limits_and_row_ids_and_teacher_sources_of_their_own(relation: str, device: str) -> None:
    decoder = make(TrainingWheelsDecoder, {"verify_lenience": 0.5}, natives(device, relation))
    rows, teacher_rows = ragged(10, 1), ragged(10, 2)
    fractions, calls = [0.0, 0.1, 0.5, 1.0, None] * 2, [3, None] * 5
    keys = [7, 2**63, 0, 5, 4, 3, 2, 1, 6, 9]
    settings = {"max_new_tokens": 20 if device == "cpu" else 5, "temperature": 0.7, "output_logprobs": True}
    expected = decoder.generate(
        rows,
        teacher_inputs={"input_ids": teacher_rows},
        max_teacher_fraction=fractions,
        max_teacher_calls=calls,
        row_ids=keys,
        **settings,
    )
    items = [
        {
            "input_ids": np.array(rows[i]),
            "teacher_input_ids": torch.tensor(teacher_rows[i]),
            "max_teacher_fraction": fractions[i],
            "max_teacher_calls": calls[i],
            "row_id": keys[i],
        }
        for i in range(10)
    ]
    assert_rows(list(decoder.stream(items, batch_size=3, **settings)), expected)
    shared = decoder.generate(rows, max_teacher_fraction=[0.25] * 9 + [0.75], **settings)
    items = [*rows[:9], {"input_ids": rows[9], "max_teacher_fraction": 0.75}]
    assert_rows(list(decoder.stream(items, batch_size=4, max_teacher_fraction=0.25, **settings)), shared)


@pytest.mark.parametrize("device", ["cpu", pytest.param("simulated", marks=pytest.mark.long)], indirect=True)
def test_admission_order_slots_and_neighbours_change_nothing(device: str) -> None:
    """Random methods, orders, numbers of slots, threads and ways to hold the teacher's rows."""
    rng = np.random.default_rng(0)
    rows, cases, longest = (ragged(12, 5), 60, 30) if device == "cpu" else (ragged(6, 5), 8, 9)
    for _ in range(cases):
        method, options = METHODS[rng.integers(len(METHODS))]
        models = natives(device, RELATIONS[rng.integers(len(RELATIONS))], int(rng.choice([1, 4])))
        decoder = make(method, options, models, num_threads=int(rng.integers(1, 3)))
        settings = {
            "max_new_tokens": int(rng.integers(1, longest)),
            "temperature": float(rng.choice([0.0, 1.0])),
            "forced_tokens": [5, 6][: int(rng.integers(2))] if rng.random() < 0.3 else [],
            "output_logprobs": bool(rng.random() < 0.5),
        }
        settings["max_new_tokens"] += len(settings["forced_tokens"])
        expected = decoder.generate(rows, **settings)
        order = rng.permutation(len(rows)).tolist()
        items = [{"input_ids": rows[row], "row_id": row} for row in order]
        batch_size, teacher_batch = int(rng.integers(1, 15)), [None, *range(1, 15)][rng.integers(15)]
        outputs = list(decoder.stream(items, batch_size=batch_size, teacher_batch=teacher_batch, **settings))
        assert sorted(out.index for out in outputs) == list(range(len(rows)))
        for out in outputs:
            assert row_of(out, 0) == row_of(expected, order[out.index])


@pytest.fixture
def texts_decoder(device: str) -> TrainingWheelsDecoder:
    student, teacher = random_pair("swapped", 1, VOCAB)
    student.config.student_prompt, student.config.teacher_prompt = "{budget}: ", "t: "
    teacher.config.teacher_prompt = "t: "
    return TrainingWheelsDecoder(student, teacher, tokenizer=Tokenizer(), device=device)


def test_texts_get_their_prompts_and_are_tokenized_together(texts_decoder: TrainingWheelsDecoder) -> None:
    texts = ["one", "another", "a third, longer", "four", "the fifth"]
    outputs = list(texts_decoder.stream(texts, budget="light", batch_size=4, max_new_tokens=9))
    assert texts_decoder.tokenizer.calls[:2] == [8, 2]  # the student's prompts and the teacher's in one call
    assert_rows(outputs, texts_decoder(texts, budget="light", max_new_tokens=9))
    budgets = ["no", "light", 0.3, "high", "very high"]
    items: list[Any] = [{"text": text, "budget": budget} for text, budget in zip(texts, budgets, strict=True)]
    items[1] = texts[1]  # takes the stream's
    for out in texts_decoder.stream(items, budget="light", batch_size=2, max_new_tokens=9):
        alone = texts_decoder(texts[out.index], budget=budgets[out.index], max_new_tokens=9)
        assert row_of(out, 0) == row_of(alone, 0)
    mixed = list(texts_decoder.stream(["one", [5, 6, EOS]], budget="no", max_new_tokens=4, in_order=True))
    assert mixed[0].texts == texts_decoder("one", budget="no", max_new_tokens=4).texts and mixed[1].texts is None


def test_no_means_no_call_unless_a_limit_says_otherwise(texts_decoder: TrainingWheelsDecoder) -> None:
    texts = ["one", "another", "a third, longer", "four", "the fifth"]
    free = texts_decoder(texts, budget="no", max_teacher_fraction=1.0, max_new_tokens=9)
    assert int(free.teacher_calls.sum()) > 0
    assert int(texts_decoder(texts, budget=0, max_new_tokens=9).teacher_calls.sum()) == 0
    items = [{"text": text, "budget": 0.0} for text in texts] + [
        {"text": "one", "budget": "no", "max_teacher_calls": 5}
    ]
    calls = [
        int(out.teacher_calls[0]) for out in texts_decoder.stream(items, budget="high", max_new_tokens=9, in_order=True)
    ]
    assert calls[:5] == [0] * 5 and calls[5] == min(5, int(free.teacher_calls[0]))


# --- What is handed out when -----------------------------------------------------------------------------


def test_outputs_come_as_they_finish_or_in_order(device: str) -> None:
    decoder, rows = make(SingleModelDecoder, {}, natives(device)), ragged(20, 3)
    settings = {"max_new_tokens": 60 if device == "cpu" else 20, "temperature": 1.0}
    lengths = decoder.generate(rows, **settings).lengths
    finished = [out.index for out in decoder.stream(rows, batch_size=6, **settings)]
    assert int(lengths[finished[0]]) == int(lengths[:6].min()) < int(lengths[0])
    assert sorted(finished) == list(range(20)) != finished
    assert [out.index for out in decoder.stream(rows, batch_size=6, in_order=True, **settings)] == sorted(finished)


@pytest.mark.parametrize("in_order", [False, True])
def test_the_input_is_read_only_as_rows_leave(in_order: bool, device: str) -> None:
    read: list[int] = []

    def endless() -> Iterator[list[int]]:
        for i, row in enumerate(itertools.cycle(ragged(7))):
            read.append(i)
            yield row

    decoder = make(SpeculativeDecoder, {}, natives(device))
    stream = decoder.stream(endless(), batch_size=3, in_order=in_order, max_new_tokens=12)
    assert read == []
    for taken, _ in enumerate(itertools.islice(stream, 40 if device == "cpu" else 12)):
        if not in_order:
            assert 3 <= len(read) <= taken + 3  # nobody reads while finished rows wait to be taken
    stream.close()
    count = len(read)
    assert list(stream) == [] and len(read) == count


def test_nothing_in_nothing_out(device: str) -> None:
    stream = make(SingleModelDecoder, {}, natives(device)).stream([])
    assert list(stream) == [] and list(stream) == []
    assert (stream.student_passes, stream.failed) == (0, None)


def test_passes_and_seconds_are_the_streams(device: str) -> None:
    decoder = make(SpeculativeDecoder, {}, natives(device))
    stream = decoder.stream(ragged(6), batch_size=2, max_new_tokens=10)
    outputs = [next(stream)]
    passes = stream.student_passes
    outputs += stream
    assert 0 < passes < stream.student_passes and stream.teacher_passes > 0
    times = stream.timings
    assert min(times.encode, times.student, times.teacher, times.other) > 0.0
    assert all(out.timings is None and out.student_passes is None and out.teacher_passes is None for out in outputs)
    assert stream.teacher_passes <= sum(int(out.teacher_calls[0]) for out in outputs)


def test_time_is_each_rows_own(device: str) -> None:
    model = slow_model(device)
    settings = {"min_new_tokens": 2000, "max_new_tokens": 2000, "max_time": 0.1}
    outputs = list(SingleModelDecoder(model).stream([[5, 6, EOS]] * 3, batch_size=1, **settings))
    assert [out.finish_reasons for out in outputs] == [["time"]] * 3
    assert all(0 < int(out.lengths[0]) < 2000 for out in outputs)


def test_a_row_without_outputs_asked_nobody(device: str) -> None:
    for decoder in (SingleModelDecoder(slow_model(device)), SpeculativeDecoder(slow_model(device), slow_model(device))):
        output = decoder.generate([[5, 6, EOS]], max_time=1e-9)
        assert output.finish_reasons == ["time"] and output.output_ids == [[]]
        assert output.teacher_fraction.tolist() == [0.0]
        assert not output.fraction_by_teacher.any()


# --- Rows that wait for the teacher ----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), METHODS[1:])
def test_results_do_not_depend_on_when_the_teacher_is_called(method: Any, options: dict[str, Any], device: str) -> None:
    rows, limit, relations = (ragged(9, 4), 24, RELATIONS) if device == "cpu" else (ragged(4, 4), 6, ["noisy"])
    for relation, temperature in itertools.product(relations, (0.0, 1.0)):
        decoder = make(method, options, natives(device, relation))
        settings = {"max_new_tokens": limit, "temperature": temperature, "output_logprobs": True}
        default = decoder.generate(rows, **settings)
        for teacher_batch in (1, 2, 5, 9, 2**31 - 1) if device == "cpu" else (1, 3):
            output = decoder.generate(rows, teacher_batch=teacher_batch, **settings)
            for row in range(len(rows)):
                assert row_of(output, row) == row_of(default, row)


def test_holding_rows_makes_fewer_and_larger_calls(device: str) -> None:
    decoder = make(TrainingWheelsDecoder, {}, natives(device, "swapped"))
    passes, limit = {}, 40 if device == "cpu" else 16
    for teacher_batch in (1, 4, 12):
        out = decoder.generate(ragged(12, 6), max_new_tokens=limit, teacher_batch=teacher_batch, temperature=1.0)
        passes[teacher_batch] = (out.teacher_passes, -out.student_passes)
    # The student's steps, in turn, become more and smaller.
    assert passes[1] > passes[4] > passes[12] and passes[1][1] > passes[4][1] > passes[12][1]


@pytest.mark.parametrize(
    ("waiting", "drafting", "batch", "calls"),
    [
        (0, 0, 0, False),
        (0, 5, 1, False),  # nobody waits
        (1, 0, 9, True),  # nobody else can go on
        (1, 1, 0, True),  # half of those that run
        (3, 4, 0, False),
        (4, 4, 0, True),
        (1, 9, 1, True),  # at once
        (2, 1, 3, False),
        (3, 1, 3, True),
    ],
)
def test_call_now(waiting: int, drafting: int, batch: int, calls: bool) -> None:
    assert _core.call_now(waiting, drafting, batch) is calls


# --- Closing, threads, memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "with", "del", "exhaust", "error"])
def test_the_end_of_a_stream_frees_its_session(end: str, device: str) -> None:
    inputs = iter([*ragged(6), None] if end == "error" else ragged(6))
    stream = make(SpeculativeDecoder, {}, natives(device)).stream(inputs, batch_size=3, max_new_tokens=9)
    session = weakref.ref(stream._session)
    next(stream)
    assert session() is not None
    if end == "close":
        stream.close()
        stream.close()
        assert stream.student_passes > 0 and list(stream) == []
    elif end == "with":
        with stream:
            next(stream)
    elif end == "del":
        del stream
    else:
        error = drain(stream)[1]
        assert (error is not None) == (end == "error")
    assert session() is None


def test_a_stream_serves_one_call_at_a_time(device: str) -> None:
    decoder = make(SingleModelDecoder, {}, natives(device))

    def asks_itself() -> Iterator[list[int]]:
        yield ragged(1)[0]
        yield next(stream).sequences[0].tolist()

    stream = decoder.stream(asks_itself(), batch_size=2)
    outputs, error = drain(stream)
    assert len(outputs) == 1
    assert_sentence(error, RuntimeError, ["at work"])

    entered, leave = threading.Event(), threading.Event()

    def slow() -> Iterator[list[int]]:
        entered.set()
        assert leave.wait(60)
        yield ragged(1)[0]

    stream = decoder.stream(slow())
    outputs = []
    thread = threading.Thread(target=lambda: outputs.extend(stream))
    thread.start()
    assert entered.wait(60)
    for call in (stream.close, stream.__next__):
        with pytest.raises(RuntimeError, match="another thread"):
            call()
    leave.set()
    thread.join()
    assert len(outputs) == 1


def test_two_streams_run_at_the_same_time(device: str) -> None:
    decoder = make(SpeculativeDecoder, {}, natives(device), num_threads=2)
    turns, limit = (5, 20) if device == "cpu" else (1, 8)
    expected = decoder.generate(ragged(8), max_new_tokens=limit)
    for _ in range(turns):
        streams = [decoder.stream(ragged(8), batch_size=size, max_new_tokens=limit) for size in (2, 3, 5)]
        results: list[list[GenerationOutput]] = [[] for _ in streams]
        pairs = zip(results, streams, strict=True)
        threads = [threading.Thread(target=result.extend, args=(stream,)) for result, stream in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            assert_rows(result, expected)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("device", ["cpu", pytest.param("simulated", marks=pytest.mark.long)], indirect=True)
def test_slots_are_used_again_and_nothing_grows(device: str) -> None:
    decoder = make(SpeculativeDecoder, {}, natives(device))
    rows = ragged(50, 8)
    stream = decoder.stream(itertools.cycle(rows), batch_size=4, max_new_tokens=10)

    def take(count: int) -> None:
        for _ in itertools.islice(stream, count):
            pass

    share = 1 if device == "cpu" else 100  # of the rows
    take(300 // share)
    before = resident_bytes()
    take(3000 // share)
    assert resident_bytes() - before < 1 << 20


def test_a_long_capacity_costs_only_what_is_used() -> None:
    """64 slots of 2^15 outputs would be gigabytes. The CPU's: device memory is taken as a whole (docs/cuda.md)."""
    decoder = make(SingleModelDecoder, {}, natives("cpu", "noisy", 2))
    before = resident_bytes()
    stream = decoder.stream(ragged(80), batch_size=64, max_new_tokens=2**15, max_source_length=2**15, max_time=0.05)
    next(stream)
    assert resident_bytes() - before < 64 << 20


def test_the_longest_sources_that_may_come_are_not_paid_for() -> None:
    """Keys and values of 64 slots of 2^20 source tokens would be tens of gigabytes, more than a machine promises."""
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this machine promises no memory that it does not have")
    native = random_native(T5Shape("wide", 64, 64, 12, 64, 2, 50))
    decoder = SingleModelDecoder(native)
    before = resident_bytes()
    stream = decoder.stream([[5, 6, EOS]] * 70, batch_size=64, max_new_tokens=4, max_source_length=2**20)
    assert len(list(stream)) == 70
    assert resident_bytes() - before < 64 << 20


# --- The core's session ----------------------------------------------------------------------------------


def open_session(slots: int, model: NativeT5, rules: _core.MethodRules | None = None, **changes: Any) -> _core.Session:
    row = {
        "max_new_tokens": 12,
        "min_new_tokens": 0,
        "student_sampling": _core.Sampling(1.0),
        "teacher_sampling": _core.Sampling(),
        "seed": 0,
        "max_seconds": 0.0,
        "forced_tokens": [],
    }
    row |= {name: changes.pop(name) for name in row if name in changes}
    options = {
        "row": _core.RowOptions(**row),
        "teacher_batch": 0,
        "want_log_probs": True,
        "want_reads": False,
        "threads": 1,
    }
    special = _core.SpecialTokens(START, [EOS])
    decoder = _core.Decoder(model.device, model.core, None, rules or _core.MethodRules(), special)
    return _core.Session(decoder, _core.SessionOptions(**options | changes), slots, 40)


def test_a_slot_forgets_a_row_that_was_not_a_number(device: str) -> None:
    """One slot: what a row leaves there (NaN in keys and values, long and short) does not reach the next row."""
    native, _ = nan_for(9, device)
    rng = np.random.default_rng(1)
    session = open_session(1, native)
    faults, share = 0, 1 if device == "cpu" else 5  # of the rows
    for key in range(120 // share):
        row = rng.integers(2, VOCAB, size=int(rng.integers(1, 40))).tolist()
        session.add(key, _core.Ledger(), row, [])
        result = session.run(False, 0, None)
        if result["faults"]:
            faults += 1
            continue
        fresh = open_session(1, native)
        fresh.add(key, _core.Ledger(), row, [])
        alone = fresh.run(True, 0, None)
        for name in ("sequences", "owners", "student_logprobs"):
            assert result[name].tobytes() == alone[name].tobytes()
    assert 20 < faults * share < 100


def test_a_model_alone_is_student_or_teacher(device: str) -> None:
    """The same tokens by either name, and everything that is counted stands under that name."""
    native = NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=6), device=device)
    results, sessions = [], []
    for rules in (_core.MethodRules(), _core.MethodRules(teacher_alone=True)):
        session = open_session(2, native, rules, want_reads=True, forced_tokens=[4])
        for key, row in enumerate(([5, 6, 7], [9, 8])):
            session.add(key, _core.Ledger(), row, [])
        results.append(session.run(True, 0, None))
        sessions.append(session)
    student, teacher = results
    assert student["sequences"].tolist() == teacher["sequences"].tolist()
    assert student["student_logprobs"].tobytes() == teacher["teacher_logprobs"].tobytes()
    assert np.isnan(student["teacher_logprobs"]).all() and np.isnan(teacher["student_logprobs"]).all()
    assert student["student_reads"] == teacher["teacher_reads"] and teacher["student_reads"] == [[], []]
    written = student["lengths"] - 1
    assert student["drafted"].tolist() == written.tolist() and teacher["drafted"].tolist() == [0, 0]
    assert teacher["teacher_calls"].tolist() == written.tolist() and student["teacher_calls"].tolist() == [0, 0]
    assert teacher["calls_by_teacher"][:, 0].tolist() == written.tolist()
    assert student["calls_by_teacher"].shape == (2, 0)
    assert np.allclose(teacher["fraction_by_teacher"][:, 0], teacher["teacher_fraction"])
    assert np.allclose(teacher["teacher_fraction"], written / student["lengths"])
    owners = np.where(student["owners"] == 1, 2, student["owners"])
    assert teacher["owners"].tolist() == owners.tolist()
    assert teacher["teacher_index"].tolist() == (owners == 2).astype(int).tolist()
    assert sessions[0].student_passes == sessions[1].teacher_passes > 0
    assert sessions[0].teacher_passes == sessions[1].student_passes == 0
    assert sessions[1].seconds[1] == 0.0 < sessions[1].seconds[2]


def test_session_refuses_what_it_cannot_do(device: str) -> None:
    native = natives(device)[0]
    ledger = _core.Ledger()
    with pytest.raises(ValueError, match="at least one slot, got 0"):
        open_session(0, native)
    session = open_session(1, native)
    assert session.run(False, 0, None)["index"].tolist() == []  # nothing to do
    for bad in ([], [5] * 41):
        with pytest.raises(ValueError, match=f"1 to 40 tokens in this session, got {len(bad)}"):
            session.add(0, ledger, bad, [])
    session.add(0, ledger, [5, EOS], [])
    with pytest.raises(RuntimeError, match="no free slot"):
        session.add(1, ledger, [5, EOS], [])
    assert (session.free_slots, session.run(True, 0, None)["index"].tolist(), session.free_slots) == (0, [0], 1)


@pytest.mark.parametrize("call", ["run", "add"])
def test_a_session_is_not_entered_twice_and_ends_with_an_exception(call: str, device: str) -> None:
    session = open_session(2, natives(device)[0])
    arguments = {"run": (True, 0, None), "add": (1, _core.Ledger(), [5, EOS], [])}
    session.add(*arguments["add"])
    with pytest.raises(RuntimeError, match="one call at a time"):
        session.run(True, 0, lambda *token: getattr(session, call)(*arguments[call]))
    for name in arguments:
        with pytest.raises(RuntimeError, match="open a new one"):
            getattr(session, name)(*arguments[name])


def test_what_a_model_says_behind_a_draft_that_does_not_stand_is_no_fault(device: str) -> None:
    student, teacher = (chain_t5(path_table([5, second, 7, 8, EOS], 20)) for second in (6, 9))
    with torch.no_grad():
        teacher.shared.weight[6] = math.nan  # of a token that it never writes
    expected = SingleModelDecoder(teacher, device=device).generate([[5, EOS]], max_new_tokens=8).output_ids
    assert expected == [[5, 9, 7, 8, EOS]]
    pair = SpeculativeDecoder(student, teacher, draft_length=4, device=device)
    assert pair.generate([[5, EOS]], max_new_tokens=8).output_ids == expected


def test_generate_stops_at_the_first_fault(device: str) -> None:
    """A long batch does not run on when one of its rows has failed."""
    table = path_table([2, 3, 4, 5, EOS], 16)
    model = chain_t5(table)
    with torch.no_grad():
        model.shared.weight[9] = math.nan
    seen: list[tuple[int, int]] = []

    def streamer(row: int, position: int, token: int, owner: int) -> None:
        seen.append((row, position))

    with pytest.raises(FloatingPointError, match="row 1, step 0"):
        SingleModelDecoder(model, device=device).generate([[6, EOS], [9, EOS]], streamer=streamer)
    assert seen == [(0, 0)]
