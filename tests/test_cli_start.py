"""What `kdtw` and `import kdtw_fast` load before they have to: nothing heavy; and what is said without PyTorch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kdtw_fast
from kdtw_fast import extras
from kdtw_fast.pairs import pair_folder

HEAVY = ("torch", "transformers", "numpy", "kdtw_fast._core")
PAIR = pair_folder()
LIGHT = {
    "help": (["--help"], "Usage: kdtw [OPTIONS] COMMAND"),
    "version": (["--version"], "kdtw_fast "),
    "help of a command": (["generate", "--help"], "Usage: kdtw generate"),
    "unknown command": (["generat"], "No such command 'generat'. Did you mean 'generate'?"),
    "unknown option": (["generate", "--metod", "bild", "x"], "No such option: --metod"),
    "unknown method": (["generate", "--method", "speculativ", "x"], "did you mean 'speculative'?"),
    "option of another method": (
        ["generate", "--lenience", "1", "x"],
        "--lenience belongs to speculative, not to training-wheels",
    ),
    "folder that is not there": (
        ["generate", "--student", "no-such", "--teacher", "no-other", "x"],
        "--student no-such is not a folder",
    ),
    "bench help": (["bench", "--help"], "Usage: kdtw bench"),
    "bench of no rows": (["bench", "--rows", "0"], "--rows must be at least 1, got 0"),
    "bench of a number format that is none": (["bench", "--dtype", "fp8"], "unknown --dtype 'fp8'"),
    "pair that does not ship": (["compare", "nosuchpair"], "unknown pair 'nosuchpair'"),
    "data that are not there": (["compare", "--data", "nope.jsonl"], "--data nope.jsonl is not a file"),
    "count out of range": (["compare", "--repetitions", "0"], "--repetitions must be at least 1, got 0"),
    "unknown metric": (["compare", "--metric", "rouge3"], "unknown metric 'rouge3'"),
    "no recipe": (["train"], "name a recipe"),
    "unknown recipe": (["train", "nope"], "unknown recipe 'nope'"),
    "recipe file that is not there": (["train", "./nope.yaml"], "there is no recipe file ./nope.yaml"),
    "list of recipes, a help": (["train", "--list"], "debian-de-en/phase1"),
    "new recipes without a teacher": (["train", "--new", "x"], "--new needs --teacher and --data"),
    "report of nothing": (["report", "out/nope"], "out/nope is not there"),
    "projection of nothing": (["project", "out/nope"], "out/nope is not there"),
    "service of no folder": (
        ["serve", "--student", "nope/x", "--teacher", "nope/y"],
        "--student nope/x is not a folder",
    ),
    "model that is not there": (["info", "nope"], "model nope is not a folder"),
    "unknown device": (["selftest", "--device", "nope"], "unknown device 'nope'"),
    "setting out of range": (
        ["generate", "--method", "speculative", "--draft-length", "0", "x"],
        "--draft-length must be at least 1, got 0",
    ),
    "tokenizer that is not there": (
        [
            *("generate", "--student", str(PAIR / "student"), "--teacher", str(PAIR / "teacher")),
            *("--tokenizer", "nope", "x"),
        ],
        "no tokenizer in nope; name its folder with --tokenizer",
    ),
}


@pytest.mark.parametrize("case", LIGHT)
def test_help_and_wrong_options_do_not_load_pytorch(case: str, tmp_path: Path) -> None:
    arguments, said = LIGHT[case]
    code = f"""
import sys
from kdtw_fast.cli import main
sys.argv = ["kdtw", *{arguments!r}]
try:
    main()
finally:
    print("LOADED", sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    places = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": places}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "LOADED []", done.stderr
    right = "help" in case or case == "version"
    assert done.returncode == (0 if right else 2) and said in (done.stdout if right else done.stderr)
    assert os.listdir(tmp_path) == []


def test_version_is_said() -> None:
    done = subprocess.run([sys.executable, "-m", "kdtw_fast", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kdtw_fast {kdtw_fast.__version__}\n", "")


def test_bars_of_libraries_are_for_terminals() -> None:
    code = """
import os, sys
from kdtw_fast.cli import main
sys.argv = ["kdtw", "--version"]
try:
    main()
finally:
    print(os.environ)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert all(f"'HF_{which}_DISABLE_PROGRESS_BARS': '1'" in done.stdout for which in ("HUB", "DATASETS")), done.stdout


def test_every_public_name_is_there_and_listed() -> None:
    assert all(getattr(kdtw_fast, name) is not None for name in kdtw_fast.__all__)
    assert set(kdtw_fast._homes()) == set(kdtw_fast.__all__) <= set(dir(kdtw_fast))
    with pytest.raises(AttributeError, match="has no attribute 'GreedyDecodr'"):
        _ = kdtw_fast.GreedyDecodr  # type: ignore[attr-defined]


def test_without_pytorch_the_import_is_one_sentence() -> None:
    code = "import sys; sys.modules['torch'] = None; import kdtw_fast"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: kdtw_fast needs PyTorch; install")


_SCORES = "rouge-score and sacrebleu; install with: pip install rouge-score sacrebleu"


@pytest.mark.parametrize(
    ("command", "packages"),
    [
        (["demo"], _SCORES),
        (["compare", "--quick"], _SCORES),
        (["report", "."], _SCORES),
        (["project", "."], _SCORES),
        (["train", "debian-de-en/gkd"], _SCORES),
        (["train", "--list"], None),
        (["train", "debian-de-en/gkd", "--settings"], None),
    ],
)
def test_a_command_names_the_packages_that_are_missing(command: list[str], packages: str | None) -> None:
    code = f"""
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datasets", "rouge_score", "sacrebleu"):
            raise ModuleNotFoundError(name=name)
import kdtw_fast.extras as extras
extras.find_spec = lambda name: None if name in ("datasets", "rouge_score", "sacrebleu") else find_spec(name)
sys.meta_path.insert(0, Missing())
from kdtw_fast.cli import main
sys.argv = ["kdtw", *{command!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    wanted = (0, "") if packages is None else (2, f"kdtw: kdtw {command[0]} needs {packages}\n")
    assert (done.returncode, done.stderr) == wanted


def test_packages_that_are_named_are_those_of_the_extras() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {found[0] for one in requirements if (found := re.match(r"[a-z0-9-]+", one))}

    optional = project["optional-dependencies"]
    assert set(extras.NEEDED["comparing"].values()) == names(optional["compare"])
    needed = names([package for packages in extras.NEEDED.values() for package in packages.values()])
    faster = {"httptools", "uvloop"}  # without which uvicorn does the same in more time
    assert set(extras.NEEDED["serving"].values()) | faster == names(optional["serve"])
    assert set(extras.NEEDED["reading GGUF files"].values()) == names(optional["gguf"])
    assert needed <= set.union(*(names(optional[extra]) for extra in ("compare", "train", "serve", "gguf", "ray")))
    assert not needed & names(project["dependencies"])


BUILDS = {  # as pip calls them
    "extension": 'import runpy, sys; sys.argv[1:] = ["-q", "build_ext"]; runpy.run_path("setup.py")',
    "wheel": "from setuptools import build_meta; build_meta.build_wheel({folder!r})",
    "editable": "from setuptools import build_meta; build_meta.build_editable({folder!r})",
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        (None, "there is no {compiler}: install it (Debian: apt install g++), or name another in CXX"),
        (
            "#!/bin/sh\necho 'x:1: fatal error: no Python.h' >&2; exit 1\n",
            "{compiler} says 'no Python.h': install what is",
        ),
    ],
)
def test_a_build_without_a_compiler_is_one_sentence(
    tmp_path: Path, compiler: str | None, said: str, build: str
) -> None:
    place = tmp_path / "compiler"
    if compiler is not None:
        place.write_text(compiler, encoding="utf-8")
        place.chmod(0o755)
    command = [sys.executable, "-c", BUILDS[build].format(folder=str(tmp_path))]
    environment = os.environ | {"CXX": str(place), "KDTW_CUDA": "0"}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        "kdtw_fast is built by g++ 12 or newer with Python's headers, but " + said.format(compiler=place)
    )
