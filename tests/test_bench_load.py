"""The clients for load read what others read, and when it came."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from serving import NAME, serving

from bench.http_load import drive
from kdtw_fast.pairs import load_samples


def test_clients_for_load_read_whole_answers_and_events() -> None:
    sources = [sample.source for sample in load_samples(NAME, 7)]
    with serving(batch_size=3, max_new_tokens=24) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        whole, streamed = (
            drive(host, int(port), 3, "/v1/completions", [json.dumps({"prompt": t} | fields).encode() for t in sources])
            for fields in ({}, {"stream": True})
        )
        _, (refused,) = drive(host, int(port), 2, "/v1/completions", [b"{}"])
    assert refused.status == 400 and "prompt" in json.loads(refused.body)["error"]["message"]
    assert whole[0] >= max(answer.seconds for answer in whole[1])
    said = []
    for answer in streamed[1]:
        assert answer.status == 200 and answer.events[-1] == b"data: [DONE]"
        assert len(answer.times) == len(answer.events) >= 2
        assert sorted(answer.times) == answer.times and answer.times[-1] <= answer.seconds
        said.append("".join(json.loads(event[6:])["choices"][0]["text"] for event in answer.events[:-1]))
    assert sorted(said) == sorted(json.loads(answer.body)["choices"][0]["text"] for answer in whole[1])
