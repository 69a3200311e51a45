"""Texts at which an output stops: where its tokens end, and what its text is then."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from kdtw_fast.options import GenerateOptions
from kdtw_fast.outputs import GenerationOutput, Owner

STOP = "stop"  # the finish reason


class StopTexts:
    """Says where rows stop, as the core asks it.

    Args:
        tokenizer: reads outputs.
        texts: at the first of which they stop.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self._tokenizer, self._texts = tokenizer, tuple(texts)

    def __call__(self, outputs: list[int]) -> int:
        """The fewest of a row's outputs, without forced ones, whose text holds one of the texts; -1 where none does."""

        def holds(count: int) -> bool:
            text = self._tokenizer.decode(outputs[:count], skip_special_tokens=True)
            return any(stop in text for stop in self._texts)

        return bisect_left(range(len(outputs)), True, key=holds) if holds(len(outputs)) else -1


def output_texts(tokenizer: Any, out: GenerationOutput, options: GenerateOptions) -> list[str]:
    """The text of each output, of one that stopped up to where the stop begins."""
    assert out.finish_reasons is not None and out.owners is not None
    stops, outputs = set(options.stop_token_ids), out.output_ids
    if not stops and not options.stop_texts:
        whole: list[str] = tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return whole
    texts = []
    for ids, reason, owners, span in zip(outputs, out.finish_reasons, out.owners.tolist(), out.spans, strict=True):
        shown = ids[:-1] if reason == STOP and ids[-1] in stops else ids
        text = tokenizer.decode(shown, skip_special_tokens=True)
        # Stops are looked for behind forced tokens.
        own = tokenizer.decode(shown[owners[span].count(Owner.FORCED) :], skip_special_tokens=True)
        kept = min(len(own.split(stop, 1)[0]) for stop in options.stop_texts) if options.stop_texts else len(own)
        texts.append(text[: len(text) - (len(own) - kept)])
    return texts
