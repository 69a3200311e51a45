"""Prompts that begin alike are read once: a row takes over what the caches hold of another's. Not one bit changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_families import V, random_model

from kdtw_fast import NativeModel
from kdtw_fast.decoders import SpeculativeDecoder

KINDS = ["llama", "mistral", "qwen3", "gemma2", "gemma3_text"]  # with and without windows and caps


def prompts(seed: int) -> list[list[int]]:
    """Some that share beginnings of lengths around the least that is copied, blocks of keys, and passes."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(2, V, 300).tolist()
    cuts = [300, 300, 257, 64, 33, 17, 16, 15, 1, *rng.integers(1, 300, 4).tolist()]
    made = [stem[:cut] + rng.integers(2, V, int(rng.integers(1, 40))).tolist() for cut in cuts]
    made.append(list(made[0]))
    order = rng.permutation(len(made))
    return [made[i] for i in order]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_and_a_stream_are_their_rows(kind: str, dtype: str) -> None:
    student, teacher = (NativeModel.from_model(random_model(kind, seed), dtype=dtype) for seed in (1, 2))
    decoder = SpeculativeDecoder(student, teacher, draft_length=3)
    rows = prompts(len(kind))
    options = {"max_new_tokens": 6, "max_source_length": 400, "output_logprobs": True}
    alone = [decoder.generate([row], **options) for row in rows]
    batch = decoder.generate(rows, **options)
    for i, one in enumerate(alone):
        assert batch.output_ids[i] == one.output_ids[0]
        for name in ("owners", "student_logprobs", "teacher_logprobs"):
            same(getattr(batch, name)[i, batch.spans[i]], getattr(one, name)[0, one.spans[0]])
    for out in decoder.stream(rows * 2, batch_size=3, **options):
        assert out.output_ids == alone[out.index % len(rows)].output_ids


def same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert ours.shape == expected.shape and torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.nan_to_num(), expected.nan_to_num())
