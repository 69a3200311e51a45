"""T5s by their sizes: how much they hold, read and run, and models of such sizes with random weights.

The random values mean nothing. A tensor is a function of (seed, name) and made when it is asked for, so that a native
model of any size is packed without a full-precision copy of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from kdtw_fast.options import nearest

if TYPE_CHECKING:  # sizes are for help texts too, which need no PyTorch
    import torch

    from kdtw_fast.model import NativeT5

PAD, EOS = 0, 1
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of a number, by its format
_BLOCK = 1_000_003  # random numbers that all tensors are cut from; a prime, so that no two rows of a matrix are alike


@dataclass(frozen=True)
class T5Shape:
    """Sizes and kind of a T5; by default those of T5 v1.1 and FLAN-T5.

    Args:
        name: for people.
        d_model: size of the residual stream.
        d_kv: size of a head; d_kv * heads may differ from d_model.
        heads: attention heads.
        d_ff: width of the feed-forward parts.
        layers: of the decoder.
        vocab_size: rows of the embedding.
        encoder_layers: of the encoder; None = as many.
        activation: "gated-gelu" or "relu".
        tied: whether the head is the embedding.
        scaled: whether the head's inputs are scaled by d_model^-1/2 (T5 v1.0).
        buckets, max_distance: of the relative position bias.
    """

    name: str
    d_model: int
    d_kv: int
    heads: int
    d_ff: int
    layers: int
    vocab_size: int = 32128
    encoder_layers: int | None = None
    activation: str = "gated-gelu"
    tied: bool = False
    scaled: bool = False
    buckets: int = 32
    max_distance: int = 128

    @property
    def stacks(self) -> dict[str, int]:
        """Layers of the encoder and of the decoder."""
        return {"encoder": self.layers if self.encoder_layers is None else self.encoder_layers, "decoder": self.layers}

    @property
    def config(self) -> dict[str, Any]:
        """The fields of a Hugging Face config."""
        return {
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "num_heads": self.heads,
            "d_ff": self.d_ff,
            "num_layers": self.stacks["encoder"],
            "num_decoder_layers": self.layers,
            "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.max_distance,
            "feed_forward_proj": self.activation,
            "dropout_rate": 0.0,
            "tie_word_embeddings": self.tied,
            "scale_decoder_outputs": self.scaled,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "decoder_start_token_id": PAD,
        }

    @property
    def inner(self) -> int:
        """Size of all heads together."""
        return self.d_kv * self.heads

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by Hugging Face's name, in its order."""
        size, inner = self.d_model, self.inner
        inputs = ("wi_0", "wi_1") if self.activation.startswith("gated") else ("wi",)
        shapes: dict[str, tuple[int, ...]] = {"shared.weight": (self.vocab_size, size)}
        for stack, layers in self.stacks.items():
            kinds = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
            for block in range(layers):
                for i, kind in enumerate(kinds):
                    prefix = f"{stack}.block.{block}.layer.{i}"
                    shapes |= {f"{prefix}.{kind}.{part}.weight": (inner, size) for part in "qkv"}
                    shapes[f"{prefix}.{kind}.o.weight"] = (size, inner)
                    if block == i == 0:
                        shapes[f"{prefix}.{kind}.relative_attention_bias.weight"] = (self.buckets, self.heads)
                    shapes[f"{prefix}.layer_norm.weight"] = (size,)
                prefix = f"{stack}.block.{block}.layer.{len(kinds)}"
                shapes |= {f"{prefix}.DenseReluDense.{part}.weight": (self.d_ff, size) for part in inputs}
                shapes[f"{prefix}.DenseReluDense.wo.weight"] = (size, self.d_ff)
                shapes[f"{prefix}.layer_norm.weight"] = (size,)
            shapes[f"{stack}.final_layer_norm.weight"] = (size,)
        return shapes | ({} if self.tied else {"lm_head.weight": (self.vocab_size, size)})

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def encoder_parameters(self) -> int:
        """Weights that the encoder's pass must read, those that make the cross-attention's keys and values included."""
        layers = self.stacks["encoder"] * (4 * self.d_model * self.inner + self._feed_forward)
        return layers + self.layers * 2 * self.d_model * self.inner

    @property
    def decoder_parameters(self) -> int:
        """Weights of the decoder's layers that a pass must read: six matrices of attention, and the feed-forward."""
        return self.layers * (6 * self.d_model * self.inner + self._feed_forward)

    @property
    def head_parameters(self) -> int:
        """Weights of the vocabulary head."""
        return self.vocab_size * self.d_model

    @property
    def step_parameters(self) -> int:
        """Weights that a decoder pass must read: layers and head, each once."""
        return self.decoder_parameters + self.head_parameters

    def cached_numbers(self, positions: float) -> float:
        """Keys and values of so many positions, of a source or of an output, in all decoder layers."""
        return self.layers * 2 * self.inner * positions

    def decoder_kernels(self, dtype: str, output: int = 0, source: int = 0) -> int:
        """Kernels of a decoder pass over few tokens and its pick on a CUDA device (tests/test_cuda_decode.py counts).

        ``output`` and ``source``: places of the caches. One of more than 192 takes one more kernel of each layer, which
        adds up what blocks have made of its chunks.
        """
        each, others = (15, 7) if dtype == "int8" else (9, 6)
        return (each + (output > 192) + (source > 192)) * self.layers + others

    def encoder_kernels(self, dtype: str) -> int:
        """The same of the encoder and the cross-attention's keys and values."""
        each, cross = (6, 2) if dtype == "fp32" else (10, 3)
        return each * self.stacks["encoder"] + cross * self.layers + 2

    @property
    def _feed_forward(self) -> int:
        return (3 if self.activation.startswith("gated") else 2) * self.d_model * self.d_ff


SHAPES: dict[str, T5Shape] = {
    shape.name: shape
    for shape in (
        T5Shape("flan-t5-small", 512, 64, 6, 1024, 8),
        T5Shape("flan-t5-base", 768, 64, 12, 2048, 12),
        T5Shape("flan-t5-large", 1024, 64, 16, 2816, 24),
        T5Shape("flan-t5-xl", 2048, 64, 32, 5120, 24),
    )
}


def cache_bytes(spec: Mapping[str, Any], rows: int, source_tokens: int, new_tokens: int) -> int:
    """Bytes of a decode's caches on a CPU: keys and values of every decoder layer, over the output and the source.

    ``spec`` is a NativeModel's.

    Positions (one more than outputs: the start token) come in blocks of 16; a head's values are padded to 16, its bf16
    keys to an even number.
    """

    def rounded(value: int, step: int) -> int:
        return (value + step - 1) // step * step

    encoded = spec["encoder"]["layers"] > 0
    positions = (
        rounded(source_tokens, 16) + rounded(new_tokens + 1, 16)
        if encoded
        else rounded(source_tokens + new_tokens + 1, 16)
    )
    decoder, dtype = spec["decoder"], spec["cache_dtype"]
    size = decoder["head_size"]
    key = rounded(size, 2) if dtype == "bf16" else size
    numbers = decoder["key_heads"] * (key + rounded(size, 16))
    return int(decoder["layers"] * rows * positions * numbers * BYTES[dtype])


Values: TypeAlias = "Callable[[], torch.Tensor]"


def find_shape(name: str) -> T5Shape:
    """The shape called ``name``; ValueError with the nearest name, or all of them, if there is none."""
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}{nearest(name, SHAPES)}")
    return SHAPES[name]


def random_tensors(shape: T5Shape, seed: int = 0) -> dict[str, Values]:
    """Every tensor of a random model by name, made anew (fp32) at each call.

    Matrices have a standard deviation of inputs^-1/2, embeddings and head rows of length ~sqrt(d_model), norms are
    one: activations and logits stay near one whatever the depth.
    """
    import numpy as np
    import torch

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
    shape: T5Shape,
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
    from kdtw_fast.model import NativeT5

    return NativeT5(
        shape.config | dict(config),
        random_tensors(shape, seed) | dict(tensors),
        name,
        dtype="fp32" if dtype == "auto" else dtype,
        cache_dtype=cache_dtype,
        device=device,
    )


def random_t5(shape: T5Shape, seed: int = 0, tensors: Mapping[str, Values] = MappingProxyType({})) -> Any:
    """The model of :func:`random_native` as Hugging Face's ``T5ForConditionalGeneration``, fp32, in eval mode."""
    values = {name: make() for name, make in (random_tensors(shape, seed) | dict(tensors)).items()}
    return t5_of(shape, values).requires_grad_(False)


def t5_of(shape: T5Shape, values: Mapping[str, torch.Tensor]) -> Any:
    """Hugging Face's ``T5ForConditionalGeneration`` of this shape with these tensors by name, in eval mode."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**shape.config))
    copies = [f"{stack}.embed_tokens.weight" for stack in shape.stacks] + ["lm_head.weight"] * shape.tied
    model.load_state_dict({**values, **dict.fromkeys(copies, values["shared.weight"])}, assign=True)
    # transformers 5 ties the head of a new T5 whatever its config says; assigning tensors unties all
    model.encoder.embed_tokens = model.decoder.embed_tokens = model.shared
    if shape.tied:
        model.lm_head.weight = model.shared.weight
    model.config.tie_word_embeddings = shape.tied
    model.config.scale_decoder_outputs = shape.scaled
    return model.eval()
