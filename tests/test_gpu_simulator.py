"""The simulated device itself: it does what CUDA says, sees what CUDA forbids, and its two ways agree.

The sample kernels (tests/gpu_kernels) run as g++ compiles them and as nvcc's PTX says; without nvcc the latter skip.
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gpu_proof.build import BuildError, build_simulated, find_nvcc
from gpu_proof.simulated import SCHEDULES, SimulatedDevice, SimulatedError
from gpu_proof.translate import PtxError, translate

TESTS = Path(__file__).parent
SAMPLES = [TESTS / "gpu_kernels/samples.cu"]
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc on this machine")


def build_samples(kind: str) -> SimulatedDevice:
    return SimulatedDevice(build_simulated(kind, checked=True, sources=SAMPLES, csrc=TESTS))


@pytest.fixture(scope="module", params=["source", pytest.param("ptx", marks=needs_nvcc)])
def library(request: pytest.FixtureRequest) -> SimulatedDevice:
    return build_samples(request.param)


@pytest.fixture
def device(library: SimulatedDevice) -> Iterator[SimulatedDevice]:
    library.schedule()
    library.reset_counters()
    yield library
    library.library.cudaGetLastError()
    library.release()


def call(device: SimulatedDevice, name: str, *arguments: object) -> None:
    device.check(getattr(device.library, name)(*arguments))


def each_schedule(device: SimulatedDevice, check: Callable[[], None]) -> None:
    for schedule in SCHEDULES:
        device.schedule(schedule)
        check()


# ---------------------------------------------------------------- what CUDA says
def test_collectives(device: SimulatedDevice) -> None:
    values = np.random.default_rng(0).integers(0, 100, 64).astype(np.int32)
    lanes = np.arange(32)
    expected = np.empty((64, 7), np.int64)
    for warp in (0, 1):
        v = values[32 * warp : 32 * warp + 32]
        rows = expected[32 * warp : 32 * warp + 32]
        rows[:, 0] = v[5]
        rows[:, 1] = v[np.where(lanes >= 3, lanes - 3, lanes)]
        rows[:, 2] = v[lanes ^ 9]
        rows[:, 3] = np.array((v & 1) << lanes, np.uint32).sum(dtype=np.uint32).astype(np.int32)
        rows[:, 4] = (v == 40).any()
    expected[:, 5] = (values & 1).sum()
    expected[:, 6] = (values == 40).any()

    def check() -> None:
        out = device.empty((64, 7), np.int32)
        call(device, "sample_collectives", device.array(values), 64, out)
        np.testing.assert_array_equal(out.numpy(), expected)

    each_schedule(device, check)


def test_a_warp_shares_memory_after_its_barrier(device: SimulatedDevice) -> None:
    values = np.arange(32, dtype=np.int32) ** 2

    def check() -> None:
        out = device.empty(32, np.int32)
        call(device, "sample_neighbours", device.array(values), out)
        np.testing.assert_array_equal(out.numpy(), values[np.arange(32) ^ 1])

    each_schedule(device, check)


@pytest.mark.parametrize("size", [1, 31, 33, 200])
def test_results_do_not_depend_on_the_schedule(device: SimulatedDevice, size: int) -> None:
    x = np.random.default_rng(1).standard_normal((5, size)).astype(np.float32)
    results = set()

    def check() -> None:
        y = device.empty(5)
        call(device, "sample_row_sum", device.array(x), 5, size, y)
        np.testing.assert_allclose(y.numpy(), x.sum(1), atol=1e-4)
        results.add(y.numpy().tobytes())

    each_schedule(device, check)
    assert len(results) == 1


def test_atomics(device: SimulatedDevice) -> None:
    values = np.random.default_rng(2).integers(0, 1000, 777).astype(np.int32)

    def check() -> None:
        counts = device.empty((6, 13), np.int32)
        call(device, "sample_histogram", device.array(values), 777, 13, 6, counts)
        np.testing.assert_array_equal(counts.numpy().sum(0), np.bincount(values % 13, minlength=13))

    each_schedule(device, check)


def test_rounding(device: SimulatedDevice) -> None:
    rng = np.random.default_rng(3)
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 65504, 65520, 2**-24, 2**-25, 3e38]
    values = np.array([*ties, *(-t for t in ties), 0.0, -0.0, np.inf, *rng.standard_normal(200)], np.float32)
    n = len(values)
    halves, bfloats, back = device.empty(n, np.uint16), device.empty(n, np.uint16), device.empty((n, 2))
    call(device, "sample_round", device.array(values), n, halves, bfloats, back)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(halves.numpy(), expected.view(np.uint16))
    np.testing.assert_array_equal(bfloats.numpy(), rounded)
    np.testing.assert_array_equal(back.numpy()[:, 0], expected.astype(np.float32))
    np.testing.assert_array_equal(back.numpy()[:, 1], (rounded.astype(np.uint32) << 16).view(np.float32))


def test_tensor_core_step(device: SimulatedDevice) -> None:
    rng = np.random.default_rng(4)
    w, x = rng.standard_normal((48, 72)).astype(np.float16), rng.standard_normal((8, 72)).astype(np.float16)
    y = device.empty((48, 8))
    call(device, "sample_mma", device.array(w), device.array(x), 48, 72, y)
    np.testing.assert_allclose(y.numpy(), w.astype(np.float64) @ x.T.astype(np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lazy", [False, True])
def test_while_graph(device: SimulatedDevice, lazy: bool) -> None:
    device.schedule(lazy=lazy)
    length, trace = device.array(np.zeros(1, np.int32)), device.empty(12, np.int32)
    call(device, "sample_loop", length, 9, trace, 1)
    assert length.numpy()[0] == 9
    np.testing.assert_array_equal(trace.numpy()[:9], np.arange(9) ** 2)
    counters = device.counters()
    assert (counters["while_iterations"], counters["graph_kernels"], counters["host_launches"]) == (9, 9, 0)
    assert counters["graph_launches"] == 1


def test_streams_wait_for_events(device: SimulatedDevice) -> None:
    for lazy in (False, True):
        device.schedule(lazy=lazy)
        x, host = device.array(np.zeros(40, np.float32)), np.zeros(40, np.float32)
        call(device, "sample_streams", x, 40, ctypes.c_void_p(host.ctypes.data), 1)
        np.testing.assert_array_equal(host, 11)


def test_lazy_work_shows_a_host_that_does_not_wait(device: SimulatedDevice) -> None:
    device.schedule(lazy=True)
    host = np.zeros(40, np.float32)
    call(device, "sample_streams", device.array(np.zeros(40, np.float32)), 40, ctypes.c_void_p(host.ctypes.data), 0)
    np.testing.assert_array_equal(host, -1)


# ---------------------------------------------------------------- what CUDA forbids
BUGS = {
    1: "global load out of bounds",
    2: "load of uninitialised shared memory",
    3: "barrier|race on shared",
    4: "divergent barrier",
    5: "race on shared memory: this (load|store)|uninitialised shared",
    6: "race on shared memory: this store is not ordered after the load|race on shared memory: this load",
    7: "does not take part",
    8: "misaligned",
    9: "race on global memory",
    10: "shared load out of bounds",
    11: "race on global memory: this (load|store)|load of uninitialised global",
    12: "of a part of the warp",
}


@pytest.mark.parametrize("bug", BUGS)
def test_broken_rule_is_reported_with_its_line(device: SimulatedDevice, bug: int) -> None:
    with pytest.raises(SimulatedError, match=BUGS[bug]) as raised:
        call(device, "sample_rules", bug, device.array(np.ones(64, np.float32)), device.empty((2, 64)), 2)
    assert "rules_kernel" in str(raised.value) and "samples.cu:" in str(raised.value)


def test_rules_kept_are_not_reported(device: SimulatedDevice) -> None:
    x = np.random.default_rng(5).standard_normal(64).astype(np.float32)

    def check() -> None:
        out = device.empty((2, 64))
        call(device, "sample_rules", 0, device.array(x), out, 2)
        np.testing.assert_array_equal(out.numpy(), [x[::-1]] * 2)

    each_schedule(device, check)


def test_device_goes_on_after_an_error(device: SimulatedDevice) -> None:
    with pytest.raises(SimulatedError):
        call(device, "sample_rules", 1, device.array(np.ones(64, np.float32)), device.empty((2, 64)), 2)
    call(device, "sample_rules", 0, device.array(np.ones(64, np.float32)), device.empty((2, 64)), 2)


def test_launch_that_a_gpu_refuses(device: SimulatedDevice) -> None:
    with pytest.raises(SimulatedError, match="invalid grid"):
        call(device, "sample_row_sum", device.empty(1), 0, 1, device.empty(1))
    with pytest.raises(SimulatedError, match="host memory"):
        host = np.zeros(4, np.float32)
        call(device, "sample_row_sum", ctypes.c_void_p(host.ctypes.data), 1, 1, device.empty(1))


def test_freed_memory_is_not_readable(device: SimulatedDevice) -> None:
    x = device.array(np.ones(64, np.float32))
    device.check(device.library.cudaFree(x))
    with pytest.raises(SimulatedError, match="out of bounds"):
        call(device, "sample_rules", 0, x, device.empty((2, 64)), 2)
    device._arrays.remove(x)


# ---------------------------------------------------------------- traffic
@needs_nvcc
@pytest.mark.parametrize(("stride", "ratio"), [(1, 1), (2, 2), (3, 2)])
def test_sectors_of_vector_loads(stride: int, ratio: int) -> None:
    """16-byte loads fill half a sector: side by side the halves make whole ones, apart they do not."""
    device = build_samples("ptx")
    device.schedule()
    x, out = device.array(np.ones((64 * stride, 4), np.float32)), device.empty((64, 4))
    with device.traffic() as launches:
        call(device, "sample_copy", x, out, 64, stride)
    load = launches[0]["global loads"]
    assert load["requests"] == 2 and load["bytes"] == 1024
    assert load["cost"] / load["ideal"] == ratio
    assert launches[0]["bytes_written"] == 1024
    device.release()


@pytest.mark.parametrize(("stride", "ways"), [(1, 1), (2, 2), (8, 8), (31, 1)])
def test_bank_ways(device: SimulatedDevice, stride: int, ways: int) -> None:
    out = device.empty(32)
    with device.traffic() as launches:
        call(device, "sample_bank", out, stride)
    assert launches[0]["shared loads"]["cost"] == ways


# ---------------------------------------------------------------- the two ways
@needs_nvcc
def test_source_and_ptx_give_the_same_bits() -> None:
    x = np.random.default_rng(6).standard_normal((3, 150)).astype(np.float32)
    results = []
    for kind in ("source", "ptx"):
        device = build_samples(kind)
        device.schedule()
        y = device.empty(3)
        call(device, "sample_row_sum", device.array(x), 3, 150, y)
        results.append(y.numpy())
        device.release()
    np.testing.assert_array_equal(*results)


PTX = """
.version 9.0
.target sm_75
.address_size 64
.visible .entry k(.param .u64 k_param_0)
{{
 .reg .b32 %r<3>;
 {instruction}
 ret;
}}
"""


@pytest.mark.parametrize(
    "instruction",
    ["frobnicate.sync.u32 %r1, %r2;", "add.cc.u32 %r1, %r1, %r2;", "bar.sync 1, 64;", "mov.u64 %r1, %clock64;"],
)
def test_unknown_instruction_stops_the_translation_with_its_text(instruction: str) -> None:
    with pytest.raises(PtxError) as raised:
        translate(PTX.format(instruction=instruction))
    assert instruction.rstrip(";") in str(raised.value) and "k:" in str(raised.value)


def test_wrong_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="sauce"):
        build_simulated("sauce")


def test_compiler_error_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text("int f( {", encoding="utf-8")
    with pytest.raises(BuildError, match=r"broken\.cu"):
        build_simulated(sources=[broken])
