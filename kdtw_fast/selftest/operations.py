"""Every operation of a backend against NumPy, at sizes around warps, tiles and chunks.

What is stated as equal is equal bit for bit: a token's values do not depend on the other tokens of the pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from kdtw_fast import reference
from kdtw_fast._core import Check
from kdtw_fast.random import STREAM_ACCEPT, STREAM_TEACHER
from kdtw_fast.reference.loop import Row
from kdtw_fast.reference.picking import log_prob
from kdtw_fast.selftest.checks import DTYPES, Checks, Trial
from kdtw_fast.selftest.numpy_twins import (
    FUNCTIONS,
    Array,
    bytes_of,
    capped,
    gelu,
    halves,
    layer_norm,
    normal,
    product,
    rms,
    rounded,
)

OPERATIONS = Checks()
SIZES = (1, 31, 32, 33, 257)
NOTHING = np.zeros((0,), np.float32)


# --- Rows ------------------------------------------------------------------------------------------------


@OPERATIONS.add(*DTYPES)
def embedding(trial: Trial, dtype: str) -> None:
    """Rows of the table, with the vector of one of two marks added where asked; scaled, and with positions."""
    for size in SIZES:
        rng = np.random.default_rng(size)
        table, marks = normal(rng, 6, size), normal(rng, 2, size)
        ids, marked = [5, 0, 0, 3], [0, 1, 0, 2]
        if dtype == "int8":
            numbers, scales = bytes_of(table)
            kept = scales[:, None] * numbers.astype(np.float32)
        else:
            kept = rounded(table, dtype)
        expected = kept[ids] + np.concatenate([np.zeros((1, size), np.float32), marks])[marked]
        trial.same(trial.operations.embed(table, ids, marked, marks, dtype), expected, f"size {size}, marked")
        trial.same(trial.operations.embed(table, ids, [], NOTHING, dtype), kept[ids], f"size {size}")
        positions, scale = normal(rng, 5, size), np.float32(1.7)
        expected = kept[ids] * scale + np.concatenate([np.zeros((1, size), np.float32), marks])[marked] + positions[1:]
        found = trial.operations.embed(table, ids, marked, marks, dtype, scale, positions)
        trial.same(found, expected, f"size {size}, scaled, with positions")


@OPERATIONS.add("fp16")
def rounding(trial: Trial, dtype: str) -> None:
    """Ties, subnormals, the largest numbers, infinity and NaN, as IEEE says."""
    edges = [0.0, -0.0, 1.0, 1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.996, 65520, -1e30, 2**-14, 2**-24, 2**-25, 3e-8]
    edges += [1e-7, 6.1e-5, 2**-25 * 1.001, float("inf"), float("nan")]
    rng = np.random.default_rng(0)
    values = np.concatenate([np.array(edges), rng.standard_normal(500) * 10.0 ** rng.integers(-8, 5, 500)])
    table = values.astype(np.float32)[None]
    with np.errstate(over="ignore"):
        expected = table.astype(np.float16).astype(np.float32)
    trial.same(trial.operations.embed(table, [0], [], NOTHING, dtype), expected)


@OPERATIONS.add()
def norm(trial: Trial) -> None:
    """RMS norm and layer norm, in place and added; a token alone."""
    for size in SIZES:
        rng = np.random.default_rng(size)
        x, scale = normal(rng, 5, size) * np.float32(100.0), normal(rng, size)
        shift, far = normal(rng, size), x + np.float32(300.0)
        for what, shifted, given, expected in (
            (f"size {size}", NOTHING, x, rms(x, scale, 1e-6)),
            (f"layer norm, size {size}", shift, far, layer_norm(far, scale, shift, 1e-6)),
        ):
            out = trial.operations.norm(given, scale, 1e-6, shifted)
            # Numbers far from zero have few digits beside their mean.
            tolerance = 1e-6 + 2e-6 * np.abs(expected) + (0 if shifted is NOTHING else 1e-5 * np.abs(scale))
            if size > 1:
                trial.close(out, expected, tolerance, what)
            trial.same(out[3:4], trial.operations.norm(given[3:4], scale, 1e-6, shifted), f"{what}, a token alone")
            added = trial.operations.norm(given, scale, 1e-6, shifted, given)
            trial.same(added, given + out, f"{what}, added")


@OPERATIONS.add()
def gather(trial: Trial) -> None:
    """Rows of a pass."""
    for size in SIZES:
        x = normal(np.random.default_rng(size), 5, size)
        trial.same(trial.operations.gather(x, [4, 0, 0, 2]), x[[4, 0, 0, 2]], f"size {size}")


@OPERATIONS.add()
def activation(trial: Trial) -> None:
    """Gated GELU and ReLU by themselves, and the others."""
    for size in SIZES:
        hidden = normal(np.random.default_rng(size), 3, 2 * size) * np.float32(3.0)
        expected = gelu(hidden[:, :size].astype(np.float64)) * hidden[:, size:]
        trial.close(trial.operations.activate(hidden, True), expected, 1e-6 + 1e-5 * np.abs(expected), f"size {size}")
        trial.same(trial.operations.activate(hidden, False), np.maximum(hidden, 0), f"ReLU, size {size}")
        for number, function in enumerate(FUNCTIONS):
            wide = hidden.astype(np.float64) * 4
            for gated, expected in ((False, function(wide)), (True, function(wide[:, :size]) * wide[:, size:])):
                found = trial.operations.activate(hidden * np.float32(4.0), gated, number)
                what = f"function {number}{', gated' * gated}, size {size}"
                # GELU of x is known to about 1e-7 of x.
                beside = np.abs(wide[:, :size] * wide[:, size:]) if gated else np.abs(wide)
                trial.close(found, expected, 2e-6 + 1e-5 * np.abs(expected) + 4e-7 * beside, what)


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


@OPERATIONS.add(*DTYPES)
def product_of_a_decoder(trial: Trial, dtype: str) -> None:
    """1 to 17 tokens: all counts that have a kernel of their own, and one that needs two passes of the largest."""
    shapes = [(1, 1), (33, 31), (31, 33), (5, 2100), (70, 300)]  # outputs, inputs
    _products(trial, dtype, encoder=False, shapes=shapes, counts=(1, 2, 3, 5, 6))


@OPERATIONS.add(*DTYPES)
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


@OPERATIONS.add(*DTYPES)
def norm_and_product_of_a_decoder(trial: Trial, dtype: str) -> None:
    """A norm, a product and an activation in one."""
    _fused(trial, dtype, encoder=False)


@OPERATIONS.add(*DTYPES)
def norm_and_product_of_an_encoder(trial: Trial, dtype: str) -> None:
    """The same with an encoder's weight."""
    _fused(trial, dtype, encoder=True)


@OPERATIONS.add(*DTYPES)
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
            act = partial(trial.operations.norm_linear_activate, weight, x, scale, 1e-6, dtype=dtype, encoder=encoder)
            act = partial(act, function=number, bias=bias)
            wide = (trial.operations.norm_linear(weight, x, scale, 1e-6, dtype, encoder) + bias).astype(np.float64)
            half = outputs // 2
            for gated, expected in ((False, function(wide)), (True, function(wide[:, :half]) * wide[:, half:])):
                told = f"{what}, function {number}{', gated' * gated}"
                found = act(gated=gated)
                trial.close(found, expected, 2e-6 + 1e-5 * np.abs(expected), told)
                trial.same(act(gated=gated)[1:2], found[1:2], told)
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


@OPERATIONS.add("fp16", "bf16", "int8")
def product_of_tokens_that_are_not_finite(trial: Trial, dtype: str) -> None:
    """Their outputs say so, their neighbours do not mind."""
    weight, x = np.ones((3, 20), np.float32), np.ones((3, 20), np.float32)
    x[1, 7], x[2] = np.inf, 0.0
    for encoder in (False, True):
        out = trial.operations.linear(weight, x, dtype, NOTHING, encoder)
        assert not np.isfinite(out[1]).any(), f"a token with an infinity gave {out[1]}"
        trial.same(out[[0, 2]], np.array([[20] * 3, [0] * 3], np.float32))


@OPERATIONS.add("fp16", "bf16")
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


@OPERATIONS.add("fp32", "fp16", "bf16")
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


@OPERATIONS.add("fp32", "fp16", "bf16")
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
                mine = [
                    np.repeat(kept[first : first + length].reshape(length, heads, size), sharing, axis=1)
                    for kept in (kept_keys, kept_values)
                ]
                query = queries[t].reshape(sharing * heads, size)
                expected = attend(*mine, query, position, None, 0, scale, cap, window)
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


@OPERATIONS.add()
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
            angles = (np.float32(positions)[:, None] * frequencies).astype(np.float64)[:, None]
            a, b, rest = wide[..., :pairs], wide[..., pairs : 2 * pairs], wide[..., 2 * pairs :]
            cosines, sines = 1.5 * np.cos(angles), 1.5 * np.sin(angles)
            turned = np.concatenate((a * cosines - b * sines, b * cosines + a * sines, rest), -1)
            expected = turned.reshape(len(positions), -1)
            trial.close(found, expected, 1e-6 + 2e-6 * np.abs(wide).max(), what)
            trial.same(turn(x[3:4], positions=positions[3:4]), found[3:4], f"{what}, a token alone")
            if not scale.size and trial.device != "cpu":
                there = Trial("cpu").operations.turn_heads(x, heads, scale, 1e-6, positions, frequencies, 1.5)
                trial.same(found, there, f"{what}, on the CPU")


# --- Picks -----------------------------------------------------------------------------------------------


def picks(trial: Trial, logits: Array, requests: list[dict[str, Any]]) -> list[Any]:
    """The device's answers about logits [n, V], made by a head that passes them on: hidden states are one-hot."""
    head = np.ascontiguousarray(logits.T)
    return trial.operations.pick(head, np.eye(len(logits), dtype=np.float32), requests, "fp32")[0]


class _Asked:
    """What the oracle's rules want of a row, from a request: a draft at position 0, how both models pick, chance."""

    pick = Row.pick

    def __init__(self, request: dict[str, Any]):
        usual = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
        self.teacher_warp, self.student_warp = (
            reference.Warp(**{name: request.get(prefix + name, value) for name, value in usual.items()})
            for prefix in ("", "draft_")
        )
        self.tokens = [request.get("draft", -1)]
        if "draft_logits" in request:
            drawn_from = torch.from_numpy(request["draft_logits"])
            self.draft_logits = [reference.ban(drawn_from, request.get("draft_banned", ()))]
        self._numbers = {STREAM_TEACHER: request.get("uniform", 0.0), STREAM_ACCEPT: request.get("accept_uniform")}
        self.close = False

    def uniform(self, position: int, stream: int) -> Any:
        return self._numbers[stream]

    def note(self, close: bool, position: int) -> None:
        self.close = self.close or close


# Decoders of the oracle by the check that is their accept rule, and the setting that is its threshold.
RULES: dict[Check, tuple[type[Any], str]] = {
    Check.LENIENCE: (reference.TrainingWheelsDecoder, "verify_lenience"),
    Check.REJECTION: (reference.SpeculativeDecoder, "lenience"),
    Check.CASCADE: (reference.SpeculativeCascadeDecoder, "deferral"),
    Check.TOP_K: (reference.InterleavedDecoder, "accept_top_k"),
    Check.DIVERGENCE: (reference.BigLittleDecoder, "rollback_threshold"),
}


def decide(logits: Array, request: dict[str, Any]) -> tuple[int | None, bool, float, float, float, bool]:
    """The oracle's answer about logits [V]: id, passed, log-probability, confidence, entropy; and whether it was close.

    The id is None where a draft that stands leaves it open.
    """
    row, check = _Asked(request), request.get("check", Check.NONE)
    allowed = reference.ban(torch.from_numpy(logits), request.get("banned", ()))
    rule, setting = RULES.get(check, (reference.SingleModelDecoder, ""))
    oracle = rule(None, **({setting: type(getattr(rule, setting))(request["threshold"])} if setting else {}))
    passed = oracle._passes(row, 0, allowed)
    open_ = passed and check != Check.NONE
    picked = row.tokens[0] if open_ else oracle._correct(row, 0, allowed)
    likely = torch.softmax(allowed, dim=0)
    told = float(likely.max()), float(torch.special.entr(likely).sum())
    return None if open_ else picked, passed, log_prob(torch.from_numpy(logits), picked), *told, row.close


def _agree(trial: Trial, logits: Array, requests: list[dict[str, Any]], what: str) -> int:
    """Holds the device's answers against decide()'s; how many were too close to hold anybody to."""
    wanted = [
        request | {f"want_{name}": True for name in ("log_prob", "confidence", "entropy")} for request in requests
    ]
    excused = 0
    for mine, row, request in zip(picks(trial, logits, wanted), logits, requests, strict=True):
        picked, passed, log_prob, confidence, entropy, close = decide(row, request)
        told = f"{what}, { {k: v for k, v in request.items() if k != 'draft_logits'} }"
        assert mine[2], f"{told}: said to be not finite"
        trial.close(mine[4], confidence, 2e-5, f"{told}: confidence")
        trial.close(mine[5], entropy, 1e-4, f"{told}: entropy")
        if close:
            excused += 1
            continue
        assert mine[1] == passed, f"{told}: passed {mine[1]}, expected {passed}"
        assert picked is None or mine[0] == picked, f"{told}: picked {mine[0]}, expected {picked}"
        trial.close(mine[3], log_prob, 2e-5, f"{told}: log-probability")
    return excused


@OPERATIONS.add()
def picks_and_checks(trial: Trial) -> None:
    """Every check and every way to sample, several requests at once, over vocabularies around chunks."""
    warps: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
    ]
    asked = excused = 0
    for vocabulary in (1, 31, 32, 33, 129, 1024, 2500):
        rng = np.random.default_rng(vocabulary)
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
            compared = (
                common
                | {f"draft_{name}": value for name, value in warp.items()}
                | {"draft_logits": normal(rng, vocabulary + 1) * np.float32(2), "draft": draft}
                | {"accept_uniform": float(rng.random()), "draft_banned": [vocabulary]}
            )
            if warp:  # greedily, a lenience of 1 is the check
                requests.append(compared | {"check": Check.REJECTION, "threshold": 1.0})
            requests += [compared | {"check": Check.CASCADE, "threshold": alpha} for alpha in (0.0, 0.3, 1.0)]
        asked += len(requests)
        logits = normal(rng, len(requests), vocabulary) * np.float32(2)
        excused += _agree(trial, logits, requests, f"{vocabulary} ids")
    assert excused <= asked // 20, f"{excused} of {asked} decisions were too close to hold anybody to"


@OPERATIONS.add()
def ties(trial: Trial) -> None:
    """Equal logits: the lowest id wins, ranks count by id, and cuts keep the lowest ids."""
    logits = np.zeros((4, 1500), np.float32)
    logits[1, [7, 1100]] = 3.0
    logits[2, [1023, 1024]] = 3.0
    requests: list[dict[str, Any]] = [{}, {}, {}, {"banned": [0, 1]}]
    trial.same([answer[0] for answer in picks(trial, logits, requests)], [0, 7, 1023, 2], "greedy")
    flat = logits[:1].repeat(4, 0)
    tied = [{"check": Check.TOP_K, "draft": draft, "threshold": 3.0} for draft in (1, 2, 3, 1499)]
    trial.same([answer[1] for answer in picks(trial, flat, tied)], [True, True, False, False], "top-k membership")
    for warp, kept in (({"top_k": 3}, 3), ({"top_p": 0.002}, 3), ({"top_k": 900, "top_p": 0.4999}, 450)):
        ids = [i for i in range(1500) if i not in (0, 5)][:kept]
        uniforms = (0.0, 0.49, 0.51, 0.9999999)
        cut = [warp | {"temperature": 1.0, "uniform": u, "banned": [0, 5]} for u in uniforms]
        expected = [ids[int(u * kept)] for u in uniforms]
        trial.same([answer[0] for answer in picks(trial, flat, cut)], expected, str(warp))


@OPERATIONS.add()
def shares(trial: Trial) -> None:
    """Uniforms at equal distances give every id its probability to 1 / n; the same distribution is never rejected."""
    logits = np.log(np.array([[0.5, 0.2, 0.05, 0.25]], np.float32))
    n = 200
    requests: list[dict[str, Any]] = [{"temperature": 1.0, "uniform": (i + 0.5) / n} for i in range(n)]
    ids = [answer[0] for answer in picks(trial, logits.repeat(n, 0), requests)]
    assert ids == sorted(ids), "ids do not ascend with the uniform number"
    trial.close(np.bincount(ids, minlength=4) / n, [0.5, 0.2, 0.05, 0.25], 1 / n + 1e-9, "shares")
    many = normal(np.random.default_rng(4), 6, 300)
    requests = [
        {"check": Check.REJECTION, "draft": 5 * i, "threshold": 1.0, "accept_uniform": 0.9999999, "temperature": 0.8}
        | {"draft_temperature": 0.8, "draft_logits": many[i], "uniform": 0.5}
        for i in range(6)
    ]
    trial.same([answer[1] for answer in picks(trial, many, requests)], [True] * 6, "rejection")


@OPERATIONS.add()
def logits_that_are_not_finite(trial: Trial) -> None:
    """A row with a NaN or an infinity says so."""
    for value in (np.nan, np.inf, -np.inf):
        head, hidden = np.ones((1030, 2), np.float32), np.ones((2, 2), np.float32)
        head[1025, 0] = value
        hidden[1, 0] = 0.0 if np.isinf(value) else 1.0
        answers, kept = trial.operations.pick(head, hidden, [{}, {}], "fp32")
        trial.same([answer[2] for answer in answers], [False, False])  # 0 times infinity is not a number either
        assert not np.isfinite(kept[:, 1025]).any(), f"{value} gave {kept[:, 1025]}"
        trial.same(kept[0, :1025], np.full(1025, 2, np.float32))
