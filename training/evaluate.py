"""Scores of translations: BLEU (sacrebleu, with its signature) and ROUGE-2, and plain greedy decoding to get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sacrebleu
import torch
from rouge_score import rouge_scorer
from transformers import T5ForConditionalGeneration

from kdtw_fast.budgets import student_prompt
from kdtw_fast.decoders import GreedyDecoder
from kdtw_fast.options import NO_LIMIT
from kdtw_fast.owners_view import marked, runs

from .batches import Encoded, in_order
from .debian import Example


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus BLEU with its signature, and the mean ROUGE-2 F-measure in percent."""
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"expected as many hypotheses as references and at least one, got {len(hypotheses)} and {len(references)}"
        )
    metric = sacrebleu.metrics.BLEU()
    bleu = metric.corpus_score(list(hypotheses), [list(references)])
    rouge = rouge_scorer.RougeScorer(["rouge2"], use_stemmer=False)
    pairs = zip(hypotheses, references, strict=True)
    rouge2 = sum(rouge.score(reference, hypothesis)["rouge2"].fmeasure for hypothesis, reference in pairs)
    return {
        "bleu": round(bleu.score, 2),
        "rouge2": round(100 * rouge2 / len(references), 2),
        "signature": str(metric.get_signature()),
    }


def greedy(
    model: T5ForConditionalGeneration,
    rows: Sequence[Encoded],
    prompt: Sequence[int],
    max_new_tokens: int = 96,
    size: int = 64,
) -> list[list[int]]:
    """Greedy outputs (without start token, with EOS if reached) of the native decoder, in the order of `rows`."""
    decoder = GreedyDecoder(model, num_threads=torch.get_num_threads())
    outputs: list[list[int]] = [[] for _ in rows]
    for chosen in in_order(rows, size):
        sources = [[*prompt, *rows[i].source, decoder.student.eos_token_ids[0]] for i in chosen]
        out = decoder.generate(sources, max_new_tokens=max_new_tokens, max_source_length=NO_LIMIT)
        assert out.sequences is not None and out.lengths is not None
        for i, ids, length in zip(chosen, out.sequences.tolist(), out.lengths.tolist(), strict=True):
            outputs[i] = ids[1 : 1 + length]
    return outputs


def longest_source(decoder: Any, examples: Sequence[Example], budget: str | list[str] = "no") -> int:
    """Tokens of the longest source behind the prompts of the decoder's models: what a stream must make room for."""
    prompts = {model.teacher_prompt or "" for model in (decoder.student, *decoder.teachers)}
    if decoder.student.student_prompt is not None:
        prompts.add(student_prompt(budget, decoder.student.student_prompt))
    ids = decoder.tokenizer([prompt + example.source for prompt in prompts for example in examples])["input_ids"]
    return max(map(len, ids))


def shown(decoder: Any, examples: Sequence[Example], max_new_tokens: int, **options: Any) -> list[dict[str, str]]:
    """Decoded examples with marks on what the teacher wrote, as `kdtw generate --show-owners` shows them."""
    if not examples:
        return []
    options = {"max_new_tokens": max_new_tokens, "max_source_length": NO_LIMIT} | options
    out = decoder([example.source for example in examples], **options)
    several = out.calls_by_teacher.shape[1] > 1
    rows = zip(examples, out.sequences.tolist(), out.owners.tolist(), out.teacher_index.tolist(), strict=True)
    return [
        {
            "source": example.source,
            "text": marked(runs(ids, owners, decoder.tokenizer, experts if several else None)).plain,
            "target": example.target,
        }
        for example, ids, owners, experts in rows
    ]


def texts(tokenizer: Any, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Decoded outputs without special tokens."""
    return [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in outputs]
