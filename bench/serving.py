"""A service under load, and with faults.

    python -m bench.serving load [--record]                # tokens/s and latencies, beside other ways to serve
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
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.http_client import Answer, Client
from bench.regions import BENCHMARKS, write_region
from kdtw_fast.machine import machine, versions
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


@dataclass
class Measured:
    """What turns of one way to serve have shown: tokens a second, and milliseconds to first and between next pieces."""

    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def add(self, host: str, port: int, clients: int, count: int, fields: dict[str, Any]) -> None:
        """A turn of so many requests."""
        seconds, answers = asyncio.run(drive(host, port, clients, count, fields))
        if any(answer.status != 200 for answer in answers):
            raise RuntimeError(f"a request failed: {next(a.body for a in answers if a.status != 200)!r}")
        if not fields.get("stream"):
            tokens = sum(json.loads(answer.body)["usage"]["completion_tokens"] for answer in answers)
        else:
            last = [json.loads(answer.events[-2].removeprefix(b"data: ")) for answer in answers]
            tokens = sum(piece["usage"]["completion_tokens"] for piece in last)
            self.first += [1000 * answer.times[0] for answer in answers]
            # What comes in one chunk of HTTP came together.
            self.between += [1000 * (b - a) for answer in answers for a, b in pairwise(sorted({*answer.times[:-2]}))]
        self.rates.append(tokens / seconds)

    def cells(self, alone: list[float]) -> list[str]:
        """Of a line of the table; ``alone`` are the rates of the turns of `decoder.stream` beside these."""
        shares = [100 * mine / other for mine, other in zip(self.rates, alone)]
        share = f"{median(shares):.0f} % ({min(shares):.0f}–{max(shares):.0f})" if shares else ""
        times = [f"{cut(of):.2f}" if of else "" for of in (self.first, self.between) for cut in (median, late)]
        return [f"{median(self.rates):.0f}", share, *times]


def late(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


class Streamed:
    """`decoder.stream` of a method, in this process."""

    def __init__(self, method: str):
        from kdtw_fast.cli.models import load_models
        from kdtw_fast.methods import find_method, make_decoder

        roles = ("student", "teacher")
        models, words = load_models(roles, PAIR, None, None, None, dict.fromkeys(roles, "auto"))
        self.decoder = make_decoder(method, models, words)
        self.options: dict[str, Any] = {"max_new_tokens": TOKENS}
        if "budget" in find_method(method).call_options:
            self.options["budget"] = "light"

    def rate(self, rows: int, count: int) -> tuple[float, float]:
        """Tokens and texts a second."""
        begun = time.perf_counter()
        tokens = sum(int(out.lengths[0]) for out in self.decoder.stream(texts(count), batch_size=rows, **self.options))
        seconds = time.perf_counter() - begun
        return tokens / seconds, count / seconds


def load(clients: list[int], turns: int, seconds: float) -> str:
    """The table. A turn of each kind takes about so many seconds; those of one line of clients alternate."""
    lines: list[list[str]] = []
    found: dict[tuple[str, int], list[str]] = {}
    whole, pieces = dict[str, Any](), {"stream": True, "stream_options": {"include_usage": True}}
    for method in METHODS:
        streamed = Streamed(method)
        with kdtw("--batch-size", str(max(clients)), "--method", method) as (host, port, _):
            for rows in clients:
                streamed.rate(rows, max(WARM, rows))
                Measured().add(host, port, rows, max(WARM, rows), pieces)
                count = max(2 * rows, int(seconds * streamed.rate(rows, 4 * max(WARM, rows))[1]))
                alone = list[float]()
                asked = {"kdtw serve": (whole, Measured()), "kdtw serve, streamed": (pieces, Measured())}
                for _ in range(turns):
                    alone.append(streamed.rate(rows, count)[0])
                    for fields, measured in asked.values():
                        measured.add(host, port, rows, count, fields)
                found[f"{method}, decoder.stream", rows] = [f"{median(alone):.0f}", *[""] * 5]
                for name, (_, measured) in asked.items():
                    found[f"{method}, {name}", rows] = measured.cells(alone)
    for other in OTHERS:
        try:
            with serving("bench.served_by_others", other) as (host, port, _):
                asyncio.run(drive(host, port, 1, 2, pieces))
                for rows in clients:
                    measured = Measured()
                    took, _ = asyncio.run(drive(host, port, rows, rows, pieces))
                    measured.add(host, port, rows, max(rows, int(2 * seconds / took * rows)), pieces)
                    found[f"greedy-teacher, {other}", rows] = measured.cells([])
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
    for rows in clients:
        lines += [[str(rows), name, *cells] for (name, of), cells in found.items() if of == rows]
    head = ["clients", "served by", "tokens/s", "of decoder.stream", "first p50, ms", "p99", "next p50, ms", "p99"]
    return "\n".join(markdown_table(head, lines))


def recorded(clients: list[int], turns: int, seconds: float) -> str:
    """The table with what made it."""
    here = machine()
    packages = here["versions"] | versions("starlette", "uvicorn", "uvloop", "httptools")
    where = f"{here['processor']}, {here['cores']} cores, {', '.join(f'{k} {v}' for k, v in packages.items())}"
    asked = f"--clients {','.join(map(str, clients))} --turns {turns} --seconds {seconds:g}"
    note = (
        f"`python -m bench.serving load {asked}` on {time.strftime('%Y-%m-%d')}: {where}. The shipped pair, "
        f"German sentences, up to {TOKENS} new tokens, clients in a process of their own on the same machine. "
        f'"of decoder.stream": median, least and most of {turns} turns in one run, with as many rows as clients.'
    )
    return (
        f"{textwrap.fill(note, 120, break_long_words=False, break_on_hyphens=False)}\n\n{load(clients, turns, seconds)}"
    )


# --- Faults ----------------------------------------------------------------------------------------------

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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    loads = commands.add_parser("load")
    loads.add_argument("--clients", default="1,8,32")
    loads.add_argument("--turns", type=int, default=3)
    loads.add_argument("--seconds", type=float, default=1.2, help="of a turn")
    loads.add_argument("--record", action="store_true", help="into docs/benchmarks.md")
    broken = commands.add_parser("faults")
    broken.add_argument("--requests", type=int, default=10_000)
    broken.add_argument("--clients", type=int, default=16)
    broken.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.command == "load":
        text = recorded([int(one) for one in given.clients.split(",")], given.turns, given.seconds)
        print(text)
        if given.record:
            write_region(BENCHMARKS, "serving", text)
        return
    told, good = faults(given.requests, given.clients, given.seed)
    print(told)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
