"""Threads that decode for hours: python -m bench.soak [--minutes N] [--threads N] [--seed N].

Tiny random pairs in every number format and every method, through every way in: batches, streams, rows handed in,
coroutines, models packed anew; some are cancelled, left, run out of time or raise in their streamer. Every row that
comes out is compared, bit for bit, with what a single thread made of it alone before. Between rounds all threads have
ended, and what the process holds is looked at: its memory, Python's objects, threads and open files.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import kdtw_fast
from kdtw_fast import NativeT5
from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.selftest.agreement import as_array
from kdtw_fast.selftest.decodes import METHODS
from kdtw_fast.selftest.tiny import random_pair
from kdtw_fast.worker import Worker

DTYPES = ("fp32", "bf16", "int8")
VOCABULARY, LONGEST = 43, 24
# Where a row ends, drafts stand that a later call might have taken back.
UNCHECKED = [(n, o) for n, o in METHODS if "verify_lenience" in o or n == "BigLittleDecoder"]
# What a row asks for.
OWN: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 3},
    {"temperature": 0.9},
    {"temperature": 1.3, "top_k": 7, "seed": 2**63},
    {"temperature": 0.7, "top_p": 0.6, "min_new_tokens": 9},
    {"teacher_temperature": 1.1, "teacher_top_p": 0.8, "seed": 9},
]
SHARED: dict[str, Any] = {"max_new_tokens": LONGEST, "output_logprobs": True}
MATRICES = ("sequences", "owners", "student_logprobs", "teacher_logprobs")
NUMBERS = ("lengths", "teacher_calls", "drafted", "accepted", "rolled_back")
Says = dict[str, Any]


def row_of(output: GenerationOutput, row: int = 0) -> Says:
    """All that an output says about a row, as bytes, without the padding of others."""
    end = 1 + int(output.lengths[row])
    says = {name: as_array(output[name])[row, :end].tobytes() for name in MATRICES if name in output}
    return says | {name: as_array(output[name])[row].tobytes() for name in NUMBERS}


@dataclass(frozen=True)
class Case:
    """A row and what it is alone."""

    kind: int
    own: int
    source: list[int]
    row_id: int
    says: Says

    @property
    def item(self) -> dict[str, Any]:
        return {"input_ids": self.source, "row_id": self.row_id} | OWN[self.own]


@dataclass
class Soaked:
    """What was tried, and what the process held between rounds: (MiB, objects, threads, files)."""

    counts: Counter[str] = field(default_factory=Counter)
    held: list[tuple[float, int, int, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def grown(self) -> list[str]:
        """What grew from the second fifth of the rounds to the last by more than a hundredth (of memory, 8 MiB too)."""
        part = len(self.held) // 5
        if not part:
            return []
        found = []
        for place, (name, slack) in enumerate((("MiB", 8.0), ("objects", 1000), ("threads", 0), ("files", 0))):
            before = statistics.median(one[place] for one in self.held[part : 2 * part])
            after = statistics.median(one[place] for one in self.held[-part:])
            if after > before + max(slack, before / 100):
                found.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
        return found


class Soak:
    """Decoders, and rows with what they are alone; `rows` of each decoder and kind of options."""

    def __init__(self, threads: int, seed: int, rows: int = 3):
        self.threads, self.seed = threads, seed
        self.soaked = Soaked()
        self._lock = threading.Lock()
        self._modules = random_pair("noisy", seed=1, vocab_size=VOCABULARY)
        self.decoders: list[Any] = []
        self.cases: list[list[Case]] = []
        draw = random.Random(seed)
        for dtype in DTYPES:
            models = self._pack(dtype)
            worker = Worker(5)
            for name, options in METHODS:
                self.decoders.append(self._decoder(name, options, models, num_threads=2))
                self.decoders[-1].worker = worker
                alone = self._decoder(name, options, models, num_threads=1)
                self.cases.append([self._case(alone, own, draw) for own in range(len(OWN)) for _ in range(rows)])

    def round(self, number: int, calls: int) -> None:
        """So many calls of every thread, and what the process holds when they have ended."""
        threads = [threading.Thread(target=self._run, args=(number, i, calls)) for i in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.soaked.held.append((memory, len(gc.get_objects()), threading.active_count(), files))

    def close(self) -> None:
        for decoder in self.decoders:
            decoder.worker.close()

    def _pack(self, dtype: str) -> tuple[NativeT5, ...]:
        return tuple(NativeT5.from_model(m, n, dtype=dtype) for m, n in zip(self._modules, ("student", "teacher")))

    def _decoder(self, name: str, options: dict[str, Any], models: tuple[NativeT5, ...], **more: Any) -> Any:
        count = 1 if name == "SingleModelDecoder" else 2
        return getattr(kdtw_fast, name)(*models[:count], **options, **more)

    def _case(self, decoder: Any, own: int, draw: random.Random) -> Case:
        source = [*(draw.randrange(2, VOCABULARY - 1) for _ in range(draw.randrange(1, 30))), 1]
        row_id = draw.randrange(2**32)
        out = decoder.generate([source], row_ids=[row_id], **SHARED | OWN[own])
        return Case(len(self.cases), own, source, row_id, row_of(out))

    def _run(self, number: int, thread: int, calls: int) -> None:
        draw = random.Random(f"{self.seed} {number} {thread}")
        ways: list[Callable[[random.Random], int]] = [getattr(self, name) for name in dir(self) if name[:4] == "_by_"]
        for _ in range(calls):
            way = draw.choice(ways)
            name = way.__name__[4:].replace("_", " ")
            try:
                rows = way(draw)
            except Exception as error:
                self._wrong(f"{name}: {error!r}")
                rows = 0
            with self._lock:
                self.soaked.counts.update({name: 1, "calls": 1, "rows": rows})

    def _wrong(self, said: str) -> None:
        with self._lock:
            self.soaked.wrong.append(said)

    def _some(self, draw: random.Random, most: int) -> tuple[Any, list[Case]]:
        kind = draw.randrange(len(self.decoders))
        return self.decoders[kind], draw.choices(self.cases[kind], k=draw.randint(1, most))

    def _compare(self, case: Case, output: GenerationOutput, row: int = 0) -> int:
        name, options = METHODS[case.kind % len(METHODS)]
        if row_of(output, row) != case.says:
            self._wrong(f"{name} {options} {DTYPES[case.kind // len(METHODS)]}: other bits for {case.item}")
        return 1

    # --- Ways in: each gives the number of rows that were compared ---------------------------------------

    def _by_generate(self, draw: random.Random) -> int:
        decoder, [first] = self._some(draw, 1)
        cases = [case for case in self.cases[first.kind] if case.own == first.own]
        keys = [case.row_id for case in cases]
        out = decoder.generate([case.source for case in cases], row_ids=keys, **SHARED | OWN[first.own])
        return sum(self._compare(case, out, row) for row, case in enumerate(cases))

    def _by_stream(self, draw: random.Random) -> int:
        decoder, cases = self._some(draw, 12)
        outputs = decoder.stream((case.item for case in cases), batch_size=draw.randint(1, 5), **SHARED)
        found = [self._compare(cases[out.index], out) for out in outputs]
        if len(found) != len(cases):
            self._wrong(f"a stream of {len(cases)} items gave {len(found)} outputs")
        return len(found)

    def _by_stream_that_is_left(self, draw: random.Random) -> int:
        decoder, cases = self._some(draw, 12)
        with closing(decoder.stream((case.item for case in cases), batch_size=3, **SHARED)) as outputs:
            return sum(self._compare(cases[out.index], out) for _, out in zip(range(draw.randint(1, 4)), outputs))

    def _by_rows_handed_in(self, draw: random.Random) -> int:
        decoder, cases = self._some(draw, 6)
        tickets = [decoder.submit(case.item, **SHARED) for case in cases]
        return sum(self._compare(case, ticket.result(600)) for case, ticket in zip(cases, tickets))

    def _by_rows_cancelled(self, draw: random.Random) -> int:
        decoder, cases = self._some(draw, 6)
        tickets = [decoder.submit(case.item, **SHARED) for case in cases]
        if draw.random() < 0.5:
            time.sleep(draw.random() / 200)
        left = [draw.random() < 0.6 and ticket.cancel() for ticket in tickets]
        return sum(self._compare(c, ticket.result(600)) for c, ticket, gone in zip(cases, tickets, left) if not gone)

    def _by_coroutines(self, draw: random.Random) -> int:
        decoder, cases = self._some(draw, 6)

        async def both() -> int:
            late = asyncio.ensure_future(decoder.agenerate(cases[0].item, **SHARED))
            outputs = [out async for out in decoder.astream([case.item for case in cases], **SHARED)]
            if draw.random() < 0.5:
                late.cancel()
            found = sum(self._compare(cases[out.index], out) for out in outputs)
            try:
                return found + self._compare(cases[0], await late)
            except asyncio.CancelledError:
                return found

        return asyncio.run(both())

    def _by_streamers(self, draw: random.Random) -> int:
        """Some of them raise, which ends the call."""
        decoder, [case] = self._some(draw, 1)
        written: list[int] = []
        last = draw.choice([0, 2, 1000])

        def put(row: int, position: int, token: int, owner: int) -> None:
            written.append(token)
            if len(written) > last:
                raise LookupError

        options = SHARED | OWN[case.own]
        try:
            out = decoder.generate([case.source], row_ids=[case.row_id], streamer=put, **options)
        except LookupError:
            return 0
        if written != out.output_ids[0]:
            self._wrong(f"a streamer had {written}, the output {out.output_ids[0]}")
        return self._compare(case, out)

    def _by_time_that_runs_out(self, draw: random.Random) -> int:
        decoder, [case] = self._some(draw, 1)
        limit = draw.random() / 1000 + 1e-6
        out = decoder.generate([case.source], row_ids=[case.row_id], max_time=limit, **SHARED | OWN[case.own])
        begun = as_array(out.sequences)[0, : 1 + int(out.lengths[0])].tobytes()
        if METHODS[case.kind % len(METHODS)] not in UNCHECKED and not case.says["sequences"].startswith(begun):
            self._wrong(f"what fits into {limit} s is no beginning of {case.item}")
        return 1

    def _by_wrong_inputs(self, draw: random.Random) -> int:
        decoder, [case] = self._some(draw, 1)
        for wrong in ({"input_ids": [VOCABULARY + 9]}, {"input_ids": case.source, "top_k": -1}):
            try:
                decoder.submit(wrong, **SHARED).result(600)
            except ValueError:
                continue
            self._wrong(f"{wrong} was taken")
        return 0

    def _by_models_packed_anew(self, draw: random.Random) -> int:
        kind = draw.randrange(len(self.decoders))
        dtype, (name, options) = DTYPES[kind // len(METHODS)], METHODS[kind % len(METHODS)]
        decoder = self._decoder(name, options, self._pack(dtype), num_threads=2)
        case = draw.choice(self.cases[kind])
        out = decoder.generate([case.source], row_ids=[case.row_id], **SHARED | OWN[case.own])
        return self._compare(case, out)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=24)
    parser.add_argument("--calls", type=int, default=40, help="of each thread between two looks at what is held")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    soak = Soak(asked.threads, asked.seed)
    soaked, start, number = soak.soaked, time.monotonic(), 0
    while number == 0 or time.monotonic() - start < 60 * asked.minutes:
        soak.round(number, asked.calls)
        number += 1
        memory, objects, threads, files = soaked.held[-1]
        print(
            f"{(time.monotonic() - start) / 60:6.1f} min, {soaked.counts['rows']:,} rows compared, {memory:.0f} MiB, "
            f"{objects:,} objects, {threads} threads, {files} files, {len(soaked.wrong)} wrong",
            flush=True,
        )
    soak.close()
    print(", ".join(f"{count:,} {name}" for name, count in soaked.counts.most_common()))
    for said in [*soaked.wrong[:20], *soaked.grown()]:
        print(said)
    return bool(soaked.wrong or soaked.grown())


if __name__ == "__main__":
    sys.exit(main())
