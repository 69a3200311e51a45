"""Episodes from the native decoders: on-policy rollouts of student and teacher, and the oracle's rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.decoders import GreedyDecoder, TrainingWheelsDecoder
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.outputs import Owner

from . import processes
from .batches import Encoded, keyed_generator
from .episodes import Episode, collate_episodes, decoder_states, logits_at, special_tokens
from .evaluate import NO_LIMIT
from .losses import position_divergence
from .oracle import oracle_positions

_ROLLOUT = 101  # what the random numbers are for
_SCORED_TOGETHER = 64  # rows of one pass that scores or compares


def rollout_seed(seed: int, step: int, which: int = 0) -> int:
    """The decoder's seed for rollout number `which` of a step."""
    return int(keyed_generator(seed, step, _ROLLOUT, 1 + which).integers(2**63))


def rollout(
    decoder: TrainingWheelsDecoder,
    rows: Sequence[Encoded],
    budgets: Sequence[int],
    prompts: Sequence[Sequence[int]],
    told_prompt: Sequence[int],
    max_new_tokens: int = 80,
    temperature: float = 0.0,
    teacher_temperature: float = 0.0,
    seed: int = 0,
    places: Sequence[int] | None = None,
) -> list[Episode]:
    """On-policy: the student acts, the teacher answers <tau>; one episode for each row, in order.

    Args:
        decoder: the student of now and its teacher.
        rows: what to decode.
        budgets: the budget's number for each row; prompts[b] stands before the student's source.
        prompts, told_prompt: token ids of the student's prompts and of the teacher's one prompt.
        max_new_tokens: the length limit; what it cuts off is marked as not ended.
        temperature: of the student, 0 = greedy.
        teacher_temperature: of the teacher's answers, 0 = greedy.
        seed: random numbers are a function of it and of the row's place.
        places: the rows' places in the whole batch, where `rows` is a part of it.

    The teacher's log-likelihoods are those of the catch-up passes that happened anyway; what the student wrote after
    its last call was never read, and is NaN.
    """
    eos = decoder.student.eos_token_ids[0]
    out = decoder.generate(
        [[*prompts[b], *row.source, eos] for row, b in zip(rows, budgets, strict=True)],
        teacher_inputs={"input_ids": [[*told_prompt, *row.source, eos] for row in rows]},
        max_new_tokens=max_new_tokens,
        max_source_length=NO_LIMIT,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        seed=seed,
        row_ids=places,
        output_logprobs=True,
    )
    assert out.sequences is not None and out.owners is not None and out.lengths is not None
    assert out.teacher_logprobs is not None and out.finish_reasons is not None
    ids, owners, logprobs = out.sequences.numpy(), out.owners.numpy(), out.teacher_logprobs.numpy()
    return [
        Episode(
            source=np.array(row.source, np.int32),
            budget=int(budget),
            tokens=ids[r, 1 : 1 + length].astype(np.int32),
            from_teacher=owners[r, 1 : 1 + length] == Owner.TEACHER,
            teacher_logprobs=logprobs[r, 1 : 1 + length].astype(np.float32),
            ended=out.finish_reasons[r] == "end",
        )
        for r, (row, budget, length) in enumerate(zip(rows, budgets, out.lengths.tolist(), strict=True))
    ]


def _parts(chosen: Sequence[int]) -> Iterator[Sequence[int]]:
    """Numbers of episodes in parts that go through a pass together, equally many parts in every process.

    A process that has fewer does episode 0 again: the models may be sharded.
    """
    count = processes.most(-(-len(chosen) // _SCORED_TOGETHER))
    for begin in range(0, count * _SCORED_TOGETHER, _SCORED_TOGETHER):
        yield chosen[begin : begin + _SCORED_TOGETHER] or [0]


@torch.no_grad()
def score_unread(
    teacher: T5ForConditionalGeneration, episodes: Sequence[Episode], told_prompt: Sequence[int]
) -> list[Episode]:
    """The episodes with every log-likelihood in place: what the rollout's passes read is kept, the rest is computed.

    Only episodes with a NaN go through the teacher (one pass over them), and only the places of NaN through its head.
    `told_prompt`: token ids of the teacher's prompt.
    """
    scored = list(episodes)
    unread = [i for i, e in enumerate(episodes) if np.isnan(e.teacher_logprobs).any()]
    unread.sort(key=lambda i: len(episodes[i]))
    prompts = [told_prompt] * len(BUDGETS)
    special = special_tokens(teacher)
    for chosen in _parts(unread):
        batch = collate_episodes([episodes[i] for i in chosen], prompts, 0, *special).to(teacher.device)
        states = decoder_states(teacher, batch.source_ids, batch.source_mask, batch.inputs[:, :-1])
        missing = batch.teacher_logprobs.isnan()
        found = torch.log_softmax(logits_at(teacher, states, missing), -1)
        batch.teacher_logprobs[missing] = found.gather(1, batch.inputs[:, 1:][missing][:, None]).squeeze(1)
        for i, row in zip(chosen, batch.teacher_logprobs.cpu().numpy(), strict=True):
            scored[i] = replace(episodes[i], teacher_logprobs=row[: len(episodes[i])].copy())
    return scored


def teacher_rollout(
    decoder: GreedyDecoder,
    rows: Sequence[Encoded],
    budgets: Sequence[int],
    told_prompt: Sequence[int],
    max_new_tokens: int = 80,
    temperature: float = 0.0,
    seed: int = 0,
    places: Sequence[int] | None = None,
) -> list[Episode]:
    """The teacher's own trajectories: it wrote every token, none is marked.

    `budgets` are the numbers that the episodes will carry; the other arguments are as in `rollout`.
    """
    eos = decoder.student.eos_token_ids[0]
    out = decoder.generate(
        [[*told_prompt, *row.source, eos] for row in rows],
        max_new_tokens=max_new_tokens,
        max_source_length=NO_LIMIT,
        temperature=temperature,
        seed=seed,
        row_ids=places,
        output_logprobs=True,
    )
    assert out.sequences is not None and out.lengths is not None
    assert out.student_logprobs is not None and out.finish_reasons is not None
    ids, logprobs = out.sequences.numpy(), out.student_logprobs.numpy()  # alone, the teacher is the one that acts
    return [
        Episode(
            source=np.array(row.source, np.int32),
            budget=int(budget),
            tokens=ids[r, 1 : 1 + length].astype(np.int32),
            from_teacher=np.zeros(length, np.bool_),
            teacher_logprobs=logprobs[r, 1 : 1 + length].astype(np.float32),
            ended=out.finish_reasons[r] == "end",
        )
        for r, (row, budget, length) in enumerate(zip(rows, budgets, out.lengths.tolist(), strict=True))
    ]


def without_token(episodes: Sequence[Episode], token: int) -> list[Episode]:
    """The episodes that do not hold `token`: a teacher's may hold <tau>, a spare row to it, which is no output."""
    return [episode for episode in episodes if not (episode.tokens == token).any()]


@torch.no_grad()
def ask_where_divergent(
    student: TrainingWheelsT5,
    teacher: T5ForConditionalGeneration,
    episodes: Sequence[Episode],
    prompts: Sequence[Sequence[int]],
    told_prompt: Sequence[int],
    rounding: str = "nearest",
) -> tuple[list[Episode], float]:
    """The oracle's rollouts: the teacher's trajectories, with <tau> as the action at the top l x b positions by KL.

    Returns the episodes with their marks, and the mean KL(p || pi) over all positions. `rounding` is of l x b.
    """
    asked = list(episodes)
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i]))
    fractions = torch.tensor([budget.fraction for budget in BUDGETS])
    tau = student.config.tau_token_id
    special = special_tokens(student)
    total, count = 0.0, 0
    for chosen in _parts(order):
        some = [episodes[i] for i in chosen]
        own = collate_episodes(some, prompts, tau, *special).to(student.device)
        told = collate_episodes(some, [told_prompt] * len(BUDGETS), tau, *special).to(student.device)
        inputs = own.inputs[:, :-1]
        mine = decoder_states(student, own.source_ids, own.source_mask, inputs)
        theirs = decoder_states(teacher, told.source_ids, told.source_mask, inputs)
        found = position_divergence(logits_at(student, mine, own.kept), logits_at(teacher, theirs, own.kept), tau)
        divergence = torch.zeros_like(own.teacher_logprobs)
        divergence[own.kept] = found
        total, count = total + float(found.sum()), count + found.numel()
        marks = (
            oracle_positions(divergence, own.kept, fractions.to(student.device)[own.budgets], rounding).cpu().numpy()
        )
        for i, row in zip(chosen, marks, strict=True):
            asked[i] = replace(episodes[i], from_teacher=row[: len(episodes[i])].copy())
    return asked, total / max(1, count)
