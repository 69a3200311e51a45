"""Log-probabilities of an output's tokens in OpenAI's shapes."""

from __future__ import annotations

import math
from typing import Any

from kdtw_fast.outputs import GenerationOutput


def log_probs(out: GenerationOutput, tokenizer: Any, count: int, chat: bool) -> dict[str, Any]:
    """The ``logprobs`` of a choice, by the model that decided each token; forced tokens have none (null).

    Tokens are called what the tokenizer's vocabulary calls them, so that no two have one name.

    Args:
        out: of one row, decoded with ``output_logprobs`` and ``top_logprobs``.
        tokenizer: of its output.
        count: how many of the likeliest are told.
        chat: whether the shape is a chat's or a completion's.
    """
    assert out.top_ids is not None and out.top_logprobs is not None
    span, ids = out.spans[0], out.output_ids[0]
    names = _names(tokenizer, ids)
    chosen = [_number(value) for value in out.token_logprobs[0, span].tolist()]
    places = zip(out.top_ids[0, span, :count].tolist(), out.top_logprobs[0, span, :count].tolist(), strict=True)
    likely = [
        [(name, value) for name, token, value in zip(_names(tokenizer, ids), ids, values, strict=True) if token >= 0]
        for ids, values in places
    ]
    if chat:
        told = [
            _entry(name, value) | {"top_logprobs": [_entry(*one) for one in best]}
            for name, value, best in zip(names, chosen, likely, strict=True)
        ]
        return {"content": told, "refusal": None}
    offsets = [len(tokenizer.decode(ids[:i], skip_special_tokens=True)) for i in range(len(ids))]
    return {
        "tokens": names,
        "token_logprobs": chosen,
        "top_logprobs": [dict(best) for best in likely] if count else None,
        "text_offset": offsets,
    }


def mean(out: GenerationOutput) -> float:
    """The log-probability per token of an output, by which the best of several are found; forced tokens have none."""
    return float(out.sequences_scores[0]) / max(1, int((~out.token_logprobs.isnan()).sum()))


def _entry(name: str, value: float | None) -> dict[str, Any]:
    return {"token": name, "logprob": value, "bytes": None}


def _names(tokenizer: Any, ids: list[int]) -> list[str]:
    """Rows of a vocabulary that no token has are called by their number."""
    known = tokenizer.convert_ids_to_tokens(ids)
    return [str(token) if name is None else name for name, token in zip(known, ids, strict=True)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
