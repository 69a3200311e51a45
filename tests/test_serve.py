"""The service on loopback, asked by the official openai client: what comes is what the decoder gives alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="the openai client is not installed (the extra 'test')")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from serving import NAME, alone, check_error, client, serving, settled, shipped, texts  # noqa: E402

from kdtw_fast import Owner, load_pair  # noqa: E402
from kdtw_fast.methods import make_decoder  # noqa: E402
from kdtw_fast.serve.app import Service, _in_thread  # noqa: E402
from kdtw_fast.serve.likely import mean  # noqa: E402
from kdtw_fast.serve.served import size  # noqa: E402


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Service]]:
    with serving(batch_size=4, max_queue=100, max_new_tokens=64) as told:
        yield told


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


def test_forced_tokens_have_no_part_in_which_output_is_best() -> None:
    out = alone("Ein Spiel.", forced_tokens=[40, 41, 42], output_logprobs=True)
    assert mean(out) == pytest.approx(float(out.token_logprobs.nanmean()))


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
        for more in ({"name": "Eva"}, {"content": [{"type": "text", "text": None}]}):  # nothing is passed over
            wrong = [{"role": "user", "content": "Ein Spiel."} | more]
            check_error(400, httpx.post(f"{url}/v1/chat/completions", json={"messages": wrong}), "messages[0]")
        empty = {"refusal": None, "tool_calls": []}  # as clients send back what was answered
        again = {"messages": [messages[0] | empty]}
        assert httpx.post(f"{url}/v1/chat/completions", json=again).status_code == 200
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
