"""Builds the core and the kernels for the device that is here, as far as the tools are here. Plain Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = ROOT / "kdtw_fast/libkdtw_cuda.so"


def run(*command: str | Path, **environment: str) -> bool:
    """Whether a command, which prints to this process's log, ended well."""
    print("+", *command, flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode == 0


def main(arch: str) -> int:
    """Says what was built, or what failed; arch: the device's compute capability as "75", "" for all."""
    given = os.environ.get("KDTW_CUDA_LIBRARY", "")
    archs = {"KDTW_CUDA_ARCHS": arch} if arch else {}
    faults = 0

    def tell(what: str, well: bool, why: str) -> None:
        nonlocal faults
        faults += not well
        print(json.dumps({"built": what, "how": why} if well else {"built": what, "failure": why}), flush=True)

    core = sorted((ROOT / "kdtw_fast").glob("_core*.so"))
    if missing := [name for name in ("pybind11", "setuptools") if find_spec(name) is None]:
        tell("core", bool(core), f"as it lies here, without {' and '.join(missing)}" if core else f"needs {missing}")
    else:  # it takes away a library that lies here
        tell("core", run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", KDTW_CUDA="0"), "setup.py")
    if given:
        tell("library", Path(given).is_file(), f"taken as it is: KDTW_CUDA_LIBRARY={given}")
    else:
        command = (sys.executable, ROOT / "csrc/backend/cuda/build.py", "--out", LIBRARY)
        tell("library", run(*command, **archs), f"nvcc, for compute capability {arch or 'of all kinds'}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
