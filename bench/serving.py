"""A service under load, and with faults.

    python -m bench.serving load [--clients 1,4,16,32]     # tokens/s and latencies, beside other ways to serve
    python -m bench.serving faults [--requests 10000]      # disconnects, malformed bodies, slow readers, SIGTERM

`load` says how many tokens a second come through `kdtw serve`, beside `decoder.stream` with as many rows and beside
Hugging Face's generate (and CTranslate2, where it is installed) in a Starlette application. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.http_client import Answer, Client
from kdtw_fast.pairs import load_samples
from kdtw_fast.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAIR = "debian-de-en"
TOKENS = 64
METHODS = ("training-wheels", "greedy-teacher")
OTHERS = ("Hugging Face", "CTranslate2")
WARM = 8  # requests before it counts
HOLD = 5.0  # percent that memory may grow by, once warm


@contextmanager
def serving(*command: str) -> Iterator[tuple[str, int, subprocess.Popen[str]]]:
    """A service in a process of its own: host, port and process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)", process.stdout.readline())
        if not found:
            raise RuntimeError(f"{' '.join(command)} did not say where it listens")
        try:
            yield found[1], int(found[2]), process
        finally:
            process.terminate()
            process.wait(60)


def kdtw(*options: str) -> Any:
    """`kdtw serve` with so much room for rows."""
    return serving("kdtw_fast", "serve", PAIR, "--port", "0", "--max-new-tokens", str(TOKENS), *options)


def texts(count: int) -> list[str]:
    """So many sources; those that there are, again and again."""
    sources = [sample.source for sample in load_samples(PAIR)]
    return [sources[i % len(sources)] for i in range(count)]


# --- Load ------------------------------------------------------------------------------------------------


async def drive(host: str, port: int, clients: int, count: int, fields: dict[str, Any]) -> tuple[float, list[Answer]]:
    """Seconds and answers of so many clients that ask one request after the other, so many in all."""
    left = iter(texts(count))
    answers: list[Answer] = []

    async def one() -> None:
        client = Client(host, port)
        for text in left:
            answers.append(await client.post("/v1/completions", {"prompt": text} | fields))
        client.close()

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return time.perf_counter() - begun, answers


def measured(host: str, port: int, clients: int, count: int, fields: dict[str, Any]) -> dict[str, float]:
    """Tokens a second, and in milliseconds the first token's and the next tokens' median and 99th percentile."""
    asyncio.run(drive(host, port, clients, max(WARM, clients), fields))
    seconds, answers = asyncio.run(drive(host, port, clients, count, fields))
    if any(answer.status != 200 for answer in answers):
        raise RuntimeError(f"a request failed: {next(a.body for a in answers if a.status != 200)!r}")
    if not fields.get("stream"):
        tokens = sum(json.loads(answer.body)["usage"]["completion_tokens"] for answer in answers)
        return {"tokens/s": tokens / seconds}
    last = [json.loads(answer.events[-2].removeprefix(b"data: ")) for answer in answers]
    tokens = sum(piece["usage"]["completion_tokens"] for piece in last)
    first = [1000 * answer.times[0] for answer in answers]
    between = [1000 * (b - a) for answer in answers for a, b in zip(answer.times, answer.times[1:])]
    return {"tokens/s": tokens / seconds} | {
        f"{name} {word}": cut(values) for name, values in (("first", first), ("next", between)) for word, cut in CUTS
    }


def late(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


CUTS = (("p50", median), ("p99", late))


def streamed(method: str, rows: int, count: int) -> float:
    """Tokens a second of `decoder.stream`."""
    from kdtw_fast.cli.models import load_models
    from kdtw_fast.methods import find_method, make_decoder

    roles = ("student", "teacher")
    models, words = load_models(roles, PAIR, None, None, None, dict.fromkeys(roles, "auto"))
    decoder = make_decoder(method, models, words)
    options: dict[str, Any] = {"batch_size": rows, "max_new_tokens": TOKENS}
    if "budget" in find_method(method).call_options:
        options["budget"] = "light"
    list(decoder.stream(texts(WARM), **options))
    begun = time.perf_counter()
    tokens = sum(int(out.lengths[0]) for out in decoder.stream(texts(count), **options))
    return tokens / (time.perf_counter() - begun)


def load(clients: list[int], count: int) -> str:
    """The table."""
    lines = []
    for rows in clients:
        for method in METHODS:
            alone = streamed(method, rows, count)
            lines.append([rows, f"decoder.stream, {method}", f"{alone:.0f}", "", "", "", "", ""])
            with kdtw("--batch-size", str(rows), "--method", method) as (host, port, _):
                whole = measured(host, port, rows, count, {})
                pieces = measured(host, port, rows, count, {"stream": True, "stream_options": {"include_usage": True}})
            share = f"{100 * whole['tokens/s'] / alone:.0f} %"
            lines.append([rows, f"kdtw serve, {method}", f"{whole['tokens/s']:.0f}", share, "", "", "", ""])
            lines.append(_line(rows, f"… streamed, {method}", pieces, alone))
        for other in OTHERS:
            try:
                with serving("bench.served_by_others", other) as (host, port, _):
                    few = max(4 * rows, count // 10)
                    lines.append(_line(rows, f"{other}, teacher", measured(host, port, rows, few, {"stream": True})))
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr)
    head = ["clients", "served by", "tokens/s", "of stream", "first p50, ms", "p99", "next p50, ms", "p99"]
    return "\n".join(markdown_table(head, [[str(cell) for cell in line] for line in lines]))


def _line(rows: int, name: str, found: dict[str, float], alone: float = 0.0) -> list[Any]:
    share = f"{100 * found['tokens/s'] / alone:.0f} %" if alone else ""
    times = [f"{found[f'{what} {word}']:.2f}" for what in ("first", "next") for word, _ in CUTS]
    return [rows, name, f"{found['tokens/s']:.0f}", share, *times]


# --- Faults ----------------------------------------------------------------------------------------------

BROKEN = [
    *(b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b"\xff\xfe\x00", b"[" * 50_000, b'{"prompt": "\\ud800"}'),
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
]
IMPOSSIBLE: list[dict[str, Any]] = [
    *({"max_tokens": 0}, {"max_tokens": 10**9}, {"temperature": -1}, {"top_p": 2}, {"top_k": -1}, {"n": 3}),
    *({"budget": "ligth"}, {"method": "nothing"}, {"model": "gpt-4"}, {"max_teacher_fraction": 7}, {"what": 1}),
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
KINDS = (
    "good",
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
        self.counts = dict.fromkeys(KINDS, 0)
        self.refused = 0
        self.wrong: list[str] = []

    async def learn(self) -> None:
        """What each source gives when it is asked for alone."""
        client = Client(self.host, self.port)
        for source in self.sources:
            answer = await client.post("/v1/completions", {"prompt": source})
            self.expected[source] = json.loads(answer.body)["choices"][0]["text"]
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
    if answer.events[-1] != b"data: [DONE]":
        raise ValueError(f"a stream ended with {answer.events[-1]!r}")
    pieces = [json.loads(event.removeprefix(b"data: ")) for event in answer.events[:-1]]
    return "".join(choice["text"] for piece in pieces for choice in piece["choices"])


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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    loads = commands.add_parser("load")
    loads.add_argument("--clients", default="1,4,16,32")
    loads.add_argument("--requests", type=int, default=400)
    broken = commands.add_parser("faults")
    broken.add_argument("--requests", type=int, default=10_000)
    broken.add_argument("--clients", type=int, default=16)
    broken.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.command == "load":
        print(load([int(one) for one in given.clients.split(",")], given.requests))
        return
    told, good = faults(given.requests, given.clients, given.seed)
    print(told)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
