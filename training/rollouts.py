"""Episodes from the native decoders: on-policy rollouts of student and teachers, and the oracle's rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdtw_fast.decoders import SingleModelDecoder, TrainingWheelsDecoder
from kdtw_fast.modeling import TrainingWheels
from kdtw_fast.options import NO_LIMIT
from kdtw_fast.outputs import GenerationOutput

from . import processes
from .batches import Encoded, keyed_generator, with_prompt
from .decoders import decoder_of
from .episodes import Episode, EpisodeBatch, collate_episodes
from .losses import Taus, tau_list
from .models import decoder_states, logits_at, pack_teachers, special_tokens
from .oracle import oracle_teachers, teacher_gains
from .settings import PhaseSettings

_ROLLOUT = 101  # what the random numbers are for
_SCORED_TOGETHER = 64  # rows of one pass that scores or compares
_AGAIN = (0,)  # the part of a process that has none left


def rollout_seed(seed: int, step: int, which: int = 0) -> int:
    """The decoder's seed for rollout number `which` of a step."""
    return int(keyed_generator(seed, step, _ROLLOUT, 1 + which).integers(2**63))


@dataclass(frozen=True)
class Tasks:
    """What is rolled out: sources, and the number of the instruction that the student is given for each.

    `places` are the rows' places in the whole batch, of which random numbers are a function; None = 0, 1, …
    """

    rows: Sequence[Encoded]
    instructions: Sequence[int]
    places: Sequence[int] | None = None

    def mine(self) -> Tasks:
        """This process's share."""
        places = processes.mine(range(len(self.rows)))
        return Tasks([self.rows[i] for i in places], [self.instructions[i] for i in places], places)


@dataclass
class Rollouts:
    """Makes episodes: the student and its teachers, what they are told, and how a run wants their outputs.

    Args:
        student: acts; `decoder.student.update_weights` brings its weights of now to the decoder.
        teachers: one for each <tau>, the judge last (see allocations.py).
        prompts: token ids of each instruction, which stand in the student's source's place for them.
        teacher_prompt: token ids of the one prompt of all teachers.
        fractions: what each instruction allows each teacher, float32 [instructions, n].
        settings: the run's costs, rounding, max_new_tokens (what it cuts off is marked as not ended) and threads.
        teacher_temperature: of the teachers' tokens, 0 = greedy.
        eos: the token behind sources; None = the models' first end token.
        tokenizer: of all models; None = their folders', which must mean the same.

    Attributes:
        decoder: of student and teachers.
        teacher_decoder: of the judge alone.
    """

    student: TrainingWheels
    teachers: Sequence[PreTrainedModel]
    prompts: Sequence[Sequence[int]]
    teacher_prompt: Sequence[int]
    fractions: torch.Tensor
    settings: PhaseSettings = field(default_factory=PhaseSettings)
    teacher_temperature: float = 0.0
    eos: int | None = None
    tokenizer: Any = None

    def __post_init__(self) -> None:
        device = self.settings.rollout_device
        self.native_teachers = pack_teachers(self.teachers, device)
        judge, threads = self.native_teachers[-1], self.settings.threads or None
        self.decoder = decoder_of(
            TrainingWheelsDecoder,
            self.student,
            self.native_teachers,
            tokenizer=self.tokenizer,
            num_threads=threads,
            device=device,
        )
        self.teacher_decoder = decoder_of(SingleModelDecoder, judge, role="teacher", num_threads=threads)
        start, eos, pad = special_tokens(self.student)
        self.eos = eos if self.eos is None else self.eos
        self.special, self.tau = (start, self.eos, pad), self.student.tau_token_ids
        self.costs = tuple(self.settings.costs) or (1.0,) * len(self.teachers)

    @property
    def judge(self) -> PreTrainedModel:
        """The last teacher."""
        return self.teachers[-1]

    def collated(self, episodes: Sequence[Episode], prompt: Sequence[int] | None = None) -> EpisodeBatch:
        """Episodes as a batch on the student's device, behind their instructions or all behind one prompt."""
        prompts = self.prompts if prompt is None else [prompt] * len(self.prompts)
        return collate_episodes(episodes, prompts, self.tau, *self.special).to(self.student.device)

    # ------------------------------------------------------------ decoding

    def on_policy(self, tasks: Tasks, temperature: float = 0.0, seed: int = 0) -> list[Episode]:
        """The student acts (`temperature` 0 = greedy), a teacher writes where it says <tau>; one episode a row.

        The teacher's log-likelihoods are those of the catch-up passes that happened anyway; what the student wrote
        after its last call was never read, and is NaN; so is, of several teachers, what another than the judge read.
        """
        pairs = zip(tasks.rows, tasks.instructions, strict=True)
        out = self._decoded(
            self.decoder,
            tasks,
            [self._source(self.prompts[number], row) for row, number in pairs],
            teacher_inputs={"input_ids": [self._source(self.teacher_prompt, row) for row in tasks.rows]},
            temperature=temperature,
            teacher_temperature=self.teacher_temperature,
            seed=seed,
        )
        assert out.teacher_index is not None and out.teacher_logprobs is not None
        if len(self.teachers) == 1:
            return self._episodes(tasks, out, out.teacher_index.bool().numpy(), out.teacher_logprobs.numpy())
        numbers = out.teacher_index.numpy()
        read_by_judge = _readers(numbers) == len(self.teachers)
        return self._episodes(
            tasks, out, numbers, np.where(read_by_judge, out.teacher_logprobs.numpy(), np.float32(np.nan))
        )

    def of_judge(self, tasks: Tasks, seed: int = 0) -> list[Episode]:
        """The judge's own trajectories: it wrote every token, none is marked."""
        sources = [self._source(self.teacher_prompt, row) for row in tasks.rows]
        out = self._decoded(self.teacher_decoder, tasks, sources, temperature=self.teacher_temperature, seed=seed)
        assert out.sequences is not None and out.teacher_logprobs is not None
        return self._episodes(tasks, out, np.zeros(out.sequences.shape, np.bool_), out.teacher_logprobs.numpy())

    def _source(self, prompt: Sequence[int], row: Encoded) -> list[int]:
        return with_prompt(prompt, row.source, self.special[1])

    def _decoded(
        self,
        decoder: TrainingWheelsDecoder | SingleModelDecoder,
        tasks: Tasks,
        sources: Sequence[Sequence[int]],
        **options: Any,
    ) -> GenerationOutput:
        options |= {"row_ids": tasks.places, "max_new_tokens": self.settings.max_new_tokens}
        return decoder.generate(sources, max_source_length=NO_LIMIT, output_logprobs=True, **options)

    @staticmethod
    def _episodes(tasks: Tasks, out: GenerationOutput, teachers: np.ndarray, logprobs: np.ndarray) -> list[Episode]:
        assert out.sequences is not None and out.lengths is not None and out.finish_reasons is not None
        ids = out.sequences.numpy()
        return [
            Episode(
                source=np.array(row.source, np.int32),
                budget=int(number),
                tokens=ids[r, here].astype(np.int32),
                from_teacher=teachers[r, here].copy(),
                teacher_logprobs=logprobs[r, here].astype(np.float32),
                ended=out.finish_reasons[r] == "end",
            )
            for r, (row, number, here) in enumerate(zip(tasks.rows, tasks.instructions, out.spans, strict=True))
        ]

    # ------------------------------------------------------------ scoring

    @torch.no_grad()
    def scored(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The episodes with every log-likelihood in place: what the rollout read is kept, the rest is computed.

        Only episodes with a NaN go through the judge (one pass over them), and only the places of NaN through its head.
        """
        scored = list(episodes)
        unread = [i for i, e in enumerate(episodes) if np.isnan(e.teacher_logprobs).any()]
        for chosen in _parts(sorted(unread, key=lambda i: len(episodes[i]))):
            batch = self.collated([episodes[i] for i in chosen], self.teacher_prompt)
            states = decoder_states(self.judge, batch.source_ids, batch.source_mask, batch.inputs[:, :-1])
            missing = batch.teacher_logprobs.isnan()
            found = torch.log_softmax(logits_at(self.judge, states, missing), -1)
            batch.teacher_logprobs[missing] = found.gather(1, batch.inputs[:, 1:][missing][:, None]).squeeze(1)
            for i, row in zip(chosen, batch.teacher_logprobs.cpu().numpy(), strict=True):
                scored[i] = replace(episodes[i], teacher_logprobs=row[: len(episodes[i])].copy())
        return scored

    @torch.no_grad()
    def asked_by_oracle(self, episodes: Sequence[Episode]) -> tuple[list[Episode], float]:
        """The oracle's rollouts: the judge's trajectories, with <tau> as the action at the top l x b positions by KL.

        Of several teachers `oracle_teachers` says whom to ask, by `costs`; the token there stays the judge's. Returns
        the episodes with their marks, and the mean KL(p || pi) over all positions, p the judge's.
        """
        asked, count, total = list(episodes), 0, 0.0
        for chosen in _parts(sorted(range(len(episodes)), key=lambda i: len(episodes[i]))):
            some = [episodes[i] for i in chosen]
            own, theirs = self.collated(some), self.collated(some, self.teacher_prompt)
            inputs = own.inputs[:, :-1]
            states = decoder_states(self.student, own.source_ids, own.source_mask, inputs)
            teacher_logits = [
                logits_at(one, decoder_states(one, theirs.source_ids, theirs.source_mask, inputs), own.kept)
                for one in self.teachers
            ]
            found = teacher_gains(logits_at(self.student, states, own.kept), teacher_logits, self.tau)
            gains = torch.zeros(len(some), len(self.teachers), own.kept.shape[1], device=own.kept.device)
            for k, gain in enumerate(found):
                gains[:, k][own.kept] = gain
            if chosen is not _AGAIN:
                total, count = total + float(found[-1].sum()), count + found[-1].numel()
            fractions = self.fractions[own.budgets.cpu()]
            numbers = oracle_teachers(gains.cpu(), own.kept.cpu(), fractions, self.costs, self.settings.rounding)
            for i, row in zip(chosen, numbers.to(own.marks.dtype).numpy(), strict=True):
                asked[i] = replace(episodes[i], from_teacher=row[: len(episodes[i])].copy())
        return asked, total / max(1, count)


def _parts(chosen: Sequence[int]) -> Iterator[Sequence[int]]:
    """Numbers of episodes in parts that go through a pass together, equally many parts in every process.

    A process that has fewer does episode 0 again: the models may be sharded.
    """
    count = processes.most(-(-len(chosen) // _SCORED_TOGETHER))
    for begin in range(0, count * _SCORED_TOGETHER, _SCORED_TOGETHER):
        yield chosen[begin : begin + _SCORED_TOGETHER] or _AGAIN


def _readers(teachers: np.ndarray) -> np.ndarray:
    """Which teacher's call first read each token, [R, T]: the next to write a token there or later; 0 = none did."""
    readers = teachers.copy()
    for t in range(teachers.shape[1] - 2, -1, -1):
        readers[:, t] = np.where(teachers[:, t] > 0, teachers[:, t], readers[:, t + 1])
    return readers


def without_tokens(episodes: Sequence[Episode], tokens: Taus) -> list[Episode]:
    """The episodes that hold none of `tokens`: a teacher's may hold a <tau>, a spare row to it, which is no output."""
    return [episode for episode in episodes if not np.isin(episode.tokens, tau_list(tokens)).any()]
