"""What `kdtw` and `import kdtw_fast` load before they have to: nothing heavy; and what is said without PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kdtw_fast

HEAVY = ("torch", "transformers", "numpy", "kdtw_fast._core")
LIGHT = {
    "help": ["--help"],
    "version": ["--version"],
    "help of a command": ["generate", "--help"],
    "unknown command": ["generat"],
    "unknown option": ["generate", "--metod", "bild", "x"],
    "unknown method": ["generate", "--method", "speculativ", "x"],
    "option of another method": ["generate", "--lenience", "1", "x"],
    "bench help": ["bench", "--help"],
    "bench of no rows": ["bench", "--rows", "0"],
    "bench of a number format that is none": ["bench", "--dtype", "fp8"],
}


@pytest.mark.parametrize("case", LIGHT)
def test_help_and_wrong_options_do_not_load_pytorch(case: str) -> None:
    code = f"""
import sys
from kdtw_fast.cli import main
sys.argv = ["kdtw", *{LIGHT[case]!r}]
try:
    main()
finally:
    print("LOADED", sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "LOADED []", done.stderr
    assert done.returncode == (0 if "help" in case or case == "version" else 2)


def test_version_is_said() -> None:
    done = subprocess.run([sys.executable, "-m", "kdtw_fast", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kdtw_fast {kdtw_fast.__version__}\n", "")


def test_every_public_name_is_there_and_listed() -> None:
    assert all(getattr(kdtw_fast, name) is not None for name in kdtw_fast.__all__)
    assert set(kdtw_fast._homes()) == set(kdtw_fast.__all__) <= set(dir(kdtw_fast))
    with pytest.raises(AttributeError, match="has no attribute 'GreedyDecodr'"):
        _ = kdtw_fast.GreedyDecodr  # type: ignore[attr-defined]


def test_without_pytorch_the_import_is_one_sentence() -> None:
    code = "import sys; sys.modules['torch'] = None; import kdtw_fast"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: kdtw_fast needs PyTorch; install")
