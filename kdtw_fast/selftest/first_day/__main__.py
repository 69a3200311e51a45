"""The command: `python -m kdtw_fast.selftest.first_day`, or by this file's path where Python has no PyTorch."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

if not __package__:  # by path: the packages without what they load themselves, which wants PyTorch
    for depth, name in ((2, "kdtw_fast"), (1, "kdtw_fast.selftest"), (0, "kdtw_fast.selftest.first_day")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(__file__).resolve().parents[depth])]

from kdtw_fast.selftest.first_day.plan import make_plan  # noqa: E402
from kdtw_fast.selftest.first_day.runner import Run  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Runs the plan; 1 where a step found a fault, 0 otherwise: what is missing here is no fault."""
    parser = argparse.ArgumentParser(prog="python -m kdtw_fast.selftest.first_day", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md, report.json and each step's log")
    parser.add_argument("--minutes", type=float, default=12.0, help="stop after so many")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--only", default="", help="names of steps, with commas; all when left out")
    parser.add_argument("--list", action="store_true", help="name the steps and end")
    asked = parser.parse_args(arguments)
    steps = make_plan(ROOT, asked.out.resolve(), asked.tiny)
    if asked.list:
        print(*(f"{step.name:24s} {step.limit:4d} s  {step.what}" for step in steps), sep="\n")
        return 0
    names = [name for name in asked.only.split(",") if name]
    if unknown := sorted({*names} - {step.name for step in steps}):
        parser.error(f"unknown steps: {', '.join(unknown)}; --list names them")
    if asked.minutes <= 0:
        parser.error(f"--minutes must be more than 0, got {asked.minutes:g}")
    run = Run(asked.out, 60 * asked.minutes, ROOT, asked.tiny)
    for step in steps:
        if not names or step.name in names:
            run.step(step)
    run.end()
    return int(run.faults > 0)


if __name__ == "__main__":
    sys.exit(main())
