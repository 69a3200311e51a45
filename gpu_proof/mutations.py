"""Plants bugs in copies of the project's kernels and sees that each is caught: the test of the proof.

python -m gpu_proof.mutations [--kind source|ptx] [--quick] [NAME ...]
"""

import argparse
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from gpu_proof import cases
from gpu_proof.build import CSRC, OUT, build_simulated
from gpu_proof.simulated import SCHEDULES, SimulatedDevice

LIST = Path(__file__).with_name("mutations.toml")
TRIED = [SCHEDULES[0], SCHEDULES[1], SCHEDULES[4]]


class StaleBugError(ValueError):
    """A bug that cannot be planted any more, because the kernel has changed; renew it in mutations.toml."""


@dataclass(frozen=True)
class Bug:
    """One entry of mutations.toml."""

    name: str
    file: str
    search: str
    replace: str
    case: str
    caught_by: str
    quick: bool = False

    def path(self, csrc: Path) -> Path:
        """The file in a csrc folder; kernels are named without theirs."""
        return csrc / self.file if "/" in self.file else csrc / "backend/cuda/kernels" / self.file


def bugs() -> list[Bug]:
    """All that are known."""
    with LIST.open("rb") as file:
        return [Bug(**entry) for entry in tomllib.load(file)["bug"]]


def plant(bug: Bug) -> Path:
    """A csrc folder whose kernels have the bug.

    Raises:
        StaleBugError: what the bug replaces is not in the file exactly once.
    """
    folder = OUT / "mutated" / bug.name
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("core", "backend/cuda/kernels"):
        shutil.copytree(CSRC / name, folder / name)
    target = bug.path(folder)
    text = target.read_text(encoding="utf-8")
    if text.count(bug.search) != 1:
        raise StaleBugError(f"{bug.name}: what it replaces is {text.count(bug.search)} times in {bug.file}, not once")
    target.write_text(text.replace(bug.search, bug.replace), encoding="utf-8")
    return folder


def attempt(bug: Bug, kind: str = "source") -> str | None:
    """Builds the kernels with the bug and runs its case; what was said when it was caught, or None."""
    device = SimulatedDevice(build_simulated(kind, checked=True, csrc=plant(bug)))
    for schedule in TRIED:
        device.schedule(schedule)
        try:
            cases.run(bug.case, device)
        except (AssertionError, RuntimeError) as error:
            said = f"{type(error).__name__}: {error}"
            if re.search(bug.caught_by, said):
                return said
    return None


def main() -> int:
    """The command; 1 when a bug was not caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["source", "ptx"], default="source")
    parser.add_argument("--quick", action="store_true", help="only those that the tests always try")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    options = parser.parse_args()
    known = {bug.name: bug for bug in bugs()}
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    chosen = [bug for bug in known.values() if (not options.names or bug.name in options.names)]
    chosen = [bug for bug in chosen if bug.quick or not options.quick]
    missed = 0
    for bug in chosen:
        said = attempt(bug, options.kind)
        missed += said is None
        lines = [line.strip() for line in (said or "").splitlines() if re.search(bug.caught_by, line)]
        print(f"{'caught' if said else 'MISSED':7s}{bug.name:44s}{(lines or [''])[0][:150]}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} planted bugs caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
