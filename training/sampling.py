"""Outputs that the student (or student and teacher together) sample in training, on the native decoders, in batches.

Random numbers are keyed by (seed, batch), so a batch samples the same whenever it is done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdtw_fast.decoders import InterleavedDecoder, SingleModelDecoder
from kdtw_fast.options import NO_LIMIT

from . import processes
from .batches import Encoded, keyed_generator

Sampler = SingleModelDecoder | InterleavedDecoder


def sample(
    decoder: Sampler,
    rows: Sequence[Encoded],
    student_prompt: Sequence[int],
    teacher_prompt: Sequence[int],
    key: tuple[int, int],
    **options: Any,
) -> list[Encoded]:
    """One output per source, in place of its target; those cut off at the length limit have no EOS.

    Args:
        decoder: of one model, or of two.
        rows: whose sources are decoded.
        student_prompt, teacher_prompt: token ids that stand before the source.
        key: (seed, batch) of the random numbers.
        **options: to `generate`: temperature, max_new_tokens.
    """
    keys = processes.mine(range(len(rows)))  # each process samples its rows as one process would
    rows = processes.mine(rows)
    if not rows:
        return processes.gathered([])
    eos = decoder.model.eos_token_ids[0]
    if decoder.teacher is not None:
        options["teacher_inputs"] = {"input_ids": [[*teacher_prompt, *row.source, eos] for row in rows]}
    sources = [[*student_prompt, *row.source, eos] for row in rows]
    seed = int(keyed_generator(*key, 1 << 20).integers(2**63))
    out = decoder.generate(sources, seed=seed, row_ids=list(keys), max_source_length=NO_LIMIT, **options)
    assert out.sequences is not None and out.lengths is not None
    written = zip(rows, out.sequences.tolist(), out.lengths.tolist(), strict=True)
    return processes.gathered([Encoded(row.source, tuple(ids[1 : 1 + length])) for row, ids, length in written])
