"""Builds kdtw_fast._core and, where nvcc is, the library of CUDA kernels beside it; torch is not needed for either.

KDTW_CUDA=0 leaves the library out, 1 makes an error of an nvcc that is missing or fails, auto (the default) goes on;
KDTW_CUDA_ARCHS names the compute capabilities, "75 80 86 89 90 100 120" by default (csrc/backend/cuda/build.py).
KDTW_BUILD=debug, asan or tsan builds the core for looking into it (make debug, asan, tsan).

Object files stay in build/, a folder for each kind of build, whatever pip does around it: what did not change is not
compiled again. Precompiled headers were tried: pybind11's take as long to make as they save.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# -ffp-contract=off: every fused multiply-add is written as one, so templates cannot differ in bits.
COMMON = ["-ffp-contract=off", "-Wall", "-Wextra", "-pthread"]
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer"]
KINDS = {
    "release": ["-O3", "-g0"],
    "debug": ["-O0", "-g", "-D_GLIBCXX_ASSERTIONS"],
    "asan": [*SANITIZED, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-D_GLIBCXX_ASSERTIONS"],
    "tsan": [*SANITIZED, "-fsanitize=thread"],
}
KIND = os.environ.get("KDTW_BUILD", "release")
if KIND not in KINDS:
    sys.exit(f"KDTW_BUILD must be {', '.join(KINDS)}, got {KIND!r}")
os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
_spec = importlib.util.spec_from_file_location("cuda", ROOT / "csrc/backend/cuda/build.py")
cuda = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cuda)


def files(suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(f"*.{suffix}"))


def build_cuda(library: Path, objects: Path) -> None:
    """The library, as KDTW_CUDA says; with auto, what fails is told, and the package is installed without it."""
    wanted = os.environ.get("KDTW_CUDA", "auto")
    if wanted not in {"auto", "0", "1"}:
        sys.exit(f"KDTW_CUDA must be auto, 0 or 1, got {wanted!r}")
    library.unlink(missing_ok=True)
    if wanted == "0" or (wanted == "auto" and cuda.find_nvcc() is None):
        return
    try:
        cuda.build(library, objects, print, int(os.environ["MAX_JOBS"]))
    except RuntimeError as error:
        if wanted == "1":
            sys.exit(f"KDTW_CUDA=1, but {error}")
        print(f"kdtw_fast is built without CUDA ({error}); KDTW_CUDA=1 makes this an error")


def check_compiler() -> None:
    """One sentence for pip to show where the compiler or Python's headers are missing, or it is too old."""
    compiler = os.environ.get("CXX") or "g++"
    asked = [*compiler.split(), "-std=c++20", "-fsyntax-only", f"-I{sysconfig.get_paths()['include']}", "-xc++", "-"]
    needed = b"#include <Python.h>\n#include <span>\n#include <concepts>\n"
    try:
        subprocess.run(asked, input=needed, check=True, capture_output=True)
    except OSError:
        said = f"there is no {compiler}: install it (Debian: apt install g++), or name another in CXX"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines()
        found = next((line.partition("error: ")[2] for line in lines if "error: " in line), "".join(lines[-1:]))
        said = f"{compiler} says {found!r}: install what is missing (Debian: apt install g++ python3-dev)"
    else:
        return
    sys.exit(f"kdtw_fast is built by g++ 12 or newer with Python's headers, but {said}")


class Build(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = f"build/objects-{sys.implementation.cache_tag}-{KIND}"

    def run(self) -> None:
        super().run()
        core = Path(self.get_ext_fullpath("kdtw_fast._core")).absolute()
        build_cuda(core.with_name("libkdtw_cuda.so"), ROOT / self.build_temp)


def needs_recompile(compiled: str, source: str) -> bool:
    """Also when this file with the flags is newer than the object file."""
    return cuda.needs_recompile(compiled, source, ROOT / "setup.py")


ParallelCompile("MAX_JOBS", needs_recompile=needs_recompile).install()

# Before anything is copied, whose lines pip would show before the sentence.
if {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"} & set(sys.argv):
    check_compiler()

TRAINING = ["kdtw_fast." + name for name in find_packages(include=["training", "training.*"])]

setup(
    packages=[*find_packages(include=["kdtw_fast", "kdtw_fast.*"]), *TRAINING],
    package_dir={"kdtw_fast.training": "training"},
    cmdclass={"build_ext": Build},
    ext_modules=[
        Pybind11Extension(
            "kdtw_fast._core",
            files("cpp"),
            depends=files("h"),
            include_dirs=["csrc"],
            cxx_std=20,
            extra_compile_args=[*KINDS[KIND], *COMMON],
            extra_link_args=["-pthread", *(flag for flag in KINDS[KIND] if flag.startswith("-fsanitize"))],
        )
    ],
)
