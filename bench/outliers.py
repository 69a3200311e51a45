"""What int8 makes of outlier channels: python -m bench.outliers [--sentences N].

Of the shipped teacher, the share of next tokens that int8 picks as fp32 does, over prefixes of fp32's own outputs,
where a few channels are f times larger, in three ways. "weights": inner channels of every feed-forward, which the next
matrix reads as much smaller. "norms": what every norm's weights make of a channel that the next matrices read twice,
once with either sign. "products": gates, and what they gate, each by the root of f, read in the same way. The first
stands in the weights, and int8 makes it even; the others arise only when the model runs, and cancel out in fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast import NativeModel, NativeT5, SingleModelDecoder
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


def with_outlying_norms(model: T5ForConditionalGeneration, factor: float) -> T5ForConditionalGeneration:
    """A channel of the residual stream that every layer's norm makes larger by a factor, and its twin: all that read
    them read their difference, which is zero."""
    one, twin = 3, 7
    with torch.no_grad():
        model.shared.weight[:, twin] = model.shared.weight[:, one]
        for stack in (model.encoder, model.decoder):
            for block in stack.block:
                for layer in block.layer:
                    layer.layer_norm.weight[[one, twin]] = factor * layer.layer_norm.weight.median()
                    for name, matrix in layer.named_modules():
                        kind = name.rpartition(".")[2]
                        if kind in ("o", "wo"):
                            matrix.weight[twin] = matrix.weight[one]
                        elif kind in ("q", "wi", "wi_0", "wi_1") or (kind in ("k", "v") and "Enc" not in name):
                            matrix.weight[:, twin] = -matrix.weight[:, one]
    return model


def with_outlying_products(model: T5ForConditionalGeneration, factor: float) -> T5ForConditionalGeneration:
    """Two inner channels of every feed-forward whose gates and linear parts are larger by the root of a factor, and
    their twins, which the next matrix takes off again."""
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            for block in stack.block:
                dense = block.layer[-1].DenseReluDense
                for matrix in (dense.wi_0, dense.wi_1):
                    matrix.weight[[0, 1]] *= factor**0.5
                    matrix.weight[[2, 3]] = matrix.weight[[0, 1]]
                dense.wo.weight[:, [2, 3]] = -dense.wo.weight[:, [0, 1]]
    return model


WAYS = {"weights": with_outliers, "norms": with_outlying_norms, "products": with_outlying_products}


def rows_of(sentences: int) -> tuple[T5ForConditionalGeneration, list[list[int]], list[list[int]]]:
    """The teacher in fp32, sources, and what it makes of them."""
    pair = load_pair()
    model = copy.deepcopy(pair.teacher).float()
    prompt = model.config.teacher_prompt or ""
    sources = [pair.tokenizer(prompt + sample.source)["input_ids"] for sample in pair.samples(sentences)]
    return model, sources, outputs_of(model, sources)


def outputs_of(model: Any, sources: list[list[int]]) -> list[list[int]]:
    """What fp32 makes of the sources."""
    out = SingleModelDecoder(NativeT5.from_model(model, dtype="fp32")).generate(sources, max_new_tokens=48)
    return [row[: 1 + int(n)] for row, n in zip(out.sequences.tolist(), out.lengths)]


def agreement(model: Any, sources: list[list[int]], outputs: list[list[int]], dtype: str) -> float:
    """The share of the outputs' tokens that the model in a number format picks next."""
    return same_next(NativeT5.from_model(model, dtype=dtype), sources, outputs)


def same_next(native: NativeModel, sources: Sequence[list[int]], outputs: Sequence[list[int]]) -> float:
    """The share of the outputs' tokens that a model picks next, which are never <tau>."""
    same = total = 0
    for source, tokens in zip(sources, outputs):
        logits = native.decode_logits(source, tokens[:-1])
        logits[:, native.tau_token_ids] = float("-inf")
        same += int((logits.argmax(1) == tokens[1:]).sum())
        total += len(tokens) - 1
    return same / total


@contextlib.contextmanager
def not_equalised() -> Iterator[None]:
    """int8 as it would be without kdtw_fast/equalising.py."""
    with mock.patch.object(Equaliser, "apply", lambda self, key, array: array):
        yield


@contextlib.contextmanager
def not_kept() -> Iterator[None]:
    """int8 in every matrix, as it would be without kdtw_fast/probing.py."""
    with mock.patch("kdtw_fast.model.probe_tokens", lambda *_: None):
        yield


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.outliers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sentences", type=int, default=200)
    plain, sources, outputs = rows_of(parser.parse_args(arguments).sentences)
    for way, change in WAYS.items():
        for factor in FACTORS:
            model = change(copy.deepcopy(plain), factor)
            rows = outputs_of(model, sources) if way != "weights" else outputs
            with not_equalised(), not_kept():
                before = agreement(model, sources, rows, "int8")
            after = agreement(model, sources, rows, "int8")
            native = NativeT5.from_model(model, dtype="int8")
            print(
                f"{way}, f = {factor:3g}: int8 picks as fp32 {100 * after:6.2f} %, of itself {100 * before:6.2f} %; "
                f"{len(native.kept_bf16)} of {len(native.core.blobs)} matrices are bf16",
                flush=True,
            )


if __name__ == "__main__":
    main()
