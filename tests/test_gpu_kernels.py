"""The project's CUDA kernels on the simulated device: right under every order of threads, and within CUDA's rules.

`make test-all`: the sources, checked, in one schedule. `make gpu-proof`: the sources in all schedules, and nvcc's PTX
for sm_75 and for sm_90 in half of them each.
"""

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


ARCHITECTURES = {"sm_75": SCHEDULES[::2], "sm_90": SCHEDULES[1::2]}  # the sources run in all of them


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def translated(architecture: str) -> SimulatedDevice:
    return SimulatedDevice(build_simulated("ptx", checked=True, arch=architecture))


def run(name: str, device: SimulatedDevice, schedule: Schedule) -> None:
    device.schedule(schedule)
    cases.run(name, device)


@pytest.mark.long
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
def test_ptx_in_its_schedules(name: str, architecture: str, translated: SimulatedDevice) -> None:
    for schedule in ARCHITECTURES[architecture]:
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


EXACT = ("embedding", "rounding", "norm", "gather", "product")  # the others call exp,
INEXACT = ("norm and", "products with biases")  # as these do


@needs_nvcc
@pytest.mark.gpu_proof
@pytest.mark.parametrize("name", [n for n in cases.CASES if n.startswith(EXACT) and not n.startswith(INEXACT)])
def test_source_and_ptx_give_the_same_bits(name: str, source: SimulatedDevice, translated: SimulatedDevice) -> None:
    results = []
    for device in (source, translated):
        Recording.seen.clear()
        device.schedule(SCHEDULES[0])
        cases.run(name, device, Recording)
        results.append(list(Recording.seen))
    assert results[0] and results[0] == results[1]
