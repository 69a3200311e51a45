"""What int8 makes of outlier channels: python -m bench.outliers [--sentences N].

The shipped teacher, and the same function with a few inner channels of every feed-forward made f times larger and
the next matrix's columns as much smaller: the share of next tokens that int8 picks as fp32 does, over prefixes of
fp32's own outputs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast import NativeT5, SingleModelDecoder
from kdtw_fast.equalising import Equaliser
from kdtw_fast.pairs import load_pair

FACTORS = (1.0, 30.0, 100.0, 300.0)
CHANNELS = 4


def with_outliers(model: T5ForConditionalGeneration, factor: float) -> T5ForConditionalGeneration:
    """The model, with that many inner channels of every feed-forward larger by a factor, and the same function."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            for block in stack.block:
                dense = block.layer[-1].DenseReluDense
                made = dense.wi_1 if hasattr(dense, "wi_1") else dense.wi
                chosen = torch.randperm(made.weight.shape[0], generator=generator)[:CHANNELS]
                made.weight[chosen] *= factor
                dense.wo.weight[:, chosen] /= factor
    return model


def rows_of(sentences: int) -> tuple[T5ForConditionalGeneration, list[list[int]], list[list[int]]]:
    """The teacher in fp32, sources, and what it makes of them."""
    pair = load_pair()
    model = copy.deepcopy(pair.teacher).float()
    prompt = model.config.teacher_prompt or ""
    sources = [pair.tokenizer(prompt + sample.source)["input_ids"] for sample in pair.samples(sentences)]
    out = SingleModelDecoder(NativeT5.from_model(model, dtype="fp32")).generate(sources, max_new_tokens=48)
    outputs = [row[: 1 + int(n)] for row, n in zip(out.sequences.tolist(), out.lengths)]
    return model, sources, outputs


def agreement(model: Any, sources: list[list[int]], outputs: list[list[int]], dtype: str) -> float:
    """The share of the outputs' tokens that the model in a number format picks next."""
    native = NativeT5.from_model(model, dtype=dtype)
    same = total = 0
    for source, tokens in zip(sources, outputs):
        same += int((native.decode_logits(source, tokens[:-1]).argmax(1) == tokens[1:]).sum())
        total += len(tokens) - 1
    return same / total


@contextlib.contextmanager
def not_equalised() -> Iterator[None]:
    """int8 as it would be without kdtw_fast/equalising.py."""
    with mock.patch.object(Equaliser, "apply", lambda self, key, array: array):
        yield


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.outliers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sentences", type=int, default=200)
    plain, sources, outputs = rows_of(parser.parse_args(arguments).sentences)
    for factor in FACTORS:
        model = with_outliers(copy.deepcopy(plain), factor)
        with not_equalised():
            before = agreement(model, sources, outputs, "int8")
        after = agreement(model, sources, outputs, "int8")
        print(f"f = {factor:5g}: int8 picks as fp32 {100 * after:6.2f} %, without equalising {100 * before:6.2f} %")


if __name__ == "__main__":
    main()
