"""What training a pair without an encoder gives, on a toy language: budgets are held, and asking beats random calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdtw_fast.training import recipes
from kdtw_fast.training.debian import Example, write_jsonl
from kdtw_fast.training.evaluate import excess, measure_budgets, measure_use, stream_inputs
from kdtw_fast.training.frames import Frame
from kdtw_fast.training.tokenizer import padded_vocabulary, train_tokenizer
from toy_decoders import random_pair_member
from toy_training import overrides
from transformers import AutoTokenizer

from kdtw_fast import RandomCallDecoder, TrainingWheelsDecoder
from kdtw_fast.budgets import BUDGETS, STUDENT_PROMPT, TEACHER_PROMPT, student_prompt

WORDS, LENGTH = 24, 40  # of the language's vocabulary, and the longest output in tokens


def sentences(count: int, seed: int) -> list[Example]:
    """A language translated word by word, whose words are as unequally frequent as a language's."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abdefgiklmnoprstu"), size=5)) for _ in range(2 * WORDS)]
    rng = np.random.default_rng(seed)
    frequency = 1 / (1 + np.arange(WORDS)) ** 0.8
    rows = []
    for i in range(count):
        chosen = rng.choice(WORDS, size=rng.integers(5, 10), p=frequency / frequency.sum())
        source, target = (" ".join(words[w + side] for w in chosen) for side in (0, WORDS))
        rows.append(Example(source, target, f"p{i}"))
    return rows


def train(root: Path, recipe: str, out: str, **more: Any) -> None:
    common: dict[str, Any] = {
        "data__folder": root / "data",
        "tokenizer": root / "tokenizer",
        "bf16": "false",
        "target_tokens": 1024,
        "max_new_tokens": LENGTH,
        "checkpoint_every": 1000,
        "validate_every": 0,
        "validation_rows": 60,
        "sample_every": 0,
        "optimiser__warmup": 20,
    }
    recipes.train(recipe, *overrides(**{**common, "threads": 1, **more, "out": root / out}), quiet=True)


@pytest.mark.long
def test_a_trained_llama_pair_holds_its_budgets_and_beats_random_calls(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    root = tmp_path
    write_jsonl(root / "data/train.jsonl", sentences(2000, 1))
    write_jsonl(root / "data/validation.jsonl", sentences(100, 2))
    texts = [text for row in sentences(2000, 1) for text in (row.source, row.target)]
    train_tokenizer(texts, 420, [TEACHER_PROMPT, *map(student_prompt, BUDGETS)]).save_pretrained(root / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    for role, width, steps in (("teacher", 64, 240), ("student", 32, 200)):
        random_pair_member("llama", padded_vocabulary(len(tokenizer)), width, 1).save_pretrained(root / role / "random")
        start = {f"{role}__path": root / role / "random"}
        train(root, "debian-de-en/teacher", role, role=role, steps=steps, dropout=0.0, **start)
    pair = {"student__path": root / "student/model", "teacher__path": root / "teacher/model"}
    train(root, "debian-de-en/phase1", "phase1", **pair, steps=300, trajectories=1000, abstain=2.0)
    pair["student__path"] = root / "phase1/model"
    train(root, "debian-de-en/phase2", "phase2", **pair, steps=200, value_batches=10, validate_every=20, log_every=20)

    student, teacher, test = root / "phase2/best", root / "teacher/model", sentences(150, 3)
    decoder = TrainingWheelsDecoder(student, teacher, tokenizer=tokenizer, num_threads=1)
    frame = Frame(tokenizer, decoder.model.has_encoder, [STUDENT_PROMPT, TEACHER_PROMPT])
    table = measure_budgets(decoder, test, frame=frame, max_new_tokens=LENGTH)
    gains = []
    for row in table[1:]:
        inputs, asking = stream_inputs(decoder, test, frame, row["budget"])
        control = RandomCallDecoder(student, teacher, threshold=1 - row["achieved"], tokenizer=tokenizer, num_threads=1)
        found = measure_use(control, test, inputs, max_new_tokens=LENGTH, **asking)
        gains.append(row["bleu"] - found["bleu"])
    print("\n", *table, gains, sep="\n")
    # Training goes another way on every kind of processor: 0.064 was seen on one, on others less than 0.06.
    assert max(abs(excess(row)) for row in table) <= 0.08, table
    assert table[0]["achieved"] == 0 and table[-1]["bleu"] > table[0]["bleu"] + 20, table
    assert min(gains) > 5, (gains, table)
