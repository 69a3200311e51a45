"""Is one checkout slower than another? Runs benchmarks of both in turns and prints the ratio of each row's medians.

    python -m bench.paired OLD_CHECKOUT NEW_CHECKOUT -k "one_model or two_models"

Both must be built. A row is a pytest-benchmark case that both have; a ratio above 1 says that the new one is slower.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from kdtw_fast.tables import markdown_table

Medians = dict[str, float]  # seconds by the name of a benchmark


def run(checkout: Path, options: Sequence[str]) -> Medians:
    """Runs benchmarks of a checkout by its own interpreter, where it has one."""
    own = checkout / ".venv/bin/python"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = [str(own) if own.exists() else sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:xdist"]
        done = subprocess.run(
            [*command, f"--benchmark-json={file}", *options], cwd=checkout, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"the benchmarks of {checkout} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        results = json.loads(file.read_text(encoding="utf-8"))["benchmarks"]
    return {result["fullname"]: result["stats"]["median"] for result in results}


def in_turns(old: Path, new: Path, rounds: int, options: Sequence[str]) -> dict[str, list[Medians]]:
    """The medians of each turn of "old" and "new"; who comes first changes from round to round."""
    checkouts = {"old": old, "new": new}
    taken: dict[str, list[Medians]] = {name: [] for name in checkouts}
    for turn in range(rounds):
        for name in sorted(checkouts, reverse=turn % 2 == 0):  # old first in the first round
            print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            taken[name].append(run(checkouts[name], options))
    return taken


def ratios_table(taken: Mapping[str, Sequence[Medians]]) -> str:
    """New over old by row: the median of the rounds' ratios, the least and the largest; then what only one has.

    Raises:
        ValueError: no row is in every turn of both.
    """
    turns = [*taken["old"], *taken["new"]]
    common = [name for name in turns[0] if all(name in turn for turn in turns)]
    if not common:
        raise ValueError("the two checkouts have no benchmark in common; choose others with -k")
    cells, medians = [], []
    for name in common:
        ratios = [new[name] / old[name] for old, new in zip(taken["old"], taken["new"], strict=True)]
        medians.append(median(ratios))
        milliseconds = (f"{1000 * median(turn[name] for turn in taken[which]):.3f}" for which in ("old", "new"))
        spread = f"{min(ratios):.3f}–{max(ratios):.3f}"
        cells.append([name.removeprefix("bench/"), *milliseconds, f"{medians[-1]:.3f}", spread])
    columns = ("benchmark", "old, ms", "new, ms", "new / old", "least–largest")
    lines = markdown_table(columns, cells)
    lines += [
        "",
        f"{len(common)} rows, {len(taken['old'])} rounds; the median ratio of all rows is {median(medians):.3f}.",
    ]
    single = sorted({name for turn in turns for name in turn} - set(common))
    return "\n".join([*lines, *(f"Not in both: {name}" for name in single)])


def main(
    old: Annotated[Path, typer.Argument(help="A built checkout.", exists=True, file_okay=False)],
    new: Annotated[Path, typer.Argument(help="Another one.", exists=True, file_okay=False)],
    expression: Annotated[str, typer.Option("-k", help="Which benchmarks, as pytest's -k.")] = "",
    rounds: Annotated[int, typer.Option(help="Turns of each.", min=1)] = 5,
    tiny: Annotated[bool, typer.Option("--tiny", help="On tiny models: checks that it runs.")] = False,
) -> None:
    """Benchmarks of two checkouts in turns."""
    options = [*(["-k", expression] if expression else []), *(["--tiny"] if tiny else [])]
    print(ratios_table(in_turns(old.resolve(), new.resolve(), rounds, options)))


if __name__ == "__main__":
    typer.run(main)
