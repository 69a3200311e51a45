"""The task of a run: its examples (JSONL, parquet or a hub data set), tokenised, with the prompts of both models."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedModel

from kdtw_fast.extras import require
from kdtw_fast.families import describe
from kdtw_fast.inputs import check_characters
from kdtw_fast.special_tokens import SpecialTokens
from kdtw_fast.weights import read_module

from . import processes
from .batches import Batches, Encoded, keyed_generator
from .debian import Example, read_jsonl
from .evaluate import greedy
from .frames import Frame, is_conversation, rendered
from .models import continues_prompts, end_tokens
from .settings import Data, RunSettings

log = logging.getLogger(__name__)


def read_examples(data: Data, split: str, seed: int = 0, limit: int = 0, tokenizer: Any = None) -> list[Example]:
    """The examples of "train", "validation" or "test"; with `limit` so many, drawn by `seed`, in drawn order.

    A conversation becomes its last answer, and the text that the tokenizer's chat template makes of what is before it.

    Raises FileNotFoundError where the folder lacks the split, ValueError for a column that is not there.
    """
    if not data.hub:
        folder = Path(data.folder)
        path = folder / f"{split}.jsonl"
        plain = data.source == "source" and data.target == "target" and not data.chat
        if path.is_file() and plain:
            rows = read_jsonl(path)
            if all(isinstance(text, str) for row in rows for text in (row.source, row.target)):
                return _of_characters([rows[i] for i in _drawn(len(rows), seed, limit)], str(path))
        found = [folder / f"{split}.{kind}" for kind in ("jsonl", "parquet") if (folder / f"{split}.{kind}").is_file()]
        if not data.folder or not found:
            raise FileNotFoundError(
                f"data.folder={data.folder!r} has no {split}.jsonl and no {split}.parquet; build the data first, "
                f"or name another folder or a hub data set (data.hub)"
            )
    require("reading data sets", f"data.hub={data.hub}" if data.hub else str(found[0]))
    import datasets

    if data.hub:
        rows = datasets.load_dataset(data.hub, data.subset or None, split=split)
    else:
        kind = {"jsonl": "json", "parquet": "parquet"}[found[0].suffix[1:]]
        rows = datasets.load_dataset(kind, data_files={split: str(found[0])}, split=split)
    place = f"{data.hub or found[0]} ({split})"
    rows = rows.select(_drawn(len(rows), seed, limit)) if limit else rows
    return _of_characters([Example(*_pair(row, data, place, tokenizer)) for row in rows], place)


def _of_characters(examples: list[Example], place: str) -> list[Example]:
    """The examples; ValueError where a text is not one that can be encoded."""
    for example in examples:
        check_characters(example.source, f"{place}: the source {example.source[:60]!r}")
        check_characters(example.target, f"{place}: the target {example.target[:60]!r}")
    return examples


def _drawn(count: int, seed: int, limit: int) -> Sequence[int]:
    return keyed_generator(seed).permutation(count)[:limit].tolist() if limit else range(count)


def _pair(row: Any, data: Data, place: str, tokenizer: Any) -> tuple[str, str]:
    """Source and target of a row of columns."""
    messages = None if data.target else _column(row, data.source, place)
    if messages is not None:
        if not is_conversation(messages) or len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(
                f"{place}: with data.target empty, column {data.source!r} must hold messages of which the last is the "
                f"assistant's, got {messages!r}"
            )
        source, target = messages[:-1], messages[-1]["content"]
    else:
        source, target = _column(row, data.source, place), _column(row, data.target, place)
        if is_conversation(target) and len(target) == 1:
            target = target[0]["content"]
    if data.chat or (not isinstance(source, str) and is_conversation(source)):
        source = rendered(source, tokenizer, data.template, place)
    for column, value in ((data.source, source), (data.target, target)):
        if not isinstance(value, str):
            raise ValueError(
                f"{place}: column {column!r} holds {type(value).__name__}, not text; set data.source/target"
            )
    return source, target


def _column(row: Any, column: str, place: str) -> Any:
    value = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{place} has no column {column!r}: {part!r} is not among {known}; set data.source/target")
        value = value[part]
    return value


class Task:
    """The examples and prompts of a run, tokenised.

    Attributes:
        tokenizer: of both models.
        train: training examples within data.max_source and data.max_target.
        validation: held-out examples, all of them.
        teacher_prompt: token ids of the teacher's prompt.
        frame: makes token ids of texts.
    """

    def __init__(self, settings: RunSettings, tokenizer: Any):
        self.settings, self.tokenizer = settings, tokenizer
        self.frame = Frame(tokenizer, not continues_prompts(settings), settings.prompts())
        data = settings.data
        examples = read_examples(data, "train", settings.seed, data.train_rows, tokenizer)
        self.train = self.frame.encode(examples, data.max_source, data.max_target)
        self.validation = read_examples(data, "validation", tokenizer=tokenizer)
        if not self.validation:
            raise ValueError(f"there are no validation examples in {data.folder or data.hub}")
        (self.teacher_prompt,) = self.frame.prompts([settings.teacher_prompt])

    def batches(self, rows: Sequence[Encoded], prompts: Sequence[Sequence[int]]) -> Batches:
        """Training batches of `rows`, each behind one of `prompts`."""
        return Batches(rows, prompts, self.settings.seed, self.settings.target_tokens, self.frame.eos, self.frame.pad)

    def draw(self, count: int) -> list[Encoded]:
        """`count` training examples drawn by the seed; all, in their order, with 0."""
        return [self.train[i] for i in _drawn(len(self.train), self.settings.seed, count)]

    def held_out(self, rows: int | None) -> list[Example]:
        """`rows` validation examples, the same ones in every run; all with None."""
        return [self.validation[i] for i in _drawn(len(self.validation), 0, rows or 0)]


def teacher_trajectories(
    teacher: PreTrainedModel, task: Task, rows: Sequence[Encoded], file: str, chunk: int = 1024
) -> list[Encoded]:
    """The teacher's greedy output for each source, in place of the reference; only outputs that reached EOS.

    Outputs are kept in the JSONL `file` (empty: trajectories.jsonl in the run's folder) by a key of their source, so an
    interrupted run goes on where it stopped, and other recipes share them, also while they run: one writes, the others
    wait. Its first line says which teacher, special tokens, prompt and length made them; ValueError if those were
    others, and for a file that holds something else.
    """
    cache = Path(file or Path(task.settings.out) / "trajectories.jsonl")
    with processes.first_before_others():
        found = _teacher_outputs(teacher, task, rows, cache, chunk)
    ends = end_tokens(teacher)
    kept = [(row, found[_key(row.source)]) for row in rows]
    return [Encoded(row.source, tuple(ids)) for row, ids in kept if len(ids) > 1 and ids[-1] in ends]


def _teacher_outputs(
    teacher: PreTrainedModel, task: Task, rows: Sequence[Encoded], cache: Path, chunk: int
) -> dict[str, list[int]]:
    cache.parent.mkdir(parents=True, exist_ok=True)
    prompt, eos, limit = task.teacher_prompt, task.frame.eos, task.settings.max_new_tokens
    place = task.settings.rollout_device
    with FileLock(f"{cache}.lock"):
        found = _read_outputs(cache, teacher, task)
        left = list({_key(row.source): row for row in rows if _key(row.source) not in found}.values())
        if not left:
            return found
        header = json.dumps({"made_by": _digest(teacher, prompt, limit)}) + "\n"
        scratch = cache.with_name(cache.name + ".writing")
        scratch.write_text(header + "".join(map(_line, found.items())), encoding="utf-8")
        scratch.replace(cache)
        for begin in range(0, len(left), chunk):
            some = left[begin : begin + chunk]
            outputs = greedy(teacher, some, prompt, eos, limit, device=place)
            written = dict(zip((_key(row.source) for row in some), outputs))
            with cache.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, written.items()))
            found |= written
            log.info("the teacher has written %d of %d outputs", begin + len(some), len(left))
    return found


def _read_outputs(cache: Path, teacher: PreTrainedModel, task: Task) -> dict[str, list[int]]:
    """The outputs that `cache` holds, by key."""
    if not cache.exists():
        return {}
    found: dict[str, list[int]] = {}
    for number, line in enumerate(cache.read_bytes().split(b"\n")[:-1], 1):  # a line cut off is written again
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if number == 1 and isinstance(value, dict) and isinstance(value.get("made_by"), str):
            if value["made_by"] != _digest(teacher, task.teacher_prompt, task.settings.max_new_tokens):
                raise ValueError(
                    f"{cache} holds outputs of another teacher, of other special tokens, another prompt or length; "
                    f"name another trajectories_file, or delete it"
                )
        elif number > 1 and _is_output(value):
            found[value[0]] = value[1]
        else:
            raise ValueError(
                f"{cache}, line {number}, is not what holds a teacher's outputs; name another trajectories_file, or "
                f"delete it"
            )
    return found


def _is_output(value: Any) -> bool:
    """Whether it is a source's key and token ids."""
    if not (isinstance(value, list) and [type(part) for part in value] == [str, list]):
        return False
    return all(type(token) is int and token >= 0 for token in value[1])


def _line(output: tuple[str, list[int]]) -> str:
    return json.dumps(output) + "\n"


def _key(source: Sequence[int]) -> str:
    return hashlib.blake2b(json.dumps(source).encode(), digest_size=8).hexdigest()


def _digest(teacher: PreTrainedModel, prompt: Sequence[int], limit: int) -> str:
    """Of all that greedy outputs depend on: weights, what the core reads of the config, prompt and limit."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in teacher.state_dict().values():
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    fields, tensors = read_module(teacher, "teacher")
    description = describe(fields, tensors, "teacher")
    special = SpecialTokens.of(
        fields, [], bool(teacher.config.is_encoder_decoder), description.spec["vocabulary"], "teacher: config field"
    )
    found.update(json.dumps([description.spec, asdict(special), list(prompt), limit], sort_keys=True).encode())
    return found.hexdigest()
