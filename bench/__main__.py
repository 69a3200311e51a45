"""Runs benchmarks, all or some by name, and writes what they measured as JSON."""

from __future__ import annotations

import importlib
import json
import traceback
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.rows import How, Row
from kdtw_fast.machine import machine
from kdtw_fast.options import nearest

NAMES = ("one_model", "two_models", "large_teacher", "streams", "training", "cuda")  # modules with a `measure`


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(NAMES)}; none = all.")] = None,
    tiny: Annotated[bool, typer.Option(help="Tiny models, two rounds: shows that they run, measures nothing.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Turns of each contestant.", min=1)] = None,
    memory_rate: Annotated[float | None, typer.Option(help="GB/s of a CUDA device that is not known.")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="Where the results go.", dir_okay=False)] = None,
) -> None:
    """Runs benchmarks; exits with 1 where one of them failed, after all others."""
    for name in names or ():
        if name not in NAMES:
            raise typer.BadParameter(f"unknown benchmark {name!r}{nearest(name, NAMES)}")
    how, rows, failed = How(tiny, rounds, memory_rate), list[Row](), list[str]()
    began = datetime.now().isoformat(timespec="seconds")
    for name in names or NAMES:
        threads = torch.get_num_threads()
        try:
            for row in importlib.import_module(f"bench.{name}").measure(how):
                print(f"{row.name}: {1000 * row.median:.3f} ms", flush=True)
                rows.append(row)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        torch.set_num_threads(threads)
        if file is not None:
            written = {"machine": machine(), "tiny": tiny, "time": began, "rows": [asdict(row) for row in rows]}
            file.write_text(json.dumps(written, indent=1), encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    typer.run(main)
