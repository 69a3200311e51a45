"""Random T5s whose greedy choices are as a benchmark needs them. Shapes and other systems are the package's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdtw_fast import NativeT5
from kdtw_fast.shapes import EOS, PAD, SHAPES, T5Shape, Values, random_native, random_t5, random_tensors

FLAN_T5_SMALL, FLAN_T5_BASE, FLAN_T5_LARGE, FLAN_T5_XL = (
    SHAPES[f"flan-t5-{size}"] for size in ("small", "base", "large", "xl")
)
T5_TINY = T5Shape("t5-efficient-tiny", 256, 64, 4, 1024, 4)
TINY_STUDENT = T5Shape("1M student", 96, 32, 3, 256, 2, 4096)
TINY_TEACHER = T5Shape("1M teacher", 96, 32, 3, 256, 3, 4096)
LARGER_TEACHER = T5Shape("27M teacher", 512, 64, 6, 1024, 8, 4096)
SMOKE = T5Shape("smoke", 64, 16, 4, 96, 2, 160)


@dataclass(frozen=True)
class Made:
    """A random model with some tensors and config fields of its own, to be built natively or as Hugging Face's."""

    shape: T5Shape
    seed: int
    tensors: Mapping[str, Values]
    config: Mapping[str, Any]

    def native(self, name: str, dtype: str = "fp32", device: str = "cpu") -> NativeT5:
        return random_native(
            self.shape, name, self.seed, dtype, device=device, tensors=self.tensors, config=self.config
        )

    def hugging_face(self) -> Any:
        return random_t5(self.shape, self.seed, tensors=self.tensors)


def plain(shape: T5Shape, seed: int = 0) -> Made:
    """A random model as it comes."""
    return Made(shape, seed, {}, {})


def asking_student(shape: T5Shape, seed: int = 1) -> Made:
    """A random student that chooses <tau> (its last row) wherever it may, so that the ledger alone sets its use."""
    tau = shape.vocab_size - 1
    own = _steered(shape, seed, {tau: 100.0})
    return Made(shape, seed, own | {"teacher_token_embedding": _no_mark(shape)}, {"tau_token_id": tau})


def _no_mark(shape: T5Shape) -> Values:
    return lambda: torch.zeros(shape.d_model)


def _steered(shape: T5Shape, seed: int, weights: Mapping[int, float]) -> dict[str, Values]:
    """Embeddings with a large first coordinate, and a head in which only the rows of some tokens read it, and only it.

    Args:
        shape, seed: of the random model whose tensors these are.
        weights: by token, what its row multiplies the coordinate with.
    """
    tensors = random_tensors(shape, seed)

    def shared() -> torch.Tensor:
        weight = tensors["shared.weight"]()
        weight[:, 0] = 20.0
        return weight

    def head() -> torch.Tensor:
        weight = tensors["lm_head.weight"]()
        weight[:, 0] = 0.0
        for token, factor in weights.items():
            weight[token] = 0.0
            weight[token, 0] = factor
        return weight

    return {"shared.weight": shared, "lm_head.weight": head}


def teacher_without(shape: T5Shape, tau: int, seed: int = 0) -> Made:
    """A random teacher that never prefers <tau>: alone it may write that id, beside a student it may not."""
    tensors = random_tensors(shape, seed)

    def head() -> torch.Tensor:
        weight = tensors["lm_head.weight"]()
        weight[tau] = 0.0
        return weight

    return Made(shape, seed, {"lm_head.weight": head}, {})


def ragged_pair(student: T5Shape, teacher: T5Shape, teacher_share: float, length: int) -> tuple[Made, Made]:
    """A random pair for sampling at temperature 1, whose rows ask and end at random, each at its own times.

    At every token the student chooses <tau> (its last row) with about the probability ``teacher_share``, and both
    models the end token with about 1 / ``length``.
    """
    tau = student.vocab_size - 1
    end = {EOS: 1 / length}
    asking = _with_probabilities(student, 1, end | ({tau: teacher_share} if teacher_share else {}))
    asking = Made(student, 1, {**asking.tensors, "teacher_token_embedding": _no_mark(student)}, {"tau_token_id": tau})
    return asking, _with_probabilities(teacher, 0, end)


def _with_probabilities(shape: T5Shape, seed: int, wanted: Mapping[int, float]) -> Made:
    """A random model whose tokens ``wanted`` come up with about these probabilities, whatever stands before them.

    Their weights give them the wanted odds against the other tokens, as those come out on random input.
    """

    def made(weights: Sequence[float]) -> Made:
        return Made(shape, seed, _steered(shape, seed, dict(zip(wanted, weights))), {})

    tokens = list(wanted)
    first = made([1.0] * len(tokens)).native("model")
    ids = source(shape, 32, 4, seed=2).tolist()
    logits = torch.cat([torch.from_numpy(first.decode_logits(row, row)) for row in ids])
    unit = logits[:, tokens[0]].clone()
    logits[:, tokens] = -torch.inf
    others, none = logits.logsumexp(-1), 1 - sum(wanted.values())
    return made([float(((others + math.log(share / none)) / unit).mean()) for share in wanted.values()])


def path(vocab_size: int, seed: int = 0) -> torch.Tensor:
    """A random order of all ids but PAD, EOS and the last: the way that `walker` goes from the start token."""
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randperm(vocab_size - 3, generator=generator)


def walker(shape: T5Shape, way: torch.Tensor, seed: int, strays: torch.Tensor | None = None) -> Made:
    """A random model of full size whose greedy choice after a token is the next one on ``way``, whatever was before.

    A token's embedding is its code, 20 times a row of random signs; the head's row of a token is the code of the one
    before it on the way. The layers add their random outputs of size about one to the code, which the head still
    reads: all of the work is done, and none of it changes the choice.

    Args:
        shape: its sizes; the embedding must be wide enough to tell codes apart (64 is).
        way: as `path` gives it; the start token leads to its first.
        seed: of codes and layers.
        strays: places on the way whose tokens change places in the head: one step before each, the model goes
            elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (shape.vocab_size, shape.d_model), generator=generator) * 2.0 - 1.0
    wanted = way.clone()
    if strays is not None:
        wanted[strays] = way[strays.roll(1)]
    before = torch.cat((torch.tensor([PAD]), way[:-1]))

    def head() -> torch.Tensor:
        weight = torch.zeros_like(codes)
        weight[wanted] = codes[before] * shape.d_model**-0.5
        return weight

    return Made(shape, seed, {"shared.weight": lambda: 20.0 * codes, "lm_head.weight": head}, {})


def strays(length: int, steps: int, share: float, seed: int = 0) -> torch.Tensor:
    """Random places in a way of ``length``: ``share`` of its first ``steps`` places, exactly, and of the others."""
    generator = torch.Generator().manual_seed(seed)

    def some(first: int, count: int) -> torch.Tensor:
        return first + torch.randperm(count, generator=generator)[: round(share * count)]

    return torch.cat((some(0, steps), some(steps, length - steps)))


def source(shape: T5Shape, length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Random source ids [rows, length], each row ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, shape.vocab_size - 1, (rows, length), generator=generator)
    ids[:, -1] = EOS
    return ids
