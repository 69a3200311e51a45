"""What tests of streams share: pairs and sources, and what an output says of a row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from factories import (
    EOS,
    SHAPES,
    START,
    kept,
    pack,
    random_batch,
    random_pair,
    random_t5,
)

import kdtw_fast
from kdtw_fast import GenerationOutput, NativeT5, SingleModelDecoder
from kdtw_fast.selftest import decodes
from kdtw_fast.selftest.agreement import as_array

VOCAB = 43
MATRICES = ("sequences", "owners", "student_logprobs", "teacher_logprobs")
NUMBERS = ("lengths", "teacher_calls", "teacher_fraction", "drafted", "accepted", "rolled_back")
METHODS = [(getattr(kdtw_fast, name), options) for name, options in decodes.METHODS]


@kept
def natives(device: str, relation: str = "noisy", seed: int = 1) -> tuple[NativeT5, NativeT5]:
    """A pair whose rows end early and late."""
    return pack(*random_pair(relation, seed, VOCAB), device)


def make(method: Any, options: dict[str, Any], models: tuple[NativeT5, NativeT5], **more: Any) -> Any:
    student, teacher = models
    return method(*((student,) if method is SingleModelDecoder else (student, teacher)), **options, **more)


def ragged(rows: int, seed: int = 0) -> list[list[int]]:
    ids, mask = random_batch(np.random.default_rng(seed), rows, VOCAB, longest=30)
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


def row_of(output: GenerationOutput, row: int) -> dict[str, Any]:
    """All that an output says about one row, without the others' padding."""
    end = 1 + int(output.lengths[row])
    found = {name: as_array(output[name])[row, :end].tobytes() for name in MATRICES if name in output}
    found |= {name: as_array(output[name])[row].tobytes() for name in NUMBERS}
    return found | {"finish": output.finish_reasons[row], "text": output.texts and output.texts[row]}


def assert_rows(outputs: list[GenerationOutput], expected: GenerationOutput) -> None:
    """Each index once, and each output is the row of that index."""
    assert sorted(out.index for out in outputs) == list(range(len(expected.lengths)))
    for out in outputs:
        assert out.sequences.shape == (1, 1 + int(out.lengths[0]))
        assert row_of(out, 0) == row_of(expected, out.index)


class Tokenizer:
    """Letters to ids 2 ... 27, EOS last; remembers how many texts it was given at a time."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        self.calls.append(len(texts))
        return {"input_ids": [[2 + ord(letter) % 26 for letter in text] + [EOS] for text in texts]}

    def batch_decode(self, sequences: Any, **_: Any) -> list[str]:
        return [" ".join(str(int(i)) for i in row if int(i) != START) for row in sequences]


def nan_for(token: int, device: str) -> tuple[NativeT5, list[list[int]]]:
    """A model that fails for whoever reads `token`, and sources of which the third holds it."""
    model = random_t5(SHAPES[1], VOCAB, seed=6)
    with torch.no_grad():
        model.shared.weight[token] = math.nan
        model.lm_head.weight[token] = 0.0
    return NativeT5.from_model(model, device=device), [
        [5, 6, EOS],
        [7, 8, 10, EOS],
        [11, token, EOS],
        [12, 13, EOS],
        [14, EOS],
    ]


def drain(stream: Any) -> tuple[list[GenerationOutput], BaseException | None]:
    """What a stream yields, and the exception that ends it; nothing comes after that."""
    outputs: list[GenerationOutput] = []
    caught = None
    try:
        outputs.extend(iter(stream.__next__, None))
    except BaseException as error:
        caught = error
    assert list(stream) == []
    return outputs, caught


def assert_sentence(error: BaseException | None, expected: type[Exception], parts: list[str]) -> None:
    assert type(error) is expected
    message = str(error)
    assert "\n" not in message and 10 < len(message) < 400, message
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
