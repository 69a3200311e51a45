"""Checks of what a device multiplies, against NumPy: products with weights, and attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from kdtw_fast.selftest.checks import DTYPES, Checks, Trial
from kdtw_fast.selftest.numpy_twins import (
    FUNCTIONS,
    NOTHING,
    Array,
    capped,
    gelu,
    halves,
    layer_norm,
    normal,
    product,
    rms,
    rounded,
)

PRODUCTS = Checks()


# --- Products --------------------------------------------------------------------------------------------


def _products(trial: Trial, dtype: str, encoder: bool, shapes: list[tuple[int, int]], counts: tuple[int, ...]) -> None:
    """The tokens of all counts together against NumPy, then so many at a time with the same bits; and added."""
    tensor = encoder and trial.device != "cpu" and dtype in ("fp16", "bf16")
    for outputs, inputs in shapes:
        what = f"{outputs} x {inputs}"
        rng = np.random.default_rng([outputs, inputs])
        weight, x = normal(rng, outputs, inputs), normal(rng, sum(counts), inputs)
        multiply = partial(trial.operations.linear, weight, dtype=dtype, add_to=NOTHING, encoder=encoder)
        whole, expected = multiply(x), product(halves(x) if tensor else x, weight, dtype)
        if dtype == "int8":
            trial.same(whole, expected, what)
        else:
            trial.close(whole, expected, 8e-6 * inputs**0.5, what)
        begin = 0
        for count in counts:
            end = begin + count
            trial.same(multiply(x[begin:end]), whole[begin:end], f"{what}, tokens {begin} to {end} alone")
            begin = end
        if encoder and dtype != "int8":
            large = multiply(x[:2] * np.float32(2.0**40))
            trial.same(large, whole[:2] * np.float32(2.0**40), f"{what}, tokens times 2^40")
        trial.same(multiply(x[:3], add_to=np.ones((3, outputs), np.float32)), whole[:3] + 1, f"{what}, added")


@PRODUCTS.add(*DTYPES)
def product_of_a_decoder(trial: Trial, dtype: str) -> None:
    """1 to 17 tokens: all counts that have a kernel of their own, and one that needs two passes of the largest."""
    shapes = [(1, 1), (33, 31), (31, 33), (5, 2100), (70, 300)]  # outputs, inputs
    _products(trial, dtype, encoder=False, shapes=shapes, counts=(1, 2, 3, 5, 6))


@PRODUCTS.add(*DTYPES)
def product_of_an_encoder(trial: Trial, dtype: str) -> None:
    """1 to 130 tokens, few and many at a time; 16-bit weights on tensor cores where CUDA has them.

    There a token is rounded to 11 digits, however large it is: a power of two more changes no digit.
    """
    _products(trial, dtype, encoder=True, shapes=[(1, 1), (33, 31), (66, 33), (70, 300)], counts=(1, 9, 64, 56))


def _fused(trial: Trial, dtype: str, encoder: bool) -> None:
    for inputs in (1, 33, 300, 2100):
        what = f"34 x {inputs}"
        rng = np.random.default_rng(inputs)
        weight, x, scale = normal(rng, 34, inputs), normal(rng, 5, inputs), normal(rng, inputs)
        out = trial.operations.norm_linear(weight, x, scale, 1e-6, dtype, encoder)
        normed = rms(x, scale, 1e-6)
        if dtype == "int8":  # a value at the edge of two bytes may fall on either side
            trial.close(out, product(normed.astype(np.float32), weight, dtype), 0.02 * inputs**0.5, what)
        else:
            tolerance = 1.2e-5 * inputs**0.5
            if encoder and trial.device != "cpu" and dtype != "fp32":  # tokens have 11 digits
                tolerance = tolerance + 2**-11 * (np.abs(normed) @ np.abs(rounded(weight, dtype)).T)
            trial.close(out, product(normed, weight, dtype), tolerance, what)
        activated = partial(trial.operations.norm_linear_activate, weight, scale=scale, epsilon=1e-6)
        activated = partial(activated, dtype=dtype, encoder=encoder)
        alone = trial.operations.norm_linear(weight, x[2:3], scale, 1e-6, dtype, encoder)
        trial.same(alone, out[2:3], f"{what}, a token alone")
        whole = activated(x, gated=True)
        gated = gelu(out[:, :17].astype(np.float64)) * out[:, 17:]
        trial.close(whole, gated, 1e-5 + 1e-5 * np.abs(gated), f"{what}, gated")
        trial.same(activated(x[4:], gated=True), whole[4:], f"{what}, gated, a token alone")
        trial.same(activated(x, gated=False), np.maximum(out, 0), f"{what}, ReLU")


@PRODUCTS.add(*DTYPES)
def norm_and_product_of_a_decoder(trial: Trial, dtype: str) -> None:
    """A norm, a product and an activation in one."""
    _fused(trial, dtype, encoder=False)


@PRODUCTS.add(*DTYPES)
def norm_and_product_of_an_encoder(trial: Trial, dtype: str) -> None:
    """The same with an encoder's weight."""
    _fused(trial, dtype, encoder=True)


@PRODUCTS.add(*DTYPES)
def products_with_biases(trial: Trial, dtype: str) -> None:
    """A layer norm before the product; after it a bias, and then a cap, a function or a gate."""
    for encoder, outputs, inputs in ((False, 34, 33), (False, 2, 300), (True, 66, 33)):
        what = f"{outputs} x {inputs}"
        rng = np.random.default_rng([outputs, inputs])
        weight, x, scale, shift = (normal(rng, *n) for n in ((outputs, inputs), (5, inputs), (inputs,), (inputs,)))
        bias = normal(rng, outputs) * np.float32(3.0)
        plain = partial(trial.operations.linear, weight, x, dtype, encoder=encoder)
        bare = plain(NOTHING)
        out = plain(NOTHING, bias=bias)
        trial.same(out, bare + bias, what)
        trial.close(plain(np.ones_like(bare), bias=bias), out + 1, 4e-6 + 4e-7 * np.abs(out), f"{what}, added")
        found = plain(NOTHING, bias=bias, cap=2.5)
        trial.close(found, capped(out.astype(np.float64), 2.5), 1e-6, f"{what}, capped")
        broken = trial.operations.linear(weight, x * np.float32("nan"), dtype, NOTHING, encoder, bias, 2.5)
        assert np.isnan(broken).all(), f"{what}, capped: tokens that are no numbers gave {broken}"
        for number, function in enumerate(FUNCTIONS):
            act = partial(trial.operations.norm_linear_activate, weight, scale=scale, epsilon=1e-6, dtype=dtype)
            act = partial(act, encoder=encoder, function=number, bias=bias)
            wide = (trial.operations.norm_linear(weight, x, scale, 1e-6, dtype, encoder) + bias).astype(np.float64)
            half = outputs // 2
            for gated, expected in ((False, function(wide)), (True, function(wide[:, :half]) * wide[:, half:])):
                told = f"{what}, function {number}{', gated' * gated}"
                found = act(x, gated=gated)
                trial.close(found, expected, 2e-6 + 1e-5 * np.abs(expected), told)
                trial.same(act(x[1:2], gated=gated), found[1:2], f"{told}, a token alone")
        centred = trial.operations.norm_linear(weight, x, scale, 1e-6, dtype, encoder, shift)
        normed = layer_norm(x, scale, shift, 1e-6)
        tolerance: Any = 1.2e-5 * inputs**0.5
        if dtype == "int8":
            tolerance = 0.02 * inputs**0.5
        elif encoder and trial.device != "cpu" and dtype != "fp32":
            tolerance = tolerance + 2**-11 * (np.abs(normed) @ np.abs(rounded(weight, dtype)).T)
        expected = product(normed.astype(np.float32), weight, dtype)
        trial.close(centred, expected, tolerance, f"{what}, layer norm")
        alone = trial.operations.norm_linear(weight, x[2:3], scale, 1e-6, dtype, encoder, shift)
        trial.same(alone, centred[2:3], f"{what}, layer norm, a token alone")


@PRODUCTS.add("fp16", "bf16", "int8")
def product_of_tokens_that_are_not_finite(trial: Trial, dtype: str) -> None:
    """Their outputs say so, their neighbours do not mind."""
    weight, x = np.ones((3, 20), np.float32), np.ones((3, 20), np.float32)
    x[1, 7], x[2] = np.inf, 0.0
    for encoder in (False, True):
        out = trial.operations.linear(weight, x, dtype, NOTHING, encoder)
        assert not np.isfinite(out[1]).any(), f"a token with an infinity gave {out[1]}"
        trial.same(out[[0, 2]], np.array([[20] * 3, [0] * 3], np.float32))


@PRODUCTS.add("fp16", "bf16")
def tokens_of_every_size(trial: Trial, dtype: str) -> None:
    """Very large and very small tokens, whose halves on tensor cores have powers of two of their own."""
    sizes = np.array([1, 1e6, 1e-9, 1e30, 1e-35], np.float32)
    x = normal(np.random.default_rng(8), len(sizes), 70) * sizes[:, None]
    out = trial.operations.linear(np.eye(70, dtype=np.float32), x, dtype, NOTHING, encoder=True)
    trial.close(out / sizes[:, None], x / sizes[:, None], 2**-9)


# --- Attention -------------------------------------------------------------------------------------------


def attend(
    keys: Array,
    values: Array,
    query: Array,
    position: int,
    bias: Array | None,
    lowest: int,
    scale: float = 1.0,
    cap: float = 0.0,
    window: int = 0,
) -> Array:
    """[H, D] of one query [H, D] over keys and values [length, H, D]."""
    scores = capped(scale * np.einsum("hd,lhd->hl", query.astype(np.float64), keys.astype(np.float64)), cap)
    if window:
        scores = np.where(np.abs(np.arange(len(keys)) - position) < window, scores, -np.inf)
    if bias is not None:
        highest = bias.shape[1] - 1 - lowest
        distance = np.clip(np.arange(len(keys)) - position, -lowest, highest) + lowest
        scores = scores + bias[:, distance]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hl,lhd->hd", weights / weights.sum(axis=1, keepdims=True), values.astype(np.float64))


@PRODUCTS.add("fp32", "fp16", "bf16")
def attention(trial: Trial, dtype: str) -> None:
    """Rows of 1 to 150 keys, causal and whole, with and without bias; a query alone, many, and many of 330 keys."""
    for heads, size in [(1, 1), (3, 5), (2, 33), (1, 64), (2, 130)]:
        rng = np.random.default_rng([heads, size])
        lengths = [1, 31, 33, 128, 150]
        stored = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
        keys = normal(rng, len(stored), heads * size) * np.float32(size**-0.5)
        values = normal(rng, len(stored), heads * size)
        asked = [(row, length - 1, length) for row, length in enumerate(lengths)]
        asked += [(4, 40, 41), (4, 127, 129), (2, 0, 33)]
        queries = normal(rng, len(asked), heads * size)
        kept_keys, kept_values = rounded(keys, dtype), rounded(values, dtype)
        for bias, lowest in ((NOTHING, 0), (normal(rng, heads, 20 + 5 + 1), 20)):
            place = (5, 200, heads, dtype, stored, keys, values)
            out = trial.operations.attend(*place, asked, queries, bias, lowest)
            for t, (row, position, length) in enumerate(asked):
                first = sum(lengths[:row])
                expected = attend(
                    kept_keys[first : first + length].reshape(length, heads, size),
                    kept_values[first : first + length].reshape(length, heads, size),
                    queries[t].reshape(heads, size),
                    position,
                    bias if bias.size else None,
                    lowest,
                )
                what = f"{heads} heads of {size}, {length} keys"
                trial.close(out[t].reshape(heads, size), expected, 2e-5 + 1e-4 * np.abs(expected), what)
            alone = trial.operations.attend(*place, asked[6:7], queries[6:7], bias, lowest)
            trial.same(alone, out[6:7], f"{heads} heads of {size}, a query alone")
        if size == 5:  # so many that a block reads all keys of a query
            many = trial.operations.attend(*place, 11 * asked, np.tile(queries, (11, 1)), bias, lowest)
            trial.same(many, np.tile(out, (11, 1)), "88 queries")
            # So many, and chunks so many, that a block reads every second chunk.
            keys, values = normal(rng, 330, heads * size), normal(rng, 330, heads * size)
            place = (1, 400, heads, dtype, [(0, position) for position in range(330)], keys, values)
            asked = [(0, 329, 250 + i) for i in range(81)]
            queries = normal(rng, len(asked), heads * size)
            together = trial.operations.attend(*place, asked, queries, bias, lowest)
            alone = trial.operations.attend(*place, asked[-1:], queries[-1:], bias, lowest)
            trial.same(alone, together[-1:], "330 keys, a query alone")


@PRODUCTS.add("fp32", "fp16", "bf16")
def attention_by_rules(trial: Trial, dtype: str) -> None:
    """Heads that share keys, scaled and capped scores, windows that begin and end in any chunk; a copied row."""
    rng = np.random.default_rng(5)
    for heads, sharing, size in ((1, 1, 8), (2, 3, 33), (1, 4, 130)):
        lengths = [70, 200, 330]
        stored = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
        keys = normal(rng, len(stored), heads * size)
        values = normal(rng, len(stored), heads * size)
        kept_keys, kept_values = rounded(keys, dtype), rounded(values, dtype)
        # A row's positions ascend.
        asked = [(0, 69, 70), (1, 199, 200), (2, 64, 65), (2, 100, 330), (2, 329, 330)]
        queries = normal(rng, len(asked), sharing * heads * size)
        for scale, cap, window in ((0.3, 5.0, 0), (0.2, 0.0, 1), (0.3, 20.0, 65), (0.2, 0.0, 130)):
            what = f"{sharing * heads} of {heads} heads of {size}, window {window}, cap {cap}"
            place = (4, 400, heads, dtype, stored, keys, values)
            rule = (NOTHING, 0, scale, cap, window)
            out = trial.operations.attend(*place, asked, queries, *rule)
            for t, (row, position, length) in enumerate(asked):
                first = sum(lengths[:row])
                mine_keys, mine_values = (
                    np.repeat(kept[first : first + length].reshape(length, heads, size), sharing, axis=1)
                    for kept in (kept_keys, kept_values)
                )
                query = queries[t].reshape(sharing * heads, size)
                expected = attend(mine_keys, mine_values, query, position, None, 0, scale, cap, window)
                found = out[t].reshape(sharing * heads, size)
                trial.close(found, expected, 3e-5 + 1e-4 * np.abs(expected), f"{what}, {length} keys")
            if heads * sharing > 1 and window == 65:  # so many that a block reads all keys of a query
                n = 256 // (len(asked) * heads * sharing) + 1
                many = trial.operations.attend(*place, n * asked, np.tile(queries, (n, 1)), *rule)
                trial.same(many, np.tile(out, (n, 1)), f"{what}, many queries")
            alone = trial.operations.attend(*place, asked[4:], queries[4:], *rule)
            trial.same(alone, out[4:], f"{what}, a query alone")
        copied = trial.operations.attend(*place, [(3, 64, 65)], queries[2:3], *rule, [(2, 3, 65)])
        trial.same(copied, out[2:3], f"{heads} heads of {size}, a row that was copied")


@PRODUCTS.add()
def rotary_positions(trial: Trial) -> None:
    """Heads turned by their positions, as a whole or their first numbers, with norms and without; the CPU's bits."""
    for heads, size, pairs in ((1, 2, 1), (3, 10, 5), (2, 33, 8), (1, 300, 150), (2, 6, 0)):
        rng = np.random.default_rng(size)
        positions = [0, 1, 77, 8191, 2**20]
        x, frequencies = normal(rng, len(positions), heads * size), rng.uniform(0, 1, pairs).astype(np.float32)
        for scale in (NOTHING, normal(rng, size)):
            what = f"{heads} heads of {size}, {pairs} pairs{', normed' if scale.size else ''}"
            turn = partial(trial.operations.turn_heads, heads=heads, scale=scale, epsilon=1e-6)
            turn = partial(turn, frequencies=frequencies, rotary_scale=1.5)
            found = turn(x, positions=positions)
            of_heads = x.reshape(-1, size)
            wide = (rms(of_heads, scale, 1e-6) if scale.size else of_heads).reshape(len(positions), heads, size)
            angles = (np.array(positions, np.float32)[:, None] * frequencies).astype(np.float64)[:, None]
            a, b, rest = wide[..., :pairs], wide[..., pairs : 2 * pairs], wide[..., 2 * pairs :]
            cosines, sines = 1.5 * np.cos(angles), 1.5 * np.sin(angles)
            turned = np.concatenate((a * cosines - b * sines, b * cosines + a * sines, rest), -1)
            expected = turned.reshape(len(positions), -1)
            trial.close(found, expected, 1e-6 + 2e-6 * np.abs(wide).max(), what)
            trial.same(turn(x[3:4], positions=positions[3:4]), found[3:4], f"{what}, a token alone")
            if not scale.size and trial.device != "cpu":
                there = Trial("cpu").operations.turn_heads(x, heads, scale, 1e-6, positions, frequencies, 1.5)
                trial.same(found, there, f"{what}, on the CPU")
