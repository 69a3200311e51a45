"""The tokenizer of a decoder: the one that was given, or that of its models' folders, and whether two mean the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdtw_fast.loaders import check_alike, find_tokenizer, load_tokenizer, local_folder
from kdtw_fast.model import NativeModel


def folder_of(model: Any) -> Path | None:
    """The folder or GGUF file that a model is, or was loaded from; None for one made in memory or from a hub."""
    if isinstance(model, (str, Path)):
        return Path(model)
    return model.folder if isinstance(model, NativeModel) else local_folder(model)


def words_of(
    given: Any, student: Any, taus: Sequence[int], teachers: Sequence[tuple[str, Any]] = ()
) -> Callable[[], Any]:
    """A function that gives a decoder's tokenizer, or None where there is none; a folder's is read by its first call.

    Args:
        given: what the caller passed as ``tokenizer``, or None; whoever makes the decoder checks it. It is taken for
            that of all models, whatever lies in their folders.
        student: the model whose folder may hold one.
        taus: the ids of the student's <tau>s.
        teachers: names and models of the others, whose own tokenizers must mean the same: token ids are theirs, too.

    Raises ValueError where two tokenizers mean different tokens by an id; the function, where a token has <tau>'s id.
    """
    if given is not None:
        return lambda: given
    mine, *others = [tokenizer_place(model) for model in (student, *(model for _, model in teachers))]
    if mine is None:
        return lambda: None
    found = check_alike(mine, [(name, place) for (name, _), place in zip(teachers, others) if place is not None])

    @functools.cache
    def read() -> Any:
        words = load_tokenizer(mine) if found is None else found
        check_taus(words, taus)
        return words

    return read


def words_of_folders(words: Callable[[], Any], models: Sequence[NativeModel]) -> Callable[[], Any]:
    """`words`, where they lie beside weights that were read from the same folder and can be read; else None's.

    A model in memory may have more tokens by now than the folder that it came from. Who gives token ids needs no
    tokenizer; texts are told of one that cannot be read.
    """

    def read() -> Any:
        if not all(model.from_folder for model in models):
            return None
        try:
            return words()
        except (ImportError, OSError, ValueError):
            return None

    return read


def tokenizer_place(model: Any) -> Path | None:
    """Where the tokenizer of a model is whose folder is known; None where there is none."""
    folder = folder_of(model)
    return None if folder is None else find_tokenizer(folder)


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


def rows_of(tokenizer: Any, models: Sequence[NativeModel]) -> int:
    """The rows from which models of one tokenizer pick tokens: those that all have, without what pads them.

    Rows behind the tokenizer's last token pad a vocabulary; without a tokenizer, or with one that tells no vocabulary,
    nothing is known of them. A model's own ends are never among them.
    """
    common = min(model.vocab_size for model in models)
    used = [] if tokenizer is None or not hasattr(tokenizer, "get_vocab") else [*tokenizer.get_vocab().values()]
    if not used:
        return common
    for model in models:
        used += [*model.eos_token_ids, *model.first_tokens]
    return min(common, 1 + max(used))
