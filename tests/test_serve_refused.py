"""What the service cannot obey is an error object of OpenAI's, whatever comes; and what it takes as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("openai", reason="the openai client is not installed (the extra 'test')")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from serving import NAME, TEXT, alone, check_error, client, serving, settled  # noqa: E402

from kdtw_fast.serve.app import Service  # noqa: E402


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Service]]:
    with serving(batch_size=4, max_queue=100, max_new_tokens=64) as told:
        yield told


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
    (TEXT | {"teacher_top_k": 3, "method": "greedy-student"}, 400, "teacher_top_k is nothing to"),
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
