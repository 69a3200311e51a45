"""Fuzzes the core under AddressSanitizer and UBSan, and Python's side of it: python tests/fuzz/run.py [--minutes N].

Without --minutes every target has a fixed number of inputs, from its corpus on. Needs Clang 16
or newer with libFuzzer, and Atheris for the Python side. What is found new goes to build/fuzz/corpus; an input that
breaks something to build/fuzz, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
# Targets, and how many inputs are tried of each without --minutes.
RUNS = {"model": 60_000, "decode": 30_000, "pick": 60_000, "boundary": 3_000}
FLAGS = ["-std=c++20", "-O1", "-gline-tables-only", "-fno-omit-frame-pointer", "-ffp-contract=off", "-w"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", f"-I{ROOT / 'csrc'}"]
SOURCES = ("backend/*.cpp", "backend/cpu/*.cpp", "backend/cuda/*.cpp", "model/*.cpp", "decode/*.cpp")


def compiler() -> str:
    """The newest clang++ that is there."""
    named = [f"clang++-{version}" for version in range(22, 15, -1)]
    found = next((name for name in (os.environ.get("FUZZ_CXX"), *named) if name and shutil.which(name)), None)
    if found is None:
        sys.exit(
            "fuzzing the core needs Clang 16 or newer with libFuzzer (Debian: apt install clang-19 libclang-rt-19-dev)"
        )
    return found


def build() -> None:
    """The core once, of which clang compiles the generic kernels only (levels.cpp), and the three targets."""
    clang = compiler()
    sources = [path for pattern in SOURCES for path in sorted((ROOT / "csrc").glob(pattern))]
    sources = [path for path in sources if not path.stem.startswith("kernels_avx")] + [HERE / "levels.cpp"]
    BUILD.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [*(ROOT / "csrc").rglob("*.[ch]*"), *HERE.glob("*.[ch]*")])

    def compiled(source: Path) -> Path:
        target = BUILD / f"{source.parent.name}-{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run([clang, *FLAGS, "-fsanitize=fuzzer-no-link", "-c", source, "-o", target], check=True)
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


def fuzz(name: str, minutes: float | None) -> tuple[str, int, bool]:
    """The target, how many inputs it was given, and whether all went well."""
    found = BUILD / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, str(HERE / "boundary.py")] if name == "boundary" else [str(BUILD / name)]
    limit = f"-runs={RUNS[name]}" if minutes is None else f"-max_total_time={int(60 * minutes)}"
    options = [limit, "-max_len=600", "-malloc_limit_mb=256", "-rss_limit_mb=4096", f"-artifact_prefix={BUILD}/{name}-"]
    environment = os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0", "PYTHONPATH": str(ROOT)}
    command = [*program, *options, "-seed=1", "-print_final_stats=1", str(found), str(HERE / "corpus" / name)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    runs = re.findall(r"number_of_executed_units: (\d+)|Done (\d+) in", done.stderr)
    if done.returncode:
        print(f"{name}:\n{done.stderr[-4000:]}", file=sys.stderr)
    return name, max((int(a or b) for a, b in runs), default=0), done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, help="of each target; otherwise a fixed number of inputs")
    parser.add_argument("--targets", nargs="+", choices=RUNS, default=list(RUNS))
    asked = parser.parse_args()
    if set(asked.targets) != {"boundary"}:
        build()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: fuzz(name, asked.minutes), asked.targets))
    for name, runs, _ in results:
        print(f"{name:10} {runs:12,} inputs")
    return 0 if all(fine for *_, fine in results) else 1


if __name__ == "__main__":
    sys.exit(main())
