"""Pairs of one tokenizer whose vocabularies are padded to different sizes decode with the rows that both have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from factories import SHAPES, grow_vocabulary, pack, random_pair, random_t5
from test_auto import DRAFTING_PAYS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

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
        words = tokenizer(ROWS - 1)
        expected = method(*pack(student, teacher, device), tokenizer=words).generate(SOURCES, **options)
        pair = (padded(student), teacher) if larger == "student" else (student, padded(teacher))
        output = method(*pack(*pair, device), tokenizer=words).generate(SOURCES, **options)
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("pair_of", [SpeculativeDecoder, AutoDecoder])
def test_padding_is_picked_by_no_model_alone_either(pair_of: Any, temperature: float, device: str) -> None:
    """What is lossless gives a padded teacher's own output, without padding where the tokenizer is known."""
    options = {"temperature": temperature, "max_new_tokens": 12, "seed": 7}
    for seed in range(4):
        student, teacher = random_pair("noisy", seed, ROWS)
        words = tokenizer(ROWS)
        pair = pack(random_t5(SHAPES[0], ROWS, seed=seed), padded(teacher), device)
        alone = SingleModelDecoder(pair[1], role="teacher", tokenizer=words).generate(SOURCES, **options)
        plain = SingleModelDecoder(pack(student, teacher, device)[1], role="teacher").generate(SOURCES, **options)
        assert torch.equal(alone.sequences, plain.sequences)
        if not temperature:  # else the two draw different tokens of one distribution
            both = pair_of(*pair, tokenizer=words)
            assert torch.equal(both.generate(SOURCES, **options).sequences, alone.sequences)
        unknown = SingleModelDecoder(pair[1], role="teacher").generate(SOURCES, **options)
        assert int(unknown.sequences.max()) >= ROWS  # the test could fail
        with pytest.raises(ValueError, match=rf"forced_tokens entry must be in 0\.\.{ROWS - 1}, got {ROWS}"):
            SingleModelDecoder(pair[1], tokenizer=words).generate(SOURCES, forced_tokens=[ROWS])


def test_padding_between_the_tokenizers_rows_and_tau_is_not_picked(device: str) -> None:
    words, picked = tokenizer(ROWS - 10), set()
    for seed in range(4):
        student, teacher = random_pair("noisy", seed, ROWS)
        assert student.config.tau_token_id > ROWS - 10
        models = pack(student, teacher, device)
        for decoder in (
            TrainingWheelsDecoder(*models, tokenizer=words),
            SpeculativeDecoder(*models, tokenizer=words),
            SingleModelDecoder(models[0], tokenizer=words),
        ):
            out = decoder.generate(SOURCES, max_new_tokens=12, temperature=1.5)
            picked |= set(out.sequences.flatten().tolist())
    assert max(picked) < ROWS - 10


def test_tokens_added_to_a_model_in_memory_are_its_own(tmp_path: Any) -> None:
    """The folder that it came from says nothing of them."""
    model = random_t5(SHAPES[2], 20, seed=3)
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer(20), eos_token="t1", pad_token="t0").save_pretrained(tmp_path)
    again = padded(type(model).from_pretrained(tmp_path))
    ids = [[5, 6, 1]]
    known = SingleModelDecoder(NativeT5.from_pretrained(tmp_path)).generate(ids, max_new_tokens=8)
    there = SingleModelDecoder(again).generate(ids, max_new_tokens=8).sequences.tolist()
    theirs = again.generate(torch.tensor(ids), max_new_tokens=8, do_sample=False, num_beams=1).tolist()
    assert max(known.sequences[0]) < 20 <= max(there[0])
    assert there[0] == theirs[0][: len(there[0])]


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_auto_tells_its_methods_the_tokenizer(larger: str) -> None:
    student, teacher = random_pair("noisy", 2, ROWS)
    pair = (padded(student), teacher) if larger == "student" else (student, padded(teacher))
    for quality in ("teacher", "light", "student"):
        decoder = AutoDecoder(*pair, quality=quality, tokenizer=tokenizer(ROWS - 1), costs=DRAFTING_PAYS)
        assert int(decoder.generate(SOURCES, max_new_tokens=12).sequences.max()) < ROWS
