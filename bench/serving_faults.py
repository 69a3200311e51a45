"""A service that is asked with faults, and what becomes of its answers and its memory."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import psutil

from bench.serving_load import TOKENS, kdtw, texts

PATH = "/v1/completions"
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
        self.address = host, port
        self.random = random.Random(seed)
        self.sources = texts(64)
        self.expected: dict[str, str] = {}
        self.ruled: dict[str, list[str]] = {}
        self.counts = dict.fromkeys(KINDS, 0)
        self.refused = 0
        self.wrong: list[str] = []

    async def learn(self) -> None:
        """What each source gives when it is asked for alone."""
        async with self.connected() as client:
            for source in self.sources:
                self.expected[source] = (await post(client, {"prompt": source})).json()["choices"][0]["text"]
                answer = await post(client, {"prompt": source} | RULED)
                self.ruled[source] = [choice["text"] for choice in answer.json()["choices"]]

    def connected(self) -> httpx.AsyncClient:
        """A client of its own connection."""
        host, port = self.address
        return httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60)

    async def client(self, left: Iterator[int]) -> None:
        """Asks in turn for whatever comes to its mind."""
        async with self.connected() as client:
            for _ in left:
                kind = self.random.choice(KINDS)
                self.counts[kind] += 1
                try:
                    await getattr(self, f"_{kind.replace(' ', '_')}")(client)
                except (OSError, ValueError, httpx.HTTPError) as error:
                    self.wrong.append(f"{kind}: {type(error).__name__}: {error}")

    async def _good(self, client: httpx.AsyncClient) -> None:
        source = self.random.choice(self.sources)
        answer = await post(client, {"prompt": source})
        self._is(answer, source, lambda: answer.json()["choices"][0]["text"])

    async def _ruled(self, client: httpx.AsyncClient) -> None:
        source, streams = self.random.choice(self.sources), self.random.random() < 0.5
        answer = await post(client, {"prompt": source, "stream": streams} | RULED)
        if answer.status_code == 429:
            self.refused += 1
            self._error(answer)
            return
        said = ["", ""]
        for choice in _pieces(answer) if streams else answer.json()["choices"]:
            said[choice["index"]] += choice["text"]
        if said != self.ruled[source]:
            self.wrong.append(f"{answer.status_code} for {source!r} under rules: {said!r}")

    async def _stream(self, client: httpx.AsyncClient) -> None:
        source = self.random.choice(self.sources)
        answer = await post(client, {"prompt": source, "stream": True})
        self._is(answer, source, lambda: _said(answer))

    async def _leaves(self, client: httpx.AsyncClient) -> None:
        body = {"prompt": "Ein Spiel.", "min_tokens": TOKENS, "stream": self.random.random() < 0.5}
        asking = asyncio.ensure_future(post(client, body))
        await asyncio.wait([asking], timeout=self.random.random() * 0.02)
        asking.cancel()
        await asyncio.wait([asking])

    async def _leaves_early(self, client: httpx.AsyncClient) -> None:
        await self._send_raw(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"prompt":')

    async def _broken(self, client: httpx.AsyncClient) -> None:
        self._error(await post(client, self.random.choice(BROKEN)))

    async def _impossible(self, client: httpx.AsyncClient) -> None:
        self._error(await post(client, {"prompt": "Ein Spiel."} | self.random.choice(IMPOSSIBLE)))

    async def _hostile(self, client: httpx.AsyncClient) -> None:
        answer = await post(client, {"prompt": self.random.choice(HOSTILE) + "a"})
        if answer.status_code != 200:
            self._error(answer)

    async def _large(self, client: httpx.AsyncClient) -> None:
        size = self.random.choice((2**20, 2**20 - 100))
        self._error(await post(client, {"prompt": "a " * (size // 2)}))

    async def _slow(self, client: httpx.AsyncClient) -> None:
        source = self.random.choice(self.sources)
        async with client.stream("POST", PATH, json={"prompt": source, "stream": True}) as answer:
            await asyncio.sleep(0.1)
            await answer.aread()
        self._is(answer, source, lambda: _said(answer))

    async def _garbage(self, client: httpx.AsyncClient) -> None:
        await self._send_raw(self.random.choice((b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n")))

    async def _send_raw(self, data: bytes) -> None:
        """On a connection that is aborted then."""
        _, writer = await asyncio.open_connection(*self.address)
        writer.write(data)
        await asyncio.sleep(0.005)
        writer.transport.abort()

    def _is(self, answer: httpx.Response, source: str, said: Callable[[], str]) -> None:
        if answer.status_code == 429:
            self.refused += 1
            self._error(answer)
        elif answer.status_code != 200 or said() != self.expected[source]:
            self.wrong.append(
                f"{answer.status_code} for {source!r}: {answer.content[:200]!r} … {answer.content[-200:]!r}"
            )

    def _error(self, answer: httpx.Response) -> None:
        try:
            ok = answer.is_error and set(answer.json()["error"]) == {"message", "type", "param", "code"}
        except (ValueError, KeyError):
            ok = False
        if not ok:
            self.wrong.append(f"no error object: {answer.status_code} {answer.content[:200]!r}")


async def post(client: httpx.AsyncClient, body: bytes | Mapping[str, Any]) -> httpx.Response:
    """Asks, with an object or with whatever bytes, and waits for the whole answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(PATH, content=content, headers={"Content-Type": "application/json"})


def _said(answer: httpx.Response) -> str:
    return "".join(choice["text"] for choice in _pieces(answer))


def _pieces(answer: httpx.Response) -> list[dict[str, Any]]:
    *pieces, last = filter(None, answer.content.split(b"\n\n"))
    if last != b"data: [DONE]":
        raise ValueError(f"a stream ended with {last!r}")
    return [choice for piece in pieces for choice in json.loads(piece.removeprefix(b"data: "))["choices"]]


def campaign(requests: int, clients: int, seed: int) -> tuple[str, bool]:
    """What a campaign found, and whether all was well."""
    with kdtw("--batch-size", "8", "--max-queue", "4") as (host, port, process):
        asked = Campaign(host, port, seed)
        memory: list[int] = []

        async def whole() -> None:
            await asked.learn()
            for part in range(10):
                left = iter(range(requests * part // 10, requests * (part + 1) // 10))
                await asyncio.gather(*(asked.client(left) for _ in range(clients)))
                memory.append(psutil.Process(process.pid).memory_info().rss)

        asyncio.run(whole())
        ended = asyncio.run(_terminated(asked, process))
    growth = 100.0 * (memory[-1] / memory[2] - 1)  # once it is warm
    good = not asked.wrong and growth < HOLD and ended == 0
    lines = [
        f"{requests} requests of {clients} clients, seed {seed}: {asked.counts}",
        f"told to come again: {asked.refused}",
        f"wrong: {len(asked.wrong)} {asked.wrong[:5]}",
        f"memory: {memory[2] / 2**20:.0f} MiB after a third, {memory[-1] / 2**20:.0f} MiB at the end ({growth:+.1f} %)",
        f"SIGTERM in the middle: exit status {ended}",
    ]
    return "\n".join(lines), good


async def _terminated(asked: Campaign, process: subprocess.Popen[str]) -> int:
    """The exit status where SIGTERM comes while clients wait, all of whom get their answers."""

    async def one() -> None:
        source = asked.random.choice(asked.sources)
        async with asked.connected() as client:
            answer = await post(client, {"prompt": source, "stream": True})
        asked._is(answer, source, lambda: _said(answer))

    asking = [asyncio.ensure_future(one()) for _ in range(8)]
    await asyncio.sleep(0.003)
    process.send_signal(signal.SIGTERM)
    for error in await asyncio.gather(*asking, return_exceptions=True):
        # One that had not been taken from the queue of connections is refused; nothing is lost of the others.
        if isinstance(error, BaseException) and not isinstance(error, httpx.TransportError):
            asked.wrong.append(f"SIGTERM: {type(error).__name__}: {error}")
    return await asyncio.to_thread(process.wait, 60)
