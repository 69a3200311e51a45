"""Pairs that ship with the package: student, teacher, tokenizer and held-out sentences to try them on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kdtw_fast.loaders import jsonl_lines, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

    from kdtw_fast.modeling import TrainingWheelsT5

DATA = Path(__file__).parent / "data"
DEFAULT_PAIR = "debian-de-en"


@dataclass(frozen=True)
class Sample:
    """A held-out example.

    Attributes:
        source: the text to decode.
        target: the reference.
        package: the Debian source package that it comes from.
    """

    source: str
    target: str
    package: str = ""


@dataclass(frozen=True)
class Pair:
    """A student and its teacher with their tokenizer.

    Attributes:
        name: as `load_pair` takes it.
        student: float32, on the CPU, in eval mode.
        teacher: the same.
        tokenizer: of both.
        folder: the pair's files: `student`, `teacher`, `tokenizer`, and `gkd`, a distilled student.
    """

    name: str
    student: TrainingWheelsT5
    teacher: T5ForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def samples(self, limit: int | None = None) -> list[Sample]:
        """The pair's held-out sentences (none of their packages or texts was trained on), the first `limit` of them."""
        return load_samples(self.name, limit)


def pair_names() -> list[str]:
    """Names that `load_pair` takes."""
    return sorted(folder.name for folder in (DATA / "pairs").glob("*") if (folder / "student").is_dir())


def load_pair(name: str = DEFAULT_PAIR) -> Pair:
    """Loads a pair that ships with the package; needs no network.

    Args:
        name: "debian-de-en" (German to English) or "debian-synopsis" (a description to one line).

    Raises:
        ValueError: an unknown name; the message names the nearest.
        FileNotFoundError: the package lacks its data.
    """
    import torch
    from transformers import T5ForConditionalGeneration

    from kdtw_fast.modeling import TrainingWheelsT5
    from kdtw_fast.weights import own_files

    folder = pair_folder(name)
    with quietly():
        student = TrainingWheelsT5.from_pretrained(folder / "student", dtype=torch.float32).eval()
        teacher = T5ForConditionalGeneration.from_pretrained(
            own_files(folder / "teacher", "teacher"), dtype=torch.float32
        ).eval()
    return Pair(name, student, teacher, load_tokenizer(folder / "tokenizer"), folder)


def pair_folder(name: str = DEFAULT_PAIR) -> Path:
    """The folder of a shipped pair, with `student`, `teacher` and `tokenizer` in it; raises as `load_pair` does."""
    return _find(name, DATA / "pairs" / name if isinstance(name, str) else DATA)


def load_samples(name: str = DEFAULT_PAIR, limit: int | None = None) -> list[Sample]:
    """The held-out sentences that ship with a pair; raises as `load_pair` does, ValueError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    path = _find(name, DATA / "samples" / f"{name}.jsonl")
    return [Sample(**json.loads(line)) for _, line in islice(jsonl_lines(path), limit)]


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings and progress bars of transformers, which draws one for each model, however small."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _find(name: str, path: Path) -> Path:
    if not isinstance(name, str):
        raise TypeError(f"a pair's name is a string, got {type(name).__name__}")
    known = pair_names()
    if not known:
        raise FileNotFoundError(f"{DATA} holds no pair; install kdtw_fast with its data (pip install, not a bare copy)")
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown pair {name!r}; did you mean {nearest!r}? Pairs that ship: {', '.join(known)}")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; reinstall kdtw_fast")
    return path
