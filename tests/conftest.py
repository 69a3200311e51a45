"""Session-wide settings of the tests and the oracle's tally at the end of a run."""

from __future__ import annotations

import gc
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch

import kdtw_fast
from kdtw_fast.selftest.agreement import Tally

ORACLE_TALLY = pytest.StashKey[Tally]()
SIMULATED = "simulated"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--configs", type=int, default=3, help="random configs of each family of models")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: the collector need not look at torch and transformers again and again."""
    gc.collect()
    gc.freeze()


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


EVERY = 30  # of a file's cases on the simulated device, so many are one in `make test`
TIMES = 2  # of a test's cases on the simulated device, so many in `make test-all` have each value of each parameter
# What takes longest begins first, so that no process is left alone with it.
FIRST = ("test_language_model", "test_processes_training", "test_gpu_proof", "test_gpu_kernels", "test_gpu_simulator")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as long or as full products most cases on the simulated device, and unusual SIMD levels as long.

    A test's cases on the simulated device that `covering` leaves out are marked product: on the CPU all of them run,
    and one header of rules is compiled for both. One in EVERY of a file's other cases there is not long, evenly spread
    over what was collected: a case that is named alone runs.
    """
    info = kdtw_fast.build_info()
    unusual = [level for level in info["simd_levels"] if level != info["simd"]]
    of_file: dict[Path, list[pytest.Item]] = {}
    of_test: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("gpu_proof"):
            continue
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if SIMULATED in item.fixturenames or any(value is SIMULATED for value in params.values()):
            of_test.setdefault((item.path, item.originalname), []).append(item)
        elif params.get("simd_level") in unusual or params.get("place") in unusual:
            item.add_marker(pytest.mark.long)
    for (path, _), cases in of_test.items():
        kept = covering(numbered([case.callspec.params if hasattr(case, "callspec") else {} for case in cases]))
        for index, case in enumerate(cases):
            if index in kept:
                of_file.setdefault(path, []).append(case)
            else:
                case.add_marker(pytest.mark.product)
                case.add_marker(pytest.mark.long)
    for cases in of_file.values():
        for index, item in enumerate(cases):
            if index % EVERY != min(EVERY, len(cases)) // 2:
                item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: item.path.stem not in FIRST)


def numbered(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Each parameter's values by number, in the order in which they come."""
    numbers: dict[tuple[str, int], int] = {}
    return [
        {name: numbers.setdefault((name, id(value)), len(numbers)) for name, value in case.items()} for case in cases
    ]


def covering(cases: Sequence[Mapping[str, int]], times: int = TIMES) -> set[int]:
    """Which of a test's cases to run so that each value of each parameter runs so many times, with other partners.

    Args:
        cases: the number of each parameter's value.
        times: at least 1; a value that has fewer cases runs in all of them.
    """
    total = Counter(value for case in cases for value in case.items())
    lacking = {value: min(times, count) for value, count in total.items()}
    kept: set[int] = set()
    if not lacking:
        return set(range(len(cases)))
    order = sorted(range(len(cases)), key=lambda index: crc32(repr(sorted(cases[index].items())).encode()))
    while any(lacking.values()):
        # The one that brings most; of equals, the first in an order that has nothing to do with the values.
        best = max((i for i in order if i not in kept), key=lambda i: sum(lacking[v] > 0 for v in cases[i].items()))
        kept.add(best)
        for value in cases[best].items():
            lacking[value] = max(0, lacking[value] - 1)
    return kept


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
