"""Builds the core in a kind of its own (debug, asan, tsan) beside the usual one, and runs tests with it.

    python .ci/core.py asan tests/test_streams.py -k "not simulated"

The package stands in build/KIND: links to its files here, and the extension of that kind. What is left of the command
goes to pytest; alone it is `QUICK`. KDTW_CORE_PYTHON=1 starts Python instead, with the rest as its arguments.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Rows, drafts, roll-backs, streams, threads and packing of the CPU's core, in minutes under any of the kinds.
QUICK = ["tests/test_exactness.py", "tests/test_rules.py", "tests/test_streams.py", "tests/test_update_weights.py"]
QUICK += ["-k", "not simulated and not cuda and not fork and not memory", "-x"]
LIBRARIES = {"asan": ["libasan.so", "libubsan.so"], "tsan": ["libtsan.so"]}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Only the core is compiled for it: what PyTorch and NumPy do among themselves it cannot judge.
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66",
}


def build(kind: str) -> Path:
    """The folder to import the package from."""
    home = ROOT / "build" / kind
    package = home / "kdtw_fast"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        if link.is_symlink():
            link.unlink()
    for path in (ROOT / "kdtw_fast").iterdir():
        if path.suffix not in (".so", ".pyc") and path.name not in ("__pycache__", "training"):
            (package / path.name).symlink_to(path)
    (package / "training").symlink_to(ROOT / "training")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(home)]
    environment = os.environ | {"KDTW_BUILD": kind, "KDTW_CUDA": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return home


def library(name: str) -> str:
    """Where g++ keeps one of a sanitizer's libraries."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    return subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main(kind: str, arguments: list[str]) -> int:
    """Builds, and runs pytest (or Python)."""
    home = build(kind)
    environment = os.environ | OPTIONS | {"PYTHONPATH": f"{home}:{ROOT}", "OMP_NUM_THREADS": "1"}
    if kind in LIBRARIES:
        environment["LD_PRELOAD"] = " ".join(map(library, LIBRARIES[kind]))
    command = [sys.executable]
    if not os.environ.get("KDTW_CORE_PYTHON"):
        command += ["-m", "pytest", "-o", f"pythonpath={home} {ROOT}", "-p", "no:cacheprovider", *(arguments or QUICK)]
    else:
        command += arguments
    if kind == "tsan":
        command = ["setarch", "-R", *command]  # it wants its shadow memory where randomised addresses may lie
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("debug", "asan", "tsan"):
        sys.exit("say debug, asan or tsan, and perhaps what pytest is to run")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
