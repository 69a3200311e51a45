"""A model of FLAN-T5-XL's shape in int8: decodes within 6 GB. A process of its own, as a user would start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.replay import replay_timer, report

SOURCE_TOKENS, NEW_TOKENS, BYTES = 64, 16, 6e9


@pytest.mark.benchmark(timer=replay_timer)
def test_memory_of_the_largest(
    benchmark: BenchmarkFixture, tiny: bool, rounds: int | None, threads: int, tmp_path: Path
) -> None:
    shape, file = "flan-t5-small" if tiny else "flan-t5-xl", tmp_path / "bench.json"
    command = ["bench", "--shape", shape, "--dtype", "int8", "--no-peers", "--rows", "1", "--json", str(file)]
    command += ["--source-tokens", str(SOURCE_TOKENS), "--new-tokens", str(NEW_TOKENS)]
    command += ["--threads", str(threads), "--rounds", str(rounds or 3)]
    done = subprocess.run([sys.executable, "-m", "kdtw_fast", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text(encoding="utf-8"))
    (whole,), (model,) = result["generate"], result["memory"]["models"]
    benchmark.group = "memory"
    report(benchmark, whole["seconds"])
    benchmark.extra_info |= {
        "kind": "memory",
        "shape": shape,
        "dtype": model["dtype"],
        "threads": threads,
        "source_tokens": SOURCE_TOKENS,
        "new_tokens": NEW_TOKENS,
        "weights": model["weights"],
        "caches": model["caches"],
        "peak_rss": result["memory"]["peak_rss"],
    }
    assert result["memory"]["peak_rss"] <= BYTES
