"""Scores of translations: BLEU (sacrebleu, with its signature) and ROUGE-2, and plain greedy decoding to get them."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu
import torch
from rouge_score import rouge_scorer

from .batches import Encoded, collate, in_order


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


@torch.no_grad()
def greedy(
    model, rows: Sequence[Encoded], prompt: Sequence[int], max_new_tokens: int = 96, size: int = 64
) -> list[list[int]]:
    """Greedy outputs (without start token, with EOS if reached) of Hugging Face's generate, in the order of `rows`.

    Ids that the model has but must not write (a student's tau) are banned.
    """
    config = model.config
    was_training = model.training
    model.eval()
    banned = getattr(config, "tau_token_id", None)
    outputs: list[list[int]] = [[] for _ in rows]
    for chosen in in_order(rows, size):
        batch = collate(
            [rows[i] for i in chosen], [prompt] * len(chosen), config.eos_token_id, config.pad_token_id
        )
        written = model.generate(
            input_ids=batch.source_ids,
            attention_mask=batch.source_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            suppress_tokens=None if banned is None else [banned],
        )
        for i, ids in zip(chosen, written[:, 1:].tolist(), strict=True):
            end = ids.index(config.eos_token_id) + 1 if config.eos_token_id in ids else len(ids)
            outputs[i] = ids[:end]
    model.train(was_training)
    return outputs


def texts(tokenizer, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Decoded outputs without special tokens."""
    return [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in outputs]
