"""Bytes that decoding must move, and the time they would take at a GPU's full memory rate: a computed bound, no timing.

python -m gpu_proof.roofline    prints the table of docs/cuda.md
"""

from dataclasses import dataclass

from kdtw_fast.shapes import BYTES, SHAPES, T5Shape
from kdtw_fast.tables import markdown_table

LENGTH, SOURCE = 64, 512  # tokens written so far, and of the source, in the table

# Peak memory rate by NVIDIA's data sheets, 10^9 bytes a second.
RATES = {"T4": 320, "A100 40 GB": 1555, "H100 SXM": 3350}


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


def table() -> str:
    """Markdown: bytes of a decoder pass over one token, and the milliseconds that they take at a GPU's memory rate."""
    rows = []
    for shape in SHAPES.values():
        for weights in ("fp16", "int8"):
            count = decoder_pass(shape, LENGTH, SOURCE, weights)
            bounds = (f"{count.total / rate / 1e6:.2f}" for rate in RATES.values())
            rows.append(
                [f"{shape.name}, {weights}", f"{count.total / 1e6:.0f}", *bounds, str(shape.decoder_kernels(weights))]
            )
    columns = ("shape", "MB", *(f"{name}, ms" for name in RATES), "kernels")
    return "\n".join(markdown_table(columns, rows))


if __name__ == "__main__":
    print(table())
