"""Building the CUDA library with an nvcc that is missing, fails, or does not know every architecture: fakes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parent.parent / "csrc/backend/cuda/build.py"
FAKE = """#!/bin/sh
if [ "$1" = --list-gpu-arch ]; then printf 'compute_75\\ncompute_80\\n'; exit; fi
{does}
echo "$@" >> {log}
while [ "$1" != -o ]; do shift; done
touch "$2"
"""


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_build", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str = "") -> Path:
    log, nvcc = tmp_path / "log", tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(FAKE.format(does=does, log=log), encoding="utf-8")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return log


def test_what_nvcc_does_not_know_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> None:
    log, said = fake(tmp_path, monkeypatch), list[str]()
    monkeypatch.setenv("KDTW_CUDA_ARCHS", "75 80 100 120")
    library = tmp_path / "of/library.so"
    cuda.build(library, tmp_path / "objects", said.append)
    (line,) = said
    assert "without compute capabilities 100 120" in line and "nvcc does not know them" in line
    commands = log.read_text(encoding="utf-8").splitlines()
    sources = len(list((PATH.parent / "kernels").glob("*.cu")))
    assert library.exists() and len(commands) == sources + 1
    for command in commands:
        assert "sm_80" in command and "code=compute_80" in command and "100" not in command
    assert '"75 80 and PTX"' in commands[0]
    cuda.build(library, tmp_path / "objects", said.append)
    assert len(log.read_text(encoding="utf-8").splitlines()) == sources + 2, "what did not change was compiled again"


def test_an_nvcc_that_knows_none_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> None:
    fake(tmp_path, monkeypatch, "echo 'nvcc fatal: error, no such day' >&2; exit 2")
    monkeypatch.setenv("KDTW_CUDA_ARCHS", "120")
    with pytest.raises(RuntimeError, match="nvcc knows none of KDTW_CUDA_ARCHS"):
        cuda.build(tmp_path / "library.so", tmp_path / "objects", print)
    monkeypatch.setenv("KDTW_CUDA_ARCHS", "75")
    with pytest.raises(RuntimeError, match="nvcc failed: nvcc fatal: error, no such day"):
        cuda.build(tmp_path / "library.so", tmp_path / "objects", print)
    assert not (tmp_path / "library.so").exists()


def test_without_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> None:
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    with pytest.raises(RuntimeError, match="there is no nvcc: put it on the PATH"):
        cuda.build(tmp_path / "library.so", tmp_path / "objects", print)
