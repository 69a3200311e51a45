"""kill -9 at random moments: python tests/kills.py [--kills 50] [--only fit …] [--record FILE].

Every trainer, alone and in two processes, and ``kdtw compare``, on toy data. Each is run whole once; then killed some
time after it began, and begun again, until it comes to its end: that has to have the bits of the whole run. Then all
over again, until it was killed so often. All of it lies in memory, where there is such a place: what kill -9 leaves is
the same there, and a disk's waiting would be most of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from factories import SHAPES, random_t5, scale_row, with_tau
from kdtw_fast.training import recipes
from test_cli import make_tokenizer
from test_processes_training import settings_of
from toy_training import make_toy, toy_recipe

import kdtw_fast.cli as cli
from kdtw_fast.comparison.records import read

TRAINERS = ("fit", "phase1", "phase2", "gkd", "skd", "minillm")
SENTENCES = [{"source": words, "target": "this package"} for words in ("dieses paket", "die doku", "enthält die")]
LITTLE = {"steps": 8, "checkpoint_every": 1}
COMPARE = ["--max-new-tokens", "8", "--threads", "1", "--timed-sentences", "2", "--repetitions", "1", "--quiet"]
COMPARE += [
    "--budgets",
    "light,high",
    "--control-budgets",
    "high",
    "--methods",
    "student,training-wheels,speculative,random",
    "--sentences",
    "3",
]
fork = multiprocessing.get_context("fork")  # what starts has imported everything


@dataclass
class Tried:
    """How often something was killed, in how many runs, and what was wrong."""

    kills: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


def start(work: Callable[[], object], processes: int = 1, errors: str | Path = os.devnull) -> list[Any]:
    """Children that do the work, as one job where they are several; quiet, but for a file of errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def child(rank: int) -> None:
        with open(errors, "w") as said:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(said.fileno(), 2)
            torch.set_num_threads(1)
            if processes > 1:
                job = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ.update(job | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
            try:
                work()
            except SystemExit as left:  # how a command ends
                os._exit(1 if left.code else 0)
            except BaseException:
                traceback.print_exc(file=said)
                said.flush()
                os._exit(1)
            os._exit(0)

    children = [fork.Process(target=child, args=(rank,)) for rank in range(processes)]
    for each in children:
        each.start()
    return children


def end(children: list[Any]) -> list[int | None]:
    """Their statuses, when they have ended."""
    for each in children:
        each.join()
    return [each.exitcode for each in children]


def last_line(errors: Path) -> str:
    """What a child that failed said last."""
    return (errors.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]


def kill_until(
    kills: int,
    whole: Path,
    folder: Path,
    work: Callable[[Path], object],
    bits: Callable[[Path], object],
    processes: int,
) -> Tried:
    """Runs work(folder of a run) whole, then kills it at random moments; the same seed has the same shares of a run."""
    tried, draw, errors = Tried(), random.Random(f"{folder.name} {processes}"), folder / "errors"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if any(end(start(lambda: work(whole), processes, errors))):
        tried.wrong.append(f"the whole run failed: {last_line(errors)}")
        return tried
    seconds, expected = time.monotonic() - began, bits(whole)
    while tried.kills < kills:
        out = folder / str(tried.runs)
        while True:
            children = start(lambda out=out: work(out), processes, errors)
            if tried.kills < kills:
                until = time.monotonic() + draw.uniform(0.0, 1.2 * seconds)
                while time.monotonic() < until and any(each.is_alive() for each in children):
                    time.sleep(0.002)
                if all(each.is_alive() for each in children):
                    for each in children:
                        each.kill()
                    end(children)
                    tried.kills += 1
                    continue
            statuses = end(children)
            if any(statuses):
                tried.wrong.append(
                    f"run {tried.runs} ended with {statuses} after {tried.kills} kills: {last_line(errors)}"
                )
                return tried
            break
        tried.runs += 1
        if bits(out) != expected:
            tried.wrong.append(f"run {tried.runs - 1} has other bits")
    return tried


def trained(out: Path) -> object:
    """What a training leaves: its weights, and its lines without times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]
    files = sorted(path for name in ("model", "best") for path in (out / name).glob("*.safetensors"))
    return kept, {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def compared(out: Path) -> object:
    """What a comparison leaves, without times."""
    outputs = read(out / "results.jsonl").outputs
    return {key: repr([(s.index, s.tokens, s.owners) for s in each.sentences]) for key, each in outputs.items()}


def make_pair(folder: Path) -> Path:
    """A tiny random pair with its data."""
    tokenizer = make_tokenizer()
    rows = len(tokenizer) + 1
    student = with_tau(random_t5(SHAPES[0], rows, seed=1), rows - 1, beta_scale=1.0, seed=2)
    scale_row(student, rows - 1, 2.0)
    student.config.student_prompt, student.config.teacher_prompt = "the {budget} this: ", "this: "
    student.save_pretrained(folder / "student")
    random_t5(SHAPES[2], rows, seed=3).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SENTENCES), encoding="utf-8")
    return folder


def try_trainer(toy: Path, root: Path, name: str, processes: int, kills: int) -> Tried:
    """A trainer, in one process or several."""

    def work(out: Path) -> object:
        recipe, own = settings_of(name, out)
        return recipes.train(toy_recipe(toy, recipe, **{**own, **LITTLE}), quiet=True)

    place = root / f"{name}-{processes}"
    return kill_until(kills, place / "whole", place, work, trained, processes)


def try_compare(root: Path, kills: int) -> Tried:
    """kdtw compare."""
    pair = make_pair(root / "pair")

    def work(out: Path) -> object:
        command = ["compare", str(pair), "--data", str(pair / "data.jsonl"), "--out", str(out), *COMPARE]
        return cli.app(command, standalone_mode=False)

    return kill_until(kills, root / "compare/whole", root / "compare", work, compared, 1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/kills.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each")
    parser.add_argument("--only", nargs="+", choices=[*TRAINERS, "compare"], default=[*TRAINERS, "compare"])
    parser.add_argument("--record", type=Path, help="a file that is given a line of JSON for each")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wrong = 0
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kdtw_kills", dir=memory) as place:
        root = Path(place)
        toy = root / "toy"
        if set(asked.only) != {"compare"} and any(end(start(lambda: make_toy(toy)))):
            sys.exit("the toy task could not be made")
        for name in asked.only:
            for processes in (1,) if name == "compare" else (1, 2):
                began = time.monotonic()
                if name == "compare":
                    tried = try_compare(root, asked.kills)
                else:
                    tried = try_trainer(toy, root, name, processes, asked.kills)
                wrong += len(tried.wrong)
                seconds = time.monotonic() - began
                print(
                    f"{name:8} in {processes}: {tried.kills} kills, {tried.runs} runs with the bits of the whole one, "
                    f"{seconds:.0f} s {' '.join(tried.wrong)}",
                    flush=True,
                )
                if asked.record:
                    of = name if processes == 1 else f"{name} in {processes} processes"
                    line = {"campaign": "kills", "of": of, "count": tried.kills, "wrong": len(tried.wrong)}
                    with asked.record.open("a", encoding="utf-8") as record:
                        record.write(json.dumps(line | {"runs": tried.runs, "seconds": round(seconds)}) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
