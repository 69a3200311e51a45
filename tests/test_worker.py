"""Inputs that are handed in one at a time, from any thread: each is the row of `generate`, whatever runs beside it."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from factories import pack, slow_model
from streaming import METHODS, assert_rows, make, nan_for, natives, ragged, row_of

from kdtw_fast import SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.decoders import submitting
from kdtw_fast.options import ROW_OPTIONS
from kdtw_fast.worker import Kind, Ticket, Worker, _Job, _Shared

# What rows side by side ask for.
OWN: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 3},
    {"temperature": 0.9},
    {"temperature": 1.3, "seed": 2**63, "top_k": 7},
    {"temperature": 0.9, "teacher_temperature": 0.0, "row_id": 5},
    {"teacher_temperature": 1.1, "teacher_top_p": 0.8, "seed": 9},
    {"min_new_tokens": 9},
    {"temperature": 0.7, "top_p": 0.6, "max_new_tokens": 12, "min_new_tokens": 12},
    {"teacher_temperature": 0.5, "teacher_top_k": 3, "max_new_tokens": 1},
    {"forced_tokens": [7, 8], "begin_suppress_tokens": [5, 6, 9]},
    {"stop_token_ids": [3, 4, 5, 6, 7], "logit_bias": {5: 2.0, (6, 7): 3.0}},
    {"suppress_tokens": [4, 5, 6], "repetition_penalty": 2.0, "bad_words_ids": [[7], [8, 9]]},
    {"no_repeat_ngram_size": 2, "forced_eos_token_id": 1, "max_new_tokens": 9},
]


def alone(decoder: Any, source: list[int], own: dict[str, Any], **shared: Any) -> Any:
    options = shared | own
    key = options.pop("row_id", None)
    return decoder.generate([source], row_ids=None if key is None else [key], **options)


def test_every_option_of_a_row_is_tried() -> None:
    assert {name for own in OWN for name in own} >= set(ROW_OPTIONS) - {"max_time", "stop"}


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_rows_side_by_side_have_options_of_their_own(method: Any, options: dict[str, Any], device: str) -> None:
    decoder = make(method, options, natives(device), num_threads=1)
    shared = {"max_new_tokens": 20 if device == "cpu" else 12, "output_logprobs": True}
    owns = OWN if device == "cpu" else OWN[1:6]
    items = [{"input_ids": row, "row_id": 0} | own for row, own in zip(ragged(len(owns), 5), owns)]
    outputs = list(decoder.stream(items, batch_size=4, **shared))
    assert sorted(out.index for out in outputs) == list(range(len(items)))
    for out in outputs:
        source = items[out.index]["input_ids"]
        assert row_of(out, 0) == row_of(alone(decoder, source, owns[out.index], **shared), 0)


def test_rows_that_end_together_make_room_for_those_that_wait() -> None:
    decoder = SingleModelDecoder(natives("cpu")[0])
    decoder.worker = Worker(2)
    items = [{"input_ids": [5, 6, 1], "min_new_tokens": 4, "max_new_tokens": 4, "seed": i} for i in range(7)]
    tickets = [decoder.submit(item) for item in items]
    assert [int(ticket.result(60).lengths[0]) for ticket in tickets] == [4] * 7


def test_an_items_options_are_checked_by_name() -> None:
    decoder = SingleModelDecoder(natives("cpu")[0])
    for own, said in (
        ({"max_new_tokens": 65}, "exceeds the stream's max_new_tokens=64"),
        ({"min_new_tokens": 65}, "min_new_tokens must be in 0..64"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"max_time": 0.0}, "max_time must be"),
        ({"seed": 1.5}, "seed must be an integer"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"item 1.*{said}"):
            list(decoder.stream([[5, 1], {"input_ids": [5, 1]} | own]))


def test_a_rows_time_is_its_own() -> None:
    decoder = SingleModelDecoder(slow_model("cpu"))
    for seconds in (0.05, 0.5, 2.0):  # a busy machine may write nothing at first
        rows = [{"input_ids": [5, 1], "max_time": seconds}, {"input_ids": [5, 1], "max_new_tokens": 30}]
        late, whole = sorted(decoder.stream(rows, max_new_tokens=5000, min_new_tokens=20), key=lambda out: out.index)
        if late.lengths[0]:
            break
    assert (late.finish_reasons, int(whole.lengths[0])) == (["time"], 30)
    both = min(int(late.lengths[0]), 30)
    assert both > 0 and late.output_ids[0][:both] == whole.output_ids[0][:both]


# --- Handed in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_what_is_submitted_from_threads_is_what_generate_gives(method: Any, options: dict[str, Any]) -> None:
    decoder = make(method, options, natives("cpu"), num_threads=1)
    decoder.worker = Worker(3)
    rows = ragged(12, 6)
    shared = {"max_new_tokens": 20, "output_logprobs": True}
    found: dict[int, Any] = {}

    def client(first: int) -> None:
        for i in range(first, len(rows), 4):
            own = OWN[i % len(OWN)]
            found[i] = decoder.submit({"input_ids": rows[i]} | own, **shared).result(60)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, row in enumerate(rows):
        assert row_of(found[i], 0) == row_of(alone(decoder, row, OWN[i % len(OWN)], **shared), 0)
    assert (decoder.worker.running, decoder.worker.waiting) == (0, 0)


def test_decoders_of_several_methods_share_a_worker() -> None:
    worker = Worker(2)
    decoders = [make(method, options, natives("cpu"), num_threads=1) for method, options in METHODS[:4]]
    rows = ragged(8, 7)
    tickets = []
    for i, row in enumerate(rows):
        decoder = decoders[i % len(decoders)]
        decoder.worker = worker
        tickets.append(decoder.submit(row, max_new_tokens=20))
    for i, ticket in enumerate(tickets):
        assert row_of(ticket.result(60), 0) == row_of(decoders[i % 4].generate([rows[i]], max_new_tokens=20), 0)
        assert ticket.submitted <= ticket.started <= ticket.ended and ticket.source_length == len(rows[i])


def test_a_row_joins_others_that_run() -> None:
    """No row waits for another to end: one that comes late and is short ends long before a long one."""
    decoder = SingleModelDecoder(slow_model("cpu"))
    begun = threading.Event()
    long = decoder.submit([5, 1], max_new_tokens=5000, min_new_tokens=5000, streamer=lambda *_: begun.set())
    assert begun.wait(60)
    short = decoder.submit([6, 1], max_new_tokens=4)
    assert short.result(60) and not long.done()
    assert long.cancel()


def test_tokens_are_handed_out_as_they_settle() -> None:
    student, teacher = natives("cpu")
    for decoder in (TrainingWheelsDecoder(student, teacher), SpeculativeDecoder(student, teacher)):
        told: list[tuple[int, ...]] = []
        out = decoder.submit(ragged(1)[0], max_new_tokens=20, streamer=lambda *token, told=told: told.append(token))
        result = out.result(60)
        tokens, owners = result.output_ids[0], result.owners[0, result.spans[0]].tolist()
        assert told == [(0, i, token, owner) for i, (token, owner) in enumerate(zip(tokens, owners))]


def test_a_streamer_that_fails_ends_its_row_alone() -> None:
    decoder = SingleModelDecoder(natives("cpu")[0])
    rows = ragged(2, 8)

    def broken(*token: int) -> None:
        raise LookupError("no place for it")

    first = decoder.submit(rows[0], max_new_tokens=20, min_new_tokens=20, streamer=broken)
    second = decoder.submit(rows[1], max_new_tokens=20)
    with pytest.raises(LookupError, match="no place"):
        first.result(60)
    assert row_of(second.result(60), 0) == row_of(decoder.generate([rows[1]], max_new_tokens=20), 0)
    quick = decoder.submit(rows[0], max_new_tokens=1, streamer=broken)  # which is its last token
    with pytest.raises(LookupError, match="no place"):
        quick.result(60)


def test_a_streamer_that_fails_ends_its_row_at_once() -> None:
    """Not when the next row ends, which may be long after."""
    decoder = SingleModelDecoder(slow_model("cpu"))
    handed: list[int] = []

    def broken(row: int, position: int, token: int, owner: int) -> None:
        if position == 2:
            raise LookupError("no place for it")

    options: dict[str, Any] = {"max_new_tokens": 5000, "min_new_tokens": 5000}
    other = decoder.submit([6, 1], **options, streamer=lambda *token: handed.append(token[1]))
    ticket = decoder.submit([5, 1], **options, streamer=broken)
    with pytest.raises(LookupError, match="no place"):
        ticket.result(60)
    assert len(handed) < 2500 and not other.done()
    other.cancel()


@pytest.mark.parametrize("streams", [False, True])
def test_a_cancelled_row_makes_room(streams: bool) -> None:
    decoder = SingleModelDecoder(slow_model("cpu"))
    decoder.worker = Worker(1)
    options = {"max_new_tokens": 100_000, "min_new_tokens": 100_000}
    ticket = decoder.submit([5, 1], **options, streamer=(lambda *_: None) if streams else None)
    waiting = decoder.submit([5, 1], **options)
    last = decoder.submit([6, 1], **options | {"max_new_tokens": 3, "min_new_tokens": 0})
    while decoder.worker.running == 0:
        time.sleep(0.001)
    assert ticket.cancel() and waiting.cancel()
    assert int(last.result(60).lengths[0]) <= 3
    with pytest.raises(CancelledError):
        ticket.result()


def test_a_cancelled_row_leaves_the_queue_while_no_slot_is_free() -> None:
    decoder = SingleModelDecoder(slow_model("cpu"))
    decoder.worker = Worker(1)
    options = {"max_new_tokens": 100_000, "min_new_tokens": 100_000}
    running = decoder.submit([5, 1], **options)
    waiting = [decoder.submit([5, 1], **options) for _ in range(5)]
    while decoder.worker.running == 0:
        time.sleep(0.001)
    for ticket in waiting[1:]:
        ticket.cancel()
    deadline = time.monotonic() + 20
    while decoder.worker.waiting != 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert decoder.worker.waiting == 1 and not running.done() and not waiting[0].done()
    waiting[0].cancel(), running.cancel()


def test_a_row_whose_logits_are_not_finite_fails_alone() -> None:
    native, rows = nan_for(9, "cpu")
    decoder = SingleModelDecoder(native)
    tickets = [decoder.submit(row, max_new_tokens=8) for row in rows]
    with pytest.raises(FloatingPointError, match="not finite at this row, step"):
        tickets[2].result(60)
    for i in (0, 1, 3, 4):
        assert row_of(tickets[i].result(60), 0) == row_of(decoder.generate([rows[i]], max_new_tokens=8), 0)


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        ([], {}, "the input is empty"),
        ([999], {}, "token id 999"),
        ("a text", {}, "no tokenizer"),
        ([5, 1], {"num_return_sequences": 2}, "one output"),
        ([5, 1], {"row_ids": [1]}, "no row_ids"),
        ([5, 1], {"temprature": 1}, "did you mean 'temperature'"),
        ([5, 1], {"streamer": 3}, "streamer must be callable"),
        ({"input_ids": [5, 1], "max_new_tokens": 9}, {"max_new_tokens": 8}, "exceeds"),
    ],
)
def test_what_is_wrong_is_said_at_once(value: Any, options: dict[str, Any], said: str) -> None:
    decoder = SingleModelDecoder(natives("cpu")[0])
    with pytest.raises((TypeError, ValueError), match=said):
        decoder.submit(value, **options)
    assert decoder.worker.waiting == 0


def test_a_worker_ends_with_its_decoder_and_refuses_what_comes_then() -> None:
    decoder = SingleModelDecoder(slow_model("cpu"))
    ticket = decoder.submit([5, 1], max_new_tokens=100_000, min_new_tokens=100_000)
    thread, gone = decoder.worker._shared.thread, weakref.ref(decoder.worker)
    worker = decoder.worker
    worker.close()
    assert ticket.cancelled() and not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        decoder.submit([5, 1])
    del decoder, worker
    gc.collect()
    assert gone() is None

    decoder = SingleModelDecoder(natives("cpu")[0])
    decoder.submit([5, 1]).result(60)
    thread = decoder.worker._shared.thread
    del decoder
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_fork_is_told_to_make_its_own() -> None:
    decoder = SingleModelDecoder(natives("cpu")[0])
    decoder.submit([5, 1]).result(60)
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            decoder.submit([5, 1])
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as told:
        assert "process that made it" in told.read()
    os.waitpid(child, 0)


def test_a_worker_that_gets_no_thread_says_so_and_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    decoder = SingleModelDecoder(natives("cpu")[0])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        with pytest.raises(RuntimeError, match=r"needs a thread of its own, .*can't start new thread.*call generate"):
            decoder.submit([5, 1])
        assert decoder.worker.waiting == 0
    expected = decoder.generate([[5, 1]]).output_ids
    assert decoder.submit([5, 1]).result(60).output_ids == expected
    decoder.worker.close()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        decoder.worker = Worker()
        with pytest.raises(RuntimeError, match="starts none"):
            decoder.submit([5, 1])
        decoder.worker.close()


def test_ctrl_c_while_the_thread_starts_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    decoder = SingleModelDecoder(natives("cpu")[0])
    expected = decoder.generate([[5, 1]]).output_ids
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.submit([5, 1])
        assert decoder.worker.waiting == 0
        assert decoder.submit([5, 1]).result(60).output_ids == expected
    decoder.worker.close()
    (thread,) = started
    assert not thread.is_alive()


def test_a_fork_while_another_thread_has_a_workers_locks_does_not_hang() -> None:
    decoder = SingleModelDecoder(natives("cpu")[0])
    decoder.submit([5, 1]).result(60)

    def in_a_fork() -> None:
        decoder.worker.close()
        del decoder._worker
        assert decoder.submit([5, 1]).result(60).output_ids == expected

    expected = decoder.generate([[5, 1]]).output_ids
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:  # as threads that make a worker, and that hand something in, have them
        with submitting._making, shared.changed:
            held.set()
            forked.wait()

    shared = decoder.worker._shared
    threading.Thread(target=hold).start()
    held.wait()
    child = multiprocessing.get_context("fork").Process(target=in_a_fork)
    child.start()
    forked.set()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


def test_a_row_that_comes_while_the_worker_closes_is_cancelled() -> None:
    shared = _Shared(1)
    job = _Job(Ticket(), Kind("none", lambda slots: pytest.fail("it is closed"), 0), ([],), None, None)

    coming = [job]

    class Changed(threading.Condition):
        def __exit__(self, *told: Any) -> None:
            super().__exit__(*told)
            if coming:  # the thread has just looked for rows
                shared.put(coming.pop())
                shared.end()

    shared.changed, shared.news, shared.thread = Changed(), True, threading.current_thread()
    shared._work()
    assert job.ticket.cancelled() and shared.waiting == 0
    with pytest.raises(RuntimeError, match="closed"):
        shared.put(job)


def test_a_worker_closes_between_rows_that_are_handed_in() -> None:
    shared = _Shared(1)
    with shared.changed:
        ending = threading.Thread(target=shared.end)
        ending.start()
        ending.join(0.05)
        assert not shared.closed  # a row that is handed in just now is not forgotten
    ending.join(60)
    assert shared.closed


# --- Coroutines ------------------------------------------------------------------------------------------


def test_coroutines_are_decoded_together() -> None:
    decoder = make(TrainingWheelsDecoder, {}, natives("cpu"))
    rows = ragged(9, 9)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(decoder.agenerate(row, max_new_tokens=20) for row in rows))

    outputs = asyncio.run(all_of_them())
    for row, out in zip(rows, outputs):
        assert row_of(out, 0) == row_of(decoder.generate([row], max_new_tokens=20), 0)


def test_a_cancelled_coroutine_ends_its_row() -> None:
    decoder = SingleModelDecoder(slow_model("cpu"))

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await decoder.agenerate([5, 1], max_new_tokens=100_000, min_new_tokens=100_000)
        while decoder.worker.running:
            await asyncio.sleep(0.001)

    asyncio.run(impatient())


async def slowly(rows: list[list[int]]) -> AsyncIterator[list[int]]:
    for row in rows:
        await asyncio.sleep(0.001)
        yield row


@pytest.mark.parametrize("kind", ["list", "generator", "asynchronous"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_astream_gives_what_stream_gives(kind: str, temperature: float) -> None:
    decoder = make(SpeculativeDecoder, {}, natives("cpu"))
    decoder.worker = Worker(4)
    rows = ragged(13)
    settings = {"max_new_tokens": 20, "temperature": temperature, "output_logprobs": True}

    async def collect() -> list[Any]:
        inputs: Any = rows if kind == "list" else iter(rows) if kind == "generator" else slowly(rows)
        return [out async for out in decoder.astream(inputs, **settings)]

    assert_rows(asyncio.run(collect()), decoder.generate(rows, **settings))


def test_astream_says_what_was_wrong_with_an_item() -> None:
    decoder = SingleModelDecoder(natives("cpu")[0])
    rows: list[Any] = [[5, 1], [999], [6, 1]]

    async def collect(on_error: str) -> dict[int, Any]:
        return {out.index: out.error async for out in decoder.astream(rows, on_error=on_error, max_new_tokens=5)}

    errors = asyncio.run(collect("return"))
    assert sorted(errors) == [0, 1, 2] and "999" in str(errors[1]) and errors[0] is errors[2] is None
    with pytest.raises(ValueError, match="999"):
        asyncio.run(collect("raise"))

    def broken() -> Iterator[list[int]]:
        yield [5, 1]
        raise LookupError("the input ends here")

    async def read() -> None:
        async for _ in decoder.astream(broken(), on_error="return"):
            pass

    with pytest.raises(LookupError, match="ends here"):
        asyncio.run(read())


def test_leaving_an_astream_ends_its_rows() -> None:
    decoder = SingleModelDecoder(slow_model("cpu"))
    decoder.worker = Worker(2)

    async def leave() -> None:
        options = {"max_new_tokens": 100_000, "min_new_tokens": 3}
        items = [{"input_ids": [5, 1], "max_new_tokens": 3}, {"input_ids": [5, 1], "min_new_tokens": 100_000}] * 3
        outputs = decoder.astream(items, **options)
        async for _ in outputs:
            break
        await outputs.aclose()
        while decoder.worker.running or decoder.worker.waiting:
            await asyncio.sleep(0.001)

    asyncio.run(leave())


def test_a_pairs_text_is_that_of_a_call() -> None:
    from kdtw_fast import load_pair

    pair = load_pair("debian-de-en")
    decoder = TrainingWheelsDecoder(*pack(pair.student, pair.teacher, "cpu"), tokenizer=pair.tokenizer)
    texts = [sample.source for sample in pair.samples(6)]

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(decoder.agenerate(text, budget="light") for text in texts))

    for text, out in zip(texts, asyncio.run(all_of_them())):
        expected = decoder(text, "light")
        assert out.texts == expected.texts and out.sequences.tolist() == expected.sequences.tolist()
