"""Rules on tokens, one after the other: what transformers' logits processors of these names do, in their order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdtw_fast.options import GenerateOptions
from kdtw_fast.reference.picking import ban


def edit(
    logits: Tensor,
    read: Sequence[int],
    position: int,
    banned: Sequence[int],
    options: GenerateOptions,
    forced: int,
    eos: int,
) -> Tensor:
    """`logits` [V] in float64 as the rules of `options` leave them for output `position`; -inf: not allowed.

    Args:
        logits: the model's.
        read: what the model has read: its start token or prompt, and the outputs before.
        position: of the output, 0 = the first.
        banned: ids that something else forbids.
        options: of the call.
        forced: how many tokens every output begins with.
        eos: the end token.
    """
    scores = logits.double().clone()

    def follows(sequence: Sequence[int]) -> bool:
        """Whether all but the last of its tokens are the last that were read."""
        before = list(sequence[:-1])
        return not before or list(read[-len(before) :]) == before

    for key, bias in (options.logit_bias or {}).items():
        sequence = key if isinstance(key, tuple) else (key,)
        if sequence[-1] < scores.numel() and follows(sequence):
            scores[sequence[-1]] += bias
    seen = torch.tensor(sorted({token for token in read if token < scores.numel()}))
    penalty = options.repetition_penalty
    scores[seen] = torch.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)

    never = [*banned, *options.suppress_tokens]
    never += [word[-1] for word in options.bad_words_ids if list(word) != [eos] and follows(word)]
    n = options.no_repeat_ngram_size
    if n > 0:
        never += [read[i + n - 1] for i in range(len(read) - n + 1) if follows(read[i : i + n])]
    if position == forced:
        never += options.begin_suppress_tokens
    scores = ban(scores, never)
    if options.forced_eos_token_id is not None and position == options.max_new_tokens - 1:
        scores = torch.full_like(scores, -math.inf)
        scores[options.forced_eos_token_id] = 0.0
    return scores
