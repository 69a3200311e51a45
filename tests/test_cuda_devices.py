"""Several devices, and devices without memory: on the simulated CUDA device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from factories import empty_the_device, random_batch, random_pair
from test_cuda_decode import VOCAB, the_device

import kdtw_fast
from gpu_proof.simulated import SimulatedDevice
from kdtw_fast import NativeT5, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.selftest.checks import Trial
from kdtw_fast.selftest.decodes import same_outputs

SETTINGS = {"max_new_tokens": 6, "output_logprobs": True}


@pytest.fixture
def device(simulated: str) -> Iterator[SimulatedDevice]:
    found = the_device()
    empty_the_device()
    yield found
    found.memory()
    found.chosen = 0
    empty_the_device()
    found.devices()


@pytest.mark.parametrize("how", ["auto", "ahead", "host"])
@pytest.mark.parametrize(("programs", "ours"), [(0, 1), (1, 0), (1, 1)])
def test_the_programs_device_is_its_own_again(programs: int, ours: int, how: str, device: SimulatedDevice) -> None:
    """Whatever this library does on a device, the thread's choice is what it was; and it is left alone where it fits.

    A kernel, a graph or a capture on a stream of a device that is not chosen would be an error.
    """
    student, teacher = random_pair("unrelated", seed=2)
    ids, mask = random_batch(np.random.default_rng(2), 4, VOCAB, longest=6)
    device.devices(2)
    device.chosen = programs
    device.reset_counters()
    kdtw_fast._core.use_cuda_drafting(how, 2)
    try:
        for method in (SpeculativeDecoder, TrainingWheelsDecoder):
            decoder = method(student, teacher, device=f"cuda:{ours}")
            assert device.chosen == programs
            for _ in range(2):
                decoder.generate(ids, mask, **SETTINGS)
                assert device.chosen == programs
            with pytest.raises(ValueError):
                decoder.generate([[VOCAB + 1]], **SETTINGS)
            assert device.chosen == programs
        del decoder
    finally:
        kdtw_fast._core.use_cuda_drafting("auto", 4)
    empty_the_device()
    assert device.chosen == programs
    choices = device.counters()["device_choices"]
    assert choices == 0 if programs == ours else choices > 0


def test_memory_that_is_refused_is_named(device: SimulatedDevice) -> None:
    """The device's or the host's, how much, and what to lower; and the decoder can be used again."""
    student, teacher = random_pair("noisy", seed=3)
    device.memory(device=1000)
    with pytest.raises(MemoryError, match="bytes on device cuda:0; choose a format of fewer bits"):
        NativeT5.from_model(student, device="cuda")
    device.memory()
    decoder = TrainingWheelsDecoder(student, teacher, device="cuda")
    device.memory(device=1000)
    with pytest.raises(MemoryError, match="bytes on device cuda:0; lower max_new_tokens"):
        decoder.generate([[5, 1]], **SETTINGS)
    device.memory(host=1000)
    with pytest.raises(MemoryError, match="bytes of host memory that a device copies from; decode fewer rows"):
        decoder.generate([[5, 1]], **SETTINGS)
    device.memory()
    expected = decoder.generate([[5, 1]], **SETTINGS)
    same_outputs(Trial("cpu"), decoder.generate([[5, 1]], **SETTINGS), expected)
