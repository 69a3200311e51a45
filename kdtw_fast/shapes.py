"""T5s of known shapes with random weights, native or Hugging Face's: for benchmarks, and to see what fits a machine.

The values are cheap and mean nothing; a tensor is a function of (seed, name), made when it is asked for, so that a
native model of any size is packed without a full-precision copy of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from kdtw_fast.model import NativeT5
from kdtw_fast.options import nearest

PAD, EOS = 0, 1
_BUCKETS = 32
_BLOCK = 1_000_003  # random numbers that all tensors are cut from; a prime, so that no two rows of a matrix are alike


@dataclass(frozen=True)
class Shape:
    """Sizes of a T5 v1.1: gated-gelu, a head of its own, as many decoder as encoder layers."""

    name: str
    d_model: int
    d_kv: int
    heads: int
    d_ff: int
    layers: int
    vocab_size: int = 32128

    @property
    def config(self) -> dict[str, Any]:
        """The fields of a Hugging Face config."""
        return {
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "num_heads": self.heads,
            "d_ff": self.d_ff,
            "num_layers": self.layers,
            "num_decoder_layers": self.layers,
            "relative_attention_num_buckets": _BUCKETS,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
            "tie_word_embeddings": False,
            "scale_decoder_outputs": False,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "decoder_start_token_id": PAD,
        }

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by Hugging Face's name."""
        size, inner = self.d_model, self.d_kv * self.heads
        shapes: dict[str, tuple[int, ...]] = {
            "shared.weight": (self.vocab_size, size),
            "lm_head.weight": (self.vocab_size, size),
        }
        for stack, kinds in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
            shapes[f"{stack}.final_layer_norm.weight"] = (size,)
            bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            shapes[bias] = (_BUCKETS, self.heads)
            for block in range(self.layers):
                for i, kind in enumerate(kinds):
                    prefix = f"{stack}.block.{block}.layer.{i}"
                    shapes[f"{prefix}.layer_norm.weight"] = (size,)
                    shapes |= {f"{prefix}.{kind}.{part}.weight": (inner, size) for part in "qkv"}
                    shapes[f"{prefix}.{kind}.o.weight"] = (size, inner)
                prefix = f"{stack}.block.{block}.layer.{len(kinds)}"
                shapes[f"{prefix}.layer_norm.weight"] = (size,)
                shapes |= {f"{prefix}.DenseReluDense.{part}.weight": (self.d_ff, size) for part in ("wi_0", "wi_1")}
                shapes[f"{prefix}.DenseReluDense.wo.weight"] = (size, self.d_ff)
        return shapes

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        return sum(int(np.prod(shape)) for shape in self.tensors.values())

    @property
    def step_parameters(self) -> int:
        """Weights that a decoder pass must read: layers and head, each once.

        The cross-attention's keys and values are made once per source and not counted.
        """
        inner = self.d_kv * self.heads
        return self.layers * (6 * self.d_model * inner + 3 * self.d_model * self.d_ff) + self.vocab_size * self.d_model


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("flan-t5-small", 512, 64, 6, 1024, 8),
        Shape("flan-t5-base", 768, 64, 12, 2048, 12),
        Shape("flan-t5-large", 1024, 64, 16, 2816, 24),
        Shape("flan-t5-xl", 2048, 64, 32, 5120, 24),
    )
}

Values = Callable[[], torch.Tensor]


def find_shape(name: str) -> Shape:
    """The shape called ``name``; ValueError with the nearest name, or all of them, if there is none."""
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}{nearest(name, SHAPES)}")
    return SHAPES[name]


def random_tensors(shape: Shape, seed: int = 0) -> dict[str, Values]:
    """Every tensor of a random model by name, made anew (fp32) at each call.

    Matrices have a standard deviation of inputs^-1/2, embeddings and head rows of length ~sqrt(d_model), norms are
    one: activations and logits stay near one whatever the depth.
    """
    block = np.random.default_rng(seed).standard_normal(_BLOCK, dtype=np.float32)

    def make(name: str, size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size)
        start = zlib.crc32(name.encode()) % _BLOCK
        values = np.resize(np.roll(block, -start), size)
        if name.endswith("q.weight"):
            values *= (size[1] * shape.d_kv) ** -0.5  # T5 does not scale its attention scores
        elif name != "shared.weight":
            values *= size[1] ** -0.5
        return torch.from_numpy(values)

    return {name: partial(make, name, size) for name, size in shape.tensors.items()}


def random_native(
    shape: Shape,
    name: str = "model",
    seed: int = 0,
    dtype: str = "fp32",
    cache_dtype: str = "auto",
    tensors: Mapping[str, Values] = MappingProxyType({}),
    config: Mapping[str, Any] = MappingProxyType({}),
    device: str = "cpu",
) -> NativeT5:
    """A random model packed for the native core, tensor by tensor.

    Args:
        shape: its sizes.
        name: what messages call it.
        seed: of its weights.
        dtype: of its packed weights, as in :meth:`NativeT5.from_model`; "auto" is fp32, which its values are.
        cache_dtype: of its keys and values.
        tensors: values to use in the place of random ones, or beside them.
        config: fields beside the shape's.
        device: where it is to decode.
    """
    return NativeT5(
        shape.config | dict(config),
        random_tensors(shape, seed) | dict(tensors),
        name,
        dtype="fp32" if dtype == "auto" else dtype,
        cache_dtype=cache_dtype,
        device=device,
    )


def random_t5(shape: Shape, seed: int = 0, tensors: Mapping[str, Values] = MappingProxyType({})) -> Any:
    """The model of :func:`random_native` as Hugging Face's ``T5ForConditionalGeneration``, fp32, in eval mode."""
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**shape.config))
    values = {name: make() for name, make in (random_tensors(shape, seed) | dict(tensors)).items()}
    embedding = values["shared.weight"]
    values |= {f"{stack}.embed_tokens.weight": embedding for stack in ("encoder", "decoder")}
    # transformers 5 ties the head of a new T5 whatever its config says; assigning tensors unties it
    model.load_state_dict(values, assign=True)
    model.config.tie_word_embeddings = False
    return model.eval().requires_grad_(False)
