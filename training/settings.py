"""What every recipe says: the data, the two models, the optimiser, and how a run is driven. Checked when made.

Each algorithm's `Settings` extends `RunSettings`; recipes.py fills them from YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kdtw_fast.budgets import STUDENT_PROMPT, TEACHER_PROMPT, resolve_budget, student_prompt, wording_place
from kdtw_fast.options import check_int, check_real


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """ValueError if `value` is none of `known`."""
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")


def check_wordings(template: str, paraphrases: Sequence[str]) -> None:
    """ValueError for a paraphrase that holds neither "{budget}" nor "{percent}" once, or that repeats a wording."""
    for number, paraphrase in enumerate(paraphrases):
        wording_place(paraphrase)
        if paraphrase in (template, *paraphrases[:number]):
            raise ValueError(f"paraphrases: {paraphrase!r} is there already (student_prompt is the first wording)")


@dataclass(frozen=True)
class Data:
    """Where examples come from, and what of them is used.

    Give `folder` (train and validation as .jsonl or .parquet) or `hub` (a data set of the Hugging Face hub, or a local
    folder laid out as one).
    """

    folder: str = ""  # with train and validation (and test) as .jsonl or .parquet
    hub: str = ""  # or a data set's name on the hub
    subset: str = ""  # the hub data set's configuration, "de-en"
    source: str = "source"  # the column of the source; dots go into nested ones, "translation.de"
    # The column of the reference; empty = the source is a conversation (a list of {"role", "content"}) whose last
    # answer is the reference. Sources and targets may be conversations apart, too ("prompt" and "completion").
    target: str = "target"
    chat: bool = False  # sources that are texts are a user's message in the tokenizer's chat template
    template: dict[str, Any] = field(default_factory=dict)  # what the template is given: {enable_thinking: false}
    train_rows: int = 0  # so many training examples, drawn by the seed; 0 = all
    max_source: int = 96  # training sources longer than this (in tokens, without prompt) are left out
    max_target: int = 80  # training targets longer than this (in tokens, with EOS) are left out

    def __post_init__(self) -> None:
        if self.folder and self.hub:
            raise ValueError(f"give data.folder or data.hub, not both (got {self.folder!r} and {self.hub!r})")
        check_int("data.train_rows", self.train_rows, 0)
        check_int("data.max_source", self.max_source, 1)
        check_int("data.max_target", self.max_target, 2)


@dataclass(frozen=True)
class Model:
    """The folder or hub name of a model to start from, or, where `path` is empty, the shape of a T5 from scratch."""

    path: str = ""  # folder or hub name; with it the shape below is not read
    d_model: int = 192  # size of the stream between layers
    d_ff: int = 768  # inner size of the feed-forward layers
    d_kv: int = 32  # size of a head
    num_heads: int = 6  # of every attention
    encoder_layers: int = 4  # blocks that read the source
    decoder_layers: int = 3  # blocks that write; each costs time at every token

    def __post_init__(self) -> None:
        for name in ("d_model", "d_ff", "d_kv", "num_heads", "encoder_layers", "decoder_layers"):
            check_int(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Optimiser:
    """AdamW, with linear warm-up and, if `decay`, linear decay to zero at the last batch."""

    rate: float = 1e-3  # learning rate after the warm-up
    warmup: int = 0  # batches in which the rate rises from 0
    decay: bool = True  # let the rate fall to 0 at the last batch
    weight_decay: float = 0.0  # share of each weight, times the rate, that a batch takes away
    clip: float = 1.0  # largest norm of the gradient
    # Multiply each tensor's rate by the RMS of its initial values: T5's initial scales differ by a hundred, and from
    # scratch one rate for all hardly learns. Off for fine-tuning at the paper's rate.
    scaled: bool = True

    def __post_init__(self) -> None:
        check_real("optimiser.rate", self.rate, 0.0, open_low=True)
        check_int("optimiser.warmup", self.warmup, 0)
        check_real("optimiser.weight_decay", self.weight_decay, 0.0)
        check_real("optimiser.clip", self.clip, 0.0, open_low=True)


@dataclass(frozen=True)
class RunSettings:
    """The settings of every algorithm. Those named in HOUSEKEEPING may change between a run and its continuation."""

    summary: str = ""  # one line for `kdtw train --list`
    out: str = ""  # folder for checkpoints, metrics and models
    data: Data = field(default_factory=Data)  # where examples come from, and what of them is used
    # Folder or hub name, taken for that of all models whatever lies in their folders; empty = the teacher's, and a
    # student in whose folder is one that means other tokens is refused.
    tokenizer: str = ""
    student: Model = field(default_factory=Model)  # the model to start from, or the shape to build from scratch
    teacher: Model = field(default_factory=Model)  # the model that the student asks or learns from, or its shape
    student_prompt: str = STUDENT_PROMPT  # with "{budget}" in it, where the phrase goes
    teacher_prompt: str = TEACHER_PROMPT  # what stands before the teacher's sources, where its config names no other
    optimiser: Optimiser = field(default_factory=Optimiser)  # AdamW, which changes the weights after each batch
    steps: int = 1000  # batches in all
    target_tokens: int = 1536  # labels in a batch, padding included: rows = target_tokens // length of the bucket
    max_new_tokens: int = 80  # longest output that is decoded in training
    bf16: bool | str = "auto"  # forward passes under bf16 autocast; "auto" = if that is faster (number_format.py)
    seed: int = 0  # of data order, initial weights and samples
    device: str = "cpu"  # of the training passes
    rollout_device: str = "cpu"  # where the native decoders write: cpu, cuda, cuda:1, or auto, the first CUDA device
    shard_teacher: bool = False  # FSDP: of several processes each holds a part of the teacher for the training passes
    threads: int = 0  # of the training passes; 0 = as torch has it
    log_every: int = 50  # batches whose means make one line of metrics.jsonl
    checkpoint_every: int = 100  # batches between checkpoints, where a run goes on that was stopped
    validate_every: int = 1000  # batches between validations; 0 = at the end only
    validation_rows: int = 200  # examples of the validations that choose the best checkpoint; 0 = all
    sample_every: int = 1000  # batches between decoded samples; 0 = none
    samples: int = 3  # sentences that are decoded and logged then
    max_non_finite: int = 10  # updates skipped for a loss or gradient that is not finite before the run stops
    tensorboard: bool = False  # event files in OUT/tensorboard too
    wandb: str = ""  # a Weights & Biases project to log to as well

    def __post_init__(self) -> None:
        student_prompt("no", self.student_prompt)
        for name in ("steps", "validate_every", "validation_rows", "sample_every", "samples", "max_non_finite", "seed"):
            check_int(name, getattr(self, name), 0)
        for name in ("target_tokens", "max_new_tokens", "log_every", "checkpoint_every"):
            check_int(name, getattr(self, name), 1)
        check_int("threads", self.threads, 0)
        if self.bf16 not in (True, False, "auto"):
            raise ValueError(f"bf16 must be true, false or auto, got {self.bf16!r}")

    def prompts(self) -> list[str]:
        """What may stand before sources."""
        return [self.student_prompt, self.teacher_prompt, *getattr(self, "paraphrases", [])]

    def places(self) -> dict[str, str]:
        """The folders and hub names that the run reads, by their settings."""
        found = {
            "tokenizer": self.tokenizer,
            "student.path": self.student.path,
            "teacher.path": self.teacher.path,
            "data.folder": self.data.folder,
            "data.hub": self.data.hub,
        }
        return {setting: place for setting, place in found.items() if place}


@dataclass(frozen=True)
class PhaseSettings(RunSettings):
    """The settings of both phases, whose student asks: `teacher`, or `teachers` and then `teacher`.

    With n - 1 further `teachers` the student has n <tau>s: <tau_1> asks teachers[0], and so on, and the last asks
    `teacher`, which is the judge (see allocations.py). List the cheapest first.
    """

    teachers: list[Model] = field(default_factory=list)  # further teachers, the cheapest first; `teacher` comes last
    costs: list[float] = field(default_factory=list)  # what a token of each of the n teachers costs; empty = 1 each
    # Phrases of the budgets that are trained, measured and chosen by; empty = all six.
    budgets: list[str] = field(default_factory=list)
    # Further wordings of student_prompt, each with "{budget}" (the phrase) or "{percent}" (0, 10, … 50) in it: every
    # row of a batch draws one of all. What is measured and shipped is student_prompt; empty = that alone.
    paraphrases: list[str] = field(default_factory=list)
    rounding: str = "nearest"  # of l x b, the number of positions where the oracle asks; or "floor"
    tolerance: float = 0.03  # how far use may be from a budget for a checkpoint to count as holding it

    def __post_init__(self) -> None:
        super().__post_init__()
        check_wordings(self.student_prompt, self.paraphrases)
        for phrase in self.budgets:
            if phrase == "False":
                raise ValueError("budgets has false, as YAML reads a bare no; put quotes around it: budgets=['no']")
            resolve_budget(phrase)
        if self.costs and len(self.costs) != len(self.teachers) + 1:
            raise ValueError(f"costs has {len(self.costs)} values for {len(self.teachers) + 1} teachers")
        for cost in self.costs:
            check_real("costs", cost, 0.0, open_low=True)
        check_real("tolerance", self.tolerance, 0.0, 1.0)
        one_of("rounding", self.rounding, ("nearest", "floor"))

    def places(self) -> dict[str, str]:
        """Those of every run, and those of the further teachers."""
        return super().places() | {f"teachers[{k}].path": one.path for k, one in enumerate(self.teachers) if one.path}


# What a result does not depend on, or what may be lengthened on purpose.
HOUSEKEEPING = frozenset(
    (
        *(
            "summary",
            "out",
            "steps",
            "device",
            "rollout_device",
            "shard_teacher",
            "threads",
            "max_non_finite",
            "tensorboard",
            "wandb",
        ),
        *("log_every", "checkpoint_every", "validate_every", "validation_rows", "sample_every", "samples"),
    )
)
RENAMED = {"experts": "teachers"}  # settings by their old names, which recipes and checkpoints may still have
# Settings that came later, with what runs did before: at that value they make no other run of one.
LATER: dict[str, Any] = {"data.chat": False}
