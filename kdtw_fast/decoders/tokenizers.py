"""The tokenizer of a decoder: the one that was given, or that of its models' folders, and whether two mean the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdtw_fast.loaders import check_same, find_tokenizer, load_tokenizer
from kdtw_fast.model import NativeModel


def folder_of(model: Any) -> Path | None:
    """The folder or GGUF file that a model is, or was loaded from; None for one made in memory or from a hub."""
    if isinstance(model, (str, Path)):
        return Path(model)
    place = model.folder if isinstance(model, NativeModel) else getattr(model, "name_or_path", None)
    return Path(place) if place and Path(place).is_dir() else None


def words_of(
    given: Any, student: Any, taus: Sequence[int], teachers: Sequence[tuple[str, Any]] = ()
) -> Callable[[], Any]:
    """A function that gives a decoder's tokenizer, or None where there is none; a folder's is read when it is called.

    Args:
        given: what the caller passed as ``tokenizer``, or None; whoever makes the decoder checks it.
        student: the model whose folder may hold one.
        taus: the ids of the student's <tau>s.
        teachers: names and models of the others, whose own tokenizers must mean the same. Not asked where one is given.

    Raises (the function): ValueError where two tokenizers mean different tokens by an id, or a token has <tau>'s id.
    """
    if given is not None:
        return lambda: given
    mine, others = folder_of(student), [(name, folder_of(model)) for name, model in teachers]

    def read() -> Any:
        words = tokenizer_in(mine)
        if words is not None:
            check_taus(words, taus)
            for name, folder in others:
                if folder != mine and (other := tokenizer_in(folder)) is not None:
                    check_same(words, other, name)
        return words

    return read


def tokenizer_in(folder: Path | None) -> Any:
    """The tokenizer that lies in a model's folder or beside it; None where there is none."""
    found = None if folder is None else find_tokenizer(folder)
    return None if found is None else load_tokenizer(found)


def check_taus(tokenizer: Any, taus: Sequence[int]) -> None:
    """Raises ValueError where one of a tokenizer's tokens has the id of a <tau>."""
    if not taus or not hasattr(tokenizer, "get_vocab"):
        return
    if taken := {token_id: token for token, token_id in tokenizer.get_vocab().items() if token_id in taus}:
        token_id, token = min(taken.items())
        raise ValueError(
            f"token id {token_id} is <tau> in the student, but {token!r} in its tokenizer; make the student with "
            f"TrainingWheelsT5.from_t5(…, tokenizer_size=len(tokenizer)), which puts <tau> above the tokenizer's tokens"
        )
