"""Tiny T5 models, pairs and batches for the decoding tests.

Two kinds: the self-test's random T5s (kdtw_fast/selftest/tiny.py), and "chains" whose next-token distribution is a
table, so that what a decoder must do can be written down by hand.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast import NativeT5
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.selftest.tiny import (
    EOS,
    RELATIONS,
    SHAPES,
    START,
    grow_vocabulary,
    random_batch,
    random_pair,
    random_t5,
    scale_row,
    with_tau,
)
from kdtw_fast.shapes import T5Shape, t5_of

T = TypeVar("T")

__all__ = [
    "EOS",
    "RELATIONS",
    "SHAPES",
    "START",
    "T5Shape",
    "chain_student",
    "chain_t5",
    "empty_the_device",
    "grow_vocabulary",
    "kept",
    "mostly_long",
    "pack",
    "path_table",
    "random_batch",
    "random_pair",
    "random_t5",
    "random_teachers",
    "scale_row",
    "slow_model",
    "with_tau",
]


_kept: list[Callable[..., Any]] = []


def kept(make: Callable[..., T]) -> Callable[..., T]:
    """`functools.cache` for models that may lie on a device, until `empty_the_device`."""
    made = functools.cache(make)
    _kept.append(made)
    return made


def empty_the_device() -> None:
    """Forgets what tests keep, so that nothing is left on a device."""
    for made in _kept:
        made.cache_clear()  # type: ignore[attr-defined]
    gc.collect()


def pack(student: Any, teacher: Any, device: str) -> tuple[NativeT5, NativeT5]:
    return NativeT5.from_model(student, "student", device=device), NativeT5.from_model(
        teacher, "teacher", device=device
    )


@kept
def slow_model(device: str, seed: int = 0) -> NativeT5:
    """Big enough that a token takes a good part of a millisecond (on a simulated device a smaller one does)."""
    slow = T5Shape("slow", 320, 64, 6, 1024, 4, encoder_layers=1, tied=True, scaled=True)
    shape = slow if device == "cpu" else SHAPES[0]
    return NativeT5.from_model(random_t5(shape, 1000, seed), "model", device=device)


def random_teachers(
    relation: str, seed: int, count: int, vocab_size: int = 43
) -> tuple[TrainingWheelsT5, list[T5ForConditionalGeneration]]:
    """A student with a <tau> and a beta for each of `count` unlike teachers; it is related to the first of them.

    The <tau>s are the last ids, some or all of them rows beyond the teachers' vocabulary.
    """
    rng = np.random.default_rng([seed, count, RELATIONS.index(relation)])
    single, first = random_pair(relation, seed, vocab_size)
    student = TrainingWheelsT5.from_t5(single, tau_token_id=single.config.tau_token_id, teachers=count)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    with torch.no_grad():
        tau, *others = student.tau_token_ids
        head = student.lm_head.weight
        for other in others:
            noise = torch.randn(head[tau].shape, generator=generator)
            head[other] = head[tau].norm() * float(rng.choice([0.8, 1.0, 1.2])) * noise / noise.norm()
        scale = float(rng.choice([0.0, 1.0]))
        student.marks.copy_(scale * torch.randn(student.marks.shape, generator=generator))
    teachers = [first]
    for _ in others:
        teachers.append(random_t5(SHAPES[int(rng.integers(len(SHAPES)))], vocab_size, seed=int(rng.integers(1 << 31))))
        scale_row(teachers[-1], EOS, float(rng.choice([0.5, 1.5, 2.2])))
    return student.eval(), teachers


def mostly_long(values: Iterable[Any], keep: Iterable[int] = (0,)) -> list[Any]:
    """Values of a parameter (tuples: of several): those whose place is not in `keep` run in `make test-all` alone."""
    long: dict[str, Any] = {"marks": pytest.mark.long}
    every = [value if isinstance(value, tuple) else (value,) for value in values]
    places = set(keep)
    return [pytest.param(*value, **({} if i in places else long)) for i, value in enumerate(every)]


# --- Chains: T5s whose next-token logits are a table -----------------------------------------------------


def chain_t5(table: np.ndarray) -> T5ForConditionalGeneration:
    """A T5 whose logits after token i are table[i] [V, V], whatever the source and the earlier tokens.

    Embeddings are one-hot and all layers add zero, so the head reads the last token's row. The last of the
    V + 1 dimensions belongs to no token: `chain_student` puts beta there.
    """
    vocab_size = table.shape[0]
    shape = T5Shape("chain", vocab_size + 1, 4, 2, 8, 1, vocab_size, activation="relu")
    values = {name: torch.zeros(size) for name, size in shape.tensors.items()}
    values["shared.weight"][:, :vocab_size] = 64.0 * torch.eye(vocab_size)
    values["decoder.final_layer_norm.weight"].fill_(1.0)
    # RMS norm turns a one-hot row into sqrt(d_model) at its place.
    values["lm_head.weight"][:, :vocab_size] = torch.from_numpy(table.T).float() / math.sqrt(shape.d_model)
    return t5_of(shape, values)


def chain_student(table: np.ndarray, tau: int, after_marked: np.ndarray | None = None) -> TrainingWheelsT5:
    """`chain_t5(table)` as a student that asks with `tau`.

    `after_marked` [V] is added to the logits after a token that the teacher wrote (where table's part shrinks
    by sqrt(2), RMS norm being what it is); None = beta is zero.
    """
    student = TrainingWheelsT5.from_t5(chain_t5(table), tau_token_id=tau).eval()
    if after_marked is not None:
        with torch.no_grad():
            student.teacher_token_embedding[-1] = 64.0
            student.lm_head.weight[:, -1] = torch.from_numpy(after_marked) / math.sqrt((table.shape[0] + 1) / 2)
    return student


def path_table(path: Sequence[int], vocab_size: int, height: float = 12.0) -> np.ndarray:
    """Logits [V, V] that follow `path` after the start token; every other token leads to the path's second.

    Tokens of the path differ, so a token tells its position.
    """
    table = np.zeros((vocab_size, vocab_size))
    here = START
    for token in path:
        table[here, token] = height
        here = token
    for token in range(vocab_size):
        if token != START and token not in path[:-1]:
            table[token, path[min(1, len(path) - 1)]] = height
    return table
