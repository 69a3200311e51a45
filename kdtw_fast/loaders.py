"""What is read from folders that others have made: JSON files, tokenizers. Nothing in a folder is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file; ValueError, which begins with `name` and says what is wrong, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{name}: {path} nests its values too deeply to be read") from None
    except ValueError as error:  # no JSON, no UTF-8, or an integer of thousands of digits
        raise ValueError(f"{name}: {path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {path} must hold a JSON object, got {type(value).__name__}")
    return value


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model")


def find_tokenizer(folder: Path, beside: bool = True) -> Path | None:
    """The folder with the tokenizer of a model's folder: itself, or "tokenizer" beside it; None where neither is."""
    places = [folder, *([folder.absolute().parent / "tokenizer"] if beside else [])]
    return next((place for place in places if any((place / name).is_file() for name in _TOKENIZER_FILES)), None)


def load_tokenizer(place: str | Path) -> Any:
    """The tokenizer saved in a folder; a name on the hub, where it is no folder.

    Raises:
        ValueError: its files ask for Python code of their own (`auto_map`) to be run, or are no JSON.
        OSError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    folder = Path(place)
    for file in (folder / "tokenizer_config.json", folder / "config.json"):
        if file.is_file() and "auto_map" in read_json(file, "tokenizer"):
            raise ValueError(
                f"tokenizer: {file} has an auto_map, which names Python code in the folder to be run, and none is; "
                f"remove auto_map, or save a tokenizer of a class that transformers has"
            )
    return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
