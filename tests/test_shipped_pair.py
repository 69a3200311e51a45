"""The pair that ships with the package: real weights against Hugging Face and the oracle, on held-out sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from factories import START

import kdtw_fast
from kdtw_fast import (
    BigLittleDecoder,
    GreedyDecoder,
    InterleavedDecoder,
    NativeT5,
    Owner,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
    reference,
)
from kdtw_fast.budgets import student_prompt
from kdtw_fast.pairs import Pair, load_pair
from kdtw_fast.selftest.agreement import Tally, compare

MOST_NEW = 48


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("debian-de-en")


@pytest.fixture(scope="module")
def native(pair: Pair) -> tuple[NativeT5, NativeT5]:
    return NativeT5.from_model(pair.student, "student"), NativeT5.from_model(pair.teacher, "teacher")


def inputs(pair: Pair, count: int, budget: str = "light", skip: int = 0) -> dict[str, Any]:
    """Student's and teacher's tokens of `count` held-out sentences, each with its prompt."""
    sources = [sample.source for sample in pair.samples(skip + count)[skip:]]
    student = student_prompt(budget, pair.student.config.student_prompt)
    batch = pair.tokenizer([student + source for source in sources], padding=True, return_tensors="pt")
    teacher = [pair.teacher.config.teacher_prompt + source for source in sources]
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "teacher_inputs": dict(pair.tokenizer(teacher, padding=True, return_tensors="pt")),
    }


def teacher_inputs(pair: Pair, count: int) -> dict[str, Any]:
    batch = inputs(pair, count)["teacher_inputs"]
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def test_logits_are_hugging_faces(pair: Pair, native: tuple[NativeT5, NativeT5]) -> None:
    for sample in pair.samples(12):
        source = pair.tokenizer(pair.teacher.config.teacher_prompt + sample.source)["input_ids"]
        tokens = [START, *pair.tokenizer(sample.target)["input_ids"]]
        for model, packed in zip((pair.student, pair.teacher), native, strict=True):
            with torch.inference_mode():
                expected = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([tokens])).logits[0]
            whole = packed.decode_logits(source, tokens)
            np.testing.assert_allclose(whole, expected.numpy(), atol=1e-4, rtol=0)
            steps = packed.decode_logits(source, tokens, chunks=[1] * len(tokens), num_threads=2)
            assert np.array_equal(steps, whole)


def test_folders_equal_models_in_memory(pair: Pair, native: tuple[NativeT5, NativeT5]) -> None:
    tokens = [START, 20, 30, 40]
    for name, packed in zip(("student", "teacher"), native, strict=True):
        loaded = NativeT5.from_pretrained(pair.folder / name)
        assert np.array_equal(loaded.decode_logits([5, 6, 1], tokens), packed.decode_logits([5, 6, 1], tokens))


def test_greedy_is_hugging_faces_generate(pair: Pair, native: tuple[NativeT5, NativeT5]) -> None:
    batch = teacher_inputs(pair, 24)
    expected = pair.teacher.generate(**batch, max_new_tokens=MOST_NEW, do_sample=False, num_beams=1)
    output = GreedyDecoder(native[1]).generate(**batch, max_new_tokens=MOST_NEW)
    assert output.sequences.tolist() == expected.tolist()


def test_lossless_speculation_is_the_teacher(pair: Pair, native: tuple[NativeT5, NativeT5]) -> None:
    expected = GreedyDecoder(native[1]).generate(**teacher_inputs(pair, 40), max_new_tokens=MOST_NEW)
    for draft_length in (1, 4, 8):
        decoder = SpeculativeDecoder(*native, draft_length=draft_length)
        output = decoder.generate(**inputs(pair, 40, "no"), max_new_tokens=MOST_NEW)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert int(output.accepted.sum()) > 0


METHODS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("GreedyDecoder", {}, {}),
    ("TrainingWheelsDecoder", {}, {}),
    ("TrainingWheelsDecoder", {}, {"max_teacher_fraction": 0.2}),
    ("TrainingWheelsDecoder", {"verify_lenience": 0.3}, {}),
    ("SpeculativeDecoder", {"draft_length": 4}, {}),
    ("SpeculativeDecoder", {"draft_length": 4, "lenience": 0.3}, {}),
    ("BigLittleDecoder", {}, {}),
    ("InterleavedDecoder", {"accept_top_k": 5}, {}),
]
DECODERS = (GreedyDecoder, TrainingWheelsDecoder, SpeculativeDecoder, BigLittleDecoder, InterleavedDecoder)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_method_equals_the_oracle(
    pair: Pair, native: tuple[NativeT5, NativeT5], temperature: float, oracle_tally: Tally
) -> None:
    for name, options, settings in METHODS:
        fast = next(cls for cls in DECODERS if cls.__name__ == name)
        slow = getattr(reference, name)
        models = 1 if name == "GreedyDecoder" else 2
        batch = inputs(pair, 2, "high", skip=4)
        if models == 1:
            del batch["teacher_inputs"]
        batch |= settings | {"max_new_tokens": 24, "temperature": temperature, "seed": 6}
        output = fast(*native[:models], **options).generate(**batch, output_logprobs=True)
        expected = slow(*(pair.student, pair.teacher)[:models], **options).generate(**batch)
        oracle_tally.add(compare(output, expected, f"{name} {options} temperature {temperature}"))
    assert oracle_tally.differing <= 1


@pytest.mark.parametrize("name", ["GreedyDecoder", "TrainingWheelsDecoder", "SpeculativeDecoder"])
def test_the_pair_on_a_simulated_device(pair: Pair, name: str, device: str, oracle_tally: Tally) -> None:
    """Real weights, vocabulary and shapes; in fp32, because tensor cores round what they encode."""
    roles = ["student"] if name == "GreedyDecoder" else ["student", "teacher"]
    packed = [NativeT5.from_pretrained(pair.folder / role, role, "fp32", device=device) for role in roles]
    batch = inputs(pair, 1, "very high", skip=3) | {"max_new_tokens": 8}
    if len(roles) == 1:
        del batch["teacher_inputs"]
    output = getattr(kdtw_fast, name)(*packed).generate(**batch, output_logprobs=True)
    expected = getattr(reference, name)(*(getattr(pair, role) for role in roles)).generate(**batch)
    oracle_tally.add(compare(output, expected, name))
    assert oracle_tally.differing == 0


def test_strings_in_strings_out(pair: Pair) -> None:
    """`decoder(text, budget=...)` builds the prompts that the pair was trained with."""
    texts = [sample.source for sample in pair.samples(6)]
    decoder = TrainingWheelsDecoder(pair.student, pair.teacher, tokenizer=pair.tokenizer)
    for budget in ("no", "light", "very high", 0.3):
        output = decoder(texts, budget=budget, max_new_tokens=MOST_NEW)
        limit = {"max_teacher_calls": 0} if budget == "no" else {}
        expected = decoder.generate(**inputs(pair, 6, budget), max_new_tokens=MOST_NEW, **limit)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert output.texts == pair.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        assert all(text.strip() for text in output.texts)


def test_the_student_asks_and_the_ledger_holds(pair: Pair, native: tuple[NativeT5, NativeT5]) -> None:
    decoder = TrainingWheelsDecoder(*native)
    free = decoder.generate(**inputs(pair, 40, "very high"), max_new_tokens=MOST_NEW)
    assert int(free.teacher_calls.sum()) > 0
    bounded = decoder.generate(**inputs(pair, 40, "very high"), max_new_tokens=MOST_NEW, max_teacher_fraction=0.1)
    assert bool((10 * bounded.teacher_calls <= bounded.lengths).all())
    asked = (free.owners == Owner.TEACHER).sum(dim=1)
    assert asked.tolist() == free.teacher_calls.tolist()
