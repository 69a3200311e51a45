"""What comes through a service in a second, and when."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.http_load import Answer, drive
from bench.models import FLAN_T5_BASE, FLAN_T5_SMALL, asking_student, save, teacher_without
from kdtw_fast.machine import machine, versions
from kdtw_fast.pairs import load_samples, pair_folder
from kdtw_fast.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = "debian-de-en"
VOCABULARY = 4096  # its models' rows
TOKENS = 64  # most of an output
LONG = 32  # all outputs of the random pair
WHEELS, TEACHER = METHODS = "training-wheels", "greedy-teacher"
OTHERS = ("Hugging Face", "CTranslate2")
WARM = 4  # requests before it counts
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Pair:
    """Models that are served.

    Args:
        named: what `kdtw serve` is told of them.
        folders: of load_models: student, teacher and tokenizer; none of the shipped pair.
        asked: fields of every request.
        options: the same for `decoder.stream`.
        least: requests of each client in a turn.
    """

    named: Sequence[str] = (SHIPPED,)
    folders: Sequence[Path] = ()
    asked: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    least: int = 2

    def decoder(self, method: str) -> Any:
        """Its decoder of a method."""
        from kdtw_fast.methods import make_decoder
        from kdtw_fast.pair_folders import load_models

        roles = ("student", "teacher")
        dtypes = dict.fromkeys(roles, "auto")
        if not self.folders:
            return make_decoder(method, *load_models(roles, SHIPPED, None, None, None, dtypes))
        student, teacher, tokenizer = self.folders
        return make_decoder(method, *load_models(roles, None, student, [teacher], tokenizer, dtypes))


@contextmanager
def random_pair() -> Iterator[Pair]:
    """A random pair of FLAN-T5's sizes with the shipped one's tokenizer, in bf16; its student asks for a tenth.

    Random models end anywhere: every output has the most tokens that it may have.
    """
    tokenizer = pair_folder(SHIPPED) / "tokenizer"
    small, base = (replace(shape, vocab_size=VOCABULARY) for shape in (FLAN_T5_SMALL, FLAN_T5_BASE))
    made = {"student": asking_student(small), "teacher": teacher_without(base, tau=VOCABULARY - 1)}
    with tempfile.TemporaryDirectory() as home:
        folders = {role: Path(home, role) for role in made}
        for role, model in made.items():
            save(model, folders[role])
        paths = [*folders.values(), tokenizer]
        options = [f"--{role}={path}" for role, path in zip((*made, "tokenizer"), paths)]
        limits = {"max_teacher_fraction": 0.1}
        yield Pair(
            [*options, "--name=random"],
            paths,
            limits | {"max_tokens": LONG, "min_tokens": LONG},
            limits | {"max_new_tokens": LONG, "min_new_tokens": LONG},
            least=1,
        )


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


def kdtw(*options: str, pair: Pair = Pair()) -> Any:
    """`kdtw serve` with so much room for rows."""
    return serving("kdtw_fast", "serve", *pair.named, "--port", "0", "--max-new-tokens", str(TOKENS), *options)


def texts(count: int) -> list[str]:
    """So many sources; those that there are, again and again."""
    sources = [sample.source for sample in load_samples(SHIPPED)]
    return [sources[i % len(sources)] for i in range(count)]


def ask(host: str, port: int, clients: int, count: int, fields: dict[str, Any]) -> tuple[float, list[Answer]]:
    """Seconds and answers of so many clients that ask one request after the other, so many in all.

    Raises:
        RuntimeError: a request failed.
    """
    bodies = [json.dumps({"prompt": text} | fields).encode() for text in texts(count)]
    seconds, answers = drive(host, port, clients, "/v1/completions", bodies)
    for answer in answers:
        if answer.status != 200:
            raise RuntimeError(f"a request failed: {answer.body!r}")
    return seconds, answers


@dataclass
class Measured:
    """What turns of one way to serve have shown: tokens a second, and milliseconds to first and between next pieces."""

    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def add(self, host: str, port: int, clients: int, count: int, fields: dict[str, Any]) -> None:
        """A turn of so many requests."""
        seconds, answers = ask(host, port, clients, count, fields)
        said = [answer.events[-2].removeprefix(b"data: ") if answer.events else answer.body for answer in answers]
        self.rates.append(sum(json.loads(one)["usage"]["completion_tokens"] for one in said) / seconds)
        for answer in answers:
            self.first += [1000 * time for time in answer.times[:1]]
            # What comes at once came together; in the end stand the usage and the mark of the end.
            self.between += [1000 * (b - a) for a, b in pairwise(sorted({*answer.times[:-2]}))]

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

    def __init__(self, method: str, pair: Pair = Pair()):
        from kdtw_fast.methods import find_method

        self.decoder = pair.decoder(method)
        self.options: dict[str, Any] = {"max_new_tokens": TOKENS} | pair.options
        if "budget" in find_method(method).call_options:
            self.options["budget"] = "light"

    def rate(self, rows: int, count: int) -> tuple[float, float]:
        """Tokens and texts a second."""
        begun = time.perf_counter()
        tokens = sum(int(out.lengths[0]) for out in self.decoder.stream(texts(count), batch_size=rows, **self.options))
        seconds = time.perf_counter() - begun
        return tokens / seconds, count / seconds


Found = dict[tuple[str, int], list[str]]  # cells of a line, by who serves and the number of clients


def load(method: str, pair: Pair, clients: list[int], turns: int, seconds: float) -> Found:
    """Lines of a method. A turn of each kind takes about so many seconds; those of one line of clients alternate."""
    found: Found = {}
    streamed = Streamed(method, pair)
    streamed.rate(1, WARM)
    with kdtw("--batch-size", str(max(clients)), "--method", method, pair=pair) as (host, port, _):
        for rows in clients:
            warm = max(pair.least * WARM, rows)
            ask(host, port, rows, warm, pair.asked | STREAMED)
            count = max(pair.least * rows, int(seconds * streamed.rate(rows, pair.least * warm)[1]))
            alone = list[float]()
            asked = {"kdtw serve": ({}, Measured()), "kdtw serve, streamed": (STREAMED, Measured())}
            for _ in range(turns):
                alone.append(streamed.rate(rows, count)[0])
                for fields, measured in asked.values():
                    measured.add(host, port, rows, count, pair.asked | fields)
            found[f"{method}, decoder.stream", rows] = [f"{median(alone):.0f}", *[""] * 5]
            for name, (_, measured) in asked.items():
                found[f"{method}, {name}", rows] = measured.cells(alone)
    return found


def others(clients: list[int], seconds: float) -> Found:
    """Lines of other ways to serve the shipped pair's teacher, of those that are installed."""
    found: Found = {}
    for other in OTHERS:
        try:
            with serving("bench.served_by_others", other) as (host, port, _):
                ask(host, port, 1, 2, STREAMED)
                for rows in clients:
                    took, _ = ask(host, port, rows, rows, STREAMED)
                    measured = Measured()
                    measured.add(host, port, rows, max(rows, int(2 * seconds / took * rows)), STREAMED)
                    found[f"{TEACHER}, {other}", rows] = measured.cells([])
        except (RuntimeError, OSError) as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def table(found: Found, clients: list[int]) -> str:
    lines = [[str(rows), name, *cells] for rows in clients for (name, of), cells in found.items() if of == rows]
    head = ["clients", "served by", "tokens/s", "of decoder.stream", "first p50, ms", "p99", "next p50, ms", "p99"]
    return "\n".join(markdown_table(head, lines))


def recorded(clients: list[int], turns: int, seconds: float) -> str:
    """The tables with what made them."""
    here = machine()
    packages = here["versions"] | versions("starlette", "uvicorn", "uvloop", "httptools")
    where = f"{here['processor']}, {here['cores']} cores, {', '.join(f'{k} {v}' for k, v in packages.items())}"
    asked = f"--clients {','.join(map(str, clients))} --turns {turns} --seconds {seconds:g}"
    about = (
        f"`python -m bench.serving load {asked}` on {time.strftime('%Y-%m-%d')}: {where}. German sentences, clients in "
        f'a process of their own on the same machine. "of decoder.stream": median, least and most of {turns} turns in '
        f"one run, with as many rows as clients."
    )
    with random_pair() as pair:
        large = load(WHEELS, pair, clients, turns, seconds)
    small = {line: cells for method in METHODS for line, cells in load(method, Pair(), clients, turns, seconds).items()}
    small |= others(clients, seconds)
    on_large = (
        f"A pair of the sizes of FLAN-T5-small and FLAN-T5-base with random weights (bf16, {VOCABULARY:,} words): all "
        f"outputs have {LONG} tokens, a tenth of them the teacher's."
    )
    on_small = (
        f"The shipped pair, up to {TOKENS} tokens: so small that a token costs the processors little more to decode "
        f"than to send."
    )
    parts = [_wrapped(about), _wrapped(on_large), table(large, clients), _wrapped(on_small), table(small, clients)]
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
