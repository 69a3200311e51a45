"""How a token is picked: pure functions of logits, which also say whether the decision was close."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# A float32 decoder may differ from this one only where a decision was closer than these.
CLOSE_LOGITS = 1e-4
CLOSE_RELATIVE = 1e-4
CLOSE_UNIFORM = 1e-5


@dataclass(frozen=True)
class Warp:
    """How logits become the distribution a token is taken from; temperature 0 takes the best token."""

    temperature: float
    top_k: int
    top_p: float


def ban(logits: Tensor, banned: Iterable[int]) -> Tensor:
    """`logits` [V] in float64, minus infinity at the `banned` ids (those beyond V are ignored)."""
    allowed = logits.double().clone()
    for token in banned:
        if token < allowed.numel():
            allowed[token] = -math.inf
    return allowed


def greedy_pick(logits: Tensor) -> tuple[int, bool]:
    """The best id of `logits` [V], the lowest on ties; and whether the runner-up is close."""
    best = int((logits == logits.max()).nonzero()[0])
    others = logits.clone()
    others[best] = -math.inf
    return best, bool(logits[best] - others.max() < CLOSE_LOGITS)


def warp(logits: Tensor, how: Warp) -> tuple[Tensor, bool]:
    """Probabilities [V] of already banned `logits` [V] under `how`; and whether a cut was close.

    Temperature, then top-k (0 = off, ties by lowest id), then top-p (1.0 = off: the shortest prefix, by
    probability and then id, whose sum reaches top_p), then renormalised. Temperature 0 is one-hot.
    """
    if how.temperature == 0.0:
        best, close = greedy_pick(logits)
        return torch.nn.functional.one_hot(torch.tensor(best), logits.numel()).double(), close
    close = False
    scaled = logits / how.temperature
    ranked, order = torch.sort(scaled, descending=True, stable=True)
    if 0 < how.top_k < logits.numel():
        close |= bool((ranked[how.top_k - 1] - ranked[how.top_k]) * how.temperature < CLOSE_LOGITS)
        scaled[order[how.top_k :]] = -math.inf
    probabilities = torch.softmax(scaled, dim=0)
    if how.top_p < 1.0:
        cumulative = torch.cumsum(probabilities[order], dim=0)
        close |= bool(((cumulative - how.top_p).abs() < CLOSE_UNIFORM).any())
        kept = max(1, int((cumulative < how.top_p).sum()) + 1)
        if kept < logits.numel():
            close |= bool((ranked[kept - 1] - ranked[kept]) * how.temperature < CLOSE_LOGITS)
            probabilities[order[kept:]] = 0.0
            probabilities = probabilities / probabilities.sum()
    return probabilities, close


def sample(probabilities: Tensor, u: float) -> tuple[int, bool]:
    """Inverse CDF in ascending id order: the smallest id whose cumulative exceeds `u`; and whether u was close.

    Where rounding leaves none, the last id with a positive probability.
    """
    cumulative = torch.cumsum(probabilities, dim=0)
    above = (cumulative > u).nonzero()
    picked = int(above[0]) if above.numel() else int(probabilities.nonzero()[-1])
    inner = cumulative[:-1][probabilities[1:] > 0]
    return picked, bool(((inner - u).abs() < CLOSE_UNIFORM).any())


def log_prob(logits: Tensor, token: int) -> float:
    """Log softmax over all ids at temperature 1, nothing banned."""
    return float(torch.log_softmax(logits.double(), dim=0)[token])
