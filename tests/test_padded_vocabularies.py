"""Pairs of one tokenizer whose vocabularies are padded to different sizes decode with the rows that both have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from factories import grow_vocabulary, pack, random_pair
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from kdtw_fast import AutoDecoder, NativeT5
from kdtw_fast.decoders import (
    BigLittleDecoder,
    InterleavedDecoder,
    SingleModelDecoder,
    SpeculativeCascadeDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)

ROWS, SOURCES = 43, [[5, 9, 17, 1], [30, 2, 1]]


def tokenizer(tokens: int) -> Tokenizer:
    return Tokenizer(WordLevel({f"word{i}": i for i in range(tokens)}, unk_token="word2"))


def padded(model: Any, rows: int = 21) -> Any:
    """A copy with `rows` more; one of any two would always be picked, if it could."""
    before = model.config.vocab_size
    larger = grow_vocabulary(copy.deepcopy(model), before + rows)
    with torch.no_grad():
        head = larger.lm_head.weight
        head[before:] = 9 * head[:before].abs().max()
        head[before + 1 :: 2] *= -1
    return larger


METHODS = [TrainingWheelsDecoder, SpeculativeDecoder, SpeculativeCascadeDecoder, BigLittleDecoder, InterleavedDecoder]


@pytest.mark.parametrize("larger", ["student", "teacher"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_both_pick_from_the_common_rows(method: Any, temperature: float, larger: str, device: str) -> None:
    options = {"temperature": temperature, "max_new_tokens": 12, "seed": 7}
    for seed in range(4):
        student, teacher = random_pair("noisy", seed, ROWS)
        expected = method(*pack(student, teacher, device)).generate(SOURCES, **options)
        pair = (padded(student), teacher) if larger == "student" else (student, padded(teacher))
        output = method(*pack(*pair, device), tokenizer=tokenizer(ROWS - 1)).generate(SOURCES, **options)
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(output.owners, expected.owners)
        alone = SingleModelDecoder(NativeT5.from_model(pair[larger == "teacher"], device=device)).generate(
            SOURCES, **options
        )
        assert int(alone.sequences.max()) > ROWS  # the test could fail


@pytest.mark.parametrize("decoder", [SpeculativeDecoder, AutoDecoder])
def test_what_may_be_more_than_padding_is_refused(decoder: Any) -> None:
    student, teacher = random_pair("noisy", 2, ROWS)
    larger = padded(teacher)
    with pytest.raises(ValueError, match=r"student has 4\d rows of vocabulary, the teacher 64; pass tokenizer=…"):
        decoder(student, larger)
    with pytest.raises(ValueError, match=r"teacher 64, and the tokenizer has 'word4\d' in row 4\d; a pair must share"):
        decoder(student, larger, tokenizer=tokenizer(60))


def test_tau_behind_rows_that_the_teacher_lacks_is_refused() -> None:
    student, teacher = random_pair("noisy", 2, ROWS)
    with pytest.raises(ValueError, match=r"<tau> is row 70 .*, behind row 4[34], which the teacher's 43 rows"):
        TrainingWheelsDecoder(far_tau(student), teacher, tokenizer=tokenizer(ROWS - 1))


def far_tau(student: Any) -> Any:
    larger = grow_vocabulary(copy.deepcopy(student), 71)
    larger.config.tau_token_id = 70
    return larger
