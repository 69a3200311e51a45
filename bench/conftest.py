"""Options of the benchmarks and what is recorded about the machine (its name is not)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kdtw_fast import build_info
from kdtw_fast.machine import versions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tiny", action="store_true", help="tiny models and two rounds: checks the benchmarks, measures nothing"
    )
    parser.addoption("--rounds", type=int, default=None, help="turns of each contestant, instead of its own number")


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--tiny"))


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest, tiny: bool) -> int | None:
    """Turns that the command line asks for; None = as many as the benchmark thinks right."""
    asked = request.config.getoption("--rounds")
    return 2 if tiny and asked is None else asked


@pytest.fixture(scope="session")
def threads() -> int:
    """Threads of benchmarks that do not compare numbers of threads."""
    return min(2, os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def _torch_threads_unchanged() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)
    machine_info["kdtw"] = {
        "cores": os.cpu_count(),
        "simd": build_info()["simd"],
        "tiny": bool(config.getoption("--tiny")),
        "versions": versions("kdtw_fast", "torch", "transformers", "ctranslate2", "xllamacpp"),
    }
