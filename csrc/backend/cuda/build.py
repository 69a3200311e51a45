"""Builds the library of CUDA kernels with nvcc: setup.py does it with this, and it needs nothing but Python.

python csrc/backend/cuda/build.py --out kdtw_fast/libkdtw_cuda.so [--archs "75 80"]
"""

import argparse
import functools
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2]
ARCHITECTURES = "75 80 86 89 90 100 120"
# -fmad=false: every fused multiply-add is written as one.
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{CSRC}"]


@functools.cache
def included(source: Path) -> frozenset[Path]:
    """The files under csrc that a source includes, directly or not."""
    names = re.findall(r'^\s*#\s*include\s*"(.+?)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    found = {CSRC / name for name in names if (CSRC / name).is_file()}
    return frozenset(found).union(*map(included, found))


def needs_recompile(compiled: str | Path, source: str | Path, *others: Path) -> bool:
    """True when the source, what it includes, or one of the others is newer than the object file."""
    target, path = Path(compiled), CSRC.parent / source
    if not target.exists():
        return True
    return any(p.stat().st_mtime > target.stat().st_mtime for p in [path, *included(path), *others])


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


def split_known(nvcc: str, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those architectures that nvcc knows, and the others; it knows all where it cannot say."""
    try:
        said = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return list(wanted), []
    known = set(re.findall(r"compute_(\w+)", said))
    return [arch for arch in wanted if arch in known], [arch for arch in wanted if arch not in known]


def build(library: Path, objects: Path, say: Callable[[str], object], jobs: int = 1) -> None:
    """Compiles the kernels for KDTW_CUDA_ARCHS into one library, cudart linked statically; the last one is PTX, too.

    Args:
        library: the file to make.
        objects: folder for object files; what did not change is not compiled again.
        say: is told about architectures that this nvcc does not know: they are left out.
        jobs: compilers at a time.

    Raises:
        RuntimeError: there is no nvcc, it knows none of the architectures, or it failed; with what it said.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("there is no nvcc: put it on the PATH, set CUDA_HOME, or install a CUDA toolkit")
    archs, unknown = split_known(nvcc, os.environ.get("KDTW_CUDA_ARCHS", ARCHITECTURES).split())
    if not archs:
        raise RuntimeError(f"{nvcc} knows none of KDTW_CUDA_ARCHS ({' '.join(unknown) or 'empty'})")
    if unknown:
        say(f"the CUDA library is built without compute capabilities {' '.join(unknown)}: {nvcc} does not know them")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    flags = [*FLAGS, *codes, f'-DKDTW_CUDA_ARCHITECTURES="{" ".join(archs)} and PTX"']
    objects = objects / "-".join(["cuda", *archs])
    objects.mkdir(parents=True, exist_ok=True)

    def run(*command: str | Path) -> None:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        print(done.stdout, end="", file=sys.stderr)
        if done.returncode:
            lines = done.stdout.splitlines()
            told = next((line for line in lines if "error" in line), "".join(lines[-1:]) or f"status {done.returncode}")
            raise RuntimeError(f"{nvcc} failed: {told}")

    def compile_one(source: Path) -> Path:
        target = objects / f"{source.stem}.o"
        if needs_recompile(target, source, Path(__file__)):
            partial = target.with_suffix(".partial.o")
            run(nvcc, *flags, "-c", source, "-o", partial)
            partial.replace(target)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        compiled = list(pool.map(compile_one, sorted((CSRC / "backend/cuda/kernels").glob("*.cu"))))
    library.parent.mkdir(parents=True, exist_ok=True)
    run(nvcc, "-shared", "-cudart=static", *codes, *compiled, "-o", library)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--archs", help="compute capabilities; KDTW_CUDA_ARCHS, or all, when left out")
    asked = parser.parse_args()
    if asked.archs:
        os.environ["KDTW_CUDA_ARCHS"] = asked.archs
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    try:
        build(asked.out.absolute(), CSRC.parent / "build/objects-cuda", print, jobs)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
