"""The project's CUDA kernels on the simulated device: right under every order of threads, and within CUDA's rules.

What always runs: the sources, checked, in one schedule. `make gpu-proof` runs the rest: all schedules, and nvcc's PTX
for sm_75 and sm_90.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from gpu_proof import cases
from gpu_proof.build import build_simulated, find_nvcc
from gpu_proof.simulated import SCHEDULES, Schedule, SimulatedDevice
from kdtw_fast.selftest.checks import Trial

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc on this machine")
QUICK = SCHEDULES[1]


@pytest.fixture(scope="module")
def source() -> SimulatedDevice:
    return SimulatedDevice(build_simulated("source", checked=True))


@pytest.fixture(scope="module", params=["sm_75", "sm_90"])
def translated(request: pytest.FixtureRequest) -> Iterator[SimulatedDevice]:
    yield SimulatedDevice(build_simulated("ptx", checked=True, arch=request.param))


def run(name: str, device: SimulatedDevice, schedule: Schedule) -> None:
    device.schedule(schedule)
    cases.run(name, device)


@pytest.mark.parametrize("name", cases.CASES)
def test_source(name: str, source: SimulatedDevice) -> None:
    run(name, source, QUICK)


@pytest.mark.gpu_proof
@pytest.mark.parametrize("name", cases.CASES)
def test_source_in_all_schedules(name: str, source: SimulatedDevice) -> None:
    for schedule in SCHEDULES:
        run(name, source, schedule)


@needs_nvcc
@pytest.mark.gpu_proof
@pytest.mark.parametrize("name", cases.CASES)
def test_ptx_in_all_schedules(name: str, translated: SimulatedDevice) -> None:
    for schedule in SCHEDULES:
        run(name, translated, schedule)


class Recording(Trial):
    """Keeps what a device has computed."""

    seen: ClassVar[list[bytes]] = []

    def close(self, actual: Any, *arguments: Any) -> None:
        self.seen.append(np.asarray(actual).tobytes())
        super().close(actual, *arguments)

    def same(self, actual: Any, *arguments: Any) -> None:
        self.seen.append(np.asarray(actual).tobytes())
        super().same(actual, *arguments)


EXACT = ("embedding", "rounding", "norm", "gather", "product")  # the others call exp


@needs_nvcc
@pytest.mark.gpu_proof
@pytest.mark.parametrize("name", [n for n in cases.CASES if n.startswith(EXACT) and not n.startswith("norm and")])
def test_source_and_ptx_give_the_same_bits(name: str, source: SimulatedDevice, translated: SimulatedDevice) -> None:
    results = []
    for device in (source, translated):
        Recording.seen.clear()
        device.schedule(SCHEDULES[0])
        cases.run(name, device, Recording)
        results.append(list(Recording.seen))
    assert results[0] and results[0] == results[1]
