"""Whole decodes on the simulated CUDA device: every method against the oracle, and what holds there bit for bit.

The margin rule is the oracle's (agreement.compare): a row may differ from it only where it saw a near tie. Set
KDTW_CUDA_LIBRARY to run the same tests on another library of the kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import RELATIONS, SHAPES, START, random_batch, random_pair, random_t5
from test_decoding_oracle import METHODS, OUTCOMES, random_case
from test_families import random_model, rows_of

import kdtw_fast
from gpu_proof.simulated import SCHEDULES, SimulatedDevice
from kdtw_fast import (
    BigLittleDecoder,
    InterleavedDecoder,
    NativeModel,
    NativeT5,
    SingleModelDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)
from kdtw_fast.selftest.agreement import Tally, check_padding, compare
from kdtw_fast.selftest.checks import Trial
from kdtw_fast.selftest.decodes import same_outputs

VOCAB = 43
CASES_PER_METHOD = 5


# --- Against the oracle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_random_cases(method: str, simulated: str, oracle_tally: Tally) -> None:
    """Small cases of the CPU's own test, with log-probabilities, greedy and sampled."""
    for index in range(1000, 1200):
        relation = RELATIONS[index % len(RELATIONS)]
        fast, slow, settings, text = random_case(method, relation, index, simulated)
        rows = len(settings["input_ids"]) * settings.get("num_return_sequences", 1)
        if settings["max_new_tokens"] > 8 or rows > 4:
            continue
        output = fast.generate(output_logprobs=True, **settings)
        check_padding(output, START, START)
        oracle_tally.add(compare(output, slow.generate(**settings), text))
        if oracle_tally.cases == CASES_PER_METHOD:
            break
    assert oracle_tally.cases == CASES_PER_METHOD
    assert oracle_tally.differing == 0
    assert set(oracle_tally.owners) & OUTCOMES[method]


# --- Exact on one device ---------------------------------------------------------------------------------


def test_weights_are_updated(simulated: str) -> None:
    first, second = (random_t5(SHAPES[0], VOCAB, seed=seed) for seed in (1, 2))
    native = NativeT5.from_model(first, device=simulated)
    native.update_weights(second)
    fresh = NativeT5.from_model(second, device=simulated)
    assert np.array_equal(native.decode_logits([4, 1], [0, 3]), fresh.decode_logits([4, 1], [0, 3]))


def test_rows_that_are_not_finite_are_named(simulated: str) -> None:
    model = random_t5(SHAPES[1], VOCAB, seed=1)  # not tied: only a source with token 7 meets it
    with torch.no_grad():
        model.shared.weight[7, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="logits are not finite at row 1"):
        SingleModelDecoder(model, device=simulated).generate([[5, 1], [7, 1]], max_new_tokens=3)


def the_device() -> SimulatedDevice:
    """What the library in use lets a test set and read."""
    path = kdtw_fast.build_info()["cuda"]["library"]
    if not hasattr(ctypes.CDLL(path), "kdtw_sim_counters"):
        pytest.skip(f"{path} runs on no simulated device")
    return SimulatedDevice(Path(path))


@pytest.mark.parametrize("order", ["lazy", SCHEDULES[1], SCHEDULES[4]], ids=str)
def test_no_order_of_work_changes_a_bit(order: Any, simulated: str) -> None:
    """Threads in other orders; lazy: nothing runs before the host waits for it, so it may not wait too late."""
    device = the_device()
    student, teacher = random_pair("noisy", seed=2)
    decoder = SpeculativeDecoder(student, teacher, draft_length=2, device=simulated)
    ids, mask = random_batch(np.random.default_rng(1), 2, VOCAB, longest=6)
    settings = {"max_new_tokens": 4, "temperature": 0.9, "top_k": 9, "output_logprobs": True}
    expected = decoder.generate(ids, mask, **settings)
    try:
        device.schedule(*([] if order == "lazy" else [order]), lazy=order == "lazy")
        same_outputs(Trial(simulated), decoder.generate(ids, mask, **settings), expected)
    finally:
        device.schedule()


@pytest.mark.parametrize("kind", ["m2m_100", "qwen3", "gemma3_text", "t5gemma"])
def test_drafts_of_every_kind_of_model_are_the_hosts(kind: str, simulated: str) -> None:
    """Positions of every kind move on in graphs: tables, rotary ones behind prompts of their own lengths, windows."""
    model = random_model(kind, 2)
    decoder = SpeculativeDecoder(model, random_model(kind, 2), draft_length=3, device=simulated)
    rows = [*rows_of(kind, 2, 3), [5] * 20, [5] * 20 + [6]]  # two begin alike: the second copies what the first read
    outputs = []
    try:
        for way in (("host", 1), ("loop", 1), ("ahead", 3)):
            kdtw_fast._core.use_cuda_drafting(*way)
            outputs.append(decoder.generate(rows, max_new_tokens=7, output_logprobs=True))
    finally:
        kdtw_fast._core.use_cuda_drafting("auto", 4)
    for output in outputs[1:]:
        same_outputs(Trial(simulated), output, outputs[0])
    alone = decoder.generate(rows[4:], row_ids=[4], max_new_tokens=7, output_logprobs=True)
    assert alone.output_ids[0] == outputs[0].output_ids[4]


@pytest.mark.parametrize("kind", ["llama", "bart", "gemma2", "t5gemma"])
def test_number_formats_of_every_kind_of_model(kind: str, simulated: str) -> None:
    """int8 and bf16 with keys in fp32 are the CPU's up to the order of sums; fp16 is near fp32.

    Of int8, a number at the border of two integers may go the other way: then, in one source of three, by its step.
    """
    model = random_model(kind, 0)
    for dtype, on_cpu, tolerance in (("int8", "int8", 1e-5), ("bf16", "bf16", 2e-3), ("fp16", "fp32", 5e-3)):
        native = NativeModel.from_model(model, device=simulated, dtype=dtype, cache_dtype="fp32")
        other = NativeModel.from_model(model, dtype=on_cpu, cache_dtype="fp32")
        tokens = [native.decoder_start_token_id, *range(5, 14)]
        apart = []
        for source in rows_of(kind, 0, 3):
            found, expected = native.decode_logits(source, tokens), other.decode_logits(source, tokens)
            apart.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
            np.testing.assert_array_equal(native.decode_logits(source, tokens, chunks=[1, 6, 3]), found)
        assert sorted(apart)[1] < tolerance and max(apart) < 0.03, (dtype, apart)


def test_a_table_of_positions_is_read_to_its_end(simulated: str) -> None:
    """By the last tokens of a source and of an output, and no further."""
    model = random_model("bart", 0)
    most = model.config.max_position_embeddings
    decoder = SingleModelDecoder(model, device=simulated)
    whole = decoder.generate([[5] * most, [7, 8], [9]], max_new_tokens=most, min_new_tokens=most)
    assert whole.lengths.tolist() == [most] * 3


# --- What a token costs ----------------------------------------------------------------------------------


def counted(
    decoder: Any, device: SimulatedDevice, tokens: int, source: Sequence[int] = (5, 8, 1), **options: Any
) -> dict[str, int]:
    """What the device counted in a greedy decode of exactly so many tokens; its memory was asked for before."""
    for _ in range(2):
        device.reset_counters()
        decoder.generate([list(source)], max_new_tokens=tokens, min_new_tokens=tokens, **options)
    return device.counters()


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_kernels_of_an_encoder(dtype: str, simulated: str) -> None:
    """Of its pass and of the cross-attention's keys and values: what a decode of one token runs beside a step."""
    device = the_device()
    kdtw_fast._core.use_cuda_drafting("host", 1)
    native = NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=1), dtype=dtype, device=simulated)
    try:
        alone = counted(SingleModelDecoder(native), device, 1)["kernels"]
    finally:
        kdtw_fast._core.use_cuda_drafting("auto", 4)
    assert alone == SHAPES[1].encoder_kernels(dtype) + SHAPES[1].decoder_kernels(dtype)


@pytest.mark.parametrize(("dtype", "length"), [("fp16", 3), ("int8", 193)])
def test_launches_copies_and_waits_of_a_step(dtype: str, length: int, simulated: str) -> None:
    """Of the host's steps, as docs/cuda.md counts them: 9 kernels a layer (15 in int8) and 6 (7), and it waits once.

    A source of more than 192 tokens takes one more a layer.
    """
    device = the_device()
    kdtw_fast._core.use_cuda_drafting("host", 1)
    native = NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=1), dtype=dtype, device=simulated)
    decoder = SingleModelDecoder(native)
    try:
        four, five = (counted(decoder, device, tokens, [5] * (length - 1) + [1]) for tokens in (4, 5))
    finally:
        kdtw_fast._core.use_cuda_drafting("auto", 4)
    step = {name: five[name] - four[name] for name in five}
    assert step["host_launches"] == step["kernels"] == SHAPES[1].decoder_kernels(dtype, 5, length)
    assert step["host_synchronisations"] == step["copies_to_host"] == 1
    assert step["copies_to_device"] == 2  # the pass's tokens, and the request
    assert step["bytes_to_host"] == 24
    assert five["allocations"] == 0


# --- Which device ----------------------------------------------------------------------------------------


def test_devices_by_name(simulated: str) -> None:
    model = random_t5(SHAPES[0], VOCAB, seed=1)
    for word, place in (("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("auto", "cuda:0"), ("cpu", "cpu")):
        assert NativeT5.from_model(model, device=word).device == place
    for word, message in (
        ("cuda:1", "device 'cuda:1' was asked for, but there are 1 CUDA devices"),
        ("gpu", "unknown device 'gpu'; known are 'cpu', 'cuda'"),
        ("cuda:x", "unknown device 'cuda:x'"),
    ):
        with pytest.raises(ValueError, match=message):
            NativeT5.from_model(model, device=word)
    with pytest.raises(TypeError, match="device must be"):
        NativeT5.from_model(model, device=0)  # type: ignore[arg-type]


def test_models_of_a_pair_share_a_device(simulated: str) -> None:
    student, teacher = random_pair("same", seed=1)
    there = NativeT5.from_model(student, device=simulated)
    assert TrainingWheelsDecoder(there, teacher).teacher.device == simulated
    with pytest.raises(ValueError, match="must share device"):
        TrainingWheelsDecoder(there, NativeT5.from_model(teacher))
    with pytest.raises(ValueError, match="packed for device 'cuda:0', but device='cpu' was asked for"):
        BigLittleDecoder(there, teacher, device="cpu")


def test_heads_that_are_too_large_are_refused(simulated: str) -> None:
    x = np.ones((1, 1032), np.float32)
    with pytest.raises(ValueError, match="heads of size 1032 are too large"):
        Trial(simulated).operations.attend(1, 1, 1, "bf16", [(0, 0)], x, x, [(0, 0, 1)], x, np.zeros(0, np.float32), 0)


def test_what_a_device_does_not_have_is_refused(simulated: str, tmp_path: Any) -> None:
    model = random_t5(SHAPES[0], VOCAB, seed=1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dtype 'fp16' is for device 'cuda'"):
        NativeT5.from_model(model, dtype="fp16")
    with pytest.raises(ValueError, match="cache=True keeps weights packed for device 'cpu'"):
        NativeT5.from_pretrained(tmp_path, cache=True, device=simulated)
    assert InterleavedDecoder(model, model, device="cpu").student.device == "cpu"


def test_a_library_that_is_not_there(tmp_path: Any, simulated: str) -> None:
    with pytest.raises(RuntimeError, match=r"no CUDA library .* or use device 'cpu'"):
        kdtw_fast._core.use_cuda_library(str(tmp_path / "libkdtw_cuda.so"))
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(RuntimeError, match="does not load"):
        kdtw_fast._core.use_cuda_library(str(tmp_path / "text.so"))
    assert kdtw_fast._core.resolve_device("auto") == simulated  # the former stays in use
