"""The two cheap controls: the same student and teacher, but tokens to ask for drawn at random, or by entropy.

What learning when to ask is worth is the difference to these at equal use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.random import uniform

from .batches import Batch, Encoded, collate, encode, in_order, student_prompts, teacher_prompts
from .debian import Example
from .evaluate import scores, texts
from .losses import without_column
from .oracle import AskRule, decode_with_rule

CONTROLS = ("random", "entropy")
_COIN = 3  # stream of the coin flips; the decoders have 0 to 2


def random_calls(rate: float, rows: Sequence[int], seed: int) -> AskRule:
    """Ask at each step with probability `rate`; a function of seed, row's name and step."""

    def rule(mine: torch.Tensor, theirs: torch.Tensor, step: int) -> torch.Tensor:
        return torch.from_numpy(uniform(seed, np.asarray(rows), step, _COIN) < rate)[:, None]

    return rule


def entropy(logits: torch.Tensor, tau: int) -> torch.Tensor:
    """Entropy of the distribution without <tau>, in nats: [R, T] from [R, T, V]."""
    log_pi = torch.log_softmax(without_column(logits, tau).float(), -1)
    return -(log_pi.exp() * log_pi).sum(-1)


def entropy_calls(threshold: float, tau: int) -> AskRule:
    """Ask where the entropy of the student's distribution without <tau>, in nats, exceeds `threshold`."""

    def rule(mine: torch.Tensor, theirs: torch.Tensor, step: int) -> torch.Tensor:
        return entropy(mine, tau) > threshold

    return rule


def control(
    name: str,
    student: TrainingWheelsT5,
    teacher: T5ForConditionalGeneration,
    tokenizer: Any,
    examples: Sequence[Example],
    uses: Sequence[float],
    seed: int = 0,
    tolerance: float = 0.005,
    rounds: int = 12,
    max_new_tokens: int = 96,
    size: int = 64,
) -> list[dict[str, object]]:
    """Use and quality of a control ("random" or "entropy"), one row for each of the six budgets.

    `uses` are the teacher uses to match, usually what a trained student achieved at each budget; the student reads that
    budget's prompt and never decides itself. The rate or the threshold is searched for on these very examples (which
    favours the control) until use is within `tolerance`, at most `rounds` times; the closest is reported. Raises
    ValueError for an unknown name, or another number of uses than budgets.
    """
    if name not in CONTROLS:
        raise ValueError(f"the controls are {', '.join(CONTROLS)}, got {name!r}")
    if len(uses) != len(BUDGETS):
        raise ValueError(f"uses must have one entry for each of the {len(BUDGETS)} budgets, got {len(uses)}")
    told_prompt = teacher_prompts(tokenizer, student.config.teacher_prompt)[0]
    own_prompts = student_prompts(tokenizer, student.config.student_prompt)
    rows = encode(examples, tokenizer, 10**6, 10**6)
    if len(rows) != len(examples):
        raise ValueError(f"{len(examples) - len(rows)} examples have an empty source or target")
    references = [example.target for example in examples]
    batches = list(in_order(rows, size))
    most = math.log(student.config.vocab_size)
    table: list[dict[str, object]] = []
    for budget, prompt, wanted in zip(BUDGETS, own_prompts, uses, strict=True):
        pairs = [_pair(rows, chosen, prompt, told_prompt, tokenizer) for chosen in batches]

        def decode(level: float, pairs: list[tuple[Batch, Batch]] = pairs) -> tuple[list[list[int]], float]:
            """Outputs and use when asking as readily as `level` in [0, 1] says, 0 = never."""
            outputs: list[list[int]] = [[] for _ in rows]
            calls = 0
            for chosen, (own, told) in zip(batches, pairs, strict=True):
                rule = (
                    random_calls(level, chosen, seed)
                    if name == "random"
                    else entropy_calls((1 - level) * most, student.config.tau_token_id)
                )
                written, asked = decode_with_rule(student, teacher, own, told, rule, max_new_tokens)
                calls += sum(asked)
                for i, ids in zip(chosen, written, strict=True):
                    outputs[i] = ids
            return outputs, calls / sum(map(len, outputs))

        guess = wanted if name == "random" else 0.5 + 0.5 * wanted
        level, outputs, use = _matched(decode, wanted, guess, tolerance, rounds)
        table.append(
            {
                "control": name,
                "budget": budget.phrase,
                "asked": round(float(wanted), 4),
                "achieved": round(use, 4),
                "level": level,
                **scores(texts(tokenizer, outputs), references),
            }
        )
    return table


def _matched(
    decode: Callable[[float], tuple[list[list[int]], float]],
    wanted: float,
    guess: float,
    tolerance: float,
    rounds: int,
) -> tuple[float, list[list[int]], float]:
    """The level in [0, 1] whose use is closest to `wanted`, its outputs and its use.

    From `guess` on, by turns halfway between the nearest levels below and above and interpolated between them.
    """
    low, high = (0.0, 0.0), (1.0, 1.0)  # levels, and the uses there
    level = 0.0 if wanted == 0 else guess
    best: tuple[float, float, list[list[int]], float] | None = None
    for turn in range(rounds):
        outputs, use = decode(level)
        if best is None or abs(use - wanted) < best[0]:
            best = (abs(use - wanted), level, outputs, use)
        if best[0] <= tolerance or wanted == 0:
            break
        low, high = ((level, use), high) if use < wanted else (low, (level, use))
        part = (wanted - low[1]) / max(high[1] - low[1], 1e-9) if turn % 2 else 0.5
        level = low[0] + min(0.9, max(0.1, part)) * (high[0] - low[0])
    if best is None:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    return best[1:]


def _pair(
    rows: Sequence[Encoded],
    chosen: Sequence[int],
    prompt: Sequence[int],
    told_prompt: Sequence[int],
    tokenizer: Any,
) -> tuple[Batch, Batch]:
    """The chosen rows with the student's and with the teacher's prompt."""
    some = [rows[i] for i in chosen]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return collate(some, [prompt] * len(some), eos, pad), collate(some, [told_prompt] * len(some), eos, pad)
