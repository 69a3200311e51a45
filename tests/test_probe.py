"""Probes of the native core: what a timed pass counts, what its caches weigh, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from factories import SHAPES, random_t5
from test_cuda_decode import the_device

from kdtw_fast import NativeT5, _core
from kdtw_fast.profiling import OPERATIONS
from kdtw_fast.shapes import T5Shape, cache_bytes, random_native

VOCAB, S, HISTORY, LONGEST = 96, 20, 7, 9
SMALL = T5Shape("small", 64, 16, 2, 96, 3, VOCAB)  # sizes that packing does not pad
MODEL = random_native(SMALL)


def probe(rows: int = 1, threads: int = 1, model: NativeT5 = MODEL) -> _core.Probe:
    return _core.Probe(model.device, model.core, rows, S, HISTORY, LONGEST, threads)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("tokens", "asked"), [(1, 1), (5, 1), (5, 5), (4, 0)])
def test_a_pass_counts_weights_once_and_operations_by_token(rows: int, tokens: int, asked: int) -> None:
    seconds, operations = probe(rows, threads=2).decode(tokens, asked, 4)
    assert len(seconds) == 4 and min(seconds) > 0
    assert tuple(operations) == OPERATIONS
    assert sum(cost[0] for cost in operations.values()) <= sum(seconds) / 4
    head = VOCAB * SMALL.d_model
    layers = SMALL.step_parameters - head
    assert operations["linear"][1:] == (4 * layers, 2 * layers * rows * tokens)
    assert operations["head"][1:] == (4 * head * (asked > 0), 2 * head * rows * asked)
    seen = sum(HISTORY + i + 1 + S for i in range(tokens))  # keys of the output and of the source
    assert operations["attention"][1:] == (0, 4 * SMALL.d_kv * SMALL.heads * SMALL.layers * seen * rows)


def test_long_passes_are_cut_as_the_loop_cuts_them() -> None:
    longest = 256  # tokens of a pass
    whole = _core.Probe(MODEL.device, MODEL.core, longest + 1, 4, 0, 1, 1).decode(1, 1, 1)[1]
    assert whole["linear"][1] == 2 * 4 * (SMALL.step_parameters - VOCAB * SMALL.d_model)
    assert whole["head"][2] == 2 * VOCAB * SMALL.d_model * (longest + 1)


def test_the_encoder_counts_its_layers_and_the_cross_attentions_keys_and_values() -> None:
    inner, size = SMALL.d_kv * SMALL.heads, SMALL.d_model
    seconds, operations = probe().encode(2)
    weights = SMALL.layers * (4 * size * inner + 3 * size * SMALL.d_ff + 2 * size * inner)
    assert len(seconds) == 2
    assert operations["linear"][1:] == (4 * weights, 2 * weights * S)
    assert operations["attention"][2] == 4 * inner * SMALL.layers * S * S
    assert operations["head"] == (0, 0, 0)


@pytest.mark.parametrize("cache_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_caches_weigh_what_the_formula_says(shape, cache_dtype: str) -> None:
    model = NativeT5.from_model(random_t5(shape, VOCAB, seed=0), cache_dtype=cache_dtype)
    assert probe(3, model=model).cache_bytes() == cache_bytes(model.spec, 3, S, HISTORY + LONGEST - 1)


@pytest.mark.parametrize(
    ("tokens", "asked", "message"),
    [(0, 0, "1 to 9 tokens"), (10, 1, "1 to 9 tokens"), (3, 4, "0 to 3 tokens"), (3, -1, "0 to 3 tokens")],
)
def test_a_probe_refuses_passes_it_has_no_room_for(tokens: int, asked: int, message: str) -> None:
    one = probe()
    with pytest.raises(ValueError, match=message):
        one.decode(tokens, asked, 1)
    assert one.decode(9, 9, 1)[0]


def test_passes_end_on_the_device_before_their_time_is_taken(device: str) -> None:
    model = NativeT5.from_model(random_t5(SHAPES[0], VOCAB, seed=0), device=device)
    one = probe(3, model=model)
    if device != "cpu":
        simulated = the_device()
        simulated.reset_counters()
        one.decode(4, 0, 2)  # asks for no answer, and is waited for all the same
        assert simulated.counters()["host_synchronisations"] >= 2
    for seconds, operations in (one.encode(2), one.decode(5, 1, 2), one.decode(5, 5, 2), one.decode(4, 0, 2)):
        assert len(seconds) == 2 and min(seconds) > 0
        timed = sum(cost[0] for cost in operations.values())
        assert 0 < timed <= sum(seconds) / 2 if device == "cpu" else timed == 0  # the host does not see operations end


def test_non_finite_logits_are_an_error_not_a_time() -> None:
    broken = random_native(SMALL, tensors={"lm_head.weight": lambda: torch.full((VOCAB, SMALL.d_model), torch.nan)})
    with pytest.raises(FloatingPointError, match="model's logits are not finite"):
        probe(model=broken).decode(1, 1, 1)


def test_the_read_rate_is_a_rate_and_needs_something_to_read() -> None:
    assert 1e8 < _core.read_rate(1 << 22, 2, 2) < 1e13
    with pytest.raises(ValueError, match="64 bytes is too small for 2 threads"):
        _core.read_rate(64, 2, 1)
