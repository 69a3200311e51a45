"""The project's CUDA kernels on the simulated device: right under every order of threads, and within CUDA's rules.

What always runs: the sources, checked, in a few schedules. `make gpu-proof` runs the rest: all schedules, and nvcc's
PTX for sm_75 and sm_90.
"""

from collections.abc import Iterator

import pytest

from gpu_proof import cases
from gpu_proof.build import build_simulated, find_nvcc
from gpu_proof.simulated import SCHEDULES, Schedule, SimulatedDevice

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc on this machine")
QUICK = [SCHEDULES[0], SCHEDULES[1], SCHEDULES[5]]


@pytest.fixture(scope="module")
def source() -> SimulatedDevice:
    return SimulatedDevice(build_simulated("source", checked=True))


@pytest.fixture(scope="module", params=["sm_75", "sm_90"])
def translated(request: pytest.FixtureRequest) -> Iterator[SimulatedDevice]:
    yield SimulatedDevice(build_simulated("ptx", checked=True, arch=request.param))


def run(name: str, device: SimulatedDevice, schedule: Schedule) -> None:
    device.schedule(schedule)
    device.library.kdtw_sim_clear_error()
    cases.run(name, device)


@pytest.mark.parametrize("schedule", QUICK, ids=str)
@pytest.mark.parametrize("name", cases.CASES_OF_TESTS)
def test_source(name: str, schedule: Schedule, source: SimulatedDevice) -> None:
    run(name, source, schedule)


@pytest.mark.gpu_proof
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s not in QUICK], ids=str)
@pytest.mark.parametrize("name", cases.CASES_OF_TESTS)
def test_source_in_all_schedules(name: str, schedule: Schedule, source: SimulatedDevice) -> None:
    run(name, source, schedule)


@needs_nvcc
@pytest.mark.gpu_proof
@pytest.mark.parametrize("name", cases.CASES_OF_TESTS)
def test_ptx_in_all_schedules(name: str, translated: SimulatedDevice) -> None:
    for schedule in SCHEDULES:
        run(name, translated, schedule)


@needs_nvcc
@pytest.mark.gpu_proof
@pytest.mark.parametrize("name", ["embedding", "norm", "linear_int8", "scaled_tokens"])  # others call exp
def test_source_and_ptx_give_the_same_bits(name: str, source: SimulatedDevice, translated: SimulatedDevice) -> None:
    results = []
    for device in (source, translated):
        device.downloads = []
        run(name, device, SCHEDULES[0])
        results.append(device.downloads)
        device.downloads = None
    assert len(results[0]) == len(results[1]) > 0
    for mine, other in zip(*results):
        assert mine.tobytes() == other.tobytes()
