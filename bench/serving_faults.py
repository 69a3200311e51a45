"""A service that is asked with faults, and what becomes of its answers and its memory."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil

from bench.http_client import Answer, Client
from bench.serving_load import TOKENS, kdtw, texts

HOLD = 5.0  # percent that memory may grow by, once warm
BROKEN = [
    *(b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b"\xff\xfe\x00", b"[" * 50_000, b'{"prompt": "\\ud800"}'),
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
]
IMPOSSIBLE: list[dict[str, Any]] = [
    *({"max_tokens": 0}, {"max_tokens": 10**9}, {"temperature": -1}, {"top_p": 2}, {"top_k": -1}, {"n": 999}),
    *({"budget": "ligth"}, {"method": "nothing"}, {"model": "gpt-4"}, {"max_teacher_fraction": 7}, {"what": 1}),
    *({"stop": [""]}, {"logprobs": 99}, {"stream": True, "logprobs": 1}, {"num_beams": 4}, {"best_of": 0}),
    *({"logit_bias": {"a": 1}}, {"suppress_tokens": [10**9]}, {"bad_words_ids": [[]]}, {"forced_tokens": ["a"]}),
    *({"stream": "yes"}, {"timeout": -1}, {"seed": "a"}, {"prompt": [10**9]}, {"prompt": []}, {"prompt": ["a"] * 999}),
]
HOSTILE = [
    "\x00\x01",
    "\u202eabc",
    "e" + "\u0301" * 300,
    "<pad></s><tau>",
    "ﷺ" * 90,
    "data: [DONE]\n\n",
    "\ufffe\uffff",
]
RULED = {"stop": [" the", "e "], "no_repeat_ngram_size": 2, "n": 2, "temperature": 0.9, "seed": 5}
KINDS = (
    "good",
    "ruled",
    "stream",
    "leaves",
    "leaves early",
    "broken",
    "impossible",
    "hostile",
    "large",
    "slow",
    "garbage",
)


class Campaign:
    """Requests with faults, and what became of them."""

    def __init__(self, host: str, port: int, seed: int):
        self.host, self.port = host, port
        self.random = random.Random(seed)
        self.sources = texts(64)
        self.expected: dict[str, str] = {}
        self.ruled: dict[str, list[str]] = {}
        self.counts = dict.fromkeys(KINDS, 0)
        self.refused = 0
        self.wrong: list[str] = []

    async def learn(self) -> None:
        """What each source gives when it is asked for alone."""
        client = Client(self.host, self.port)
        for source in self.sources:
            answer = await client.post("/v1/completions", {"prompt": source})
            self.expected[source] = json.loads(answer.body)["choices"][0]["text"]
            answer = await client.post("/v1/completions", {"prompt": source} | RULED)
            self.ruled[source] = [choice["text"] for choice in json.loads(answer.body)["choices"]]
        client.close()

    async def client(self, left: Iterator[int]) -> None:
        """Asks in turn for whatever comes to its mind."""
        client = Client(self.host, self.port)
        for _ in left:
            kind = self.random.choice(KINDS)
            self.counts[kind] += 1
            try:
                await getattr(self, f"_{kind.replace(' ', '_')}")(client)
            except (OSError, EOFError, ValueError, asyncio.IncompleteReadError) as error:
                self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                client.close()
        client.close()

    async def _good(self, client: Client) -> None:
        source = self.random.choice(self.sources)
        answer = await client.post("/v1/completions", {"prompt": source})
        self._is(answer, source, lambda: json.loads(answer.body)["choices"][0]["text"])

    async def _ruled(self, client: Client) -> None:
        source, streams = self.random.choice(self.sources), self.random.random() < 0.5
        answer = await client.post("/v1/completions", {"prompt": source, "stream": streams} | RULED)
        if answer.status == 429:
            self.refused += 1
            self._error(answer)
            return
        said = ["", ""]
        for choice in _pieces(answer) if streams else json.loads(answer.body)["choices"]:
            said[choice["index"]] += choice["text"]
        if said != self.ruled[source]:
            self.wrong.append(f"{answer.status} for {source!r} under rules: {said!r}")

    async def _stream(self, client: Client) -> None:
        source = self.random.choice(self.sources)
        answer = await client.post("/v1/completions", {"prompt": source, "stream": True})
        self._is(answer, source, lambda: _said(answer))

    async def _leaves(self, client: Client) -> None:
        body = {"prompt": "Ein Spiel.", "min_tokens": TOKENS, "stream": self.random.random() < 0.5}
        await client.send("/v1/completions", body)
        await asyncio.sleep(self.random.random() * 0.02)
        client.close()

    async def _leaves_early(self, client: Client) -> None:
        other = Client(self.host, self.port)
        await other.send("/v1/completions", b'{"prompt":')
        other.close()

    async def _broken(self, client: Client) -> None:
        self._error(await client.post("/v1/completions", self.random.choice(BROKEN)))

    async def _impossible(self, client: Client) -> None:
        self._error(await client.post("/v1/completions", {"prompt": "Ein Spiel."} | self.random.choice(IMPOSSIBLE)))

    async def _hostile(self, client: Client) -> None:
        answer = await client.post("/v1/completions", {"prompt": self.random.choice(HOSTILE) + "a"})
        if answer.status != 200:
            self._error(answer)

    async def _large(self, client: Client) -> None:
        size = self.random.choice((2**20, 2**20 - 100))
        answer = await client.post("/v1/completions", {"prompt": "a " * (size // 2)})
        self._error(answer)

    async def _slow(self, client: Client) -> None:
        source = self.random.choice(self.sources)
        begun = await client.send("/v1/completions", {"prompt": source, "stream": True})
        await asyncio.sleep(0.1)
        answer = await client.receive(begun)
        self._is(answer, source, lambda: _said(answer))

    async def _garbage(self, client: Client) -> None:
        other = Client(self.host, self.port)
        other.reader, other.writer = await asyncio.open_connection(self.host, self.port)
        other.writer.write(self.random.choice((b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n")))
        await asyncio.sleep(0.005)
        other.close()

    def _is(self, answer: Answer, source: str, said: Any) -> None:
        if answer.status == 429:
            self.refused += 1
            self._error(answer)
        elif answer.status != 200 or said() != self.expected[source]:
            self.wrong.append(f"{answer.status} for {source!r}: {answer.body[:200]!r} {answer.events[-2:]!r}")

    def _error(self, answer: Answer) -> None:
        try:
            ok = answer.status >= 400 and set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
        except (ValueError, KeyError):
            ok = False
        if not ok:
            self.wrong.append(f"no error object: {answer.status} {answer.body[:200]!r}")


def _said(answer: Answer) -> str:
    return "".join(choice["text"] for choice in _pieces(answer))


def _pieces(answer: Answer) -> list[dict[str, Any]]:
    if answer.events[-1] != b"data: [DONE]":
        raise ValueError(f"a stream ended with {answer.events[-1]!r}")
    pieces = [json.loads(event.removeprefix(b"data: ")) for event in answer.events[:-1]]
    return [choice for piece in pieces for choice in piece["choices"]]


def faults(requests: int, clients: int, seed: int) -> tuple[str, bool]:
    """What a campaign found, and whether all was well."""
    with kdtw("--batch-size", "8", "--max-queue", "4") as (host, port, process):
        campaign = Campaign(host, port, seed)
        memory: list[int] = []

        async def whole() -> None:
            await campaign.learn()
            for part in range(10):
                left = iter(range(requests * part // 10, requests * (part + 1) // 10))
                await asyncio.gather(*(campaign.client(left) for _ in range(clients)))
                memory.append(psutil.Process(process.pid).memory_info().rss)

        asyncio.run(whole())
        ended = asyncio.run(_terminated(campaign, process))
    growth = 100.0 * (memory[-1] / memory[2] - 1)  # once it is warm
    good = not campaign.wrong and growth < HOLD and ended == 0
    lines = [
        f"{requests} requests of {clients} clients, seed {seed}: {campaign.counts}",
        f"told to come again: {campaign.refused}",
        f"wrong: {len(campaign.wrong)} {campaign.wrong[:5]}",
        f"memory: {memory[2] / 2**20:.0f} MiB after a third, {memory[-1] / 2**20:.0f} MiB at the end ({growth:+.1f} %)",
        f"SIGTERM in the middle: exit status {ended}",
    ]
    return "\n".join(lines), good


async def _terminated(campaign: Campaign, process: subprocess.Popen[str]) -> int:
    """The exit status where SIGTERM comes while clients wait, all of whom get their answers."""

    async def one() -> None:
        source = campaign.random.choice(campaign.sources)
        client = Client(campaign.host, campaign.port)
        begun = await client.send("/v1/completions", {"prompt": source, "stream": True})
        answer = await client.receive(begun)
        campaign._is(answer, source, lambda: _said(answer))

    asking = [asyncio.ensure_future(one()) for _ in range(8)]
    await asyncio.sleep(0.003)
    process.send_signal(signal.SIGTERM)
    for error in await asyncio.gather(*asking, return_exceptions=True):
        # One that had not been taken from the queue of connections is refused; nothing is lost of the others.
        if isinstance(error, BaseException) and not isinstance(error, ConnectionError | asyncio.IncompleteReadError):
            campaign.wrong.append(f"SIGTERM: {type(error).__name__}: {error}")
    return await asyncio.to_thread(process.wait, 60)
