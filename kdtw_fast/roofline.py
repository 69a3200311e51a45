"""Bytes that a decoder's pass must move, and the rates of GPUs' memories: what bounds small batches."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdtw_fast.shapes import BYTES, T5Shape

# Peak memory rate by NVIDIA's data sheets, 10^9 bytes a second, by what is in the name that the driver gives. The first
# that is found holds.
RATES = {
    r"\bT4\b": 320,
    r"\bA10G?\b": 600,
    r"\bL4\b": 300,
    r"\bA100.*40 ?GB": 1555,
    r"\bA100.*80 ?GB.*PCIe": 1935,
    r"\bA100.*80 ?GB": 2039,
    r"\bH100 PCIe": 2000,
    r"\bH100 NVL": 3938,
    r"\bH100\b": 3350,
    r"\bH200\b": 4800,
    r"\bB200\b": 8000,
}


def memory_rate(device: str) -> float | None:
    """Peak bytes a second of the memory of a device by its name, as "Tesla T4"; None where it is not known."""
    return next((1e9 * rate for pattern, rate in RATES.items() if re.search(pattern, device, re.IGNORECASE)), None)


@dataclass(frozen=True)
class Bytes:
    """What one decoder pass over a few tokens of one row must move at least.

    Attributes:
        layers: the decoder's matrices, read once for all tokens.
        head: the vocabulary head.
        cache: keys and values of self- and cross-attention.
        activations: what one operation writes and the next one reads, in fp32, logits included.
    """

    layers: int
    head: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.head + self.cache + self.activations


def decoder_pass(
    shape: T5Shape, length: int, source: int, weights: str = "fp16", cache: str = "fp16", tokens: int = 1
) -> Bytes:
    """Bytes of a pass over `tokens` that ends after `length` positions of self-attention; `source` of cross-attention.

    One token is asked about.
    """
    size, inner = shape.d_model, shape.inner
    return Bytes(
        shape.decoder_parameters * BYTES[weights],
        shape.head_parameters * BYTES[weights],
        int(shape.cached_numbers(length + source)) * BYTES[cache],
        # in, out and the residual stream's in and out of each operation: 9 d + 12 inner + 2 d_ff a layer; norms' scales
        4 * tokens * (size + shape.layers * (9 * size + 12 * inner + 2 * shape.d_ff))
        + 4 * (shape.layers * 3 * size + 5 * size + 2 * shape.vocab_size),
    )
