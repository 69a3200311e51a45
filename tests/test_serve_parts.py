"""What the service is made of: pieces of text, the way from the worker to the event loop, the socket."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from serving import NAME, shipped, texts
from test_families import random_model
from test_generation_config import told

from kdtw_fast import NativeModel, Owner, load_pair
from kdtw_fast.serve.app import _in_thread
from kdtw_fast.serve.asked import read_asked
from kdtw_fast.serve.errors import ApiError
from kdtw_fast.serve.flow import Flow, Mail
from kdtw_fast.serve.pieces import Pieces
from kdtw_fast.serve.run import listen
from kdtw_fast.serve.served import Served
from kdtw_fast.serve.settings import ServeOptions
from kdtw_fast.worker import Ticket


@pytest.mark.parametrize("stop", ["", "a", "the", " library", "xyz", ". "])
def test_pieces_hold_back_what_may_begin_a_stop(stop: str) -> None:
    """However the tokens come, the pieces are the text before the stop, and none of them had to be taken back."""
    words = shipped()[1]
    for text in texts(6):
        ids = words(text, add_special_tokens=False)["input_ids"]
        whole = words.decode(ids, skip_special_tokens=True)
        expected = whole.split(stop, 1)[0] if stop else whole
        for step in (1, 3, len(ids)):
            pieces = Pieces(words, [stop] if stop else [])
            said = [pieces.add(ids[i : i + step]) for i in range(0, len(ids), step)]
            assert expected.startswith("".join(said))
            assert "".join(said) + pieces.end(expected) == expected
            assert step > 1 or stop or sum(map(bool, said)) > len(ids) // 3
    pieces = Pieces(words, ["a"], [ids[0]])
    assert pieces.add([ids[0]]) == "" and pieces.end("") == ""


def test_an_answer_does_not_wait_for_its_head_to_be_acknowledged() -> None:
    async def accepted() -> int:
        met: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            met.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen("127.0.0.1", 0)
        async with await asyncio.start_server(answer, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            try:
                return await met
            finally:
                writer.close()

    assert asyncio.run(accepted()) == 1


def test_a_checkpoints_minimum_is_no_hindrance() -> None:
    pair = load_pair(NAME)
    pair.student.generation_config.min_length = 9
    models = {"student": NativeModel.from_model(pair.student, "student")}
    served = Served(NAME, models, pair.tokenizer, ServeOptions(), num_threads=1)
    assert served._options[served.decoders[served.method], False].min_new_tokens == 8
    for tokens in (3, 30):
        asked = read_asked({"max_tokens": tokens, "logit_bias": {"1": 99.0}}, (), served.limits)
        assert int(served.submit(asked, "Ein Spiel.").result(60).lengths[0]) == min(tokens, 9)
    with pytest.raises(ApiError, match=r"min_tokens must be in 0\.\.3, got 5"):
        served.submit(read_asked({"max_tokens": 3, "min_tokens": 5}, (), served.limits), "Ein Spiel.")
    served.worker.close()


def test_a_row_that_is_handed_in_for_nobody_is_ended() -> None:
    going_on, ticket = threading.Event(), Ticket()

    def hand_in() -> Ticket:
        assert going_on.wait(60)
        return ticket

    async def leave() -> None:
        asked = asyncio.ensure_future(_in_thread(hand_in))
        await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        going_on.set()
        async with asyncio.timeout(60):
            while not ticket.cancelled():
                await asyncio.sleep(0.001)

    asyncio.run(leave())


def test_the_loop_is_woken_once_for_what_comes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        mail = Mail()
        flows, calls = [Flow(mail), Flow(mail)], []
        wake = mail.loop.call_soon_threadsafe
        monkeypatch.setattr(mail.loop, "call_soon_threadsafe", lambda *told: (calls.append(told), wake(*told)))
        for step in range(3):
            waits = [asyncio.ensure_future(flow.next()) for flow in flows]
            await asyncio.sleep(0)
            put = [flow.streamer(index) for flow in flows for index in range(4)]
            for index, one in enumerate(put):
                one(0, step, index, Owner.STUDENT)
            assert [len(await one) for one in waits] == [4, 4]
            assert len(calls) == step + 1

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("kind", "fields", "most"),
    [
        ("t5", {"max_new_tokens": 7}, 7),
        ("t5", {"max_length": 6}, 5),  # and the start token
        ("llama", {"max_length": 12}, 9),  # and the prompt
        ("llama", {"max_new_tokens": 99}, 20),
        ("llama", {"max_length": 99}, 20),
        ("t5", {}, 20),
    ],
)
def test_a_request_that_says_no_length_gets_the_smaller_of_the_checkpoints_and_the_services(
    kind: str, fields: dict[str, int], most: int
) -> None:
    model = NativeModel.from_model(told(random_model(kind, 4), **fields))
    served = Served("tiny", {"student": model}, None, ServeOptions(max_new_tokens=20))
    never = {"logit_bias": {"1": -1000.0}}
    for own, length in (({}, most), ({"max_tokens": 2}, 2), ({"max_tokens": 15}, 15), ({"max_tokens": 20}, 20)):
        asked = read_asked(never | own, ("prompt",), served.limits)
        assert served.submit(asked, [5, 6, 7]).result(60).lengths.tolist() == [length]
