"""How good outputs of the native decoders are, and what they cost: BLEU, ROUGE-2 and the teacher's share; ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdtw_fast.budgets import BUDGETS, Budget, fill_prompt, join_phrases, resolve_budgets, student_prompt
from kdtw_fast.decoders import SingleModelDecoder, TrainingWheelsDecoder
from kdtw_fast.inputs import token_ids
from kdtw_fast.options import NO_LIMIT
from kdtw_fast.owners_view import marked, spans

from .allocations import as_option, measured
from .batches import Encoded, with_prompt
from .debian import Example
from .decoders import decoder_of
from .frames import HERE, Frame

Table = list[dict[str, Any]]  # of a validation


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus BLEU with its signature, and the mean ROUGE-2 F-measure in percent."""
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"expected as many hypotheses as references and at least one, got {len(hypotheses)} and {len(references)}"
        )
    import sacrebleu  # here: the settings of a recipe are shown without it
    from rouge_score import rouge_scorer

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
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    prompt: Sequence[int],
    eos: int,
    max_new_tokens: int = 96,
    size: int = 64,
    device: str = "cpu",
) -> list[list[int]]:
    """Greedy outputs of the native decoder, in the order of `rows`, with the prompt in their sources' place for it."""
    decoder = decoder_of(SingleModelDecoder, model, num_threads=torch.get_num_threads(), device=device)
    sources = [with_prompt(prompt, row.source, eos) for row in rows]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_source_length": max(map(len, sources), default=1)}
    return [out.output_ids[0] for out in decoder.stream(sources, batch_size=size, in_order=True, **options)]


def greedy_scores(
    model: PreTrainedModel,
    frame: Frame,
    examples: Sequence[Example],
    prompt: Sequence[int],
    max_new_tokens: int = 96,
    device: str = "cpu",
) -> dict[str, float | str]:
    """The scores of one model alone, greedy, behind a prompt of token ids."""
    sources = [Encoded(source, ()) for source in frame.sources([example.source for example in examples])]
    outputs = greedy(model, sources, prompt, frame.eos, max_new_tokens, device=device)
    found = frame.tokenizer.batch_decode(outputs, skip_special_tokens=True)
    return scores(found, [example.target for example in examples])


def stream_inputs(
    decoder: Any, examples: Sequence[Example], frame: Frame | None, budget: str | dict[int, str] | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """The examples as a stream takes them, at a budget, and its options for it: texts where the frame is theirs.

    Else token ids of student and teachers, behind the prompts they were trained with; told "no" a teacher is not asked,
    as with texts.
    """
    if frame is None or frame.reads_texts(examples):
        asking: dict[str, Any] = {} if budget is None else {"budget": budget}
        longest = longest_source(decoder, examples, *asking.values())
        return [example.source for example in examples], {**asking, "max_source_length": longest}
    model, told = decoder.model, resolve_budgets("no" if budget is None else budget)
    text = model.teacher_prompt or ""
    if model.student_prompt is not None:
        text = fill_prompt(model.student_prompt, join_phrases(told))
    own, *theirs = frame.prompts([text, *(teacher.teacher_prompt or "" for teacher in decoder.teachers)])
    shared: dict[str, Any] = {}
    if budget is not None and (none := {k: 0 for k, one in enumerate(told, 1) if one.fraction == 0}):
        shared["max_teacher_calls"] = none
    items, longest = [], 0
    for source in frame.sources([example.source for example in examples]):
        mine, *read = [frame.reads(prompt, source) for prompt in (own, *theirs)]
        item = {"input_ids": mine, **shared}
        if read:
            item["teacher_input_ids"] = read if len(read) > 1 else read[0]
        items.append(item)
        longest = max(longest, *map(len, (mine, *read)))
    return items, {"max_source_length": longest}


def longest_source(decoder: Any, examples: Sequence[Example], budget: str | list[str] = "no") -> int:
    """Tokens of the longest source behind the prompts of the decoder's models: what a stream must make room for."""
    prompts = {model.teacher_prompt or "" for model in (decoder.model, *decoder.teachers)}
    if decoder.model.student_prompt is not None:
        prompts.add(student_prompt(budget, decoder.model.student_prompt))
    ids = token_ids(decoder.tokenizer, [prompt + example.source for prompt in prompts for example in examples])
    return max(map(len, ids))


def shown(
    decoder: Any, examples: Sequence[Example], max_new_tokens: int, frame: Frame | None = None, **options: Any
) -> list[dict[str, str]]:
    """Decoded examples with marks on what the teacher wrote, as `kdtw generate --show-owners` shows them."""
    if not examples:
        return []
    options = {"max_new_tokens": max_new_tokens, "max_source_length": NO_LIMIT} | options
    if frame is None or frame.reads_texts(examples):
        out = decoder([example.source for example in examples], **options)
    else:
        items, _ = stream_inputs(decoder, examples, frame, options.pop("budget", None))
        theirs = [item.get("teacher_input_ids") for item in items]
        if theirs[0] is not None:
            columns = [theirs] if len(decoder.teachers) == 1 else zip(*theirs)
            options["teacher_inputs"] = [{"input_ids": list(column)} for column in columns]
        out = decoder.generate([item["input_ids"] for item in items], **options)
    several = out.calls_by_teacher.shape[1] > 1
    rows = zip(examples, out.sequences.tolist(), out.owners.tolist(), out.teacher_index.tolist(), strict=True)
    return [
        {
            "source": example.source.replace(HERE, ""),
            "text": marked(spans(ids, owners, decoder.tokenizer, teachers if several else None)).plain,
            "target": example.target,
        }
        for example, ids, owners, teachers in rows
    ]


def measure_use(
    decoder: TrainingWheelsDecoder, examples: Sequence[Example], inputs: Iterable[Any], **options: Any
) -> dict[str, Any]:
    """Use, BLEU and ROUGE-2 of what is decoded of `inputs`, a stream's items, one for each example, in order.

    `achieved` is calls over all tokens, `row_mean` the mean of the rows' own, `achieved_of` each of several teachers'.
    `options` are the stream's.
    """
    options = {"max_new_tokens": 96, "batch_size": 64, "in_order": True} | options
    outs = list(decoder.stream(inputs, **options))
    calls, lengths = (np.array([int(out[name][0]) for out in outs]) for name in ("teacher_calls", "lengths"))
    of_each: dict[str, list[float]] = {}
    if len(decoder.teachers) > 1:
        own = np.concatenate([np.asarray(out.calls_by_teacher) for out in outs]).sum(0) / lengths.sum()
        of_each = {"achieved_of": own.round(4).tolist()}
    ids = [out.output_ids[0] for out in outs]
    found = decoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return {
        "achieved": round(float(calls.sum() / lengths.sum()), 4),
        "row_mean": round(float((calls / lengths).mean()), 4),
        **of_each,
        **scores(found, [example.target for example in examples]),
    }


def measure_budgets(
    decoder: TrainingWheelsDecoder,
    examples: Sequence[Example],
    budgets: Sequence[Budget] = BUDGETS,
    frame: Frame | None = None,
    **options: Any,
) -> Table:
    """Use asked and achieved, BLEU and ROUGE-2 for each of the budgets; `options` are the stream's.

    `frame`: what reads the examples; None = the decoder's tokenizer, as texts. Of several teachers for the allocations
    of `measured`, with the uses of all together, and of each in lists.
    """
    table = []
    for allocation in measured(len(decoder.teachers), budgets):
        inputs, asking = stream_inputs(decoder, examples, frame, as_option(allocation))
        found = measure_use(decoder, examples, inputs, **asking, **options)
        asked: dict[str, Any] = {"budget": join_phrases(allocation), "asked": sum(b.fraction for b in allocation)}
        if len(allocation) > 1:
            asked["asked_of"] = [budget.fraction for budget in allocation]
        table.append({**asked, **found})
    return table


def best_rouge2(table: Table) -> tuple[float, ...]:
    """The mean ROUGE-2 of a table's rows; larger is better."""
    found = [float(row["rouge2"]) for row in table if "rouge2" in row]
    return (sum(found) / len(found),) if found else (0.0,)


def excess(row: dict[str, Any]) -> float:
    """Use achieved minus use asked, of several teachers that of the one where they lie farthest apart."""
    pairs = zip(*(row.get(f"{name}_of", [row[name]]) for name in ("achieved", "asked")))
    return max((achieved - asked for achieved, asked in pairs), key=abs)


def rank(table: Table, tolerance: float = 0.03) -> tuple[float, ...]:
    """Larger is better: tables that keep every budget within `tolerance` by mean ROUGE-2, others below by excess.

    Rows are those of `measure_budgets`; the excess is the largest |use achieved - use asked|, of any teacher.
    """
    largest = max(abs(excess(row)) for row in table)
    if largest > tolerance + 1e-9:
        return 0.0, -largest
    return 1.0, *best_rouge2(table)
