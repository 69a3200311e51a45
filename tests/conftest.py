"""Session-wide settings of the tests and the oracle's tally at the end of a run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kdtw_fast
from kdtw_fast.selftest.agreement import Tally

ORACLE_TALLY = pytest.StashKey[Tally]()
SIMULATED = "simulated"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--configs", type=int, default=3, help="random configs of each family of models")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ORACLE_TALLY] = Tally()
    torch.set_num_threads(1)  # tiny models: more threads only cost


@pytest.fixture
def oracle_tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """A tally for one test; what it counts is added to the session's."""
    tally = Tally()
    yield tally
    request.config.stash[ORACLE_TALLY].add(tally)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy task's folder: data, tokenizer, a fitted teacher and a hardly fitted student; not to be written to."""
    from toy_training import make_toy

    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def simulated() -> str:
    """The name of a device on which CUDA kernels run: the one that g++ compiles them for (docs/cuda.md)."""
    from gpu_proof.build import build_simulated

    kdtw_fast._core.use_cuda_library(os.environ.get("KDTW_CUDA_LIBRARY") or str(build_simulated()))
    return "cuda:0"


@pytest.fixture(params=["cpu", SIMULATED])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test's models decode: once on the CPU, once on the simulated CUDA device."""
    return str(request.getfixturevalue("simulated")) if request.param == SIMULATED else "cpu"


@pytest.fixture(params=[*kdtw_fast.build_info()["simd_levels"], SIMULATED])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `device`, and on the CPU once at every SIMD level that this machine has."""
    if request.param == SIMULATED:
        yield str(request.getfixturevalue("simulated"))
        return
    before = kdtw_fast.build_info()["simd"]
    kdtw_fast._core.set_simd(request.param)
    yield "cpu"
    kdtw_fast._core.set_simd(before)


EVERY = 8  # of a file's cases on the simulated device, so many are one in `make test`


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as long most cases on the simulated device, and those at SIMD levels that the processor would not choose.

    One in EVERY of a file's cases on the simulated device is not long, evenly spread over what was collected: a case
    that is named alone runs.
    """
    info = kdtw_fast.build_info()
    unusual = [level for level in info["simd_levels"] if level != info["simd"]]
    of_file: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("gpu_proof"):
            continue
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if SIMULATED in item.fixturenames or any(value is SIMULATED for value in params.values()):
            of_file.setdefault(item.path, []).append(item)
        elif params.get("simd_level") in unusual or params.get("place") in unusual:
            item.add_marker(pytest.mark.long)
    for cases in of_file.values():
        for index, item in enumerate(cases):
            if index % EVERY != min(EVERY, len(cases)) // 2:
                item.add_marker(pytest.mark.long)


@pytest.fixture(params=kdtw_fast.build_info()["simd_levels"])
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once at every SIMD level that this machine has."""
    before = kdtw_fast.build_info()["simd"]
    kdtw_fast._core.set_simd(request.param)
    yield request.param
    kdtw_fast._core.set_simd(before)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests run in several processes, theirs tell the first one what they have seen."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = pickle.dumps(session.config.stash[ORACLE_TALLY])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    seen = getattr(node, "workeroutput", {}).get("tally")  # not there when the process died
    if seen is not None:
        node.config.stash[ORACLE_TALLY].add(pickle.loads(seen))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[ORACLE_TALLY]
    if tally.cases:
        terminalreporter.write_sep("-", "native against oracle")
        terminalreporter.write_line(str(tally))
