"""Nsight Compute's numbers of some kernels, a row for each launch. Plain Python: `python ncu.py NCU LIBRARY`."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

METRICS = {
    "gpu__time_duration.sum": "us",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of the memory's rate",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% of warps active",
    "launch__registers_per_thread": "registers",
}
SCALES = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}


def rows(lines: Iterable[str]) -> list[dict[str, object]]:
    """Of what ncu --csv prints, a dictionary for each launch."""
    launches: dict[str, dict[str, object]] = {}
    for line in csv.DictReader(line for line in lines if line.startswith('"')):
        kernel = re.sub(
            r"^void |kdtw::cuda::|<unnamed>::|\(anonymous namespace\)::|\([^)]*\)$", "", line["Kernel Name"]
        )
        row = launches.setdefault(line["ID"], {"kernel": kernel, "grid": line["Grid Size"]})
        name = METRICS.get(line["Metric Name"])
        if name is not None:
            row[name] = float(line["Metric Value"].replace(",", "")) * SCALES.get(line["Metric Unit"], 1.0)
    return list(launches.values())


def main(profiler: str, library: str) -> int:
    """Runs it; what it prints beside its table goes to the log."""
    kernels = [sys.executable, str(Path(__file__).with_name("kernels.py")), library, "--once"]
    command = [profiler, "--csv", "--metrics", ",".join(METRICS), "--launch-count", "120", *kernels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = rows(done.stdout.splitlines())
    for row in found:
        print(json.dumps(row), flush=True)
    if not found:
        print(done.stdout + done.stderr)
        print(json.dumps({"needs": "a profiler that may read the device's counters: see the log"}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
