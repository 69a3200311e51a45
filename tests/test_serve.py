"""The service on loopback, asked by the official openai client: what comes is what the decoder gives alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

openai = pytest.importorskip("openai", reason="the openai client is not installed (the extra 'test')")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from factories import SHAPES, random_t5  # noqa: E402
from serving import NAME, serving, settled, shipped  # noqa: E402

from kdtw_fast import NativeModel, Owner, load_pair  # noqa: E402
from kdtw_fast.cli import app  # noqa: E402
from kdtw_fast.methods import make_decoder  # noqa: E402
from kdtw_fast.pairs import load_samples  # noqa: E402
from kdtw_fast.serve.app import Service, _in_thread  # noqa: E402
from kdtw_fast.serve.asked import read_asked  # noqa: E402
from kdtw_fast.serve.errors import ApiError  # noqa: E402
from kdtw_fast.serve.flow import Flow, Mail  # noqa: E402
from kdtw_fast.serve.pieces import Pieces  # noqa: E402
from kdtw_fast.serve.run import listen, run  # noqa: E402
from kdtw_fast.serve.served import Served, size  # noqa: E402
from kdtw_fast.serve.settings import ServeOptions  # noqa: E402
from kdtw_fast.worker import Ticket  # noqa: E402

LONG = {"max_tokens": 20_000, "extra_body": {"min_tokens": 20_000, "method": "greedy-student"}}
LONG_BODY = {"max_tokens": 20_000, "min_tokens": 20_000, "method": "greedy-student"}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Service]]:
    with serving(batch_size=4, max_queue=100, max_new_tokens=64) as told:
        yield told


def client(url: str, **more: Any) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, **more)


def texts(count: int) -> list[str]:
    return [sample.source for sample in load_samples(NAME, count)]


def alone(text: Any, method: str = "training-wheels", **options: Any) -> Any:
    models, words = shipped()
    decoder = make_decoder(method, models, words, 2)
    settings = {"max_new_tokens": 64} | options
    budget = settings.pop("budget", "light") if decoder._keeps_limits else None
    if isinstance(text, str):
        return decoder(text, budget, **settings)
    out = decoder.generate([text], **settings)
    out.texts = words.batch_decode(out.output_ids, skip_special_tokens=True)
    return out


def check_error(status: int, response: Any, *words: str) -> dict[str, Any]:
    """An OpenAI error object of this status that says these words."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"], error
    return error


# --- Completions -----------------------------------------------------------------------------------------

ASKED: list[dict[str, Any]] = [
    {},
    {"budget": "very high"},
    {"budget": "no"},
    {"budget": "high", "max_teacher_calls": 1},
    {"max_teacher_fraction": 0.05},
    {"method": "greedy-teacher"},
    {"method": "greedy-student", "max_new_tokens": 5},
    {"method": "speculative"},
    {"temperature": 0.8, "seed": 4, "top_p": 0.9},
    {"method": "speculative", "temperature": 0.8, "seed": 5, "teacher_temperature": 0.5},
    {"method": "bild", "min_new_tokens": 12},
    {"method": "random", "budget": "moderate", "top_k": 5, "temperature": 1.1},
    {"stop": ["library", " for "], "method": "greedy-teacher"},
    {"stop": "e", "forced_tokens": [40, 41]},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.4, "logit_bias": {17: -50.0}},
    {"method": "speculative", "suppress_tokens": [5, 6, 7, 8, 9, 10], "bad_words_ids": [[11], [12, 13]]},
    {"method": "greedy-student", "forced_eos_token_id": 1, "max_new_tokens": 9, "begin_suppress_tokens": [20, 21]},
]


def body_of(asked: dict[str, Any]) -> dict[str, Any]:
    """The client's arguments."""
    names = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
    given = {names.get(name, name): value for name, value in asked.items()}
    if "logit_bias" in given:
        given["logit_bias"] = {str(token): bias for token, bias in given["logit_bias"].items()}
    own = ("max_tokens", "temperature", "top_p", "seed", "stop", "logit_bias")
    return {name: given[name] for name in own if name in given} | {
        "extra_body": {name: value for name, value in given.items() if name not in own}
    }


def test_answers_are_those_of_the_decoder_alone_whatever_the_load(running: tuple[str, Service]) -> None:
    sources = texts(34)

    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{running[0]}/v1", api_key="none", max_retries=0) as ask:
            return await asyncio.gather(
                *(
                    ask.completions.create(model=NAME, prompt=text, **body_of(ASKED[i % len(ASKED)]))
                    for i, text in enumerate(sources)
                )
            )

    for i, answer in enumerate(asyncio.run(all_at_once())):
        out = alone(sources[i], **ASKED[i % len(ASKED)])
        (choice,) = answer.choices
        assert choice.text == out.texts[0]
        assert choice.finish_reason == {"end": "stop", "stop": "stop", "length": "length"}[out.finish_reasons[0]]
        owners = out.owners[0, out.spans[0]].tolist()
        used = answer.usage
        assert used.completion_tokens == len(owners)
        assert used.by_owner == {o.name.lower(): owners.count(o) for o in Owner if o in owners}
        assert used.teacher_calls == int(out.teacher_calls[0])
        assert used.teacher_share == pytest.approx(sum(Owner(o).is_teacher for o in owners) / len(owners))
        assert used.total_tokens == used.prompt_tokens + used.completion_tokens and used.decode_ms > 0


def test_streams_are_the_same_text_with_owners(running: tuple[str, Service]) -> None:
    sources = texts(17)

    async def stream(ask: Any, text: str, asked: dict[str, Any]) -> tuple[str, list[str], Any]:
        said, owners, usage = "", [], None
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async for piece in await ask.completions.create(model=NAME, prompt=text, **options, **body_of(asked)):
            if piece.usage is not None:
                usage = piece.usage
            for choice in piece.choices:
                said += choice.text
                owners += [choice.owner] if choice.finish_reason is None else []
        return said, owners, usage

    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{running[0]}/v1", api_key="none", max_retries=0) as ask:
            return await asyncio.gather(*(stream(ask, text, ASKED[i % len(ASKED)]) for i, text in enumerate(sources)))

    for i, (said, owners, usage) in enumerate(asyncio.run(all_at_once())):
        out = alone(sources[i], **ASKED[i % len(ASKED)])
        assert said == out.texts[0]
        assert usage.completion_tokens == int(out.lengths[0])
        wrote = out.owners[0, out.spans[0]].tolist()
        assert set(owners) <= {Owner(o).name.lower() for o in wrote} and len(owners) > 0


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


def test_n_outputs_are_those_of_num_return_sequences(running: tuple[str, Service]) -> None:
    words = shipped()[1]
    ids = [words(text)["input_ids"] for text in texts(2)]
    models, _ = shipped()
    decoder = make_decoder("greedy-teacher", models, words, 2)
    settings = {"max_new_tokens": 12, "temperature": 1.2, "seed": 3}
    asked = {"model": f"{NAME}/greedy-teacher", "prompt": ids, "max_tokens": 12, "temperature": 1.2, "seed": 3}
    outs = [decoder.generate([one], num_return_sequences=3, output_logprobs=True, **settings) for one in ids]
    said = [words.batch_decode(out.output_ids, skip_special_tokens=True) for out in outs]
    ask = client(running[0])
    answer = ask.completions.create(n=3, **asked)
    assert [choice.text for choice in answer.choices] == [*said[0], *said[1]]
    streamed = [""] * 6
    for piece in ask.completions.create(n=3, stream=True, **asked):
        for choice in piece.choices:
            streamed[choice.index] += choice.text
    assert streamed == [*said[0], *said[1]]
    best = ask.completions.create(n=1, best_of=3, **asked)
    means = [(out.sequences_scores / out.lengths).argmax() for out in outs]
    assert [choice.text for choice in best.choices] == [texts[k] for texts, k in zip(said, means)]
    assert best.usage.completion_tokens == sum(int(out.lengths.sum()) for out in outs)


def test_log_probabilities_are_the_decoders(running: tuple[str, Service]) -> None:
    words = shipped()[1]
    for method in ("training-wheels", "speculative"):
        text = texts(3)[2]
        out = alone(text, method, output_logprobs=True, top_logprobs=20)
        answer = client(running[0]).completions.create(model=f"{NAME}/{method}", prompt=text, logprobs=2)
        told, span = answer.choices[0].logprobs, out.spans[0]
        assert told.tokens == words.convert_ids_to_tokens(out.output_ids[0])
        assert told.token_logprobs == pytest.approx(out.token_logprobs[0, span].tolist())
        likely = out.top_ids[0, span, :2].tolist()
        assert [list(best) for best in told.top_logprobs] == [
            [words.convert_ids_to_tokens(token) or str(token) for token in best] for best in likely
        ]
        assert told.text_offset[0] == 0 and told.text_offset == sorted(told.text_offset)
        assert answer.choices[0].text == out.texts[0]
        assert answer.choices[0].score == pytest.approx(float(out.sequences_scores[0]))


def test_several_texts_and_token_ids(running: tuple[str, Service]) -> None:
    words = shipped()[1]
    several = texts(3)
    answer = client(running[0]).completions.create(model=f"{NAME}/speculative", prompt=several)
    expected = [alone(text, "speculative") for text in several]
    assert [choice.text for choice in answer.choices] == [out.texts[0] for out in expected]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == sum(int(out.lengths[0]) for out in expected)
    ids = words(several[0])["input_ids"]
    answer = client(running[0]).completions.create(model=f"{NAME}/greedy-student", prompt=ids)
    assert answer.choices[0].text == alone(ids, "greedy-student").texts[0]
    answer = client(running[0]).completions.create(
        model=NAME, prompt=[ids, ids[:3]], extra_body={"max_teacher_calls": 1}
    )
    assert [c.text for c in answer.choices] == [alone(i, max_teacher_calls=1).texts[0] for i in (ids, ids[:3])]


def test_streamed_texts_come_side_by_side(running: tuple[str, Service]) -> None:
    several = texts(3)
    said = ["", "", ""]
    for piece in client(running[0]).completions.create(model=NAME, prompt=several, stream=True):
        for choice in piece.choices:
            said[choice.index] += choice.text
    assert said == [alone(text).texts[0] for text in several]


def test_models(running: tuple[str, Service]) -> None:
    ask = client(running[0])
    ids = [model.id for model in ask.models.list()]
    assert ids[0] == NAME and f"{NAME}/speculative" in ids
    assert ask.models.retrieve(ids[1]).id == ids[1]
    with pytest.raises(openai.NotFoundError) as error:
        ask.models.retrieve("debian-de-eng")
    assert error.value.code == "model_not_found" and "did you mean 'debian-de-en'" in error.value.message


def test_translate(running: tuple[str, Service]) -> None:
    url, (one, two) = running[0], texts(2)
    asked = {"q": one, "source": "de", "target": "en", "format": "text"}
    answers = [httpx.post(f"{url}/translate", json=asked), httpx.post(f"{url}/translate", data=asked)]
    assert [answer.json()["translatedText"] for answer in answers] == [alone(one).texts[0]] * 2
    both = httpx.post(f"{url}/translate", json=asked | {"q": [one, two], "method": "greedy-teacher"}).json()
    assert both["translatedText"] == [alone(text, "greedy-teacher").texts[0] for text in (one, two)]
    check_error(400, httpx.post(f"{url}/translate", json=asked | {"target": "fr"}), "target", "'en'", "'fr'")
    check_error(400, httpx.post(f"{url}/translate", json=asked | {"format": "html"}), "format")
    form = {"q": [one, two], "source": "de", "target": "en", "method": "greedy-teacher"}
    assert httpx.post(f"{url}/translate", data=form).json()["translatedText"] == both["translatedText"]
    check_error(400, httpx.post(f"{url}/translate", data=form | {"source": ["de", "auto"]}), "source is there twice")
    assert httpx.get(f"{url}/languages").json() == [{"code": "de", "name": "de", "targets": ["en"]}]


def test_chat_is_for_models_with_a_template(running: tuple[str, Service]) -> None:
    messages = [{"role": "user", "content": texts(1)[0]}]
    with pytest.raises(openai.NotFoundError, match="no chat template"):
        client(running[0]).chat.completions.create(model=NAME, messages=messages)
    words = load_pair(NAME).tokenizer
    words.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with serving(tokenizer=words, max_new_tokens=64) as (url, _):
        ask = client(url)
        answer = ask.chat.completions.create(model=NAME, messages=messages)
        expected = alone(messages[0]["content"]).texts[0]
        assert answer.choices[0].message.content == expected
        pieces = list(ask.chat.completions.create(model=NAME, messages=messages, stream=True))
        assert pieces[0].choices[0].delta.role == "assistant"
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == expected
        judged = ask.chat.completions.create(model=NAME, messages=messages, logprobs=True, top_logprobs=3)
        (entry, *_) = judged.choices[0].logprobs.content
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        check_error(
            400,
            httpx.post(f"{url}/v1/chat/completions", json={"messages": messages, "top_logprobs": 3}),
            "logprobs=true",
        )
        for wrong in ([], [{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}], "hello"):
            check_error(400, httpx.post(f"{url}/v1/chat/completions", json={"messages": wrong}), "messages")
        long = [{"role": "user", "content": "a" * 20_000}] * 2
        check_error(400, httpx.post(f"{url}/v1/chat/completions", json={"messages": long}), "40008 characters", "32768")
        with pytest.MonkeyPatch.context() as patch:  # what takes long is not read in the event loop
            asked: list[Any] = []
            patch.setattr("kdtw_fast.serve.app._in_thread", lambda hand_in: (asked.append(1), _in_thread(hand_in))[1])
            for content in ("a" * 20_000, "a"):
                chat = {"messages": [{"role": "user", "content": content}]}
                httpx.post(f"{url}/v1/chat/completions", json=chat)
            assert len(asked) == 1
        assert size(long) == 40_008 and size("abc") == size([1, 2, 3]) == 3 and size("") == 0


def test_health_and_metrics(running: tuple[str, Service]) -> None:
    url, service = running
    settled(service)
    health = httpx.get(f"{url}/health").json()
    assert health == {"status": "ok", "model": NAME, "running": 0, "waiting": 0, "slots": 4}

    def numbers() -> dict[str, float]:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    before = numbers()
    answer = client(url).completions.create(model=NAME, prompt=texts(1)[0], extra_body={"budget": "high"})
    httpx.post(f"{url}/v1/completions", json={"prompt": 3})
    after = numbers()

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grown('kdtw_requests_total{endpoint="/v1/completions",status="200"}') == 1
    assert grown('kdtw_requests_total{endpoint="/v1/completions",status="400"}') == 1
    assert grown("kdtw_prompt_tokens_total") == answer.usage.prompt_tokens
    assert grown("kdtw_teacher_calls_total") == answer.usage.teacher_calls
    for owner, tokens in answer.usage.by_owner.items():
        assert grown(f'kdtw_tokens_total{{owner="{owner}"}}') == tokens


# --- What cannot be obeyed -------------------------------------------------------------------------------

TEXT = {"prompt": "Ein Spiel."}
WRONG: list[tuple[Any, int, str]] = [
    (b"", 400, "not JSON"),
    (b"{", 400, "not JSON"),
    (b'{"prompt": NaN}', 400, "NaN"),
    (b"\xff\xfe", 400, "not JSON"),
    (b"[" * 100_000, 400, "nested"),
    (b"[]", 400, "object"),
    (b'{"prompt": "\\ud800"}', 400, "surrogate"),
    (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", 400, "not JSON"),
    ({}, 400, "prompt is missing"),
    ({"prompt": ""}, 400, "is empty"),
    ({"prompt": "  \n"}, 400, "is empty"),
    ({"prompt": []}, 400, "prompt must be"),
    ({"prompt": ["a", 3]}, 400, "prompt must be"),
    ({"prompt": {"path": "/etc/passwd"}}, 400, "prompt must be"),
    ({"prompt": [[]]}, 400, "empty"),
    ({"prompt": [-1]}, 400, "token id -1"),
    ({"prompt": [10**9]}, 400, "token id 1000000000"),
    ({"prompt": [True]}, 400, "prompt must be"),
    ({"prompt": ["a"] * 65}, 400, "more than 64"),
    ({"prompt": "wort " * 5000}, 400, "more than max_source_length=512"),
    (TEXT | {"max_tokens": 65}, 400, "max_tokens must be in 1..64"),
    (TEXT | {"max_tokens": 0}, 400, "max_tokens"),
    (TEXT | {"max_tokens": "5"}, 400, "max_tokens must be an integer"),
    (TEXT | {"max_tokens": 5, "max_completion_tokens": 5}, 400, "not both"),
    (TEXT | {"max_tokens": 5, "min_tokens": 6}, 400, "min_tokens must be in 0..5"),
    (TEXT | {"temperature": -1}, 400, "temperature must be"),
    (TEXT | {"temperature": 1e400}, 400, "not JSON"),
    (TEXT | {"top_p": 0}, 400, "top_p must be"),
    (TEXT | {"top_k": 2.5}, 400, "top_k must be an integer"),
    (TEXT | {"seed": -1}, 400, "seed must be"),
    (TEXT | {"max_teacher_fraction": 1.5}, 400, "max_teacher_fraction"),
    (TEXT | {"max_teacher_calls": -1}, 400, "max_teacher_calls"),
    (TEXT | {"max_teacher_calls": 1, "method": "speculative"}, 400, "bounds calls"),
    (TEXT | {"budget": "ligth"}, 400, 'did you mean "light"'),
    (TEXT | {"budget": "light", "method": "speculative"}, 400, "budget is nothing to"),
    (TEXT | {"method": "speculativ"}, 400, "did you mean 'speculative'"),
    (TEXT | {"method": "auto"}, 400, "not offered"),
    (TEXT | {"method": 3}, 400, "method must be a string"),
    (TEXT | {"model": "gpt-4"}, 404, "not served"),
    (TEXT | {"model": f"{NAME}/bild", "method": "speculative"}, 400, "name one"),
    (TEXT | {"n": 65}, 400, "n must be in 1..64"),
    (TEXT | {"n": "2"}, 400, "n must be an integer"),
    (TEXT | {"n": 3, "best_of": 2}, 400, "best_of must be in 3..64"),
    ({"prompt": ["a"] * 9, "n": 8}, 400, "9 texts of 8 outputs each, more than 64"),
    (TEXT | {"logprobs": 21}, 400, "logprobs must be in 0..20"),
    (TEXT | {"logprobs": True}, 400, "logprobs must be an integer"),
    (TEXT | {"top_logprobs": 2}, 400, "top_logprobs belongs to chats"),
    (TEXT | {"num_beams": 4}, 400, "beam search is in transformers"),
    (TEXT | {"presence_penalty": 0.5}, 400, "presence_penalty=0.5 is not supported"),
    (TEXT | {"stop": 3}, 400, "stop must be a text"),
    (TEXT | {"stop": ["a", ""]}, 400, "stop must be texts that are not empty"),
    (TEXT | {"stop": ["\ud800"]}, 400, "surrogate"),
    (TEXT | {"stop": ["a"] * 17}, 400, "stop has 17 entries, more than 16"),
    (TEXT | {"stop_token_ids": [10**9]}, 400, "stop_token_ids's id must be"),
    (TEXT | {"logit_bias": {"the": 1}}, 400, "logit_bias"),
    (TEXT | {"logit_bias": {"5": "a"}}, 400, "logit_bias of 5 must be a number"),
    (TEXT | {"logit_bias": [1]}, 400, "logit_bias must map ids to numbers"),
    (TEXT | {"suppress_tokens": [1] * 1025}, 400, "suppress_tokens has 1025 entries, more than 1024"),
    (TEXT | {"bad_words_ids": [4]}, 400, "bad_words_ids entry must be a list of ids"),
    (TEXT | {"no_repeat_ngram_size": -1}, 400, "no_repeat_ngram_size must be"),
    (TEXT | {"repetition_penalty": 0}, 400, "repetition_penalty must be"),
    (TEXT | {"forced_tokens": [1]}, 400, "end token 1"),
    (TEXT | {"forced_tokens": [[4]]}, 400, "forced_tokens must be a list of ids"),
    (TEXT | {"echo": True}, 400, "echo=True"),
    (TEXT | {"temprature": 1}, 400, "did you mean 'temperature'"),
    (TEXT | {"stream": "yes"}, 400, "stream must be true or false"),
    (TEXT | {"stream_options": {"include_usage": True}}, 400, "stream_options goes with"),
    (TEXT | {"timeout": 0}, 400, "timeout must be"),
    (TEXT | {"max_time": "soon"}, 400, "max_time must be"),
    (TEXT | {"row_id": 2**64}, 400, "row_id"),
]


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_wrong_is_an_error_object(running: tuple[str, Service], streams: bool) -> None:
    with httpx.Client(base_url=running[0]) as ask:
        for body, status, said in WRONG:
            if isinstance(body, dict):
                body = json.dumps({"stream": streams} | body if "stream_options" not in body else body).encode()
            headers = {"Content-Type": "application/json"}
            check_error(status, ask.post("/v1/completions", content=body, headers=headers), said)
    settled(running[1])


def test_what_is_neutral_or_no_part_of_a_result_is_taken(running: tuple[str, Service]) -> None:
    neutral = {"n": 1, "best_of": 1, "echo": False, "stop": None, "presence_penalty": 0, "frequency_penalty": 0.0}
    more = {"logit_bias": {}, "user": "somebody", "logprobs": None, "suffix": None}
    answer = httpx.post(f"{running[0]}/v1/completions", json=TEXT | neutral | more).json()
    assert answer["choices"][0]["text"] == alone(TEXT["prompt"]).texts[0]


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


def test_other_addresses_verbs_and_content_types(running: tuple[str, Service]) -> None:
    url = running[0]
    check_error(404, httpx.get(f"{url}/v1/embeddings"), "/v1/embeddings")
    check_error(404, httpx.get(f"{url}/../../etc/passwd"))
    check_error(404, httpx.get(f"{url}/page.css/../../app.py"))
    check_error(405, httpx.get(f"{url}/v1/completions"), "GET")
    check_error(415, httpx.post(f"{url}/v1/completions", content=b"{}"), "application/json")
    check_error(415, httpx.post(f"{url}/v1/completions", data={"prompt": "a"}), "application/json")


HOSTILE = [
    "\x00\x01\x02",
    "\u202eabc\u2066",
    "👩\u200d👩\u200d👧\u200d👦" * 20,
    "e" + "\u0301" * 100,
    "<script>alert(1)</script>",
    "{{7*7}} ${7*7} %s %n {0}",
    "<pad></s><extra_id_0> <tau>",
    "../../../etc/passwd\n\r\nGET / HTTP/1.1",
    "\ufffe\uffff\ufdd0",
    "data: [DONE]\n\ndata: {}",
    "ﷺ﷽ 日本語 שלום",
]


def test_hostile_strings_are_texts(running: tuple[str, Service]) -> None:
    ask = client(running[0])
    for text in HOSTILE:
        expected = alone(text).texts[0]
        assert ask.completions.create(model=NAME, prompt=text).choices[0].text == expected
        pieces = ask.completions.create(model=NAME, prompt=text, stream=True)
        assert "".join(choice.text for piece in pieces for choice in piece.choices) == expected


def test_bodies_have_a_largest_size(running: tuple[str, Service]) -> None:
    url = running[0]
    body = json.dumps({"prompt": "a" * 2**20}).encode()
    headers = {"Content-Type": "application/json"}
    check_error(413, httpx.post(f"{url}/v1/completions", content=body, headers=headers), "1048576 bytes")

    def chunks() -> Iterator[bytes]:  # without a Content-Length
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    check_error(413, httpx.post(f"{url}/v1/completions", content=chunks(), headers=headers), "1048576 bytes")
    nearly = json.dumps({"prompt": "a " * (2**19 - 20)}).encode()
    check_error(400, httpx.post(f"{url}/v1/completions", content=nearly, headers=headers), "characters, more than")


def test_an_api_key_is_asked_for() -> None:
    with serving(api_key="sesame ünïcode") as (url, _):
        for key in ("none", "sesame", "sesame unicode"):
            check_error(401, httpx.post(f"{url}/v1/completions", json=TEXT, headers={"Authorization": f"Bearer {key}"}))
        check_error(401, httpx.get(f"{url}/v1/models"), "API key")
        asked = {"q": "Ein Spiel.", "source": "de", "target": "en", "api_key": "sesame ünïcode"}
        for how in ("json", "data"):  # LibreTranslate's clients send the key in the body
            assert httpx.post(f"{url}/translate", **{how: asked}).json()["translatedText"]
            for wrong in ({"q": "a"}, asked | {"api_key": "sesame"}, asked | {"api_key": ""}):
                check_error(401, httpx.post(f"{url}/translate", **{how: wrong}), "API key")
        check_error(401, httpx.post(f"{url}/translate", json=asked | {"api_key": 5}), "API key")
        check_error(401, httpx.post(f"{url}/translate", json=asked, headers={"Authorization": "Bearer none"}))
        assert httpx.get(f"{url}/health").status_code == 200
        right = {"Authorization": "Bearer sesame ünïcode".encode()}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200


# --- Load, time and ends ---------------------------------------------------------------------------------


def test_a_full_queue_is_told_when_to_come_again() -> None:
    with serving(batch_size=1, max_queue=1, max_new_tokens=20_000) as (url, service):
        ask = client(url)
        streams = [ask.completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **LONG) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as error:
            ask.completions.create(model=NAME, prompt="Ein Spiel.")
        assert error.value.code == "queue_full" and int(error.value.response.headers["Retry-After"]) >= 1
        check_error(429, httpx.post(f"{url}/v1/completions", json={"prompt": ["a", "b", "c"]}))
        for stream in streams:
            stream.close()
        settled(service)
        assert ask.completions.create(model=NAME, prompt="Ein Spiel.").choices[0].text


def test_a_client_that_leaves_ends_its_rows() -> None:
    with serving(batch_size=2, max_new_tokens=20_000) as (url, service):
        stream = client(url).completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **LONG)
        next(iter(stream))
        stream.close()
        settled(service, 5)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=TEXT | LONG_BODY, timeout=0.3)
        settled(service, 5)
        with socket.create_connection(url.removeprefix("http://").split(":")) as half:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n")
        settled(service, 5)
        assert "kdtw_disconnects_total 2.0" in httpx.get(f"{url}/metrics").text


def test_a_request_has_its_time() -> None:
    with serving(max_new_tokens=20_000, request_timeout=0.3) as (url, service):
        check_error(504, httpx.post(f"{url}/v1/completions", json=TEXT | LONG_BODY), "0.3 seconds")
        with pytest.raises(openai.APIError, match=r"0\.1 seconds"):
            body = LONG["extra_body"] | {"timeout": 0.1}
            for _ in client(url).completions.create(
                model=NAME, prompt="Ein Spiel.", stream=True, max_tokens=20_000, extra_body=body
            ):
                pass
        settled(service)
        # A row's own time ends it where it is, which is an answer.
        answer = httpx.post(f"{url}/v1/completions", json=TEXT | LONG_BODY | {"max_time": 0.05}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 0 < answer["usage"]["completion_tokens"] < 20_000


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    with serving(batch_size=4, max_new_tokens=20_000) as (url, service):
        ask = client(url)
        stream = ask.completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **LONG)
        next(iter(stream))
        for method in ("greedy-student", "speculative"):  # in its session, and in another
            short = ask.completions.create(model=NAME, prompt="Ein Spiel.", max_tokens=5, extra_body={"method": method})
            assert short.choices[0].text and service.served.worker.running == 1
        stream.close()


@pytest.fixture
def process() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "kdtw_fast", "serve", "--port", "0", "--max-new-tokens", "4000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield found[0], process
        if process.poll() is None:
            process.kill()


def test_sigterm_lets_requests_end(process: tuple[str, subprocess.Popen[str]]) -> None:
    url, child = process
    ask = client(url)
    options = {"max_tokens": 4000, "extra_body": {"min_tokens": 4000, "method": "greedy-student"}}
    stream = ask.completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **options)
    pieces = iter(stream)
    next(pieces)
    os.kill(child.pid, signal.SIGTERM)
    last = [*pieces][-1]
    assert last.choices[0].finish_reason == "length" and last.choices[0].usage["completion_tokens"] == 4000
    assert child.wait(60) == 0 and child.stderr.read() == ""
    with pytest.raises(openai.APIConnectionError):
        ask.completions.create(model=NAME, prompt="Ein Spiel.")


def test_the_command_refuses_what_it_cannot_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["--port", port], "Address already in use"),
            (["--port", "70000"], "--port"),
            (["--method", "speculativ"], "did you mean 'speculative'"),
            (["--translates", "german"], "two language codes"),
            (["--batch-size", "0"], "--batch-size"),
            (["--port", "0", "--method", "auto"], "not offered"),
            (["no-such-pair", "--port", "0"], "unknown pair"),
        ):
            done = CliRunner().invoke(app, ["serve", *arguments])
            assert done.exit_code == 2 and said in done.output, (arguments, done.output)


def test_what_a_pair_cannot_do_is_told_and_one_that_fits_in_nothing_is_refused(capsys: Any) -> None:
    tokenizer = shipped()[1]
    rows = len(tokenizer)
    student, teacher = (random_t5(SHAPES[0], rows, seed) for seed in (1, 2))  # without <tau>: it cannot ask
    models = {"student": NativeModel.from_model(student), "teacher": NativeModel.from_model(teacher)}
    served = Served("plain", models, tokenizer, ServeOptions(), num_threads=1)
    assert served.method == "speculative" and "training-wheels" not in served.decoders
    ((why, methods),) = served.unfit.items()
    assert methods == ["training-wheels", "random", "entropy"] and "<tau>" in why
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtw_fast.serve.run.make_server", lambda _: SimpleNamespace(run=lambda sockets: None))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            run(Service(served), listening, said.append)
    assert said[1:] == [f"plain: without training-wheels, random, entropy: {why}"]
    other = random_t5(SHAPES[0], rows, 2)
    other.config.eos_token_id, other.generation_config = 2, None
    models["teacher"] = NativeModel.from_model(other)
    with pytest.raises(ValueError, match=r"plain: no method decodes with student and teacher: .*eos_token_id"):
        Served("plain", models, tokenizer, ServeOptions(), num_threads=1)
    alone = Served("plain", {"student": models["student"]}, tokenizer, ServeOptions(), num_threads=1)
    assert alone.method == "greedy-student" and not alone.unfit
    alone.worker.close()


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
