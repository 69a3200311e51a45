"""The models that a command decodes with, from a shipped pair or from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdtw_fast.gguf_file import is_gguf
from kdtw_fast.pairs import DEFAULT_PAIR, pair_folder


def load_models(
    needed: tuple[str, ...],
    pair: str | None,
    student: Path | None,
    teacher: list[Path] | None,
    tokenizer: Path | None,
    dtypes: dict[str, str],
    cache: bool = False,
    device: str = "cpu",
) -> tuple[dict[str, Any], Any]:
    """The models that a method needs (several teachers: a list) and their tokenizer, from a shipped pair or folders."""
    folders = {"student": [] if student is None else [student], "teacher": teacher or []}
    if student is None and not teacher:
        if tokenizer is not None:
            raise ValueError("--tokenizer goes with --student and --teacher; a shipped pair has its own")
        home = pair_folder(pair or DEFAULT_PAIR)
        from kdtw_fast.model import NativeT5  # PyTorch: what is wrong with the words of a command is said without it

        shipped = {
            role: NativeT5.from_pretrained(home / role, role, dtypes[role], cache=cache, device=device)
            for role in needed
        }
        return shipped, _tokenizer(home / "tokenizer", beside=False)
    if pair is not None:
        raise ValueError("give --pair, or --student and --teacher, not both")
    for role in needed:
        if not folders[role]:
            raise ValueError(f"this method needs --{role} too")
        for folder in folders[role]:
            if not (folder.is_dir() or is_gguf(folder)):
                raise FileNotFoundError(
                    f"--{role} {folder} is not a folder; give one written by save_pretrained, or a GGUF file"
                )
    from kdtw_fast.model import NativeT5

    models: dict[str, Any] = {}
    for role in needed:
        names = [role if len(folders[role]) == 1 else f"{role} {k}" for k in range(1, 1 + len(folders[role]))]
        found = [
            NativeT5.from_pretrained(folder, name, dtypes[role], cache=cache, device=device)
            for folder, name in zip(folders[role], names)
        ]
        models[role] = found if len(found) > 1 else found[0]
    return models, _tokenizer(folders[needed[0]][0]) if tokenizer is None else _tokenizer(tokenizer, beside=False)


def _tokenizer(folder: Path, beside: bool = True) -> Any:
    from kdtw_fast.loaders import find_tokenizer, load_tokenizer

    found = find_tokenizer(folder, beside)
    if found is None:
        places = f"{folder} or {folder.parent / 'tokenizer'}" if beside else str(folder)
        raise FileNotFoundError(f"no tokenizer in {places}; name its folder with --tokenizer")
    return load_tokenizer(found)
