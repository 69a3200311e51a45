"""The oracle of phase 1: the teacher at the positions of highest divergence, and how good that would be.

The oracle sees the teacher's distribution at every position, so it is an upper mark, not a decoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.loaders import load_tokenizer
from kdtw_fast.modeling import TrainingWheelsT5

from .allocations import Instructions
from .batches import IGNORED, Batch, Encoded, collate, encode, in_order, prompt_ids
from .debian import read_jsonl
from .evaluate import scores
from .losses import Taus, position_divergence
from .models import end_tokens, fit_together, load_student


def oracle_teachers(
    gains: torch.Tensor,
    kept: torch.Tensor,
    fractions: torch.Tensor,
    costs: Sequence[float],
    rounding: str = "nearest",
) -> torch.Tensor:
    """Whom the oracle asks at each position: the teacher's number, 1 to n, or 0. int64 [R, T].

    gains [R, n, T]: see `teacher_gains`; kept bool [R, T], l positions a row; fractions [R, n], the budgets b; costs
    [n], positive. Teachers and positions are paired greedily, the pair of highest gain per cost first (among equals the
    earlier teacher, then the earlier position), as long as the position is free and the teacher has fewer than l x b of
    them. For one teacher these are its top l x b positions, S_hi. `rounding` of l x b: "nearest" (mean use near b) or
    "floor" (never above b); ValueError for another.
    """
    if rounding not in ("nearest", "floor"):
        raise ValueError(f'rounding must be "nearest" or "floor", got {rounding!r}')
    if len(costs) != gains.shape[1] or min(costs) <= 0:
        raise ValueError(f"costs must have a positive number for each of {gains.shape[1]} teachers, got {costs}")
    wanted = kept.sum(1, keepdim=True) * fractions
    quota = torch.floor(wanted + (0.5 if rounding == "nearest" else 1e-6)).long().tolist()
    per_cost = gains / torch.tensor(costs, dtype=gains.dtype, device=gains.device)[:, None]
    per_cost = per_cost.masked_fill(~kept[:, None], -torch.inf)
    order = per_cost.flatten(1).argsort(dim=1, descending=True, stable=True).tolist()
    steps, last = kept.shape[1], kept.sum(1).tolist()
    asked = torch.zeros(kept.shape, dtype=torch.long)
    for row, (pairs, left, length) in enumerate(zip(order, quota, last, strict=True)):
        for pair in pairs[: len(costs) * length]:  # behind these lies what is not kept
            teacher, position = divmod(pair, steps)
            if left[teacher] > 0 and asked[row, position] == 0:
                asked[row, position] = teacher + 1
                left[teacher] -= 1
    return asked.to(kept.device)


def teacher_gains(student_logits: torch.Tensor, teacher_logits: Sequence[torch.Tensor], taus: Taus) -> torch.Tensor:
    """What asking each teacher gains at each position: KL(judge || student) - KL(judge || teacher), without <tau>s.

    The judge is the last teacher, whose own gain is the KL_i of Eq. 16; another teacher gains where it is closer to the
    judge than the student is. student_logits [..., V], teacher_logits: of each teacher [..., V or less] -> [n, ...].
    """
    *others, judge = teacher_logits
    missed = position_divergence(student_logits, judge, taus)
    return torch.stack([*(missed - position_divergence(own, judge, taus) for own in others), missed])


def shift_marks(asked: torch.Tensor) -> torch.Tensor:
    """Marks of the decoder's inputs from marks of its outputs: input p + 1 is output p, the start token has none."""
    return torch.cat((torch.zeros_like(asked[:, :1]), asked[:, :-1]), 1)


@torch.no_grad()
def divergences(student: TrainingWheelsT5, teacher: T5ForConditionalGeneration, own: Batch, its: Batch) -> torch.Tensor:
    """KL_i along the labels of a batch, no token marked: [R, T].

    `own` is the student's batch, `its` the teacher's: they differ in the prompt only.
    """
    inputs = student._shift_right(own.labels)
    mine = student(own.source_ids, own.source_mask, decoder_input_ids=inputs, use_cache=False).logits
    theirs = teacher(its.source_ids, its.source_mask, decoder_input_ids=inputs, use_cache=False).logits
    return position_divergence(mine, theirs, student.config.tau_token_id)


@torch.no_grad()
def decode_with_threshold(
    student: TrainingWheelsT5,
    teacher: T5ForConditionalGeneration,
    own: Batch,
    its: Batch,
    threshold: float,
    max_new_tokens: int,
) -> tuple[list[list[int]], list[int]]:
    """Greedy decoding in which the teacher writes every token where KL_i exceeds `threshold`.

    Returns each row's outputs (with EOS if reached) and how many of them the teacher wrote.
    """
    config = student.config
    rows = len(own.source_ids)
    encoded = [
        model.get_encoder()(input_ids=batch.source_ids, attention_mask=batch.source_mask)
        for model, batch in ((student, own), (teacher, its))
    ]
    ids = torch.full((rows, 1), config.decoder_start_token_id)
    marks = torch.zeros(rows, 1, dtype=torch.bool)
    caches = [None, None]
    outputs: list[list[int]] = [[] for _ in range(rows)]
    calls = [0] * rows
    alive, ends = [True] * rows, end_tokens(student)
    for _ in range(max_new_tokens):
        common = {"use_cache": True, "decoder_input_ids": ids}
        mine = student(
            encoder_outputs=encoded[0],
            attention_mask=own.source_mask,
            past_key_values=caches[0],
            decoder_from_teacher=marks,
            **common,
        )
        theirs = teacher(
            encoder_outputs=encoded[1], attention_mask=its.source_mask, past_key_values=caches[1], **common
        )
        caches = [mine.past_key_values, theirs.past_key_values]
        marks = position_divergence(mine.logits, theirs.logits, config.tau_token_id) > threshold
        pick = mine.logits.clone()
        pick[..., config.tau_token_id] = -torch.inf
        teacher_pick = theirs.logits.clone()
        teacher_pick[..., config.tau_token_id :][..., :1] = -torch.inf  # of a teacher without that row, nothing
        ids = torch.where(marks, teacher_pick.argmax(-1), pick.argmax(-1))
        for r in range(rows):
            if alive[r]:
                outputs[r].append(int(ids[r, 0]))
                calls[r] += int(marks[r, 0])
                alive[r] = outputs[r][-1] not in ends
        if not any(alive):
            break
    return outputs, calls


def oracle_curve(
    student: TrainingWheelsT5,
    teacher: T5ForConditionalGeneration,
    tokenizer: Any,
    rows: Sequence[Encoded],
    references: Sequence[str],
    size: int = 64,
    max_new_tokens: int = 96,
) -> list[dict[str, object]]:
    """BLEU and teacher use where the teacher writes the tokens of highest KL_i, for each of the six budgets.

    The threshold of a budget b is the (1 - b) quantile of KL_i along the teacher-forced references.
    """
    (teacher_prompt,) = prompt_ids(tokenizer, [student.config.teacher_prompt])
    student_prompts = prompt_ids(tokenizer, Instructions(student.config.student_prompt).texts)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def pair(chosen: list[int], prompt: list[int]) -> tuple[Batch, Batch]:
        some = [rows[i] for i in chosen]
        return collate(some, [prompt] * len(some), eos, pad), collate(some, [teacher_prompt] * len(some), eos, pad)

    curve: list[dict[str, object]] = []
    for budget, prompt in zip(BUDGETS, student_prompts, strict=True):
        batches = [(chosen, *pair(chosen, prompt)) for chosen in in_order(rows, size)]
        found = torch.cat([divergences(student, teacher, own, its)[own.labels != IGNORED] for _, own, its in batches])
        threshold = float(found.quantile(1 - budget.fraction)) if budget.fraction else float("inf")
        outputs: list[list[int]] = [[] for _ in rows]
        asked = 0
        for chosen, own, its in batches:
            written, calls = decode_with_threshold(student, teacher, own, its, threshold, max_new_tokens)
            asked += sum(calls)
            for i, ids in zip(chosen, written, strict=True):
                outputs[i] = ids
        measured = scores(tokenizer.batch_decode(outputs, skip_special_tokens=True), references)
        curve.append(
            {
                "budget": budget.phrase,
                "fraction": budget.fraction,
                "threshold": round(threshold, 4) if budget.fraction else None,
                "achieved": round(asked / sum(map(len, outputs)), 4),
                **measured,
            }
        )
    return curve


def main() -> None:
    """Command line: the oracle curve of a student (fitted or cloned) on a JSONL file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("runs/debian/translation/validation.jsonl"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="also write the curve to this JSON file")
    args = parser.parse_args()
    teacher = T5ForConditionalGeneration.from_pretrained(args.teacher, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(args.teacher)
    student = load_student(args.student, len(tokenizer)).eval()
    fit_together(tokenizer, student, teacher)
    examples = read_jsonl(args.data)[: args.rows]
    curve = oracle_curve(
        student, teacher, tokenizer, encode(examples, tokenizer, 10**6, 10**6), [e.target for e in examples]
    )
    for row in curve:
        print(json.dumps(row))
    if args.out is not None:
        args.out.write_text(json.dumps(curve, indent=2) + "\n")


if __name__ == "__main__":
    main()
