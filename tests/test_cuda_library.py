"""The CUDA library as nvcc makes it: there where the build found nvcc, and clear about a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kdtw_fast

LIBRARY = Path(kdtw_fast._core.__file__).with_name("libkdtw_cuda.so")


def python(code: str) -> str:
    """What a fresh interpreter prints, in which nothing else has been loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "KDTW_CUDA_LIBRARY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


WHY = """
from kdtw_fast import _core
try:
    print(_core.resolve_device("cuda"))
except ValueError as error:
    print(error)
print(_core.resolve_device("auto"))
"""


@pytest.mark.skipif(not LIBRARY.exists(), reason="this build has no CUDA library")
def test_the_library_loads_and_tells_what_it_is_for() -> None:
    told = python(f"from kdtw_fast import build_info\nprint(build_info()['cuda']){WHY}")
    info, why = eval(told.splitlines()[0]), told.splitlines()[1]
    assert info["library"] == str(LIBRARY)
    assert info["architectures"].endswith(" and PTX")
    if info["devices"]:
        pytest.skip("this machine has a GPU")
    assert why.startswith("device 'cuda' was asked for, but CUDA cannot be used here (")
    assert "or use device 'cpu'" in why
    assert told.splitlines()[2] == "cpu"


@pytest.mark.skipif(LIBRARY.exists(), reason="this build has the CUDA library")
def test_a_build_without_it_says_so() -> None:
    told = python(WHY)
    assert "device 'cuda' was asked for, but this build has no CUDA library" in told and "KDTW_CUDA=1" in told
