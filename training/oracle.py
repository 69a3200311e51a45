"""The oracle of phase 1: the teacher at the positions of highest divergence, and how good that would be.

The oracle sees the teacher's distribution at every position, so it is an upper mark, not a decoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.files import check_target, write_whole
from kdtw_fast.loaders import load_tokenizer
from kdtw_fast.modeling import TrainingWheels

from .allocations import Instructions
from .batches import IGNORED, Batch, Encoded, collate, in_order
from .debian import read_jsonl
from .evaluate import scores
from .frames import Frame
from .losses import Taus, position_divergence
from .models import (
    Reading,
    decoder_states,
    end_tokens,
    fit_together,
    load_plain,
    load_student,
    logits_of,
    shifted,
    special_tokens,
)


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
def divergences(student: TrainingWheels, teacher: PreTrainedModel, own: Batch, its: Batch) -> torch.Tensor:
    """KL_i along the labels of a batch, no token marked: [R, T].

    `own` is the student's batch, `its` the teacher's: they differ in the prompt only.
    """
    start, _, pad = special_tokens(student)
    inputs = shifted(own.labels, start, pad)
    mine, theirs = (
        logits_of(model, decoder_states(model, batch.source_ids, batch.source_mask, inputs))
        for model, batch in ((student, own), (teacher, its))
    )
    return position_divergence(mine, theirs, student.config.tau_token_id)


@torch.no_grad()
def decode_with_threshold(
    student: TrainingWheels,
    teacher: PreTrainedModel,
    own: Batch,
    its: Batch,
    threshold: float,
    max_new_tokens: int,
) -> tuple[list[list[int]], list[int]]:
    """Greedy decoding in which the teacher writes every token where KL_i exceeds `threshold`.

    Returns each row's outputs (with EOS if reached) and how many of them the teacher wrote.
    """
    tau, rows = student.config.tau_token_id, len(own.source_ids)
    mine = Reading(student, own.source_ids, own.source_mask, keeps=True)
    theirs = Reading(teacher, its.source_ids, its.source_mask, keeps=True)
    ids = torch.full((rows, 1), special_tokens(student)[0])
    marks = torch.zeros(rows, 1, dtype=torch.bool)
    outputs: list[list[int]] = [[] for _ in range(rows)]
    calls = [0] * rows
    alive, ends = [True] * rows, end_tokens(student)
    for _ in range(max_new_tokens):
        own_logits = logits_of(student, mine.states(ids, marks))
        teacher_logits = logits_of(teacher, theirs.states(ids))
        marks = position_divergence(own_logits, teacher_logits, tau) > threshold
        pick = own_logits.clone()
        pick[..., tau] = -torch.inf
        teacher_pick = teacher_logits.clone()
        teacher_pick[..., tau:][..., :1] = -torch.inf  # of a teacher without that row, nothing
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
    student: TrainingWheels,
    teacher: PreTrainedModel,
    frame: Frame,
    rows: Sequence[Encoded],
    references: Sequence[str],
    size: int = 64,
    max_new_tokens: int = 96,
) -> list[dict[str, object]]:
    """BLEU and teacher use where the teacher writes the tokens of highest KL_i, for each of the six budgets.

    The threshold of a budget b is the (1 - b) quantile of KL_i along the teacher-forced references.
    """
    (teacher_prompt,) = frame.prompts([student.config.teacher_prompt])
    student_prompts = frame.prompts(Instructions(student.config.student_prompt).texts)
    eos, pad = frame.eos, frame.pad

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
        measured = scores(frame.tokenizer.batch_decode(outputs, skip_special_tokens=True), references)
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
    if args.out is not None:
        check_target("out", args.out, args.data, args.student, args.teacher)
    teacher = load_plain(str(args.teacher), "--teacher").eval()
    tokenizer = load_tokenizer(args.teacher)
    student = load_student(args.student, len(tokenizer)).eval()
    fit_together(tokenizer, student, teacher)
    examples = read_jsonl(args.data)[: args.rows]
    prompts = [student.config.student_prompt, student.config.teacher_prompt]
    frame = Frame(tokenizer, student.config.is_encoder_decoder, prompts)
    curve = oracle_curve(student, teacher, frame, frame.encode(examples, 10**6, 10**6), [e.target for e in examples])
    for row in curve:
        print(json.dumps(row))
    if args.out is not None:
        write_whole(args.out, json.dumps(curve, indent=2) + "\n")


if __name__ == "__main__":
    main()
