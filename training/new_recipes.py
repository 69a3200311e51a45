"""`kdtw train --new`: the recipes of both phases for a pair and data of one's own, sized by the data and this machine.

What is written is for reading and changing: each recipe names what it starts from and why a number is what it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from kdtw_fast.extras import require
from kdtw_fast.files import write_whole
from kdtw_fast.loaders import check_same, find_tokenizer, has_vocabulary, jsonl_lines, load_tokenizer

from .batches import keyed_generator
from .debian import Example
from .models import check_place
from .settings import Data
from .tasks import read_examples

# Parameters up to which a student is trained with the rates of the shipped, small pairs. Size decides, not whether it
# is trained already: at these rates the shipped GKD student learned to keep budgets in 200 batches (docs/howto/own.md).
SMALL = 20_000_000
HELD_OUT = 0.05  # of a single file, for validation and for test each; at most MOST_HELD_OUT
MOST_HELD_OUT, FEWEST_ROWS = 1000, 40
COVERED = 0.97  # of the examples fit into the lengths that are chosen
LOOKED_AT = 2000  # examples that lengths are taken from
SCRATCH = {"d_model": 64, "d_ff": 256, "d_kv": 16, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 1}
NAMES = ("student", "phase1", "phase2")  # in the order in which they are run


@dataclass(frozen=True)
class Found:
    """What the recipes are made of.

    Attributes:
        rows: training examples.
        held_out: validation examples within the lengths below.
        max_source, max_target: lengths in tokens that `COVERED` of the examples keep to.
        mean_target: tokens of a reference.
        student, teacher: parameters.
        target_tokens: labels in a batch that memory has room for.
    """

    rows: int
    held_out: int
    max_source: int
    max_target: int
    mean_target: float
    student: int
    teacher: int
    target_tokens: int


def write_recipes(
    folder: Path, teacher: str, student: str | None, data: Path, prompt: str | None = None
) -> tuple[list[Path], Found]:
    """Writes the recipes into `folder`, and the data beside them where it is one file; returns what was written.

    Args:
        folder: made where it is not there.
        teacher: folder or hub name of a T5 that does the task.
        student: the same of a smaller one with its vocabulary; None = one is trained from scratch first.
        data: a folder with train and validation as .jsonl or .parquet, or one such file, which is split.
        prompt: what stands before a source, "summarize: "; None = the teacher's own, or "translate: ".

    Raises:
        FileExistsError: a recipe is there already, or other data where a file is split to.
        FileNotFoundError: a model or the data is not.
        ValueError: the data is too small, or has other columns; the tokenizers of the two mean different tokens.
        ImportError: data in Parquet, and a package that reads it is missing.
    """
    check_place(teacher, "--teacher")
    if student is not None:
        check_place(student, "--student")
    names = [name for name in NAMES if name != "student" or student is None]
    for name in names:
        if (folder / f"{name}.yaml").exists():
            raise FileExistsError(f"{folder / name}.yaml is there already; remove it, or name another folder")
    # Absolute, so that the recipes run in any folder.
    home = folder.absolute()
    teacher, student = _absolute(teacher), None if student is None else _absolute(student)
    tokenizer = _tokenizer_place(teacher)
    if student is not None:
        _check_same_words(student, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    data_folder = data.absolute() if data.is_dir() else split(data, home / "data")
    found = look(data_folder, tokenizer, teacher, student)
    own = getattr(AutoConfig.from_pretrained(teacher, trust_remote_code=False), "teacher_prompt", None)
    prompt = prompt if prompt is not None else own if own is not None else "translate: "
    written = []
    for name in names:
        path = folder / f"{name}.yaml"
        write_whole(path, recipe(name, found, home, data_folder, tokenizer, teacher, student, prompt))
        written.append(path)
    return written, found


def split(file: Path, folder: Path) -> Path:
    """One file, JSONL or Parquet, as train, validation and test in `folder`, drawn by a fixed seed.

    FileExistsError where one of them is there already, and is another, as the file itself would be.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--data {file} is neither a folder nor a file")
    numbered = list(_rows_as_json(file) if file.suffix == ".parquet" else jsonl_lines(file))
    lines = [line for _, line in numbered]
    if len(lines) < FEWEST_ROWS:
        raise ValueError(f"--data {file} has {len(lines)} examples; at least {FEWEST_ROWS} are needed")
    for number, line in numbered:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("source", "target")):
            raise ValueError(
                f'--data {file}, line {number}: an example is {{"source": "…", "target": "…"}}, got {line[:60]!r}'
            )
    order = keyed_generator(0).permutation(len(lines)).tolist()
    count = min(MOST_HELD_OUT, max(8, round(HELD_OUT * len(lines))))
    drawn = {"test": order[:count], "validation": order[count : 2 * count], "train": order[2 * count :]}
    parts = {folder / f"{name}.jsonl": "".join(lines[i] + "\n" for i in sorted(rows)) for name, rows in drawn.items()}
    for part, text in parts.items():
        if part.exists() and part.read_bytes() != text.encode():
            raise FileExistsError(
                f"--data {file} would be split into {part}, which is there already; remove it, name another folder for "
                f"--new, or give --data {folder} as it is"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in parts.items():
        write_whole(part, text)
    return folder


def _rows_as_json(file: Path) -> Iterator[tuple[int, str]]:
    """Sources and targets of a Parquet file as lines of JSON, and their numbers, from 1."""
    require("reading Parquet", f"--data {file}")
    from pyarrow import parquet

    for number, row in enumerate(parquet.read_table(file, columns=["source", "target"]).to_pylist(), start=1):
        yield number, json.dumps(row, ensure_ascii=False, default=str)


def look(data: Path, tokenizer: str, teacher: str, student: str | None) -> Found:
    """Lengths of the data, sizes of the models and room in memory."""
    for name in ("train", "validation"):
        if not any((data / f"{name}.{kind}").is_file() for kind in ("jsonl", "parquet")):
            raise FileNotFoundError(f"--data {data} has no {name}.jsonl and no {name}.parquet")
    rows = read_examples(Data(folder=str(data)), "train")
    if len(rows) < FEWEST_ROWS // 2:
        raise ValueError(f"--data {data} has {len(rows)} examples to train on; at least {FEWEST_ROWS // 2} are needed")
    chosen = [rows[i] for i in keyed_generator(1).permutation(len(rows))[:LOOKED_AT].tolist()]
    words = load_tokenizer(tokenizer)

    def lengths(examples: Sequence[Example]) -> list[list[int]]:
        sides = ([getattr(row, side) for row in examples] for side in ("source", "target"))
        return [[len(ids) for ids in words(texts)["input_ids"]] for texts in sides]

    sources, targets = lengths(chosen)
    most_source, most_target = _covering(sources), _covering(targets)
    held_out = lengths(read_examples(Data(folder=str(data)), "validation"))
    sizes = parameters(teacher), parameters(student) if student else 500_000
    vocabulary = len(words)
    return Found(
        rows=len(rows),
        # As Frame.encode counts them: beside the end token there is something.
        held_out=sum(1 < source <= most_source and 1 < target <= most_target for source, target in zip(*held_out)),
        max_source=most_source,
        max_target=most_target,
        mean_target=float(np.mean(targets)),
        student=sizes[1],
        teacher=sizes[0],
        target_tokens=room(sizes[1], sizes[0], vocabulary, most_target),
    )


def parameters(model: str) -> int:
    """How many a checkpoint has, by its config alone."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    if config.model_type != "t5":
        raise ValueError(
            f"{model} is a {config.model_type}; --new knows what suits T5s only: start from a shipped recipe "
            f"(kdtw train --list); docs/howto/train.md says what differs"
        )
    with torch.device("meta"):
        made = AutoModelForSeq2SeqLM.from_config(config)
    return sum(p.numel() for p in made.parameters())


def room(student: int, teacher: int, vocabulary: int, longest: int, memory: float | None = None) -> int:
    """Labels of a batch, a power of two from 256 to 2048 that half of the free memory holds, and at least 4 rows.

    Bytes: 16 a parameter of the student (weights, gradient, two moments), 8 of the teacher (to train with and to decode
    with), and for each label about eight float32 logits of the vocabulary, with as much again for the layers.
    """
    free = psutil.virtual_memory().available / 2 if memory is None else memory
    left = free - 16 * student - 8 * teacher
    most = max(left, 0) / (2 * 8 * 4 * vocabulary)
    chosen = 256
    while chosen < 2048 and 2 * chosen <= most:
        chosen *= 2
    return max(chosen, 4 * longest)


def recipe(
    name: str, found: Found, folder: Path, data: Path, tokenizer: str, teacher: str, student: str | None, prompt: str
) -> str:
    """One of `NAMES` as YAML with comments."""
    small = found.student <= SMALL
    common: dict[str, Any] = {
        "out": str(folder / name),
        "data": {"folder": str(data), "max_source": found.max_source, "max_target": found.max_target},
        "tokenizer": tokenizer,
        "teacher": {"path": teacher},
        "student_prompt": f"With {{budget}} teacher use, {prompt}",
        "teacher_prompt": prompt,
        "target_tokens": found.target_tokens,
        "max_new_tokens": found.max_target,
        "validation_rows": min(found.held_out, 400),
        "sample_every": 100,
    }
    trajectories = min(found.rows, 16_000)
    epoch = max(1.0, trajectories * found.mean_target / found.target_tokens)  # batches
    rates = (
        {
            "rate": {"student": 2e-2, "phase1": 1e-2, "phase2": 3e-3}[name],
            "warmup": {"student": 100, "phase1": 40, "phase2": 10}[name],
        }
        if small
        else {"rate": 1e-5, "weight_decay": 1e-5, "warmup": 0, "decay": False, "scaled": False}
    )
    own: dict[str, Any]
    if name == "student":
        own = {
            "algorithm": "fit",
            "role": "student",
            "student": SCRATCH,
            "dropout": 0.0,
            "steps": _steps(4 * epoch, 300, 12_000),
            "optimiser": rates,
        }
        said = (
            "The student from scratch, by cross-entropy: small, so that it is fast; its shape is what to change first."
        )
    elif name == "phase1":
        first = student if student is not None else str(folder / "student/model")
        own = {
            "algorithm": "behaviour_cloning",
            "student": {"path": first},
            "steps": _steps(3 * epoch, 200, 1200),
            "trajectories": trajectories,
            "optimiser": rates,
            "validate_every": 100,
            "checkpoint_every": 50,
        }
        said = "Phase 1: the student learns to write like the teacher, and to ask where an oracle would."
    else:
        own = {
            "algorithm": "path_consistency",
            "student": {"path": str(folder / "phase1/best")},
            "steps": 900 if found.rows > 2000 else 300,
            "optimiser": rates,
            "held_out_rows": min(96, found.held_out),
            "tolerance": 0.02,
            "validation_rows": 0,
            "log_every": 10,
            "validate_every": 100,
            "checkpoint_every": 50,
        }
        if not small:
            own["value_optimiser"] = {"rate": 1e-6, "weight_decay": 1e-6, "decay": False, "scaled": False}
        said = "Phase 2: the student learns from the reward of whole outputs, and each budget has its price."
    pretrained = (
        "as the small pairs that ship were trained with"
        if small
        else "the paper's, for pretrained models, without scaling by each tensor's size (nobody here has run them)"
    )
    free = psutil.virtual_memory().available
    head = [
        said,
        f"Run: kdtw train {folder / name}.yaml    All settings, explained: … --settings    One changed: … steps=10",
        f"Data: {found.rows} training and {found.held_out} validation examples; {COVERED:.0%} of them have at most "
        f"{found.max_source} and {found.max_target} tokens.",
        f"Student of {found.student / 1e6:.1f} M parameters, teacher of {found.teacher / 1e6:.1f} M.",
        f"Rates are {pretrained}.",
        f"target_tokens is what half of the free memory held, at most 2048 ({free / 2**30:.0f} GiB were free).",
    ]
    text = OmegaConf.to_yaml(OmegaConf.create({"summary": said, **common, **own}))
    return "".join(f"# {line}\n" for line in head) + text


def _steps(wanted: float, fewest: int, most: int) -> int:
    """A round number of batches."""
    return int(min(most, max(fewest, 100 * round(wanted / 100))))


def _covering(lengths: Sequence[int]) -> int:
    """A length, a multiple of 8, that `COVERED` of those given do not exceed."""
    return max(16, 8 * int(np.ceil(np.quantile(lengths, COVERED) / 8)))


def _absolute(place: str) -> str:
    """A folder from the root, so that it is one from everywhere; a name on the hub as it is."""
    return str(Path(place).absolute()) if Path(place).is_dir() else place


def _check_same_words(student: str, tokenizer: str) -> None:
    """ValueError where the student has a tokenizer, and it means other tokens than the teacher's."""
    here = Path(student).is_dir()
    own = find_tokenizer(Path(student)) if here else student
    if own is None or str(own) == tokenizer:
        return
    try:
        words = load_tokenizer(own)
    except OSError:
        if here:
            raise
        return
    if here or has_vocabulary(student):
        check_same(words, load_tokenizer(tokenizer), "teacher")


def _tokenizer_place(teacher: str) -> str:
    """Where the teacher's tokenizer is: in its folder, or in one called tokenizer beside it, or on the hub."""
    if not Path(teacher).is_dir():
        return teacher
    found = find_tokenizer(Path(teacher))
    if found is None:
        raise FileNotFoundError(f"there is no tokenizer in {teacher}, nor in a folder tokenizer beside it")
    return str(found)
