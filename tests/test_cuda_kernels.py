"""Every operation of the CUDA backend on the simulated device, against NumPy and the CPU backend, at awkward sizes.

What is stated as equal is equal bit for bit: a token's values do not depend on the other tokens of the pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdtw_fast import _core
from kdtw_fast._core import Check

DTYPES = ["fp32", "fp16", "bf16", "int8"]
SIZES = [1, 31, 32, 33, 257]
CPU = _core.Operations("cpu")
NOTHING = np.zeros((0,), np.float32)


@pytest.fixture(scope="module")
def device(simulated: str) -> _core.Operations:
    return _core.Operations(simulated)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The values that are kept of x; int8 has scales of its own and is compared with the CPU."""
    formats = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return torch.from_numpy(x).to(formats[dtype]).to(torch.float32).numpy()


def rms(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + epsilon) * scale


# --- Rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_embed(device: _core.Operations, size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    table, mark = normal(rng, 6, size), normal(rng, 2, size)  # of two teachers
    ids, marked = [5, 0, 0, 3], [0, 1, 2, 1]
    out = device.embed(table, ids, marked, mark, dtype)
    if dtype == "int8":
        expected = CPU.embed(table, ids, marked, mark, dtype)
    else:
        expected = rounded(table, dtype)[ids] + np.stack([np.zeros(size, np.float32), *mark])[marked]
    assert np.array_equal(out, expected)
    if dtype == "int8":
        assert np.array_equal(device.embed(table, ids, [], NOTHING, dtype), CPU.embed(table, ids, [], NOTHING, dtype))
    else:
        assert np.array_equal(device.embed(table, ids, [], NOTHING, dtype), rounded(table, dtype)[ids])


def test_fp16_rounds_as_ieee_says(device: _core.Operations) -> None:
    """Ties, subnormals, the largest numbers, infinity and NaN."""
    edges = [0.0, -0.0, 1.0, 1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.996, 65520, -1e30, 2**-14, 2**-24, 2**-25, 3e-8]
    edges += [1e-7, 6.1e-5, 2**-25 * 1.001, float("inf"), float("nan")]
    rng = np.random.default_rng(0)
    values = np.concatenate([np.array(edges), rng.standard_normal(500) * 10.0 ** rng.integers(-8, 5, 500)])
    table = values.astype(np.float32)[None]
    with np.errstate(over="ignore"):
        expected = table.astype(np.float16).astype(np.float32)
    assert np.array_equal(device.embed(table, [0], [], NOTHING, "fp16"), expected, equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
def test_norm_gather_activate(device: _core.Operations, size: int) -> None:
    rng = np.random.default_rng(size)
    x, scale = normal(rng, 5, size) * np.float32(100.0), normal(rng, size)
    out = device.rms_norm(x, scale, 1e-6)
    np.testing.assert_allclose(out, rms(x, scale, 1e-6), rtol=2e-6, atol=1e-6)
    assert np.array_equal(out[3:4], device.rms_norm(x[3:4], scale, 1e-6))
    assert np.array_equal(device.gather(x, [4, 0, 0, 2]), x[[4, 0, 0, 2]])
    hidden = normal(rng, 3, 2 * size) * np.float32(3.0)
    gate, up = torch.from_numpy(hidden).double().split(size, dim=1)
    expected = torch.nn.functional.gelu(gate, approximate="tanh") * up
    np.testing.assert_allclose(device.activate(hidden, True), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(device.activate(hidden, False), np.maximum(hidden, 0))


# --- Products --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (33, 31), (31, 33), (5, 2100), (70, 300)])
def test_linear(device: _core.Operations, outputs: int, inputs: int, dtype: str) -> None:
    """All counts of tokens that have a kernel of their own, and one that needs two passes of the largest."""
    rng = np.random.default_rng([outputs, inputs])
    weight, x = normal(rng, outputs, inputs), normal(rng, 17, inputs)
    whole = device.linear(weight, x, dtype, NOTHING)
    if dtype == "int8":
        assert np.array_equal(whole, CPU.linear(weight, x, dtype, NOTHING))
    else:
        exact = x.astype(np.float64) @ rounded(weight, dtype).astype(np.float64).T
        np.testing.assert_allclose(whole, exact, rtol=0, atol=2e-6 * inputs**0.5 * 4)
    begin = 0
    for count in (1, 2, 3, 5, 6):  # 17 tokens
        end = begin + count
        assert np.array_equal(device.linear(weight, x[begin:end], dtype, NOTHING), whole[begin:end]), count
        begin = end
    added = device.linear(weight, x[:3], dtype, np.ones((3, outputs), np.float32))
    assert np.array_equal(added, whole[:3] + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [1, 33, 300, 2100])
def test_norm_is_part_of_the_product(device: _core.Operations, inputs: int, dtype: str) -> None:
    rng = np.random.default_rng(inputs)
    weight, x, scale = normal(rng, 34, inputs), normal(rng, 5, inputs), normal(rng, inputs)
    out = device.norm_linear(weight, x, scale, 1e-6, dtype)
    tolerance = 3e-6 * inputs**0.5 * 4
    if dtype == "int8":  # a value at the edge of two bytes may fall on either side
        np.testing.assert_allclose(out, CPU.norm_linear(weight, x, scale, 1e-6, dtype), atol=0.02 * inputs**0.5)
    else:
        exact = rms(x, scale, 1e-6) @ rounded(weight, dtype).astype(np.float64).T
        np.testing.assert_allclose(out, exact, rtol=0, atol=tolerance)
    assert np.array_equal(device.norm_linear(weight, x[2:3], scale, 1e-6, dtype), out[2:3])
    gate, up = torch.from_numpy(out.astype(np.float64)).split(17, dim=1)
    gated = (torch.nn.functional.gelu(gate, approximate="tanh") * up).numpy()
    activated = device.norm_linear_activate(weight, x, scale, 1e-6, True, dtype)
    np.testing.assert_allclose(activated, gated, rtol=1e-5, atol=1e-5)
    assert np.array_equal(device.norm_linear_activate(weight, x[4:], scale, 1e-6, True, dtype), activated[4:])
    assert np.array_equal(device.norm_linear_activate(weight, x, scale, 1e-6, False, dtype), np.maximum(out, 0))


def test_int8_tokens_that_are_not_finite(device: _core.Operations) -> None:
    weight, x = np.ones((3, 20), np.float32), np.ones((3, 20), np.float32)
    x[1, 7] = np.inf
    x[2] = 0.0
    out = device.linear(weight, x, "int8", NOTHING)
    assert np.isnan(out[1]).all() and (out[2] == 0).all() and np.array_equal(out[0], np.full(3, 20, np.float32))


# --- Attention -------------------------------------------------------------------------------------------


def attention(
    keys: np.ndarray, values: np.ndarray, query: np.ndarray, position: int, bias: np.ndarray | None, lowest: int
) -> np.ndarray:
    """[H, D] of one query [H, D] over keys and values [length, H, D]."""
    scores = np.einsum("hd,lhd->hl", query.astype(np.float64), keys.astype(np.float64))
    if bias is not None:
        highest = bias.shape[1] - 1 - lowest
        distance = np.clip(np.arange(len(keys)) - position, -lowest, highest) + lowest
        scores = scores + bias[:, distance]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hl,lhd->hd", weights / weights.sum(axis=1, keepdims=True), values.astype(np.float64))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("heads", "size"), [(1, 1), (3, 5), (2, 33), (1, 64), (2, 130)])
def test_attention_over_ragged_rows(device: _core.Operations, heads: int, size: int, dtype: str) -> None:
    """Rows of 1, 31, 33, 128 and 150 keys, causal and whole, with and without bias; each query also alone."""
    rng = np.random.default_rng([heads, size])
    lengths = [1, 31, 33, 128, 150]
    stored = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    keys, values = (
        normal(rng, len(stored), heads * size) * np.float32(size**-0.5),
        normal(rng, len(stored), heads * size),
    )
    asked = [(row, length - 1, length) for row, length in enumerate(lengths)] + [(4, 40, 41), (4, 127, 129), (2, 0, 33)]
    queries = normal(rng, len(asked), heads * size)
    kept_keys, kept_values = rounded(keys, dtype), rounded(values, dtype)
    for bias, lowest in ((NOTHING, 0), (normal(rng, heads, 20 + 5 + 1), 20)):
        place = (5, 151, heads, dtype, stored, keys, values)
        out = device.attend(*place, asked, queries, bias, lowest)
        for t, (row, position, length) in enumerate(asked):
            first = sum(lengths[:row])
            expected = attention(
                kept_keys[first : first + length].reshape(length, heads, size),
                kept_values[first : first + length].reshape(length, heads, size),
                queries[t].reshape(heads, size),
                position,
                bias if bias.size else None,
                lowest,
            )
            np.testing.assert_allclose(out[t].reshape(heads, size), expected, rtol=1e-4, atol=2e-5)
        alone = device.attend(*place, asked[5:6], queries[5:6], bias, lowest)
        assert np.array_equal(alone, out[5:6])


def test_heads_that_are_too_large_are_refused(device: _core.Operations) -> None:
    x = np.ones((1, 1032), np.float32)
    with pytest.raises(ValueError, match="heads of size 1032 are too large"):
        device.attend(1, 1, 1, "bf16", [(0, 0)], x, x, [(0, 0, 1)], x, NOTHING, 0)


# --- Picks -----------------------------------------------------------------------------------------------


def picks(device: _core.Operations, logits: np.ndarray, requests: list[dict[str, Any]]) -> list[Any]:
    """The device's answers about logits [n, V], made by a head that passes them on: hidden states are one-hot."""
    return device.pick(np.ascontiguousarray(logits.T), np.eye(len(logits), dtype=np.float32), requests, "fp32")[0]


def agree(device: _core.Operations, logits: np.ndarray, requests: list[dict[str, Any]]) -> None:
    """The device answers as the CPU does."""
    wanted = [request | {"want_log_prob": True, "want_confidence": True, "want_entropy": True} for request in requests]
    for mine, other, request in zip(picks(device, logits, wanted), picks(CPU, logits, wanted), requests, strict=True):
        passed = request.get("check", Check.NONE) != Check.NONE and other[1]
        assert mine[1:3] == other[1:3], request
        assert passed or mine[0] == other[0], request
        np.testing.assert_allclose(mine[3:], other[3:], atol=2e-5, err_msg=str(request))


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 129, 1024, 2500])
def test_picks_agree_with_the_cpu(device: _core.Operations, vocabulary: int) -> None:
    """Every check and every way to sample, several requests at once."""
    rng = np.random.default_rng(vocabulary)
    warps: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
    ]
    requests: list[dict[str, Any]] = []
    for warp in warps:
        common = warp | {"uniform": float(rng.random())}
        draft = int(rng.integers(vocabulary))
        banned = [0, vocabulary - 1] if vocabulary > 2 else []
        requests += [common, common | {"banned": banned}, common | {"check": Check.SCORE, "draft": draft}]
        for threshold in (0.01, 1.0):
            requests.append(common | {"check": Check.LENIENCE, "draft": draft, "threshold": threshold})
        requests.append(common | {"check": Check.TOP_K, "draft": draft, "threshold": 9.0, "banned": banned})
        requests.append(common | {"check": Check.DIVERGENCE, "draft": draft, "threshold": 4.0})
        requests.append(
            common
            | {f"draft_{name}": value for name, value in warp.items()}
            | {"draft_logits": normal(rng, vocabulary + 1) * np.float32(2), "draft": draft, "check": Check.REJECTION}
            | {"threshold": 1.0, "accept_uniform": float(rng.random()), "draft_banned": [vocabulary]}
        )
    agree(device, normal(rng, len(requests), vocabulary) * np.float32(2), requests)


def test_ties_go_to_the_lowest_id(device: _core.Operations) -> None:
    logits = np.zeros((4, 1500), np.float32)
    logits[1, [7, 1100]] = 3.0
    logits[2, [1023, 1024]] = 3.0
    requests = [{}, {}, {}, {"banned": [0, 1]}]
    assert [answer[0] for answer in picks(device, logits, requests)] == [0, 7, 1023, 2]
    tied = [{"check": Check.TOP_K, "draft": draft, "threshold": 3.0} for draft in (1, 2, 3, 1499)]
    assert [answer[1] for answer in picks(device, logits[:1].repeat(4, 0), tied)] == [True, True, False, False]
    agree(device, logits[:1].repeat(4, 0), tied)


@pytest.mark.parametrize("warp", [{"top_k": 3}, {"top_p": 0.002}, {"top_k": 900, "top_p": 0.5}], ids=str)
def test_cuts_among_equals_keep_the_lowest_ids(device: _core.Operations, warp: dict[str, Any]) -> None:
    """1500 equal logits, banned ones among them: what is drawn at both ends of the range is what the CPU draws."""
    requests = [warp | {"temperature": 1.0, "uniform": u, "banned": [0, 5]} for u in (0.0, 0.49, 0.51, 0.9999999)]
    agree(device, np.zeros((4, 1500), np.float32), requests)


def test_rejection_of_the_same_distribution_never_happens(device: _core.Operations) -> None:
    rng = np.random.default_rng(4)
    logits = normal(rng, 6, 300)
    requests = [
        {"check": Check.REJECTION, "draft": 5 * i, "threshold": 1.0, "accept_uniform": 0.9999999, "temperature": 0.8}
        | {"draft_temperature": 0.8, "draft_logits": logits[i], "uniform": 0.5}
        for i in range(6)
    ]
    assert all(answer[1] for answer in picks(device, logits, requests))


def test_samples_have_their_shares(device: _core.Operations) -> None:
    """Uniforms at equal distances give every id its probability to 1 / n."""
    logits = np.log(np.array([[0.5, 0.2, 0.05, 0.25]], np.float32))
    n = 200
    requests = [{"temperature": 1.0, "uniform": (i + 0.5) / n} for i in range(n)]
    ids = [answer[0] for answer in picks(device, logits.repeat(n, 0), requests)]
    assert ids == sorted(ids)
    np.testing.assert_allclose(np.bincount(ids, minlength=4) / n, [0.5, 0.2, 0.05, 0.25], atol=1 / n)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(device: _core.Operations, value: float) -> None:
    head, hidden = np.ones((1030, 2), np.float32), np.ones((2, 2), np.float32)
    head[1025, 0] = value
    hidden[1, 0] = 0.0 if np.isinf(value) else 1.0
    answers, kept = device.pick(head, hidden, [{}, {}], "fp32")
    assert [answer[2] for answer in answers] == [False, False]  # 0 times infinity is not a number either
    assert not np.isfinite(kept[:, 1025]).any() and (kept[0, :1025] == 2).all()
