"""The models to decode with and their tokenizer, from a shipped pair or from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdtw_fast.gguf_file import is_gguf
from kdtw_fast.loaders import check_alike, find_tokenizer, load_tokenizer
from kdtw_fast.messages import Message, OptionName
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
    """The models that a method needs (several teachers: a list) and their tokenizer, from a shipped pair or folders.

    Args:
        needed: of "student" and "teacher".
        pair: a shipped pair's name; None = the default one, where no folder is given.
        student, teacher, tokenizer: folders; several teachers in the order of their numbers.
        dtypes: by role, as for :meth:`kdtw_fast.NativeModel.from_pretrained`.
        cache: keep the packed weights in files beside the models, and map them.
        device: where they are to decode.

    Raises:
        FileNotFoundError: a folder, or the tokenizer, is not there.
        ValueError: a pair and folders were given, or a model is missing; no ``tokenizer`` was given, and those of two
            folders mean different tokens by an id; or as ``from_pretrained`` does.
    """
    check_places(needed, pair, student, teacher, tokenizer)
    from kdtw_fast.model import NativeModel  # PyTorch: what is wrong with the words of a command is said without it

    if student is None and not teacher:
        home = pair_folder(pair or DEFAULT_PAIR)
        shipped = {
            role: NativeModel.from_pretrained(home / role, role, dtypes[role], cache=cache, device=device)
            for role in needed
        }
        return shipped, _tokenizer(home / "tokenizer", beside=False)
    folders = {"student": [] if student is None else [student], "teacher": teacher or []}
    models: dict[str, Any] = {}
    named: list[tuple[str, Path]] = []
    for role in needed:
        names = [role if len(folders[role]) == 1 else f"{role} {k}" for k in range(1, 1 + len(folders[role]))]
        found = [
            NativeModel.from_pretrained(folder, name, dtypes[role], cache=cache, device=device)
            for folder, name in zip(folders[role], names)
        ]
        models[role] = found if len(found) > 1 else found[0]
        named += zip(names, folders[role])
    return models, _shared_tokenizer(named) if tokenizer is None else _tokenizer(tokenizer, beside=False)


def check_places(
    needed: tuple[str, ...],
    pair: str | None,
    student: Path | None,
    teacher: list[Path] | None,
    tokenizer: Path | None,
) -> None:
    """Raises as :func:`load_models` does for a pair, or folders, that are not there; needs no PyTorch."""
    folders = {"student": [] if student is None else [student], "teacher": teacher or []}
    if student is None and not teacher:
        if tokenizer is not None:
            one = OptionName("tokenizer"), " goes with ", OptionName("student"), " and ", OptionName("teacher")
            raise ValueError(Message(*one, "; a shipped pair has its own"))
        pair_folder(pair or DEFAULT_PAIR)
        return
    if pair is not None:
        both = OptionName("pair"), ", or ", OptionName("student"), " and ", OptionName("teacher")
        raise ValueError(Message("give ", *both, ", not both"))
    for role in needed:
        if not folders[role]:
            raise ValueError(Message("this method needs ", OptionName(role), " too"))
        for folder in folders[role]:
            check_model_folder(role, folder)
    _tokenizer_place(folders[needed[0]][0] if tokenizer is None else tokenizer, beside=tokenizer is None)


def check_model_folder(name: str, folder: Path) -> None:
    """FileNotFoundError where a model's place is neither a folder nor a GGUF file; ``name`` is the option's."""
    if not (folder.is_dir() or is_gguf(folder)):
        said = f" {folder} is not a folder; give one written by save_pretrained, or a GGUF file"
        raise FileNotFoundError(Message(OptionName(name), said))


def _shared_tokenizer(named: list[tuple[str, Path]]) -> Any:
    """The tokenizer of the first of these models' folders; where others have one, it must mean the same."""
    (_, first), *others = named
    own = find_tokenizer(first)
    if own is None:
        return _tokenizer(first)  # which says so
    places = [(name, find_tokenizer(folder)) for name, folder in others]
    words = check_alike(own, [(name, place) for name, place in places if place is not None])
    return load_tokenizer(own) if words is None else words


def _tokenizer(folder: Path, beside: bool = True) -> Any:
    return load_tokenizer(_tokenizer_place(folder, beside))


def _tokenizer_place(folder: Path, beside: bool) -> Path:
    found = find_tokenizer(folder, beside)
    if found is None:
        places = f"{folder} or {folder.parent / 'tokenizer'}" if beside else str(folder)
        raise FileNotFoundError(Message(f"no tokenizer in {places}; name its folder with ", OptionName("tokenizer")))
    return found
