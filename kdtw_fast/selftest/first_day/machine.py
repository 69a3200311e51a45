"""What stands here: devices, driver, compilers and packages. Plain Python; started by its path, too."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

PACKAGES = ("torch", "transformers", "numpy", "pybind11", "setuptools", "ctranslate2", "pytest")
FIELDS = "name,compute_cap,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"


def said(*command: str) -> str:
    """What a program prints, "" where there is none or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def devices() -> list[dict[str, str]]:
    """Of nvidia-smi, by the fields' names; empty without it."""
    lines = said("nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader").splitlines()
    return [dict(zip(FIELDS.split(","), map(str.strip, line.split(",")), strict=False)) for line in lines]


def architecture() -> str:
    """Of the first device, as nvcc numbers it: "75"; "" where it is not known."""
    found = devices()
    return found[0].get("compute_cap", "").replace(".", "") if found else ""


def packages() -> dict[str, str]:
    """Versions of those that are here."""
    found = {}
    for name in PACKAGES:
        if find_spec(name) is None:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def tool(name: str) -> str:
    """Where a program of a CUDA toolkit is: by CUDA_HOME, the PATH, or the usual place; "" where it is not."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    inside = [f"{home}/bin/{name}", f"{home}/compute-sanitizer/{name}"]
    return shutil.which(name) or next((path for path in inside if os.access(path, os.X_OK)), "")


def main() -> None:
    """Says it, a line each."""
    for device in devices() or [{"name": "nvidia-smi shows no device"}]:
        print(json.dumps({"device": device.pop("name"), **device}))
    told = {"system": platform.platform(), "processors": str(os.cpu_count()), "Python": platform.python_version()}
    for name in ("nvcc", "g++"):
        lines = said(tool(name) or name, "--version").splitlines()
        told[name] = next((line for line in lines if re.search(r"\d\.\d", line)), "not here")
    for name in ("compute-sanitizer", "ncu", "cuobjdump"):
        told[name] = tool(name) or "not here"
    told |= {name: packages().get(name, "not here") for name in PACKAGES}
    for name, value in told.items():
        print(json.dumps({"what": name, "found": value}))


if __name__ == "__main__":
    main()
