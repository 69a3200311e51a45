"""Episodes from the native decoders: on-policy rollouts of student and teacher, and the oracle's rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.decoders import GreedyDecoder, TrainingWheelsDecoder
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.options import NO_LIMIT

from . import processes
from .batches import Encoded, keyed_generator
from .episodes import Episode, collate_episodes, decoder_states, logits_at, special_tokens
from .losses import Taus, tau_list
from .mixes import fractions
from .oracle import expert_gains, oracle_experts

_ROLLOUT = 101  # what the random numbers are for
_SCORED_TOGETHER = 64  # rows of one pass that scores or compares
_AGAIN = (0,)  # the part of a process that has none left


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
        budgets: the instruction's number for each row; prompts[b] stands before the student's source.
        prompts, told_prompt: token ids of the student's prompts and of the one prompt of all teachers.
        max_new_tokens: the length limit; what it cuts off is marked as not ended.
        temperature: of the student, 0 = greedy.
        teacher_temperature: of the teacher's answers, 0 = greedy.
        seed: random numbers are a function of it and of the row's place.
        places: the rows' places in the whole batch, where `rows` is a part of it.

    The teacher's log-likelihoods are those of the catch-up passes that happened anyway; what the student wrote after
    its last call was never read, and is NaN; so is, of several teachers, what another than the judge read.
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
    assert out.teacher_logprobs is not None and out.finish_reasons is not None and out.teacher_index is not None
    ids, logprobs = out.sequences.numpy(), out.teacher_logprobs.numpy()
    judge = len(decoder.teachers)
    experts = out.teacher_index.numpy() if judge > 1 else out.teacher_index.bool().numpy()
    if judge > 1:
        logprobs = np.where(_readers(out.teacher_index.numpy()) == judge, logprobs, np.float32(np.nan))
    return [
        Episode(
            source=np.array(row.source, np.int32),
            budget=int(budget),
            tokens=ids[r, 1 : 1 + length].astype(np.int32),
            from_teacher=experts[r, 1 : 1 + length].copy(),
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
        yield chosen[begin : begin + _SCORED_TOGETHER] or _AGAIN


def _readers(experts: np.ndarray) -> np.ndarray:
    """Which teacher's call first read each token, [R, T]: the next to write a token there or later; 0 = none did."""
    readers = experts.copy()
    for t in range(experts.shape[1] - 2, -1, -1):
        readers[:, t] = np.where(experts[:, t] > 0, experts[:, t], readers[:, t + 1])
    return readers


@torch.no_grad()
def score_unread(
    teacher: T5ForConditionalGeneration, episodes: Sequence[Episode], told_prompt: Sequence[int]
) -> list[Episode]:
    """The episodes with every log-likelihood in place: what the rollout's passes read is kept, the rest is computed.

    Only episodes with a NaN go through the teacher (one pass over them), and only the places of NaN through its head.
    `teacher`: of several the judge. `told_prompt`: token ids of its prompt.
    """
    scored = list(episodes)
    unread = [i for i, e in enumerate(episodes) if np.isnan(e.teacher_logprobs).any()]
    unread.sort(key=lambda i: len(episodes[i]))
    prompts = [told_prompt] * (1 + max((e.budget for e in episodes), default=0))
    special = special_tokens(teacher)
    for chosen in _parts(unread):
        some = [episodes[i] for i in chosen]
        unused = [0] * max(int(e.from_teacher.max()) for e in some)  # the <tau>s: nothing reads the actions
        batch = collate_episodes(some, prompts, unused or 0, *special).to(teacher.device)
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


def without_tokens(episodes: Sequence[Episode], tokens: Taus) -> list[Episode]:
    """The episodes that hold none of `tokens`: a teacher's may hold a <tau>, a spare row to it, which is no output."""
    return [episode for episode in episodes if not np.isin(episode.tokens, tau_list(tokens)).any()]


@torch.no_grad()
def ask_where_divergent(
    student: TrainingWheelsT5,
    teacher: T5ForConditionalGeneration | Sequence[T5ForConditionalGeneration],
    episodes: Sequence[Episode],
    prompts: Sequence[Sequence[int]],
    told_prompt: Sequence[int],
    rounding: str = "nearest",
    costs: Sequence[float] | None = None,
    shares: torch.Tensor | None = None,
) -> tuple[list[Episode], float]:
    """The oracle's rollouts: the teacher's trajectories, with <tau> as the action at the top l x b positions by KL.

    Of several teachers (a list) the trajectories are the judge's, and `oracle_experts` says whom to ask, by `costs`
    (None = 1 each); the token there stays the judge's. Returns the episodes with their marks, and the mean KL(p || pi)
    over all positions, p the judge's. `rounding` is of l x b. `shares`: what the numbers that episodes carry mean,
    float32 [instructions, n]; None = the mixes of all six budgets.
    """
    teachers = [teacher] if isinstance(teacher, T5ForConditionalGeneration) else list(teacher)
    asked = list(episodes)
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i]))
    shares = fractions(len(teachers)) if shares is None else shares
    tau = student.tau_token_ids
    special = special_tokens(student)
    total, count = 0.0, 0
    for chosen in _parts(order):
        some = [episodes[i] for i in chosen]
        own = collate_episodes(some, prompts, tau, *special).to(student.device)
        told = collate_episodes(some, [told_prompt] * len(prompts), tau, *special).to(student.device)
        inputs = own.inputs[:, :-1]
        mine = decoder_states(student, own.source_ids, own.source_mask, inputs)
        answers = [
            logits_at(one, decoder_states(one, told.source_ids, told.source_mask, inputs), own.kept) for one in teachers
        ]
        found = expert_gains(logits_at(student, mine, own.kept), answers, tau)
        gains = torch.zeros(len(some), len(teachers), own.kept.shape[1], device=student.device)
        for k, gain in enumerate(found):
            gains[:, k][own.kept] = gain
        if chosen is not _AGAIN:
            total, count = total + float(found[-1].sum()), count + found[-1].numel()
        asked_here = oracle_experts(
            gains.cpu(), own.kept.cpu(), shares[own.budgets.cpu()], costs or [1.0] * len(teachers), rounding
        )
        marks = asked_here.to(own.marks.dtype).numpy()
        for i, row in zip(chosen, marks, strict=True):
            asked[i] = replace(episodes[i], from_teacher=row[: len(episodes[i])].copy())
    return asked, total / max(1, count)
