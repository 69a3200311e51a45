"""Builds kdtw_fast._core and, where nvcc is, the library of CUDA kernels beside it; torch is not needed for either.

KDTW_CUDA=0 leaves the library out, 1 makes a missing nvcc an error, auto (the default) takes what is there;
KDTW_CUDA_ARCHS names the compute capabilities, "75 80 86 89 90 100 120" by default, of which the last is also there as
PTX. KDTW_BUILD=debug, asan or tsan builds the core for looking into it (make debug, asan, tsan).

Object files stay in build/, a folder for each kind of build, whatever pip does around it: what did not change is not
compiled again. Precompiled headers were tried: pybind11's take as long to make as they save.
"""

import functools
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
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


@functools.cache
def included(source: str) -> frozenset[str]:
    """The files under csrc that a source includes, directly or not."""
    text = (ROOT / source).read_text(encoding="utf-8")
    names = [f"csrc/{name}" for name in re.findall(r'^\s*#\s*include\s*"(.+?)"', text, re.MULTILINE)]
    found = {name for name in names if (ROOT / name).is_file()}
    return frozenset(found).union(*map(included, found))


def needs_recompile(compiled: str | Path, source: str) -> bool:
    """True when the source, what it includes, or this file with the flags is newer than the object file."""
    target = Path(compiled)
    if not target.exists():
        return True
    return any((ROOT / p).stat().st_mtime > target.stat().st_mtime for p in ["setup.py", source, *included(source)])


def files(suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(f"*.{suffix}"))


def find_nvcc() -> str | None:
    """By CUDA_HOME, the PATH, the toolkit that pip installs, or the usual place."""
    home = os.environ.get("CUDA_HOME")
    candidates = [
        home and f"{home}/bin/nvcc",
        shutil.which("nvcc"),
        *sorted(glob.glob(f"{sysconfig.get_paths()['purelib']}/nvidia/cu*/bin/nvcc"), reverse=True),
        "/usr/local/cuda/bin/nvcc",
    ]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def build_cuda(library: Path, objects: Path) -> None:
    """Compiles the kernels for every architecture into one library, cudart linked statically."""
    wanted = os.environ.get("KDTW_CUDA", "auto")
    if wanted not in {"auto", "0", "1"}:
        sys.exit(f"KDTW_CUDA must be auto, 0 or 1, got {wanted!r}")
    nvcc = find_nvcc() if wanted != "0" else None
    if nvcc is None:
        if wanted == "1":
            sys.exit("KDTW_CUDA=1, but there is no nvcc: put it on the PATH, set CUDA_HOME, or install a CUDA toolkit")
        library.unlink(missing_ok=True)
        return
    archs = os.environ.get("KDTW_CUDA_ARCHS", "75 80 86 89 90 100 120").split()
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    # -fmad=false: as -ffp-contract=off below.
    flags = ["-std=c++20", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc'}", *codes]
    flags.append(f'-DKDTW_CUDA_ARCHITECTURES="{" ".join(archs)} and PTX"')
    objects = objects / "-".join(["cuda", *archs])
    objects.mkdir(parents=True, exist_ok=True)

    def compile_one(source: str) -> Path:
        target = objects / f"{Path(source).stem}.o"
        if needs_recompile(target, source):
            subprocess.run([nvcc, *flags, "-c", source, "-o", target], check=True, cwd=ROOT)
        return target

    with ThreadPoolExecutor(int(os.environ["MAX_JOBS"])) as pool:
        compiled = list(pool.map(compile_one, files("cu")))
    library.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([nvcc, "-shared", "-cudart=static", *codes, *compiled, "-o", library], check=True)


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
        check_compiler()
        super().run()
        core = Path(self.get_ext_fullpath("kdtw_fast._core")).absolute()
        build_cuda(core.with_name("libkdtw_cuda.so"), ROOT / self.build_temp)


ParallelCompile("MAX_JOBS", needs_recompile=needs_recompile).install()

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
