"""Every operation of a backend against NumPy, at sizes around warps, tiles and chunks.

What is stated as equal is equal bit for bit: a token's values do not depend on the other tokens of the pass.
"""

from __future__ import annotations

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
    NOTHING,
    Array,
    bytes_of,
    gelu,
    layer_norm,
    normal,
    rms,
    rounded,
)
from kdtw_fast.selftest.products import PRODUCTS

OPERATIONS = Checks()
SIZES = (1, 31, 32, 33, 257)


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
        found = trial.operations.embed(table, ids, marked, marks, dtype, float(scale), positions)
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


OPERATIONS.extend(PRODUCTS)


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
def draws_of_one_block_and_of_many(trial: Trial) -> None:
    """Sampling spreads over a device's blocks, and what a rejected draft leaves is drawn by one: the same ids.

    Of a draft that was drawn by the same rules, max(0, p - 2q) leaves nothing, so that the draw is one from p.
    """
    warps: list[dict[str, Any]] = [
        {},
        {"top_k": 1},
        {"top_k": 40},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"top_k": 300, "top_p": 0.9},
        {"top_k": 2000, "top_p": 0.999},
    ]
    rng = np.random.default_rng(7)
    kinds = [normal(rng, 2500) * np.float32(size) for size in (20, 3, 0.1, 0.002)]  # in the last, too many are open
    kinds.append(np.round(kinds[1]))
    kinds.append((np.round(kinds[1][:900] * 4) / 4).astype(np.float32))
    for number, logits in enumerate(kinds):
        asked: list[dict[str, Any]] = []
        for warp in warps:
            warp = warp | {"temperature": 0.7, "uniform": float(rng.random()), "banned": [3, int(logits.argmax())]}
            allowed = reference.ban(torch.from_numpy(logits), warp["banned"])
            drawn = {f"draft_{name}": value for name, value in warp.items() if name != "uniform"}
            again = {"check": Check.REJECTION, "threshold": 2.0, "accept_uniform": 0.9, "draft": int(allowed.argmax())}
            asked += [warp, warp | drawn | again | {"draft_logits": logits}]
        answers = picks(trial, logits[None].repeat(len(asked), 0), asked)
        assert not any(answer[1] for answer in answers[1::2]), "a draft of twice its probability passed"
        ids = [answer[0] for answer in answers]
        trial.same(ids[::2], ids[1::2], f"logits {number}")


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
