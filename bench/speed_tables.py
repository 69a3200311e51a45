"""The speed tables of docs/benchmarks.md, speed_tables.md filled in from the JSON of `python -m bench`.

    python -m bench.speed_tables build/bench.json        # what `python -m bench --json build/bench.json` wrote

Of several files, a later one's benchmarks of a kind take the place of an earlier one's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import jinja2
import typer

from bench.regions import BENCHMARKS, write_region
from kdtw_fast.profiling import OURS

REGIONS = {  # of the file, and the kinds of benchmarks that stand there
    "bench": (
        *("one model", "catch-up", "verification", "encoder", "batch", "stream", "large teacher", "memory"),
        *("two models", "cuda"),
    ),
    "training": ("rollout", "phase 2"),
}

Entry = dict[str, Any]  # a row's case and what was found, and its median "seconds"


def speed_tables(region: str, *runs: dict[str, Any]) -> str:
    """The tables of a region of `REGIONS` from the JSON of `python -m bench`; empty if none of its kinds was run.

    Of several runs on one machine, a later one's benchmarks of a kind take the place of an earlier one's.

    Raises:
        ValueError: a run with --tiny, runs of several machines or builds, or an unknown kind of benchmark.
    """
    machine = runs[0]["machine"]
    if any(run["tiny"] for run in runs):
        raise ValueError("these results were taken with --tiny, which measures nothing; leave it out")
    if any(run["machine"] != machine for run in runs):
        raise ValueError("these results were taken on different machines or builds; they do not make one table")
    entries: dict[str, list[Entry]] = {}
    for run in runs:
        found: dict[str, list[Entry]] = {}
        for row in run["rows"]:
            entry = row["case"] | row["found"] | {"seconds": median(row["seconds"])}
            found.setdefault(row["kind"], []).append(entry)
        entries |= found
    unknown = sorted(set(entries) - {kind for kinds in REGIONS.values() for kind in kinds})
    if unknown:
        raise ValueError(f"the results hold benchmarks of kind {unknown[0]!r}, for which there is no table")
    here = {kind: entries[kind] for kind in REGIONS[region] if kind in entries}
    if not here:
        return ""

    def find(kind: str, **case: Any) -> Entry | None:
        return next((e for e in here.get(kind, []) if all(e[name] == value for name, value in case.items())), None)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(Path(__file__).with_suffix(".md").read_text(encoding="utf-8")).render(
        machine=machine,
        versions=", ".join(f"{name} {number}" for name, number in machine["versions"].items() if name != "python"),
        dates=list(dict.fromkeys(run["time"][:10] for run in runs)),
        runs=len(runs),
        ours=OURS,
        of=lambda kind: here.get(kind, []),
        find=find,
        ms=lambda entry: 1000 * entry["seconds"] / entry["new_tokens"],
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def main(
    results: Annotated[list[Path], typer.Argument(help="JSON files of python -m bench.", exists=True, dir_okay=False)],
    into: Annotated[Path, typer.Option(help="The file with the markers of the regions.")] = BENCHMARKS,
) -> None:
    """Writes the speed tables between the markers of a file; a region of which nothing was run stays."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in results]
    for region in REGIONS:
        if tables := speed_tables(region, *runs):
            write_region(into, region, tables)


if __name__ == "__main__":
    typer.run(main)
