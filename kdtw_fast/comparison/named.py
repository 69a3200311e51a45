"""What `kdtw compare` was told to compare, by name: what is not there, or is wrong, is said without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

from kdtw_fast.loaders import jsonl_lines
from kdtw_fast.pairs import Sample, load_samples, pair_folder, pair_names

PARTS = ("student", "teacher", "tokenizer")  # folders of a pair


def check_named(pair: str, data: Path | None, draft_student: Path | None) -> None:
    """Raises as :func:`kdtw_fast.comparison.contenders.load_contender` does, as far as names and files tell."""
    home = find_home(pair)
    if data is not None:
        read_samples(data)
    elif home is not None and pair not in pair_names():
        own_samples(pair)
    if draft_student is not None and not draft_student.is_dir():
        raise FileNotFoundError(f"--draft-student {draft_student} is not a folder; give one of save_pretrained")


def find_home(pair: str) -> Path | None:
    """The folder of a pair that ships, or one with :data:`PARTS` in it; None where a recipe was named."""
    shipped = pair in pair_names()
    if not shipped and not Path(pair).is_dir():
        from kdtw_fast.training import books

        if pair in books.recipe_names() or Path(pair).suffix in (".yaml", ".yml"):
            books.check(pair)
            return None
    home = Path(pair) if Path(pair).is_dir() and not shipped else pair_folder(pair)  # which says what pairs there are
    if not all((home / part).is_dir() for part in PARTS):
        raise FileNotFoundError(f"{home} holds no pair: it needs the folders student, teacher and tokenizer")
    return home


def own_samples(pair: str) -> list[Sample]:
    """The sentences that ship with a pair; ValueError for a folder, with which none do."""
    if pair not in pair_names():
        raise ValueError(f"{pair} ships with no sentences; name a JSONL file with --data")
    return load_samples(pair)


def read_samples(path: Path) -> list[Sample]:
    """The sentences of a JSONL file with "source" and "target"; ValueError names the line that has none."""
    if not path.is_file():
        raise FileNotFoundError(f"--data {path} is not a file; give JSONL with source and target")
    samples = []
    for number, line in jsonl_lines(path):
        try:
            row = json.loads(line)
            source, target = row["source"], row["target"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} line {number} is no JSON object with source and target") from None
        if not (isinstance(source, str) and source.strip() and isinstance(target, str)):
            raise ValueError(f"{path} line {number}: source and target must be strings, and the source not empty")
        samples.append(Sample(source, target))
    if not samples:
        raise ValueError(f"{path} holds no sentences")
    return samples
