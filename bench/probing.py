"""What the int8 probe costs beside the packing that it belongs to: python -m bench.probing [--repeats N] [--shapes …].

Processor time of packing a random model in memory, without the probe and with it, in turns; the least of the repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import time

import torch

from bench.outliers import not_kept
from kdtw_fast import NativeT5
from kdtw_fast.shapes import SHAPES, random_tensors, t5_of


def seconds(model: torch.nn.Module, probed: bool) -> float:
    """Processor time of one packing."""
    with contextlib.nullcontext() if probed else not_kept():
        began = time.process_time()
        NativeT5.from_model(model, dtype="int8")
        return time.process_time() - began


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.probing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["flan-t5-small", "flan-t5-base"])
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in asked.shapes:
        model = t5_of(SHAPES[name], {key: make() for key, make in random_tensors(SHAPES[name]).items()})
        turns = [(seconds(model, False), seconds(model, True)) for _ in range(asked.repeats)]
        plain, probed = (min(column) for column in zip(*turns))
        share = (probed - plain) / plain
        print(f"{name}: {plain:.3f} s, {probed:.3f} s with the probe: {100 * share:.1f} % more", flush=True)


if __name__ == "__main__":
    main()
