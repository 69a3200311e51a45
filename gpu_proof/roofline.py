"""Bytes that decoding must move, and the time they would take at a GPU's full memory rate: a computed bound, no timing.

python -m gpu_proof.roofline    prints the table of docs/cuda.md
"""

from kdtw_fast.roofline import decoder_pass, memory_rate
from kdtw_fast.shapes import SHAPES
from kdtw_fast.tables import markdown_table

LENGTH, SOURCE = 64, 512  # tokens written so far, and of the source, in the table
DEVICES = ("T4", "A100 40 GB", "H100 SXM")


def table() -> str:
    """Markdown: bytes of a decoder pass over one token, and the milliseconds that they take at a GPU's memory rate."""
    rows = []
    for shape in SHAPES.values():
        for weights in ("fp16", "int8"):
            moved = decoder_pass(shape, LENGTH, SOURCE, weights).total
            bounds = (f"{1e3 * moved / (memory_rate(name) or 0):.2f}" for name in DEVICES)
            rows.append(
                [
                    f"{shape.name}, {weights}",
                    f"{moved / 1e6:.0f}",
                    *bounds,
                    str(shape.decoder_kernels(weights, LENGTH, SOURCE)),
                ]
            )
    columns = ("shape", "MB", *(f"{name}, ms" for name in DEVICES), "kernels")
    return "\n".join(markdown_table(columns, rows))


if __name__ == "__main__":
    print(table())
