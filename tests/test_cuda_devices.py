"""Several devices, devices without memory, and what a call leaves to the next: on the simulated CUDA device."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from factories import empty_the_device, random_batch, random_pair
from test_cuda_decode import VOCAB, the_device

import kdtw_fast
from gpu_proof.simulated import SimulatedDevice
from kdtw_fast import NativeT5, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.selftest.agreement import as_array
from kdtw_fast.selftest.checks import Trial
from kdtw_fast.selftest.decodes import WARPS, same_outputs

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


# --- What a call leaves to the next -----------------------------------------------------------------------

MADE = ("allocations", "frees", "host_allocations", "host_frees", "graphs")


@contextlib.contextmanager
def drafting(how: str) -> Iterator[None]:
    kdtw_fast._core.use_cuda_drafting(how, 2)
    try:
        yield
    finally:
        kdtw_fast._core.use_cuda_drafting("auto", 4)


@pytest.mark.parametrize("warp", ["greedy", "cut"])
@pytest.mark.parametrize("how", ["loop", "ahead", "host"])
@pytest.mark.parametrize("method", [SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder])
def test_a_second_call_makes_and_frees_nothing(method: Any, how: str, warp: str, device: SimulatedDevice) -> None:
    """No device memory, no pinned memory, no graph; and calls in between whose sources are shorter free nothing."""
    models = [NativeT5.from_model(model, device="cuda") for model in random_pair("noisy", seed=4)]
    models = models[:1] if method is SingleModelDecoder else models
    ids, mask = random_batch(np.random.default_rng(2), 4, VOCAB, longest=6)
    settings = SETTINGS | WARPS[warp]

    def made(decoder: Any, ids: np.ndarray, mask: np.ndarray) -> tuple[Any, list[int]]:
        device.reset_counters()
        output = decoder.generate(ids, mask, **settings)
        counters = device.counters()
        assert counters["kernels"] > 0
        return output, [counters[name] for name in MADE]

    with drafting(how):
        decoder = method(*models)
        first, numbers = made(decoder, ids, mask)
        assert numbers[0] > 0 < numbers[2] and (numbers[4] > 0) == (how != "host")
        for _ in range(2):
            again, numbers = made(decoder, ids, mask)
            assert numbers == [0] * len(MADE)
            same_outputs(Trial("cpu"), again, first)
        shorter, numbers = made(decoder, ids[:, :3], mask[:, :3])
        assert [numbers[1], numbers[3]] == [0, 0]
        same_outputs(Trial("cpu"), shorter, method(*models).generate(ids[:, :3], mask[:, :3], **settings))
        for width, expected in ((3, shorter), (6, first)):
            again, numbers = made(decoder, ids[:, :width], mask[:, :width])
            assert numbers == [0] * len(MADE)
            same_outputs(Trial("cpu"), again, expected)


@pytest.mark.parametrize("how", ["loop", "host"])
def test_calls_that_end_early_leave_nothing_wrong(how: str, device: SimulatedDevice) -> None:
    """A streamer that raises, a stream that is left, a number of rows or of tokens that is another, two at a time."""
    models = [NativeT5.from_model(model, device="cuda") for model in random_pair("unrelated", seed=2)]
    ids, mask = random_batch(np.random.default_rng(2), 4, VOCAB, longest=6)
    rows = [row[: int(length)].tolist() for row, length in zip(ids, mask.sum(1))]
    longer = SETTINGS | {"max_new_tokens": 11}

    class Stops:
        def put(self, value: Any) -> None:
            raise KeyboardInterrupt

        def end(self) -> None: ...

    with drafting(how):
        for method in (SpeculativeDecoder, TrainingWheelsDecoder):
            fresh = [method(*models).generate(ids, mask, **settings) for settings in (SETTINGS, longer)]
            decoder = method(*models)
            with pytest.raises(KeyboardInterrupt):
                decoder.generate(ids[:1], mask[:1], streamer=Stops(), **SETTINGS)
            same_outputs(Trial("cpu"), decoder.generate(ids, mask, **SETTINGS), fresh[0])
            stream = decoder.stream(rows * 3, batch_size=4, **SETTINGS)
            next(stream)
            del stream
            gc.collect()
            same_outputs(Trial("cpu"), decoder.generate(ids, mask, **SETTINGS), fresh[0])
            same_outputs(Trial("cpu"), decoder.generate(ids, mask, **longer), fresh[1])
            decoder.generate(ids[:2], mask[:2], **longer)
            with ThreadPoolExecutor(3) as threads:
                calls = [threads.submit(decoder.generate, ids, mask, **SETTINGS) for _ in range(9)]
                for call in calls:
                    same_outputs(Trial("cpu"), call.result(), fresh[0])


def test_what_is_kept_does_not_outlive_its_weights(device: SimulatedDevice) -> None:
    """Graphs know where weights lie; a decoder whose models have others begins anew, and holds no model's weights."""
    first, _ = random_pair("noisy", seed=4)
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    native = NativeT5.from_model(first, device="cuda")
    decoder = SingleModelDecoder(native)
    before = decoder.generate([[5, 8, 1]], **SETTINGS)
    native.update_weights(second)
    expected = SingleModelDecoder(NativeT5.from_model(second, device="cuda")).generate([[5, 8, 1]], **SETTINGS)
    same_outputs(Trial("cpu"), decoder.generate([[5, 8, 1]], **SETTINGS), expected)
    assert not np.array_equal(as_array(before.sequences), as_array(expected.sequences))
    native.update_weights(first)
    same_outputs(Trial("cpu"), decoder.generate([[5, 8, 1]], **SETTINGS), before)


@pytest.mark.parametrize("kind", ["device", "host"])
def test_what_is_kept_makes_room_where_memory_is_refused(kind: str, device: SimulatedDevice) -> None:
    """What one decoder keeps is dropped for another's call, and both go on."""
    models = [NativeT5.from_model(model, device="cuda") for model in random_pair("noisy", seed=4)]
    expected = [SingleModelDecoder(model).generate([[5, 8, 1]], **SETTINGS) for model in models]
    gc.collect()
    decoders = [SingleModelDecoder(model) for model in models]
    decoders[0].generate([[5, 8, 1]], **(SETTINGS | {"max_new_tokens": 40}))
    device.memory(**{kind: getattr(device, f"{kind}_memory_in_use")})
    device.reset_counters()
    for decoder, output in zip(decoders, expected):
        same_outputs(Trial("cpu"), decoder.generate([[5, 8, 1]], **SETTINGS), output)
    assert device.counters()["frees" if kind == "device" else "host_frees"] > 0


@pytest.mark.parametrize("how", ["loop", "ahead"])
def test_memory_refused_in_the_middle_leaves_the_decoder_usable(how: str, device: SimulatedDevice) -> None:
    """Wherever in a call it is refused, captures included: a MemoryError, and the next call is right."""
    models = [NativeT5.from_model(model, device="cuda") for model in random_pair("noisy", seed=4)]
    ids, mask = random_batch(np.random.default_rng(2), 3, VOCAB, longest=6)
    with drafting(how):
        expected = SpeculativeDecoder(*models).generate(ids, mask, **SETTINGS)
        del models
        empty_the_device()
        models = [NativeT5.from_model(model, device="cuda") for model in random_pair("noisy", seed=4)]
        decoder = SpeculativeDecoder(*models)
        weights, refused = device.device_memory_in_use, 0
        for more in range(1 << 10, 1 << 19, 1 << 14):
            device.memory(device=weights + more)
            try:
                output = decoder.generate(ids, mask, **SETTINGS)
            except MemoryError:
                refused += 1
                continue
            same_outputs(Trial("cpu"), output, expected)
        assert refused > 2
        device.memory()
        same_outputs(Trial("cpu"), decoder.generate(ids, mask, **SETTINGS), expected)
