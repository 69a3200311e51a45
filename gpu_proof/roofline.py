"""Bytes that decoding must move, and the time they would take at a GPU's full memory rate: a computed bound, no timing.

python -m gpu_proof.roofline [--weights fp16|bf16|fp32|int8] [--length 64] [--source 512]
"""

import argparse
from dataclasses import dataclass

from kdtw_fast.shapes import SHAPES, Shape

# Peak memory rate by NVIDIA's data sheets, 10^9 bytes a second.
RATES = {"T4": 320, "A100 40 GB": 1555, "H100 SXM": 3350}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Bytes:
    """What one decoder pass over a few tokens of one row must read at least.

    Attributes:
        layers: the decoder's matrices, read once for all tokens.
        head: the vocabulary head.
        cache: keys and values of self- and cross-attention.
    """

    layers: int
    head: int
    cache: int

    @property
    def total(self) -> int:
        return self.layers + self.head + self.cache


def decoder_pass(shape: Shape, length: int, source: int, weights: str = "fp16", cache: str = "fp16") -> Bytes:
    """Bytes of a pass that reads `length` positions of self-attention and `source` of cross-attention."""
    inner = shape.d_kv * shape.heads
    # query, key, value, output of self-attention; query and output of cross-attention; gate, input, output
    matrices = 6 * shape.d_model * inner + 3 * shape.d_model * shape.d_ff
    positions = 2 * inner * (length + source)
    return Bytes(
        shape.layers * matrices * BYTES[weights],
        shape.vocab_size * shape.d_model * BYTES[weights],
        shape.layers * positions * BYTES[cache],
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", choices=BYTES, default="fp16")
    parser.add_argument("--length", type=int, default=64, help="tokens written so far")
    parser.add_argument("--source", type=int, default=512, help="tokens of the source")
    options = parser.parse_args()
    print(f"one token, one row, {options.weights} weights, {options.length} tokens written, {options.source} of source")
    print("computed: bytes over peak memory rate; no GPU was timed")
    for shape in SHAPES.values():
        count = decoder_pass(shape, options.length, options.source, options.weights)
        bounds = "  ".join(f"{name} {count.total / rate / 1e6:.2f} ms" for name, rate in RATES.items())
        layers, head, cache = (part / 1e6 for part in (count.layers, count.head, count.cache))
        print(f"{shape.name:16s} {layers:8.1f} + {head:6.1f} + {cache:6.1f} MB  {bounds}")


if __name__ == "__main__":
    main()
