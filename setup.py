"""Builds kdtw_fast._core. The core includes no torch header; torch is needed beside it, so it is asked for here."""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import setup

if importlib.util.find_spec("torch") is None:
    sys.exit(
        "kdtw_fast needs PyTorch installed before it is built: install the build for your machine first\n"
        "(for a CPU: pip install torch==2.13.0), then: pip install --no-build-isolation ."
    )

from importlib.metadata import version

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension

ROOT = Path(__file__).parent
os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))


def needs_recompile(compiled: str, source: str) -> bool:
    """True when the source or any header is newer than the object file."""
    target = Path(compiled)
    return not target.exists() or any(Path(p).stat().st_mtime > target.stat().st_mtime for p in [source, *headers()])


def sources() -> list[str]:
    # cuda/sim stands in for a GPU in tests; gpu_proof/build.py builds it
    paths = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.cpp")]
    return sorted(str(path) for path in paths if path.parts[:4] != ("csrc", "backend", "cuda", "sim"))


def headers() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))


ParallelCompile("MAX_JOBS", needs_recompile=needs_recompile).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "kdtw_fast._core",
            sources(),
            depends=headers(),
            include_dirs=["csrc"],
            cxx_std=20,
            # -ffp-contract=off: every fused multiply-add is written as one, so templates cannot differ in bits.
            extra_compile_args=["-O3", "-ffp-contract=off", "-g0", "-Wall", "-Wextra", "-pthread"],
            extra_link_args=["-pthread"],
            define_macros=[("KDTW_TORCH_VERSION", f'"{version("torch")}"')],
        )
    ]
)
