"""What the baselines that distil into a student alone share: the pair, sampling, scoring, validation, state.

The student here has no <tau>: it is the small model of GKD, SKD and MiniLLM, told "no teacher use".
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.decoders import GreedyDecoder, SpeculativeDecoder
from kdtw_fast.model import NativeT5
from kdtw_fast.options import check_int, check_real

from .batches import Batch, Encoded, collate, encode
from .debian import Example
from .evaluate import greedy, longest_source, scores, shown, texts
from .models import forced_logits, load_t5, load_teacher, load_tokenizer, save_pair_member, settle_teacher, to_device
from .optimisation import make_optimiser, quicken, rate_at, seed_batch, set_rate, update
from .sampling import Sampler, sample
from .settings import Optimiser, Run, one_of
from .tasks import Task, teacher_trajectories


@dataclass(frozen=True)
class Settings(Run):
    """What every baseline here says."""

    steps: int = 5200  # as many batches as KDTW's two phases have
    updates_per_batch: int = 4
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


class Distillation:
    """The shared parts; a baseline adds `train_batch`."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.tokenizer = load_tokenizer(settings)
        self.task = Task(settings, self.tokenizer)
        self.own, self.told = self.task.own[0], self.task.told
        self.teacher = load_teacher(settings)
        self.student = load_plain_student(settings)
        if self.student.config.vocab_size != self.teacher.config.vocab_size:
            raise ValueError(
                f"student and teacher must share a vocabulary, but have {self.student.config.vocab_size} and "
                f"{self.teacher.config.vocab_size} rows; start from a student without <tau>"
            )
        rows = self.task.draw(settings.trajectories)
        if settings.fixed == "teacher":
            cache = Path(settings.trajectories_file or Path(settings.out) / "trajectories.jsonl")
            rows = teacher_trajectories(self.teacher, self.task, rows, cache)
        self.batches = self.task.batches(rows, [self.own])
        self.answering = self.native_teacher()
        self.optimiser = make_optimiser(self.student, settings.optimiser)
        quicken(self.student, 0.0)
        to_device(self.student, settings.device).train()
        settle_teacher(self.teacher, settings)
        self.sampler: Sampler = self.make_sampler()
        self.seconds: dict[str, float] = {}

    def native_teacher(self) -> NativeT5 | None:
        """The teacher for the native decoders, if any of them needs it."""
        return NativeT5.from_model(self.teacher, "teacher") if self.settings.speculative_draft_length else None

    def make_sampler(self) -> Sampler:
        """What samples outputs in training: here the student alone."""
        return GreedyDecoder(self.student, num_threads=torch.get_num_threads())

    # ---------------------------------------------------------------- parts of a batch

    def begin(self, index: int) -> list[Encoded]:
        """Set random numbers and rate of a batch; returns its rows, their targets the fixed outputs."""
        seed_batch(self.settings.seed, index)
        set_rate(self.optimiser, rate_at(index, self.settings.steps, self.settings.optimiser))
        self.seconds = {}
        return self.batches.rows_at(index)

    def sampled(self, rows: Sequence[Encoded], index: int) -> list[Encoded]:
        """Outputs sampled for the rows' sources with the student as it is now."""
        with self.timed("rollout"):
            self.sampler.student.update_weights(self.student)
            key, limit = (self.settings.seed, index), self.settings.max_new_tokens
            options = {"temperature": self.settings.temperature, "max_new_tokens": limit}
            return sample(self.sampler, rows, self.own, self.told, key, **options)

    def collated(self, rows: Sequence[Encoded], prompt: Sequence[int]) -> Batch:
        """Rows behind one prompt, on the device."""
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        return collate(rows, [prompt] * len(rows), eos, pad).to(self.settings.device)

    @torch.no_grad()
    def teacher_logits(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """The teacher's logits [R, T, V] along the rows' targets."""
        with self.timed("scoring"):
            return forced_logits(self.teacher, self.collated(rows, self.told), self.settings.bf16)

    def update(self, loss: torch.Tensor, batch: Batch) -> float:
        """One guarded update; returns the gradient's norm."""
        return update(loss, self.student, self.optimiser, self.settings.optimiser.clip, vars(batch))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time inside to what the batch logs as seconds_PART."""
        began = time.monotonic()
        yield
        name = f"seconds_{part}"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    # ---------------------------------------------------------------- for the trainer

    def validate(self, index: int, rows: int | None) -> list[dict[str, Any]]:
        """BLEU and ROUGE-2 of the student alone, greedy; as a drafter also the share of drafts that are accepted."""
        examples, limit = self.task.held_out(rows), self.settings.max_new_tokens
        encoded = encode(examples, self.tokenizer, 10**6, 10**6)
        written = greedy(self.student, encoded, self.own, limit)
        found = scores(texts(self.tokenizer, written), [example.target for example in examples])
        if self.settings.speculative_draft_length:
            found |= self.measured_as_drafter(examples)
        return [found]

    def measured_as_drafter(self, examples: Sequence[Example]) -> dict[str, float]:
        """Lossless speculative decoding: the share of drafts accepted, and output tokens per pass of the teacher."""
        assert self.answering is not None
        length = self.settings.speculative_draft_length
        decoder = SpeculativeDecoder(self.student, self.answering, draft_length=length, tokenizer=self.tokenizer)
        options: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens, "batch_size": 64}
        options["max_source_length"] = longest_source(decoder, examples)
        outs = list(decoder.stream([example.source for example in examples], **options))
        total = {name: sum(int(out[name][0]) for out in outs) for name in ("accepted", "drafted", "lengths")}
        calls = sum(int(out["teacher_calls"][0]) for out in outs)
        return {
            "acceptance": round(total["accepted"] / max(1, total["drafted"]), 4),
            "tokens_per_teacher_pass": round(total["lengths"] / max(1, calls), 3),
        }

    def samples(self, index: int, count: int) -> list[dict[str, str]]:
        """Validation examples decoded by the student alone."""
        decoder = GreedyDecoder(self.student, tokenizer=self.tokenizer)
        return shown(decoder, self.task.held_out(count), self.settings.max_new_tokens)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"model": self.student.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state again."""
        self.student.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def save_model(self, folder: Path) -> None:
        """The student, a plain T5, and its tokenizer."""
        save_pair_member(self.student, self.tokenizer, folder)


def load_plain_student(settings: Run) -> T5ForConditionalGeneration:
    """The student as a plain T5 in float32; what a Training Wheels student has besides is left behind."""
    student = load_t5(settings.student.path, "student.path")
    student.config.tau_token_id = None
    if hasattr(student.config, "tau_token_ids"):
        del student.config.tau_token_ids
    student.config.student_prompt = settings.student_prompt
    student.config.teacher_prompt = settings.teacher_prompt
    return student
