"""Many sentences over actors of a Ray cluster in this machine, beside one process; an actor is killed midway.

    python -m bench.ray [--sentences 100000] [--record]     # into docs/ray.md

The held-out sentences of the shipped pair, over and over, each with its number: first in one process, then over two
actors and over four, of the four one killed by kill -9 midway. Every row is compared with what one process gives, and
counted: none may be lost, none may come twice. Wants a quiet machine. What has run is kept in out/bench_ray.json until
all has: stopped, the same command goes on with the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from itertools import cycle, islice
from typing import Any

import psutil

from bench.regions import ROOT, write_region
from kdtw_fast.machine import machine, versions
from kdtw_fast.pairs import load_samples, pair_folder
from kdtw_fast.tables import markdown_table

DOCS, KEPT = ROOT / "docs/ray.md", ROOT / "out/bench_ray.json"
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
    wrong: list[int] | None = None
    killed: int = 0

    def row(self) -> list[str]:
        lost = "-" if self.wrong is None else ", ".join(map(str, self.wrong))
        rate = self.counted / self.seconds
        told = [self.name, f"{self.sentences:,}", f"{self.start:.1f}", f"{self.seconds:.1f}"]
        return [*told, f"{rate:.0f}", f"{rate * self.tokens / self.sentences:.0f}", lost]


def one_process(sources: list[str], threads: int, count: int) -> Throughput:
    """A stream in this process."""
    begun = time.perf_counter()
    decoder = alone(threads)
    next(decoder.stream(sources[:1], **OPTIONS))
    started, tokens = time.perf_counter(), 0
    for out in decoder.stream(islice(cycle(sources), count), batch_size=SLOTS, **OPTIONS):
        tokens += int(out.lengths[0])
    seconds = time.perf_counter() - started
    name = f"one process, {threads} {'thread' if threads == 1 else 'threads'}"
    return Throughput(name, count, tokens, started - begun, seconds, count)


def alone(threads: int) -> Any:
    """The decoder of one process."""
    from kdtw_fast import TrainingWheelsDecoder

    home = pair_folder(PAIR)
    return TrainingWheelsDecoder(home / "student", home / "teacher", num_threads=threads, cache=True)


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
    wrong = [count - sum(seen), twice, different]
    return Throughput(name, sum(seen), tokens, started - begun, seconds, sum(seen) - first, wrong, killed)


def kill_one() -> int:
    """Kills an actor of the stage by kill -9."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "MapBatches(Decode)" in " ".join(process.cmdline()):
                process.kill()
                return 1
    raise RuntimeError("no actor was found to be killed")


def measure(count: int, single: int, actors: list[int], kill: bool) -> list[Throughput]:
    """The runs in their order, those that were kept among them; the last one's actor is killed."""
    import ray

    sources = [sample.source for sample in load_samples(PAIR)]
    threads = os.cpu_count() or 1
    asked = {"asked": [count, single, actors, kill], "on": machine()["processor"], "versions": versions("ray", "torch")}
    runs = kept(asked)
    if not runs:
        runs.append(one_process(sources, threads, single))
        keep(asked, runs)
    stream = alone(threads).stream(sources, batch_size=SLOTS, in_order=True, **OPTIONS)
    expected = [out.sequences[0, out.spans[0]].tolist() for out in stream]
    told: dict[str, Any] = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(address="local", num_cpus=max([threads, *actors]), **told)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        for number in actors[len(runs) - 1 :]:
            runs.append(over_actors(sources, expected, number, count, kill and number == actors[-1]))
            keep(asked, runs)
    finally:
        ray.shutdown()
    return runs


def kept(asked: dict[str, Any]) -> list[Throughput]:
    """The finished runs of a measurement that was stopped; none where another was."""
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return [Throughput(**run) for run in found["runs"]] if found.get("asked") == asked else []


def keep(asked: dict[str, Any], runs: list[Throughput]) -> None:
    """Keeps them, and says the latest."""
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps({"asked": asked, "runs": [asdict(run) for run in runs]}))
    print(" ".join(runs[-1].row()), file=sys.stderr)


def measured(given: argparse.Namespace) -> str:
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
    table = markdown_table(columns, [run.row() for run in runs])
    return "\n".join([textwrap.fill(head, 120, break_long_words=False, break_on_hyphens=False), "", *table])


def main() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on loopback; read where Ray is imported
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--alone", type=int, default=20_000, help="sentences of the one process")
    parser.add_argument("--actors", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--record", action="store_true", help="into docs/ray.md")
    given = parser.parse_args()
    text = measured(given)
    print(text)
    if given.record:
        write_region(DOCS, "ray", text)
    KEPT.unlink()


if __name__ == "__main__":
    main()
