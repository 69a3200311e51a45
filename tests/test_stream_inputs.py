"""Inputs of a stream that are wrong, slow, or interrupted: what comes out before, instead and after."""

from __future__ import annotations

import _thread
import copy
import itertools
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from factories import (
    EOS,
    START,
    slow_model,
)
from streaming import VOCAB, Tokenizer, assert_rows, assert_sentence, drain, make, nan_for, natives, ragged, row_of

from kdtw_fast import GenerationOutput, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder

# --- What goes wrong -------------------------------------------------------------------------------------

GOOD = [5, 6, 7, EOS]
BAD_ITEMS: list[tuple[Any, type[Exception], list[str]]] = [
    (5, TypeError, ["item 2", "5", "int"]),
    (None, ValueError, ["item 2", "'text'", "'input_ids'"]),
    ([], ValueError, ["item 2", "empty"]),
    ([START, START], ValueError, ["item 2", "empty"]),
    ([EOS], ValueError, ["item 2", "end token"]),
    ([5, 1.5], TypeError, ["item 2", "1.5"]),
    ([[5, 6]], TypeError, ["item 2", "[5, 6]"]),
    (torch.tensor([5.0]), TypeError, ["item 2", "5.0"]),
    ([5, 99], ValueError, ["item 2", "99", "student"]),
    ([5, VOCAB], ValueError, ["item 2", str(VOCAB), "teacher"]),
    ([5] * 41, ValueError, ["item 2", "41 tokens", "max_source_length=40", "truncation"]),
    ("text", ValueError, ["item 2", "tokenizer"]),
    ({}, ValueError, ["item 2", "'text'", "'input_ids'"]),
    ({"text": "a", "input_ids": [5]}, ValueError, ["item 2", "either"]),
    ({"input_id": [5]}, TypeError, ["item 2", "'input_id'", "'input_ids'"]),
    ({"input_ids": [5], "teacher_input_ids": [77]}, ValueError, ["item 2", "teacher_input_ids", "77"]),
    ({"text": "a", "teacher_input_ids": [7]}, ValueError, ["item 2", "teacher_input_ids"]),
    ([True, 5], TypeError, ["item 2", "True", "bool"]),
    ({"input_ids": [5], "teacher_input_ids": [False]}, TypeError, ["item 2", "teacher_input_ids", "False"]),
    (torch.tensor([True]), TypeError, ["item 2", "True"]),
    ("a\ud800b", ValueError, ["item 2", "lone surrogate", "character 1"]),
    ({"messages": [{"role": "user", "content": "\udfff"}]}, ValueError, ["item 2", "message 0", "lone surrogate"]),
    ({"input_ids": [5], "budget": "light"}, ValueError, ["item 2", "budget", "'light'"]),
    ({"text": "a", "budget": "ligth"}, ValueError, ["item 2", "'ligth'", '"light"']),
    ({"text": "a", "budget": [1]}, TypeError, ["item 2", "budget", "list"]),
    ({"input_ids": [5], "row_id": -1}, ValueError, ["item 2", "row_id", "-1"]),
    ({"input_ids": [5], "row_id": "a"}, TypeError, ["item 2", "row_id", "'a'"]),
    ({"input_ids": [5], "max_teacher_fraction": 2}, ValueError, ["item 2", "max_teacher_fraction", "2"]),
    ({"input_ids": [5], "max_teacher_calls": 0.5}, TypeError, ["item 2", "max_teacher_calls", "0.5"]),
]


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(("item", "expected", "parts"), BAD_ITEMS, ids=[str(case[0])[:40] for case in BAD_ITEMS])
def test_a_bad_item_is_named_after_the_rows_before_it(
    item: Any, expected: type[Exception], parts: list[str], in_order: bool, device: str
) -> None:
    decoder = make(TrainingWheelsDecoder, {}, natives(device, "noisy", 2))  # whose tau is beyond the teacher's rows
    settings = {"max_new_tokens": 8, "max_source_length": 40, "in_order": in_order}
    whole = decoder.generate([GOOD, [8, EOS]], max_new_tokens=8)
    for batch_size in (1, 2, 3, 5) if device == "cpu" else (2,):
        stream = decoder.stream([GOOD, [8, EOS], item, GOOD], batch_size=batch_size, **settings)
        outputs, error = drain(stream)
        assert_sentence(error, expected, parts)
        assert stream.failed == 2
        assert_rows(outputs, whole)
    assert_rows(list(decoder.stream([GOOD, [8, EOS]], **settings)), whole)


@pytest.mark.parametrize("budget", ["light", "bogus"])
def test_a_budget_that_no_prompt_takes_is_refused(budget: str) -> None:
    """Of a teacher alone, and of a student whose prompt has no place for one."""
    student, teacher = copy.copy(natives("cpu")[0]), copy.copy(natives("cpu")[1])
    student.student_prompt = "Translate: "
    teacher.student_prompt = "With {budget} use: "  # a teacher reads the prompt of teachers
    tokenizer = Tokenizer()
    alone = SingleModelDecoder(teacher, role="teacher", tokenizer=tokenizer)
    for decoder in (alone, SpeculativeDecoder(student, teacher, tokenizer=tokenizer)):
        item = {"text": "a", "budget": "light"}
        for call in (
            partial(decoder, "a", budget=budget),
            partial(decoder, "a", budget=[budget]),
            partial(decoder.stream, ["a"], budget=budget),
            partial(decoder.submit, "a", budget=budget),
            partial(next, decoder.stream([item])),
            partial(decoder.submit, item),
        ):
            with pytest.raises(TypeError, match=f"{type(decoder).__name__} takes no budget, .* leave it out"):
                call()
        assert decoder("a", max_new_tokens=2).texts
    told = SingleModelDecoder(teacher, tokenizer=tokenizer)
    assert told("a", budget="light", max_new_tokens=2).texts and told("a", max_new_tokens=2).texts


def test_items_that_a_decoder_cannot_take(device: str) -> None:
    models, tokenizer = natives(device), Tokenizer()
    greedy = make(SingleModelDecoder, {}, models)
    speculative = make(SpeculativeDecoder, {}, models, tokenizer=tokenizer)
    wheels = make(TrainingWheelsDecoder, {}, models, tokenizer=tokenizer)
    for decoder, item, expected, parts in (
        (greedy, {"input_ids": GOOD, "teacher_input_ids": GOOD}, TypeError, ["item 0", "SingleModelDecoder"]),
        (speculative, {"text": "a", "max_teacher_calls": 2}, TypeError, ["item 0", "max_teacher_calls", "Speculative"]),
        (wheels, "a", ValueError, ["item 0", "budget"]),
    ):
        outputs, error = drain(decoder.stream([item]))
        assert outputs == []
        assert_sentence(error, expected, parts)


BAD_OPTIONS: list[tuple[Any, dict[str, Any], type[Exception], list[str]]] = [
    ("a text", {}, TypeError, ["inputs", "str", "list of one"]),
    ({"input_ids": GOOD}, {}, TypeError, ["inputs", "dict"]),
    (5, {}, TypeError, ["inputs", "int"]),
    ([GOOD], {"batch_size": 0}, ValueError, ["batch_size", "0"]),
    ([GOOD], {"batch_size": 2.0}, TypeError, ["batch_size", "2.0"]),
    ([GOOD], {"batch_size": 2**31 - 1}, ValueError, ["batch_size", "65536", "2147483647"]),
    ([GOOD], {"on_error": "retrun"}, ValueError, ["on_error", "'retrun'", "'return'"]),
    ([GOOD], {"on_error": None}, TypeError, ["on_error", "None"]),
    ([GOOD], {"budget": "ligth"}, ValueError, ["'ligth'", '"light"']),
    ([GOOD], {"row_ids": [0]}, ValueError, ["row_ids", "row_id"]),
    ([GOOD], {"num_return_sequences": 2}, ValueError, ["num_return_sequences", "2"]),
    ([GOOD], {"max_teacher_calls": [1]}, ValueError, ["max_teacher_calls", "[1]"]),
    ([GOOD], {"max_teacher_fraction": 2.0}, ValueError, ["max_teacher_fraction", "2.0"]),
    ([GOOD], {"teacher_batch": 0}, ValueError, ["teacher_batch", "0"]),
    ([GOOD], {"teacher_batch": 1.5}, TypeError, ["teacher_batch", "1.5"]),
    ([GOOD], {"teacher_inputs": {}}, TypeError, ["TrainingWheelsDecoder.stream", "'teacher_inputs'"]),
    ([GOOD], {"max_new_token": 3}, TypeError, ["'max_new_token'", "'max_new_tokens'"]),
]


@pytest.mark.parametrize(("inputs", "options", "expected", "parts"), BAD_OPTIONS, ids=[str(c[:2]) for c in BAD_OPTIONS])
def test_bad_options_are_an_error_of_the_call(
    inputs: Any, options: dict[str, Any], expected: type[Exception], parts: list[str], device: str
) -> None:
    with pytest.raises(expected) as caught:
        make(TrainingWheelsDecoder, {}, natives(device)).stream(inputs, **options)
    assert_sentence(caught.value, expected, parts)


@pytest.mark.parametrize("in_order", [False, True])
def test_an_exception_of_the_input_comes_after_the_rows_that_run(in_order: bool, device: str) -> None:
    def broken() -> Iterator[list[int]]:
        yield from ragged(4)
        raise LookupError("no more")

    decoder = make(SpeculativeDecoder, {}, natives(device))
    stream = decoder.stream(broken(), batch_size=3, in_order=in_order, max_new_tokens=9)
    outputs, error = drain(stream)
    assert type(error) is LookupError and stream.failed == 4
    assert_rows(outputs, decoder.generate(ragged(4), max_new_tokens=9))


def test_a_row_at_fault_ends_the_reading_and_not_its_neighbours(device: str) -> None:
    native, rows = nan_for(9, device)
    decoder = SingleModelDecoder(native)
    good = decoder.generate([rows[0], rows[1], rows[3], rows[4]], max_new_tokens=12)
    stream = decoder.stream([*rows, *rows], batch_size=4, max_new_tokens=12)
    outputs, error = drain(stream)
    assert_sentence(error, FloatingPointError, ["model", "row 2", "step 0"])
    assert [out.index for out in sorted(outputs, key=lambda out: out.index)] == [0, 1, 3] and stream.failed == 2
    for out in outputs:
        assert row_of(out, 0) == row_of(good, {0: 0, 1: 1, 3: 2}[out.index])
    outputs, error = drain(decoder.stream(rows, batch_size=4, in_order=True, max_new_tokens=12))
    assert_sentence(error, FloatingPointError, ["row 2"])  # in its item's place
    assert [out.index for out in outputs] == [0, 1]
    assert decoder.generate(rows[:2], max_new_tokens=12).lengths.tolist() == good.lengths[:2].tolist()


def test_an_interruption_closes_the_stream_at_once(device: str) -> None:
    def interrupted() -> Iterator[list[int]]:
        yield from ragged(4)
        raise KeyboardInterrupt

    decoder = make(SingleModelDecoder, {}, natives(device))
    stream = decoder.stream(interrupted(), batch_size=3, max_new_tokens=9)
    outputs, error = drain(stream)
    assert type(error) is KeyboardInterrupt and len(outputs) < 4 and stream.failed is None
    assert_rows(list(decoder.stream(ragged(4))), decoder.generate(ragged(4)))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell may start what it puts behind it deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_stream_decodes(device: str) -> None:
    model = slow_model(device)
    decoder = SingleModelDecoder(model)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    stream = decoder.stream([[5, 6, EOS]] * 4, batch_size=2, min_new_tokens=10**5, max_new_tokens=10**5)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert list(stream) == []
    assert len(list(decoder.stream([[5, 6, EOS]] * 3, batch_size=2, max_new_tokens=3))) == 3


# --- Slow input, and errors that are returned -------------------------------------------------------------


def by_hand() -> tuple[queue.Queue[Any], Iterator[Any]]:
    """An input that gives what is put into the queue, and ends with None."""
    given: queue.Queue[Any] = queue.Queue()
    return given, iter(given.get, None)


@pytest.mark.parametrize("in_order", [False, True])
def test_rows_go_on_while_the_input_is_waited_for(in_order: bool, device: str) -> None:
    """Each output comes before the next item does: with room for four, none waits for the others."""
    decoder, rows = make(SpeculativeDecoder, {}, natives(device)), ragged(5)
    whole = decoder.generate(rows, max_new_tokens=9)
    given, inputs = by_hand()
    stream = decoder.stream(inputs, batch_size=4, in_order=in_order, max_new_tokens=9)
    outputs = []
    for row in rows:
        given.put(row)
        outputs.append(next(stream))
    given.put(None)
    assert list(stream) == []
    assert_rows(outputs, whole)


def test_an_item_that_comes_late_joins_the_rows_that_run() -> None:
    decoder = SingleModelDecoder(slow_model("cpu"))
    given, inputs = by_hand()
    endless = {"min_new_tokens": 10**5, "max_new_tokens": 10**5, "max_time": 4.0}
    stream = decoder.stream(inputs, batch_size=2, **endless)
    given.put([5, 6, EOS])
    outputs: list[GenerationOutput] = []
    thread = threading.Thread(target=lambda: outputs.extend(itertools.islice(stream, 1)))
    thread.start()
    time.sleep(0.3)
    given.put([7, EOS])
    limit = time.monotonic() + 60
    while stream._added < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    assert stream._added == 2 and not outputs  # the first still runs
    thread.join(60)
    assert len(outputs) == 1
    stream.close()
    given.put(None)


def test_a_stream_that_is_closed_reads_no_more() -> None:
    decoder = make(SingleModelDecoder, {}, natives("cpu"))
    before = set(threading.enumerate())
    given, inputs = by_hand()
    stream = decoder.stream(inputs, batch_size=3, max_new_tokens=4)
    given.put(ragged(1)[0])
    next(stream)
    (reader,) = set(threading.enumerate()) - before
    stream.close()
    given.put(ragged(1)[0])  # what it was in the middle of
    reader.join(60)
    assert not reader.is_alive()
    given.put(ragged(1)[0])
    assert given.qsize() == 1


def test_a_list_needs_no_thread() -> None:
    decoder = make(SingleModelDecoder, {}, natives("cpu"))
    before = set(threading.enumerate())
    with decoder.stream(ragged(9), batch_size=2) as stream:
        next(stream)
        assert set(threading.enumerate()) <= before


def test_without_another_thread_the_input_is_read_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    decoder, rows = make(SingleModelDecoder, {}, natives("cpu")), ragged(7)
    whole = decoder.generate(rows, max_new_tokens=9)
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert_rows(list(decoder.stream(iter(rows), batch_size=2, max_new_tokens=9)), whole)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_the_input_is_waited_for() -> None:
    decoder = make(SingleModelDecoder, {}, natives("cpu"))
    given, inputs = by_hand()
    stream = decoder.stream(inputs)
    here = threading.get_ident()
    threading.Timer(0.2, lambda: signal.pthread_kill(here, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert list(stream) == []
    given.put(None)


def test_a_fork_does_not_wait_for_its_parents_input() -> None:
    decoder = make(SingleModelDecoder, {}, natives("cpu"))
    given, inputs = by_hand()
    stream = decoder.stream(inputs, max_new_tokens=4)
    given.put(ragged(1)[0])
    next(stream)

    def ask(answers: Any) -> None:
        try:
            next(stream)
        except RuntimeError as error:
            answers.put(str(error))

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=ask, args=(answers,))
    child.start()
    assert "not in a fork of it" in answers.get(timeout=60)
    child.join(60)
    given.put(None)
    assert list(stream) == []


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("make_inputs", [list, iter])
def test_errors_that_are_returned_are_outputs_of_their_items(make_inputs: Any, in_order: bool, device: str) -> None:
    decoder = make(TrainingWheelsDecoder, {}, natives(device, "noisy", 2))
    rows = ragged(7)
    bad = {2: BAD_ITEMS[0], 4: BAD_ITEMS[-1]}
    items = [bad[i][0] if i in bad else row for i, row in enumerate(rows)]
    whole = decoder.generate(rows, max_new_tokens=8)
    for batch_size in (1, 2, 3, 9) if device == "cpu" else (2,):
        settings = {"batch_size": batch_size, "in_order": in_order, "max_new_tokens": 8, "max_source_length": 40}
        stream = decoder.stream(make_inputs(items), on_error="return", **settings)
        outputs = list(stream)
        assert stream.failed is None
        if in_order:
            assert [out.index for out in outputs] == list(range(7))
        assert sorted(out.index for out in outputs) == list(range(7))
        for out in outputs:
            if out.index in bad:
                _, expected, parts = bad[out.index]
                assert_sentence(out.error, expected, [part.replace("item 2", f"item {out.index}") for part in parts])
                assert out.sequences is None
            else:
                assert out.error is None and row_of(out, 0) == row_of(whole, out.index)


def test_texts_that_cannot_be_tokenized_are_told_from_those_beside_them() -> None:
    class Choosy(Tokenizer):
        def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
            if any("bad" in text for text in texts):
                raise ValueError("a bad text")
            return super().__call__(texts)

    decoder = make(SingleModelDecoder, {}, natives("cpu"), tokenizer=Choosy())
    texts = ["one", "bad", "two", "three", "bad"]
    outputs = list(decoder.stream(texts, batch_size=5, in_order=True, on_error="return", max_new_tokens=4))
    said = [None if out.error is None else str(out.error) for out in outputs]
    assert said == [None, "a bad text", None, None, "a bad text"]
    assert [out.texts is not None for out in outputs] == [True, False, True, True, False]


@pytest.mark.parametrize("nothing", ["", None], ids=["blank", "wrong"])
def test_rows_that_run_do_not_wait_for_all_that_needs_no_decoding(nothing: Any) -> None:
    decoder = make(SingleModelDecoder, {}, natives("cpu"), tokenizer=Tokenizer())
    items = ["one", *[nothing] * 300]
    outputs = list(decoder.stream(items, batch_size=4, on_error="return", max_new_tokens=4))
    order = [out.index for out in outputs]
    assert sorted(order) == list(range(301)) and 0 < order.index(0) <= 17 * 3


def test_a_row_at_fault_that_is_returned_names_its_item(device: str) -> None:
    native, rows = nan_for(9, device)
    decoder = SingleModelDecoder(native)
    outputs = list(decoder.stream([None, *rows], batch_size=4, in_order=True, on_error="return", max_new_tokens=12))
    assert [out.index for out in outputs if out.error is not None] == [0, 3]
    assert [type(outputs[i].error) for i in (0, 3)] == [ValueError, FloatingPointError]
    assert "row 3, step 0" in str(outputs[3].error)


def test_an_exception_of_the_input_is_never_returned() -> None:
    def broken() -> Iterator[list[int]]:
        yield from ragged(2)
        raise LookupError("no more")

    decoder = make(SpeculativeDecoder, {}, natives("cpu"))
    outputs, error = drain(decoder.stream(broken(), on_error="return", max_new_tokens=4))
    assert len(outputs) == 2 and type(error) is LookupError
