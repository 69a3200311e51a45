"""Drafts on the simulated CUDA device: without the host, and ahead of it, bit for bit as the host takes every step.

What the host's steps give is held to the oracle by test_cuda_decode.py, and what the drafter gives too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from factories import SHAPES, empty_the_device, random_batch, random_pair, random_t5, random_teachers
from test_cuda_decode import VOCAB, the_device

import kdtw_fast
from gpu_proof.simulated import SimulatedDevice
from kdtw_fast import (
    NativeT5,
    SingleModelDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
    reference,
)
from kdtw_fast.selftest.agreement import Tally, as_array, compare
from kdtw_fast.selftest.checks import Trial
from kdtw_fast.selftest.decodes import METHODS, WARPS, same_outputs

WAYS = [("loop", 4), ("ahead", 1), ("ahead", 3)]


@pytest.fixture(autouse=True)
def default_drafting() -> Iterator[None]:
    yield
    use()


def use(how: str = "auto", steps: int = 4) -> None:
    kdtw_fast._core.use_cuda_drafting(how, steps)


def assert_alike(decoder: Any, *inputs: Any, **settings: Any) -> Any:
    """Every way to draft gives the same, passes and what they read included; the host's own is returned."""
    use("host")
    expected = decoder.generate(*inputs, output_logprobs=True, output_reads=True, **settings)
    for how, steps in WAYS:
        use(how, steps)
        output = decoder.generate(*inputs, output_logprobs=True, output_reads=True, **settings)
        same_outputs(Trial("cpu"), output, expected)
        assert np.array_equal(as_array(output.teacher_index), as_array(expected.teacher_index))
        for name in ("student_reads", "teacher_reads", "student_passes", "teacher_passes"):
            assert getattr(output, name) == getattr(expected, name), (how, steps, name)
    return expected


# --- Bit for bit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warp", "rows"),
    [("greedy", 1), ("greedy", 4), ("sampled", 3), ("cut", 2)],
)
@pytest.mark.parametrize(("name", "options"), METHODS, ids=lambda value: str(value))
def test_every_method(name: str, options: dict[str, Any], warp: str, rows: int, simulated: str) -> None:
    models = random_pair("noisy", seed=3)
    chosen = models[:1] if name == "SingleModelDecoder" else models
    ids, mask = random_batch(np.random.default_rng(7 + rows), rows, VOCAB, longest=8)
    decoder = getattr(kdtw_fast, name)(*chosen, device=simulated, **options)
    assert_alike(decoder, ids, mask, max_new_tokens=7, seed=11, **WARPS[warp])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("teacher_batch", [1, 2, None])
def test_ledgers_ends_and_forced_tokens(teacher_batch: int | None, seed: int, simulated: str) -> None:
    """Rows that stop for every reason, at different steps; a call is due when it would be due on the host."""
    student, teacher = random_pair("unrelated", seed=seed)
    ids, mask = random_batch(np.random.default_rng(seed), 4, VOCAB, longest=6)
    decoder = TrainingWheelsDecoder(student, teacher, verify_lenience=0.3 * (seed % 2), device=simulated)
    settings = {"max_new_tokens": 9, "min_new_tokens": 3, "forced_tokens": [5, 9], "teacher_batch": teacher_batch}
    fractions = [None, 0.0, 0.3, 0.5]
    output = assert_alike(decoder, ids, mask, max_teacher_fraction=fractions, max_teacher_calls=2, **settings)
    assert int(output.teacher_calls[1]) == 0


@pytest.mark.parametrize("teacher_batch", [1, 3, None])
@pytest.mark.parametrize(
    ("name", "threshold"),
    [("RandomCallDecoder", 0.6), ("RandomCallDecoder", 0.0), ("EntropyCallDecoder", 2.0), ("EntropyCallDecoder", 0.0)],
)
def test_controls_call_where_the_host_would(
    name: str, threshold: float, teacher_batch: int | None, simulated: str
) -> None:
    """A number is drawn, and an entropy looked at, from the first output on at which the ledger lets a row call."""
    student, teacher = random_pair("unrelated", seed=2)
    ids, mask = random_batch(np.random.default_rng(3), 5, VOCAB, longest=6)
    decoder = getattr(kdtw_fast, name)(student, teacher, threshold=threshold, device=simulated)
    settings = {"max_new_tokens": 9, "min_new_tokens": 4, "forced_tokens": [5, 9], "teacher_batch": teacher_batch}
    fractions = [None, 0.0, 0.25, 0.5, 1.0]
    output = assert_alike(decoder, ids, mask, max_teacher_fraction=fractions, max_teacher_calls=4, seed=8, **settings)
    calls = output.teacher_calls.tolist()
    assert calls[1] == 0 and max(calls) > 0
    assert threshold > 0.0 or max(calls) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("teacher_batch", [1, 2, None])
@pytest.mark.parametrize("count", [2, 3])
def test_several_teachers(count: int, teacher_batch: int | None, temperature: float, simulated: str) -> None:
    """A draft pauses when enough rows wait for one teacher, however many wait for the others."""
    student, teachers = random_teachers("noisy", 1, count)
    ids, mask = random_batch(np.random.default_rng(count), 6, 42, longest=6)
    settings = {"max_new_tokens": 10, "temperature": temperature, "teacher_batch": teacher_batch, "seed": 4}
    for lenience, limits in ((0.0, {}), (0.3, {"max_teacher_fraction": {1: 0.3, 2: 0.5}, "max_teacher_calls": 3})):
        decoder = TrainingWheelsDecoder(student, teachers, verify_lenience=lenience, device=simulated)
        output = assert_alike(decoder, ids, mask, **settings, **limits)
        assert int((output.calls_by_teacher.sum(0) > 0).sum()) >= 2


@pytest.mark.parametrize(("how", "steps"), WAYS)
def test_against_the_oracle(how: str, steps: int, simulated: str, oracle_tally: Tally) -> None:
    student, teacher = random_pair("swapped", seed=5)
    ids, mask = random_batch(np.random.default_rng(4), 4, VOCAB, longest=8)
    settings: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8, "seed": 3}
    settings |= {"temperature": 0.9, "top_k": 12}
    use(how, steps)
    for name, options in METHODS[1:]:
        output = getattr(kdtw_fast, name)(student, teacher, device=simulated, **options).generate(
            output_logprobs=True, **settings
        )
        oracle_tally.add(
            compare(output, getattr(reference, name)(student, teacher, **options).generate(**settings), name)
        )
    assert oracle_tally.differing == 0


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_number_formats(dtype: str, simulated: str) -> None:
    """int8 quantises tokens into memory that the graphs of all widths share."""
    student, teacher = random_pair("noisy", seed=2)
    models = [NativeT5.from_model(model, dtype=dtype, device=simulated) for model in (student, teacher)]
    ids, mask = random_batch(np.random.default_rng(3), 4, VOCAB, longest=7)
    assert_alike(SpeculativeDecoder(*models, draft_length=3), ids, mask, max_new_tokens=8)


@pytest.mark.parametrize("name", ["SingleModelDecoder", "TrainingWheelsDecoder", "SpeculativeDecoder"])
def test_drafts_of_more_steps_than_a_device_takes_at_once(name: str, simulated: str) -> None:
    """A draft ends after 64 steps and goes on in the next one."""
    student, teacher = random_pair("swapped", seed=1)
    models = {"SingleModelDecoder": [student], "TrainingWheelsDecoder": [student, teacher]}
    options = {"draft_length": 70} if name == "SpeculativeDecoder" else {}  # of which all pass
    decoder = getattr(kdtw_fast, name)(*models.get(name, [teacher, teacher]), device=simulated, **options)
    assert_alike(decoder, [[5, 6, 7, 1], [8, 1]], max_new_tokens=76, min_new_tokens=72, seed=5)


def test_rows_that_come_and_go(simulated: str) -> None:
    """A draft ends when a row does, and the next one takes its slot."""
    student, teacher = random_pair("noisy", seed=1)
    ids, mask = random_batch(np.random.default_rng(5), 6, VOCAB, longest=6)
    rows = [row[: int(length)].tolist() for row, length in zip(ids, mask.sum(1))]
    decoder = TrainingWheelsDecoder(student, teacher, device=simulated)
    settings = {"max_new_tokens": 8, "batch_size": 2, "in_order": True, "output_reads": True}
    use("host")
    expected = list(decoder.stream(rows, **settings))
    for how, steps in WAYS:
        use(how, steps)
        for mine, other in zip(decoder.stream(rows, **settings), expected, strict=True):
            assert np.array_equal(as_array(mine.sequences), as_array(other.sequences))
            assert mine.student_reads == other.student_reads


@pytest.mark.parametrize("how", ["loop", "ahead"])
def test_rows_that_are_not_finite_are_named(how: str, simulated: str) -> None:
    model = random_t5(SHAPES[1], VOCAB, seed=1)  # not tied: only a source with token 7 meets it
    with torch.no_grad():
        model.shared.weight[7, 0] = float("inf")
    use(how)
    with pytest.raises(FloatingPointError, match="logits are not finite at row 1, step 0"):
        SingleModelDecoder(model, device=simulated).generate([[5, 1], [7, 1]], max_new_tokens=3)


# --- What a token costs the host -------------------------------------------------------------------------


def counted(decoder: Any, device: SimulatedDevice, tokens: int, **options: Any) -> dict[str, int]:
    """What the device counted in a greedy decode of exactly so many tokens; its memory was asked for before."""
    for _ in range(2):
        device.reset_counters()
        output = decoder.generate([[5, 8, 1]], max_new_tokens=tokens, min_new_tokens=tokens, **options)
    return device.counters() | {"calls": int(output.teacher_calls[0])}


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_a_token_costs_the_host_nothing_in_a_loop(dtype: str, simulated: str) -> None:
    device = the_device()
    native = NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=1), dtype=dtype, device=simulated)
    use("loop")
    five, nine = (counted(SingleModelDecoder(native), device, tokens) for tokens in (5, 9))
    layers = SHAPES[1].layers
    kernels = (15 * layers + 7 if dtype == "int8" else 9 * layers + 6) + 2  # advance, and the loop's condition
    assert nine["graph_kernels"] - five["graph_kernels"] == 4 * kernels
    assert nine["while_iterations"] == 9 and nine["graph_launches"] == 1
    for name in ("host_synchronisations", "host_launches", "copies_to_device", "copies_to_host", "graph_launches"):
        assert nine[name] == five[name], name
    assert nine["allocations"] == 0


def test_the_host_looks_at_a_loop_every_64_steps(simulated: str) -> None:
    device = the_device()
    use("loop")
    decoder = SingleModelDecoder(random_t5(SHAPES[1], VOCAB, seed=1), device=simulated)
    launches = {tokens: counted(decoder, device, tokens)["graph_launches"] for tokens in (64, 65)}
    assert launches == {64: 1, 65: 2}


def test_the_host_looks_every_few_steps(simulated: str) -> None:
    device = the_device()
    decoder = SingleModelDecoder(random_t5(SHAPES[1], VOCAB, seed=1), device=simulated)
    waits = {}
    for steps in (1, 3, 8):
        use("ahead", steps)
        nine = counted(decoder, device, 9)
        assert nine["graph_launches"] == 9 and nine["while_iterations"] == 0
        waits[steps] = nine["host_synchronisations"]
    assert (waits[1] - waits[8], waits[3] - waits[8]) == (9 - 2, 3 - 2)


@pytest.mark.parametrize("how", ["loop", "ahead"])
def test_one_wait_a_draft_and_one_a_call(how: str, simulated: str) -> None:
    """Speculative decoding; a draft of 3 is one launch of a loop, or three of a step that the host does not look at."""
    device = the_device()
    student, teacher = random_pair("noisy", seed=9)
    decoder = SpeculativeDecoder(student, teacher, draft_length=3, device=simulated)
    use(how, 4)
    few, many = (counted(decoder, device, tokens) for tokens in (6, 14))
    calls = many["calls"] - few["calls"]
    assert calls >= 2
    waits = many["host_synchronisations"] - few["host_synchronisations"]
    assert abs(waits - 2 * calls) <= 1  # where one place is left the teacher writes without a draft


@pytest.mark.parametrize("name", ["RandomCallDecoder", "EntropyCallDecoder", "TrainingWheelsDecoder"])
def test_controls_and_several_teachers_draft_without_the_host(name: str, simulated: str) -> None:
    device = the_device()
    use("loop")
    if name == "TrainingWheelsDecoder":
        decoder = TrainingWheelsDecoder(*random_teachers("noisy", 1, 2), device=simulated)
    else:
        decoder = getattr(kdtw_fast, name)(*random_pair("noisy", seed=9), device=simulated)
    few, many = (counted(decoder, device, tokens, max_teacher_calls=1) for tokens in (6, 14))
    assert many["while_iterations"] - few["while_iterations"] == 8
    for name in ("host_synchronisations", "host_launches", "copies_to_device", "copies_to_host", "graph_launches"):
        assert many[name] == few[name], name


def test_a_streamer_and_a_time_limit_let_a_draft_take_one_step(simulated: str) -> None:
    """The host looks after every token: a launch a step."""
    device = the_device()
    decoder = SingleModelDecoder(random_t5(SHAPES[1], VOCAB, seed=1), device=simulated)
    seen: list[int] = []
    use("loop")
    counters = counted(decoder, device, 4, streamer=lambda row, position, token, owner: seen.append(token))
    assert counters["graph_launches"] == 4 and len(seen) == 8
    assert counted(decoder, device, 4, max_time=100.0)["graph_launches"] == 4


def test_a_device_without_loops(simulated: str) -> None:
    """Found out by trying: the host launches the steps then."""
    device = the_device()
    empty_the_device()  # no pool of the device is left that knows
    try:
        device.conditional_nodes(False)
        native = NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=1), device=simulated)
        decoder = SingleModelDecoder(native)
        counters = counted(decoder, device, 4)
        assert (counters["graph_launches"], counters["while_iterations"]) == (4, 0)
        use("loop")
        with pytest.raises(RuntimeError, match="graphs with loops do not run on this device"):
            decoder.generate([[5, 1]])
    finally:
        device.conditional_nodes(True)


def test_a_device_that_refuses_a_real_loop(simulated: str) -> None:
    """One that runs the small loop which is tried first: drafts go on ahead of the host, with the same bits."""
    device = the_device()
    decoder = SingleModelDecoder(NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=1), device=simulated))
    use("host")
    expected = decoder.generate([[5, 8, 1]], max_new_tokens=6, min_new_tokens=6, output_logprobs=True)
    del decoder
    empty_the_device()
    try:
        device.largest_loop(6)
        decoder = SingleModelDecoder(NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=1), device=simulated))
        use("loop")
        with pytest.raises(RuntimeError, match="no loops of so many nodes"):
            decoder.generate([[5, 1]])
        use()
        output = decoder.generate([[5, 8, 1]], max_new_tokens=6, min_new_tokens=6, output_logprobs=True)
        same_outputs(Trial("cpu"), output, expected)
        counters = counted(decoder, device, 4)
        assert (counters["graph_launches"], counters["while_iterations"]) == (4, 0)
    finally:
        device.largest_loop()
        del decoder
        empty_the_device()  # it would go on without loops


def test_ways_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="unknown way to draft 'graph'"):
        use("graph")
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        use("ahead", 0)
