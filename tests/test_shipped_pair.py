"""The pair that ships with the package: real weights against Hugging Face and the oracle, on held-out sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from factories import START, kept, pack

import kdtw_fast
from kdtw_fast import NativeT5, Owner, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder, reference
from kdtw_fast.budgets import student_prompt
from kdtw_fast.pairs import Pair, load_pair
from kdtw_fast.selftest.agreement import Tally, compare

MOST_NEW = 48


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("debian-de-en")


@kept
def natives(device: str) -> tuple[NativeT5, NativeT5]:
    """In fp32, as torch holds them: tensor cores would round what they encode."""
    pair = load_pair("debian-de-en")
    return pack(pair.student, pair.teacher, device)


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


def test_logits_are_hugging_faces(pair: Pair, device: str) -> None:
    for sample in pair.samples(12 if device == "cpu" else 1):
        source = pair.tokenizer(pair.teacher.config.teacher_prompt + sample.source)["input_ids"]
        tokens = [START, *pair.tokenizer(sample.target)["input_ids"]]
        for model, packed in zip((pair.student, pair.teacher), natives(device), strict=True):
            with torch.inference_mode():
                expected = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([tokens])).logits[0]
            whole = packed.decode_logits(source, tokens)
            np.testing.assert_allclose(whole, expected.numpy(), atol=1e-4, rtol=0)
            steps = packed.decode_logits(source, tokens, chunks=[1] * len(tokens), num_threads=2)
            assert np.array_equal(steps, whole)


def test_folders_equal_models_in_memory(pair: Pair, device: str) -> None:
    tokens = [START, 20, 30, 40]
    for name, packed in zip(("student", "teacher"), natives(device), strict=True):
        dtype = "auto" if device == "cpu" else "fp32"
        loaded = NativeT5.from_pretrained(pair.folder / name, dtype=dtype, device=device)
        assert np.array_equal(loaded.decode_logits([5, 6, 1], tokens), packed.decode_logits([5, 6, 1], tokens))


def test_greedy_is_hugging_faces_generate(pair: Pair, device: str) -> None:
    rows, limit = (24, MOST_NEW) if device == "cpu" else (2, 6)
    batch = teacher_inputs(pair, rows)
    expected = pair.teacher.generate(**batch, max_new_tokens=limit, do_sample=False, num_beams=1)
    output = SingleModelDecoder(natives(device)[1]).generate(**batch, max_new_tokens=limit)
    assert output.sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("draft_length", [1, 4, 8])
def test_lossless_speculation_is_the_teacher(pair: Pair, draft_length: int, device: str) -> None:
    rows, limit = (40, MOST_NEW) if device == "cpu" else (1, 8)
    expected = SingleModelDecoder(natives(device)[1]).generate(**teacher_inputs(pair, rows), max_new_tokens=limit)
    decoder = SpeculativeDecoder(*natives(device), draft_length=draft_length)
    output = decoder.generate(**inputs(pair, rows, "no"), max_new_tokens=limit)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert int(output.accepted.sum()) > 0


METHODS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("SingleModelDecoder", {}, {}),
    ("TrainingWheelsDecoder", {}, {}),
    ("TrainingWheelsDecoder", {}, {"max_teacher_fraction": 0.2}),
    ("TrainingWheelsDecoder", {"verify_lenience": 0.3}, {}),
    ("SpeculativeDecoder", {"draft_length": 4}, {}),
    ("SpeculativeDecoder", {"draft_length": 4, "lenience": 0.3}, {}),
    ("BigLittleDecoder", {}, {}),
    ("InterleavedDecoder", {"accept_top_k": 5}, {}),
]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("name", "options", "settings"), METHODS)
def test_every_method_equals_the_oracle(
    pair: Pair,
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    temperature: float,
    device: str,
    oracle_tally: Tally,
) -> None:
    rows, limit = (2, 24) if device == "cpu" else (1, 5)
    models = 1 if name == "SingleModelDecoder" else 2
    batch = inputs(pair, rows, "high", skip=4) | settings
    batch |= {"max_new_tokens": limit, "temperature": temperature, "seed": 6}
    if models == 1:
        del batch["teacher_inputs"]
    output = getattr(kdtw_fast, name)(*natives(device)[:models], **options).generate(**batch, output_logprobs=True)
    expected = getattr(reference, name)(*(pair.student, pair.teacher)[:models], **options).generate(**batch)
    oracle_tally.add(compare(output, expected, f"{name} {options} temperature {temperature}"))
    assert oracle_tally.differing == 0


def test_strings_in_strings_out(pair: Pair, device: str) -> None:
    """`decoder(text, budget=...)` builds the prompts that the pair was trained with."""
    rows, limit, budgets = (6, MOST_NEW, ("no", "light", "very high", 0.3)) if device == "cpu" else (1, 6, ("high",))
    texts = [sample.source for sample in pair.samples(rows)]
    decoder = TrainingWheelsDecoder(*natives(device), tokenizer=pair.tokenizer)
    for budget in budgets:
        output = decoder(texts, budget=budget, max_new_tokens=limit)
        calls = {"max_teacher_calls": 0} if budget == "no" else {}
        expected = decoder.generate(**inputs(pair, rows, budget), max_new_tokens=limit, **calls)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert output.texts == pair.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        assert all(text.strip() for text in output.texts)


def test_the_student_asks_and_the_ledger_holds(pair: Pair, device: str) -> None:
    decoder = TrainingWheelsDecoder(*natives(device))
    rows, limit = (40, MOST_NEW) if device == "cpu" else (2, 12)
    free = decoder.generate(**inputs(pair, rows, "very high"), max_new_tokens=limit)
    assert int(free.teacher_calls.sum()) > 0
    bounded = decoder.generate(**inputs(pair, rows, "very high"), max_new_tokens=limit, max_teacher_fraction=0.1)
    assert bool((10 * bounded.teacher_calls <= bounded.lengths).all())
    asked = (free.owners == Owner.TEACHER).sum(dim=1)
    assert asked.tolist() == free.teacher_calls.tolist()
