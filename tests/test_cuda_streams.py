"""Memory and streams on the simulated CUDA device: shared with another library, a second stream, replayed passes.

Lazy: nothing runs before the host waits for it, so that work that follows too little of another stream's reads what was
there before.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories import empty_the_device, random_batch, random_pair
from test_cuda_decode import VOCAB, the_device

import kdtw_fast
from gpu_proof.simulated import SimulatedDevice
from kdtw_fast import NativeT5, SpeculativeDecoder, TrainingWheelsDecoder, torch_allocator
from kdtw_fast.selftest.agreement import as_array
from kdtw_fast.selftest.checks import Trial
from kdtw_fast.selftest.decodes import same_outputs


@pytest.fixture
def lazy(simulated: str) -> Iterator[SimulatedDevice]:
    device = the_device()
    device.schedule(lazy=True)
    yield device
    device.schedule()


class OtherLibrary:
    """What kdtw_fast uses of torch.cuda, on the simulated device: an allocator and a stream.

    What it hands out for its own stream was used there before: work that is still to come on it writes there.
    """

    OutOfMemoryError = MemoryError

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        stream = ctypes.c_void_p()
        device.check(device.library.cudaStreamCreateWithFlags(ctypes.byref(stream), 1))
        self.stream = stream.value or 0
        self.held: dict[int, int] = {}
        self.streams: set[int] = set()
        self.left = 1 << 40
        self._garbage = np.full(1 << 20, 0x7F, np.uint8)

    def is_available(self) -> bool:
        return True

    def current_stream(self, device: int) -> Any:
        assert device == 0
        return SimpleNamespace(cuda_stream=self.stream)

    def caching_allocator_alloc(self, size: int, device: int, stream: int) -> int:
        assert device == 0
        if size > self.left:
            raise MemoryError
        address = self._device.allocate(size)
        self.held[address] = size
        self.streams.add(stream)
        if stream == self.stream:
            many = ctypes.c_size_t(min(size, len(self._garbage)))
            garbage, here = ctypes.c_void_p(self._garbage.ctypes.data), ctypes.c_void_p(stream)
            library = self._device.library
            self._device.check(library.cudaMemcpyAsync(ctypes.c_void_p(address), garbage, many, 1, here))
        return address

    def caching_allocator_delete(self, address: int) -> None:
        del self.held[address]
        self._device.library.cudaFree(address)


@pytest.fixture
def other(lazy: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherLibrary]:
    library = OtherLibrary(lazy)
    native = kdtw_fast.build_info()["cuda"] | {"kind": "CUDA"}
    core = SimpleNamespace(build_info=lambda: {"cuda": native}, use_cuda_allocator=kdtw_fast._core.use_cuda_allocator)
    monkeypatch.setattr(torch_allocator, "_core", core)
    monkeypatch.setattr(torch_allocator, "torch", SimpleNamespace(cuda=library, OutOfMemoryError=MemoryError))
    empty_the_device()
    yield library
    gc.collect()
    kdtw_fast._core.use_cuda_allocator(None, None, None)
    assert not library.held  # all has gone back


SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "output_logprobs": True}


@pytest.mark.parametrize("method", [SpeculativeDecoder, TrainingWheelsDecoder])
def test_memory_and_order_are_the_other_librarys(method: Any, other: OtherLibrary, lazy: SimulatedDevice) -> None:
    student, teacher = random_pair("unrelated", seed=2)
    ids, mask = random_batch(np.random.default_rng(2), 5, VOCAB, longest=9)
    expected = method(student, teacher).generate(ids, mask, **SETTINGS)
    lazy.reset_counters()
    decoder = method(student, teacher, device="cuda")
    assert lazy.counters()["allocations"] == len(other.held) > 10  # its own, which the simulated device counts too
    for _ in range(2):
        output = decoder.generate(ids, mask, **SETTINGS)
        assert np.array_equal(as_array(output.sequences), as_array(expected.sequences))
        assert np.allclose(as_array(output.student_logprobs), as_array(expected.student_logprobs), 0, 1e-4, True)
    assert (
        other.stream in other.streams and len(other.streams) == 3
    )  # weights; a session's, and the teacher's encoder's


def test_weights_wait_for_the_other_librarys_work(other: OtherLibrary) -> None:
    """Else what is still to come on its stream would write over them."""
    student, _ = random_pair("noisy", seed=4)
    native = NativeT5.from_model(student, device="cuda")
    the_device().library.cudaStreamSynchronize(ctypes.c_void_p(other.stream))
    expected = NativeT5.from_model(student).decode_logits([4, 1], [0, 3])
    assert np.allclose(native.decode_logits([4, 1], [0, 3]), expected, 0, 1e-4)


def test_no_memory_is_said_and_leaves_the_decoder_usable(other: OtherLibrary) -> None:
    student, teacher = random_pair("noisy", seed=3)
    decoder = TrainingWheelsDecoder(student, teacher, device="cuda")
    expected = decoder.generate([[5, 1]], **SETTINGS)
    other.left = 64
    with pytest.raises(MemoryError, match="on device cuda:0; lower max_new_tokens"):
        decoder.generate([[5, 1]], **(SETTINGS | {"max_new_tokens": 7}))  # no call has left what that needs
    other.left = 1 << 40
    same_outputs(Trial("cpu"), decoder.generate([[5, 1]], **SETTINGS), expected)


def test_torch_without_cuda_is_not_asked(simulated: str) -> None:
    assert torch_allocator.share_with_torch() is False


# --- The second stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["loop", "ahead", "host"])
@pytest.mark.parametrize("teacher_batch", [None, 3])
def test_teachers_encode_aside(how: str, teacher_batch: int | None, lazy: SimulatedDevice) -> None:
    """While other rows draft on, and without reading or writing what is not theirs at that time."""
    student, teacher = random_pair("unrelated", seed=2)
    ids, mask = random_batch(np.random.default_rng(2), 5, VOCAB, longest=9)
    settings = {"max_new_tokens": 9, "teacher_batch": teacher_batch, "output_logprobs": True}
    kdtw_fast._core.use_cuda_drafting(how, 2)
    try:
        for name, options in (("TrainingWheelsDecoder", {}), ("BigLittleDecoder", {"fallback_threshold": 0.3})):
            here, there = (getattr(kdtw_fast, name)(student, teacher, device=d, **options) for d in ("cpu", "cuda"))
            expected = here.generate(ids, mask, **settings)
            output = there.generate(ids, mask, **settings)
            assert np.array_equal(as_array(output.sequences), as_array(expected.sequences))
            assert np.array_equal(as_array(output.owners), as_array(expected.owners))
    finally:
        kdtw_fast._core.use_cuda_drafting("auto", 4)


# --- Replayed passes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_passes_that_come_again_are_replayed(dtype: str, simulated: str) -> None:
    """A session of many rows: bit for bit the host's passes, of every size, and few launches."""
    device = the_device()
    models = [NativeT5.from_model(m, dtype=dtype, device=simulated) for m in random_pair("noisy", seed=5)]
    ids, mask = random_batch(np.random.default_rng(6), 20, VOCAB, longest=6)
    rows = [row[: int(length)].tolist() for row, length in zip(ids, mask.sum(1))]
    for decoder in (
        TrainingWheelsDecoder(*models, verify_lenience=0.3),
        SpeculativeDecoder(*models, draft_length=5, lenience=0.4),
    ):
        outputs, launches, graphs = [], [], []
        for how in ("host", "ahead"):
            kdtw_fast._core.use_cuda_drafting(how, 4)
            device.reset_counters()
            outputs.append(
                list(decoder.stream(rows, max_new_tokens=12, batch_size=2, in_order=True, output_logprobs=True))
            )
            launches.append(device.counters()["host_launches"])
            graphs.append(device.counters()["graph_launches"])
        kdtw_fast._core.use_cuda_drafting("auto", 4)
        for mine, others in zip(*outputs, strict=True):
            same_outputs(Trial("cpu"), mine, others)
        assert graphs[0] == 0 < graphs[1] and launches[1] < launches[0] / 2
