"""Many sentences over actors of a Ray cluster in this machine, beside one process; an actor is killed midway.

    python -m bench.ray [--sentences 100000]

The held-out sentences of the shipped pair, over and over, each with its number: first in one process, then over two
actors and over four, of the four one by kill -9 midway. Every row is compared with what one process gives, and counted:
none may be lost, none may come twice. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from itertools import cycle, islice
from typing import Any

import psutil

from kdtw_fast.machine import machine, versions
from kdtw_fast.pairs import load_samples, pair_folder
from kdtw_fast.tables import markdown_table

PAIR = "debian-de-en"
OPTIONS: dict[str, Any] = {"budget": "light", "max_new_tokens": 64}
BATCH, SLOTS = 500, 16


@dataclass
class Throughput:
    """What a run took and gave.

    Args:
        name: of the row of the table.
        sentences: how many were decoded.
        tokens: of their outputs.
        start: seconds until the first came.
        seconds: from the first to the last.
        counted: of the sentences that came in that time.
        wrong: rows that were lost, came twice, or differ from one process's.
        killed: processes that were killed.
    """

    name: str
    sentences: int
    tokens: int
    start: float
    seconds: float
    counted: int
    wrong: tuple[int, int, int] | None = None
    killed: int = 0

    def row(self) -> list[str]:
        lost = "-" if self.wrong is None else ", ".join(map(str, self.wrong))
        rate = self.counted / self.seconds
        told = [self.name, f"{self.sentences:,}", f"{self.start:.1f}", f"{self.seconds:.1f}"]
        return [*told, f"{rate:.0f}", f"{rate * self.tokens / self.sentences:.0f}", lost]


def one_process(sources: list[str], threads: int, count: int) -> tuple[Throughput, list[list[int]]]:
    """A stream in this process; also the outputs of the sources, each once."""
    from kdtw_fast import TrainingWheelsDecoder

    begun = time.perf_counter()
    home = pair_folder(PAIR)
    decoder = TrainingWheelsDecoder(home / "student", home / "teacher", num_threads=threads, cache=True)
    outputs = [
        out.sequences[0, out.spans[0]].tolist()
        for out in decoder.stream(sources, batch_size=SLOTS, in_order=True, **OPTIONS)
    ]
    started, tokens = time.perf_counter(), 0
    for out in decoder.stream(islice(cycle(sources), count), batch_size=SLOTS, **OPTIONS):
        tokens += int(out.lengths[0])
    seconds = time.perf_counter() - started
    name = f"one process, {threads} {'thread' if threads == 1 else 'threads'}"
    return Throughput(name, count, tokens, started - begun, seconds, count), outputs


def over_actors(sources: list[str], expected: list[list[int]], actors: int, count: int, kill: bool) -> Throughput:
    """A stage of so many actors of one thread each."""
    import ray

    from kdtw_fast.ray import decode

    begun = time.perf_counter()
    rows = [{"id": n, "text": text} for n, text in enumerate(islice(cycle(sources), count))]
    data = ray.data.from_items(rows, override_num_blocks=max(actors, count // BATCH))
    stage = decode(data, PAIR, actors=actors, batch_size=BATCH, slots=SLOTS, **OPTIONS)
    seen = bytearray(count)
    tokens = different = twice = killed = first = 0
    started = None
    for batch in stage.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for n, ids, error in zip(*(batch.column(name).to_pylist() for name in ("id", "output_ids", "error"))):
            twice += seen[n]
            seen[n] = 1
            different += error is not None or ids != expected[n % len(sources)]
            tokens += len(ids or ())
        if started is None:
            started, first = time.perf_counter(), sum(seen)
        if kill and not killed and sum(seen) > count // 2:
            killed = kill_one()
    assert started is not None
    seconds = time.perf_counter() - started
    name = f"{actors} actors" + (", one killed midway" if killed else "")
    wrong = count - sum(seen), twice, different
    return Throughput(name, sum(seen), tokens, started - begun, seconds, sum(seen) - first, wrong, killed)


def kill_one() -> int:
    """Kills an actor of the stage by kill -9."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "MapBatches(Decode)" in " ".join(process.cmdline()):
                process.kill()
                return 1
    raise RuntimeError("no actor was found to be killed")


def measure(count: int, alone: int, actors: list[int], kill: bool) -> list[Throughput]:
    """The runs in their order; the last one's actor is killed."""
    import ray

    sources = [sample.source for sample in load_samples(PAIR)]
    threads = os.cpu_count() or 1
    reference, expected = one_process(sources, threads, alone)
    runs = [reference]
    told: dict[str, Any] = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(address="local", num_cpus=max([threads, *actors]), **told)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        for number in actors:
            runs.append(over_actors(sources, expected, number, count, kill and number == actors[-1]))
            print(" ".join(runs[-1].row()), file=sys.stderr)
    finally:
        ray.shutdown()
    return runs


def recorded(given: argparse.Namespace) -> str:
    """The table, and by which command."""
    runs = measure(given.sentences, given.alone, given.actors, not given.no_kill)
    host = machine()
    told = versions("ray", "torch")
    arguments = f"--sentences {given.sentences} --alone {given.alone} --actors {' '.join(map(str, given.actors))}"
    head = (
        f"`python -m bench.ray {arguments}` on {date.today()}: {host['processor']}, {host['cores']} cores, "
        f"ray {told.get('ray')}, torch {told.get('torch')}. {PAIR}, budget light, at most 64 tokens, {SLOTS} rows "
        f"together, batches of {BATCH}, actors of one thread each; load average {os.getloadavg()[1]:.1f} at the end."
    )
    columns = ["", "sentences", "s to the first", "s from there", "sentences/s", "tokens/s", "lost, twice, different"]
    return "\n".join([head, "", *markdown_table(columns, [run.row() for run in runs])])


def main() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--alone", type=int, default=20_000, help="sentences of the one process")
    parser.add_argument("--actors", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--no-kill", action="store_true")
    print(recorded(parser.parse_args()))


if __name__ == "__main__":
    main()
