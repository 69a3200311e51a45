"""Fuzzes the core under AddressSanitizer and UBSan, and Python's side of it: python tests/fuzz/run.py [--minutes N].

Without --minutes every target has a fixed number of inputs, from its corpus on. Needs Clang 16 or newer with libFuzzer,
and Atheris for the Python side. What is found new goes to build/fuzz/corpus; an input that breaks something to
build/fuzz, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
# Targets, and how many inputs are tried of each without --minutes: about four minutes of processor time in all, and the
# same inputs each time.
RUNS = {"model": 350_000, "decode": 90_000, "pick": 350_000, "boundary": 30_000}
FLAGS = ["-std=c++20", "-O2", "-gline-tables-only", "-fno-omit-frame-pointer", "-ffp-contract=off", "-w"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", f"-I{ROOT / 'csrc'}"]
# Compared numbers are looked at in the targets only: the kernels' own would be most of the time.
COVERED = ["-fsanitize=fuzzer-no-link", "-fno-sanitize-coverage=trace-cmp,trace-div,trace-gep"]
# Two frames of each allocation: build/fuzz/TARGET FILE shows them all.
SANITIZERS = "allocator_may_return_null=1:detect_leaks=0:malloc_context_size=2:quarantine_size_mb=16"
PROBE = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
SOURCES = ("backend/*.cpp", "backend/cpu/*.cpp", "backend/cuda/*.cpp", "model/*.cpp", "decode/*.cpp")


def compiler() -> str | None:
    """The newest clang++ that is there and can link a fuzzer."""
    named = [os.environ.get("FUZZ_CXX"), *(f"clang++-{version}" for version in range(22, 15, -1)), "clang++"]
    for name in named:
        if name and shutil.which(name):
            command = [name, "-fsanitize=fuzzer,address", "-x", "c++", "-", "-o", "/dev/null"]
            if subprocess.run(command, input=PROBE, text=True, capture_output=True).returncode == 0:
                return name
    return None


def build(clang: str) -> None:
    """The core once, of which clang compiles the generic kernels only (levels.cpp), and the three targets."""
    sources = [path for pattern in SOURCES for path in sorted((ROOT / "csrc").glob(pattern))]
    sources = [path for path in sources if not path.stem.startswith("kernels_avx")] + [HERE / "levels.cpp"]
    BUILD.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [*(ROOT / "csrc").rglob("*.[ch]*"), *HERE.glob("*.[ch]*")])

    def compiled(source: Path) -> Path:
        target = BUILD / f"{source.parent.name}-{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run([clang, *FLAGS, *COVERED, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(compiled, sources))
        for name in ("model", "decode", "pick"):
            command = [
                clang,
                *FLAGS,
                "-fsanitize=fuzzer",
                HERE / f"{name}.cpp",
                *objects,
                "-o",
                BUILD / name,
                "-pthread",
            ]
            subprocess.run([*command, "-ldl"], check=True)


def fuzz(name: str, minutes: float | None, seed: int, folder: Path) -> dict[str, Any]:
    """How many inputs the target was given in how many seconds, and whether one broke something."""
    found = folder / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, str(HERE / "boundary.py")] if name == "boundary" else [str(BUILD / name)]
    limit = f"-runs={RUNS[name]}" if minutes is None else f"-max_total_time={max(1, int(60 * minutes))}"
    options = [
        limit,
        "-max_len=600",
        "-malloc_limit_mb=256",
        "-rss_limit_mb=4096",
        f"-artifact_prefix={folder}/{name}-",
    ]
    path = os.pathsep.join(each for each in (str(ROOT), os.environ.get("PYTHONPATH")) if each)
    environment = os.environ | {"ASAN_OPTIONS": SANITIZERS, "PYTHONPATH": path}
    # Files of the Python side lie in memory, where there is such a place: a disk takes 20 ms to write one over.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    command = [*program, *options, f"-seed={seed}", "-print_final_stats=1", str(found), str(HERE / "corpus" / name)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdtw_fuzz", dir=memory) as place:
        environment["TMPDIR"] = place
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    runs = re.findall(r"number_of_executed_units: (\d+)|Done (\d+) in", done.stderr)
    if done.returncode:
        print(f"{name}:\n{done.stderr[-4000:]}", file=sys.stderr)
    inputs = max((int(a or b) for a, b in runs), default=0)
    return {
        "campaign": "fuzz of Python" if name == "boundary" else "fuzz",
        "of": name,
        "count": inputs,
        "seconds": round(time.monotonic() - began),
        "wrong": int(done.returncode != 0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, help="of each target; otherwise a fixed number of inputs")
    parser.add_argument("--targets", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--rounds", type=int, default=1, help="with a seed each; what is found stays")
    parser.add_argument("--folder", type=Path, default=BUILD, help="for what is found")
    parser.add_argument("--record", type=Path, help="a file that is given a line of JSON for each target and round")
    parser.add_argument("--optional", action="store_true", help="without Clang, only Python's side")
    asked = parser.parse_args()
    targets = list(asked.targets)
    if set(targets) != {"boundary"}:
        clang = compiler()
        if clang is not None:
            build(clang)
        else:
            lacking = "fuzzing the core needs Clang 16 or newer with libFuzzer"
            if not asked.optional:
                sys.exit(f"{lacking} (Debian: apt install clang-19 libclang-rt-19-dev)")
            print(
                f"{lacking}, which is not here: {', '.join(t for t in targets if t != 'boundary')} left out", flush=True
            )
            targets = [target for target in targets if target == "boundary"]
    fine = True
    for seed in range(1, asked.rounds + 1):
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda name, seed=seed: fuzz(name, asked.minutes, seed, asked.folder), targets))
        for each in results:
            rate = each["count"] / max(each["seconds"], 1)
            print(f"{each['of']:10} {each['count']:12,} inputs, {rate:,.0f} a second", flush=True)
            fine &= not each["wrong"]
            if asked.record:
                with asked.record.open("a", encoding="utf-8") as record:
                    record.write(json.dumps(each) + "\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
