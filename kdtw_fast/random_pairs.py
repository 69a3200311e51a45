"""Random T5s whose choices are as a measurement needs them: a student that always asks, a teacher that does not.

All of the work of real models of their sizes is done; what they write means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kdtw_fast.model import NativeT5
from kdtw_fast.shapes import EOS, T5Shape, Values, random_native, random_t5, random_tensors


@dataclass(frozen=True)
class Made:
    """A random model with some tensors and config fields of its own, to be built natively or as Hugging Face's."""

    shape: T5Shape
    seed: int
    tensors: Mapping[str, Values]
    config: Mapping[str, Any]

    def native(self, name: str, dtype: str = "fp32", device: str = "cpu") -> NativeT5:
        """Packed for the core; ``name`` is what messages call it."""
        return random_native(
            self.shape, name, self.seed, dtype, device=device, tensors=self.tensors, config=self.config
        )

    def hugging_face(self) -> Any:
        """A T5ForConditionalGeneration, fp32."""
        return random_t5(self.shape, self.seed, tensors=self.tensors)


def plain(shape: T5Shape, seed: int = 0) -> Made:
    """A random model as it comes."""
    return Made(shape, seed, {}, {})


def asking_student(shape: T5Shape, seed: int = 1) -> Made:
    """A random student that chooses <tau> (its last row) wherever it may, so that the ledger alone sets its use."""
    tau = shape.vocab_size - 1
    own = steered(shape, seed, {tau: 100.0})
    return Made(shape, seed, own | {"teacher_token_embedding": no_mark(shape)}, {"tau_token_id": tau})


def no_mark(shape: T5Shape) -> Values:
    """A teacher token embedding that changes nothing."""
    return lambda: torch.zeros(shape.d_model)


def steered(shape: T5Shape, seed: int, weights: Mapping[int, float]) -> dict[str, Values]:
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


def source(shape: T5Shape, length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Random source ids [rows, length], each row ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, shape.vocab_size - 1, (rows, length), generator=generator)
    ids[:, -1] = EOS
    return ids
