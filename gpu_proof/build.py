"""Builds libraries of the CUDA kernels that run on the simulated device (gpu_proof/sim).

    python -m gpu_proof.build [--kind source|ptx] [--arch sm_75] [--checked]    prints the library's path

A library has the C interface of nvcc's own and, beside it, the functions kdtw_sim_* that gpu_proof.simulated calls.
What was built lies in build/gpu_proof/, each file named by a hash of everything it was made from.
"""

import argparse
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_proof import translate

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SIM = ROOT / "gpu_proof/sim"
OUT = ROOT / "build/gpu_proof"

COMMON = [
    "-std=gnu++20",
    "-g1",
    "-fPIC",
    "-fno-gnu-unique",
    "-mavx2",
    "-mf16c",
    "-mfma",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
]
# -fno-strict-aliasing: kernels read the same bytes as uint4 and as halves, which CUDA permits and C++ does not.
KERNEL = ["-x", "c++", "-O1", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
# The hooks of g++'s thread sanitizer are called, and tsan_hooks.cpp answers them in the place of its run time.
CHECKED = ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
NVCC = ["-std=c++20", "-O3", "-fmad=false", "-lineinfo"]  # as setup.py, and lines
TRANSLATED = ["-O1", "-fno-strict-aliasing", "-w"]
CHECKER = {"checker.cpp", "lines.cpp", "traffic.cpp", "tsan_hooks.cpp"}
JOBS = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))


class BuildError(RuntimeError):
    """A compiler or the translator refused; the message has what it said."""


def kernel_sources(csrc: Path = CSRC) -> list[Path]:
    """The project's kernels."""
    return sorted((csrc / "backend/cuda/kernels").glob("*.cu"))


def compiler() -> str:
    """The C++ compiler: $CXX, else g++."""
    return os.environ.get("CXX", "g++")


def find_nvcc() -> str | None:
    """nvcc by $CUDA_HOME, the PATH or its usual place; None where there is none."""
    home = os.environ.get("CUDA_HOME")
    for candidate in [home and f"{home}/bin/nvcc", shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return None


def run(command: Sequence[str | Path]) -> str:
    """Runs a command and returns its standard output.

    Raises:
        BuildError: it failed; with the command and its standard error.
    """
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        line = shlex.join(str(c) for c in command)
        raise BuildError(f"this command failed ({done.returncode}):\n  {line}\n{done.stderr.strip()}")
    return done.stdout


@functools.cache
def _version(program: str) -> str:
    return run([program, "--version"])


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _includes(path: Path, roots: Sequence[Path], seen: set[Path]) -> None:
    """Collects the files that `path` includes, directly or not, as far as they lie under `roots` or beside it."""
    for name in re.findall(r'^\s*#\s*include\s*["<](.+?)[">]', path.read_text(encoding="utf-8"), re.MULTILINE):
        for root in (path.parent, *roots):
            found = root / name
            if found.is_file():
                if found not in seen:
                    seen.add(found)
                    _includes(found, roots, seen)
                break


def content_key(source: Path, roots: Sequence[Path], flags: Sequence[str], program: str) -> str:
    """A hash of a source, what it includes, the flags and the compiler."""
    headers: set[Path] = set()
    _includes(source, roots, headers)
    contents = [path.read_bytes() for path in sorted(headers)]
    return _digest([_version(program), *flags, source.read_bytes(), *contents])


def _put(path: Path, command: Sequence[str | Path]) -> Path:
    """Runs a command that ends in `-o FILE` and puts FILE in its place as a whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
        run([*command, "-o", partial])
        partial.rename(path)
    return path


def _object(source: Path, roots: Sequence[Path], flags: Sequence[str]) -> Path:
    path = OUT / "objects" / f"{source.stem}-{content_key(source, roots, flags, compiler())}.o"
    include = [f"-I{root}" for root in roots]
    return _put(path, [compiler(), *COMMON, *flags, *include, "-c", source])


def _shim(checked: bool) -> Path:
    """The shim's object, compiled as one source: its files share most of what they include."""
    left_out = {"check_off.cpp"} if checked else CHECKER
    names = [path.name for path in sorted(SIM.glob("*.cpp")) if path.name not in left_out]
    one = OUT / f"shim{'-checked' if checked else ''}.cpp"
    text = "".join(f'#include "{name}"\n' for name in names)
    if not one.exists() or one.read_text(encoding="utf-8") != text:
        one.parent.mkdir(parents=True, exist_ok=True)
        one.write_text(text, encoding="utf-8")
    return _object(one, [SIM], ["-O2", "-fvisibility=hidden"])


def to_ptx(source: Path, arch: str, *, roots: Sequence[Path] = (CSRC,), defines: Sequence[str] = ()) -> Path:
    """What nvcc makes of a kernel source for `arch`, as "sm_75".

    Raises:
        BuildError: no nvcc, or it failed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("no nvcc: set CUDA_HOME or put it on the PATH")
    flags = [*NVCC, f"-arch=compute_{arch.removeprefix('sm_')}", "-ptx", *defines]
    path = OUT / "ptx" / f"{source.stem}-{arch}-{content_key(source, roots, flags, nvcc)}.ptx"
    return _put(path, [nvcc, *flags, *(f"-I{root}" for root in roots), source])


def _translated_object(ptx: Path, checked: bool) -> Path:
    made_from = [path.read_bytes() for path in (Path(translate.__file__), ptx)]
    cpp = OUT / "ptx" / _digest(made_from) / f"{ptx.stem}.cpp"
    if not cpp.exists():
        cpp.parent.mkdir(parents=True, exist_ok=True)
        partial = cpp.with_name(f"{cpp.stem}.{os.getpid()}.cpp")
        partial.write_text(translate.translate(ptx.read_text(encoding="utf-8")), encoding="utf-8")
        partial.rename(cpp)
    return _object(cpp, [SIM], [*TRANSLATED, *(CHECKED if checked else [])])


def build_simulated(
    kind: str = "source",
    checked: bool = False,
    arch: str = "sm_75",
    *,
    sources: Sequence[Path] | None = None,
    csrc: Path = CSRC,
    defines: Sequence[str] = (),
) -> Path:
    """A shared library of CUDA kernels for the simulated device.

    Args:
        kind: "source": the .cu files as g++ compiles them. "ptx": their kernels as nvcc compiles them, from PTX.
        checked: every load and store of a kernel is checked (races, bounds, initialisation, alignment); slower.
        arch: the architecture that nvcc compiles for; "ptx" only.
        sources: .cu files; the project's kernels when left out.
        csrc: the folder that the sources' includes start from; the shim is this checkout's all the same.
        defines: "-DNAME=VALUE" for the sources.

    Returns:
        The library's path. Building again what was built before costs reading the sources.

    Raises:
        ValueError: an unknown kind.
        BuildError: a compiler refused, the PTX has an instruction the translator does not know, or nvcc is missing.
    """
    if kind not in {"source", "ptx"}:
        raise ValueError(f'kind must be "source" or "ptx", not {kind!r}')
    sources = kernel_sources(csrc) if sources is None else sources
    if not sources:
        raise BuildError(f"no kernels under {csrc}/backend/cuda/kernels")
    roots = [csrc, CSRC] if csrc != CSRC else [CSRC]
    simulated = [*roots, SIM]  # headers of CUDA's names are found there
    instrument = CHECKED if checked else []
    given = defines
    told = "simulated device" if kind == "source" else f"simulated device, PTX for {arch}"
    defines = [*defines, f'-DKDTW_CUDA_KIND="{told}"', f'-DKDTW_CUDA_ARCHITECTURES="{arch.removeprefix("sm_")}"']

    def compile_one(path: Path | None) -> list[Path]:
        if path is None:
            return [_shim(checked)]
        if kind == "source":
            return [_object(path, simulated, [*KERNEL, *defines, *instrument])]
        ptx = to_ptx(path, arch, roots=roots, defines=given)
        host = _object(path, simulated, [*KERNEL, *defines])
        return [_translated_object(ptx, checked), host]

    with ThreadPoolExecutor(JOBS) as pool:
        objects = [path for paths in pool.map(compile_one, [None, *sources]) for path in paths]
    name = "-".join(["kernels", kind, *([arch] if kind == "ptx" else []), *(["checked"] if checked else [])])
    library = OUT / f"{name}-{_digest([str(path) for path in objects])}.so"
    return _put(library, [compiler(), "-shared", *objects, "-ldl", "-Wl,-Bsymbolic"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["source", "ptx"], default="source")
    parser.add_argument("--arch", default="sm_75")
    parser.add_argument("--checked", action="store_true")
    print(build_simulated(**vars(parser.parse_args())))
