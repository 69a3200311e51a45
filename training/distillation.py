"""What the baselines that distil into a student alone share: the pair, sampling, scoring, validation, state.

The student here has no <tau>: it is the small model of GKD, SKD and MiniLLM, which reads "no teacher use".
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from kdtw_fast.budgets import student_prompt
from kdtw_fast.decoders import InterleavedDecoder, SingleModelDecoder, SpeculativeDecoder
from kdtw_fast.model import NativeModel
from kdtw_fast.options import NO_LIMIT, check_int, check_real, tau_token_ids

from . import processes
from .algorithm import Learning
from .batches import Batch, Encoded, collate, keyed_generator, with_prompt
from .debian import Example
from .decoders import decoder_of
from .evaluate import Table, greedy_scores, stream_inputs
from .models import fit_together, forced_logits, load_plain, load_teacher, prepare_teacher
from .settings import Optimiser, RunSettings, one_of
from .tasks import teacher_trajectories

Sampler = SingleModelDecoder | InterleavedDecoder


@dataclass(frozen=True)
class Settings(RunSettings):
    """What every baseline here says."""

    steps: int = 5200  # as many batches as the two phases of FLAN-T5's recipes have
    updates_per_batch: int = 4  # of the student, on rows drawn anew
    temperature: float = 1.0  # of the outputs sampled in training
    fixed: str = "teacher"  # the outputs that are not sampled: the teacher's greedy ones, or the "data"'s references
    trajectories: int = 0  # how many training sources are used, drawn by the seed; 0 = all
    trajectories_file: str = ""  # where the teacher's greedy outputs are kept; empty = OUT/trajectories.jsonl
    speculative_draft_length: int = 0  # validate as a drafter too: speculative decoding with drafts of this length
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=1e-3, warmup=100))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("fixed", self.fixed, ("teacher", "data"))
        check_int("updates_per_batch", self.updates_per_batch, 1)
        check_int("trajectories", self.trajectories, 0)
        check_int("speculative_draft_length", self.speculative_draft_length, 0)
        check_real("temperature", self.temperature, 0.0)


class Distillation(Learning):
    """The shared parts; a baseline adds `train_batch`."""

    settings: Settings
    teacher_decodes: ClassVar[bool] = False  # whether samples are written with it

    def __init__(self, settings: Settings):
        super().__init__(settings)
        (self.student_prompt,) = self.task.frame.prompts([student_prompt("no", settings.student_prompt)])
        self.teacher_prompt = self.task.teacher_prompt
        self.teacher = load_teacher(settings)
        self.student = load_plain_student(settings)
        fit_together(self.tokenizer, self.student, self.teacher, told=bool(settings.tokenizer))
        rows = self.task.draw(settings.trajectories)
        if settings.fixed == "teacher":
            rows = teacher_trajectories(self.teacher, self.task, rows, settings.trajectories_file)
        self.batches = self.task.batches(rows, [self.student_prompt])
        decodes = self.teacher_decodes or settings.speculative_draft_length
        device = settings.rollout_device
        self.native_teacher = NativeModel.from_model(self.teacher, "teacher", device=device) if decodes else None
        self.teach(self.student)
        prepare_teacher(self.teacher, settings)
        self.sampler: Sampler = self.make_sampler()
        self.seconds: dict[str, float] = {}

    def make_sampler(self) -> Sampler:
        """What samples outputs in training: here the student alone."""
        device = self.settings.rollout_device
        return decoder_of(SingleModelDecoder, self.student, num_threads=torch.get_num_threads(), device=device)

    # ---------------------------------------------------------------- parts of a batch

    def begin(self, index: int) -> float:
        """As in `Learning`; the times begin anew."""
        self.seconds = {}
        return super().begin(index)

    def sampled(self, rows: Sequence[Encoded], index: int) -> list[Encoded]:
        """Outputs sampled for the rows' sources with the student as it is now."""
        with self.timed("rollout"):
            self.sampler.model.update_weights(self.student)
            key, limit = (self.settings.seed, index), self.settings.max_new_tokens
            options: dict[str, Any] = {"temperature": self.settings.temperature, "max_new_tokens": limit}
            prompts = self.student_prompt, self.teacher_prompt
            return sample(self.sampler, rows, *prompts, self.task.frame.eos, key, **options)

    def collated(self, rows: Sequence[Encoded], prompt: Sequence[int]) -> Batch:
        """Rows behind one prompt, on the device."""
        eos, pad = self.task.frame.eos, self.task.frame.pad
        return collate(rows, [prompt] * len(rows), eos, pad).to(self.settings.device)

    @torch.no_grad()
    def teacher_logits(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """The teacher's logits [R, T, V] along the rows' targets."""
        with self.timed("scoring"):
            return forced_logits(self.teacher, self.collated(rows, self.teacher_prompt), self.settings)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time inside to what the batch logs as seconds_PART."""
        began = time.monotonic()
        yield
        name = f"seconds_{part}"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    # ---------------------------------------------------------------- for the trainer

    def validate(self, index: int, rows: int | None) -> Table:
        """BLEU and ROUGE-2 of the student alone, greedy; as a drafter also the share of drafts that are accepted."""
        examples, limit, place = self.held_out(rows), self.settings.max_new_tokens, self.settings.rollout_device
        found = greedy_scores(self.student, self.task.frame, examples, self.student_prompt, limit, place)
        if self.settings.speculative_draft_length:
            found |= self.measured_as_drafter(examples)
        return [found]

    def measured_as_drafter(self, examples: Sequence[Example]) -> dict[str, float]:
        """Lossless speculative decoding: the share of drafts accepted, and output tokens per pass of the teacher."""
        assert self.native_teacher is not None
        decoder = decoder_of(
            SpeculativeDecoder,
            self.student,
            self.native_teacher,
            draft_length=self.settings.speculative_draft_length,
            tokenizer=self.tokenizer,
            device=self.settings.rollout_device,
        )
        options: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens, "batch_size": 64}
        inputs, more = stream_inputs(decoder, examples, self.task.frame)
        outs = list(decoder.stream(inputs, **options, **more))
        total = {name: sum(int(out[name][0]) for out in outs) for name in ("accepted", "drafted", "lengths")}
        calls = sum(int(out["teacher_calls"][0]) for out in outs)
        return {
            "acceptance": round(total["accepted"] / max(1, total["drafted"]), 4),
            "tokens_per_teacher_pass": round(total["lengths"] / max(1, calls), 3),
        }


def load_plain_student(settings: RunSettings) -> PreTrainedModel:
    """The student as a plain model in float32; what a Training Wheels student has besides is left behind."""
    student = load_plain(settings.student.path, "student.path")
    config, told = student.config, student.generation_config
    if told is not None and told.suppress_tokens:
        taus = tau_token_ids(lambda field: getattr(config, field, None), "student.path")
        told.suppress_tokens = [token for token in told.suppress_tokens if token not in taus] or None
    student.config.tau_token_id = None
    if hasattr(student.config, "tau_token_ids"):
        del student.config.tau_token_ids
    student.config.student_prompt = settings.student_prompt
    student.config.teacher_prompt = settings.teacher_prompt
    return student


def sample(
    decoder: Sampler,
    rows: Sequence[Encoded],
    student_prompt: Sequence[int],
    teacher_prompt: Sequence[int],
    eos: int,
    key: tuple[int, int],
    **options: Any,
) -> list[Encoded]:
    """One output per source, in place of its target; those cut off at the length limit have no EOS.

    Random numbers are keyed by (seed, batch), so a batch samples the same whenever it is done again.

    Args:
        decoder: of one model, or of two.
        rows: whose sources are decoded.
        student_prompt, teacher_prompt: token ids that stand in the source's place for them.
        eos: the token that ends it, where it has no such place.
        key: (seed, batch) of the random numbers.
        **options: to `generate`: temperature, max_new_tokens.
    """
    keys = processes.mine(range(len(rows)))  # each process samples its rows as one process would
    rows = processes.mine(rows)
    if not rows:
        return processes.gathered([])
    if decoder.teacher is not None:
        options["teacher_inputs"] = {"input_ids": [with_prompt(teacher_prompt, row.source, eos) for row in rows]}
    sources = [with_prompt(student_prompt, row.source, eos) for row in rows]
    seed = int(keyed_generator(*key, 1 << 20).integers(2**63))
    out = decoder.generate(sources, seed=seed, row_ids=list(keys), max_source_length=NO_LIMIT, **options)
    return processes.gathered([Encoded(row.source, tuple(ids)) for row, ids in zip(rows, out.output_ids, strict=True)])
