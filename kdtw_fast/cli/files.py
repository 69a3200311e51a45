"""Files that commands write: each beside its target, whose place it takes when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kdtw_fast.messages import Message, OptionName


def check_target(option: str, target: Path, *sources: Path | int) -> None:
    """Refuses a target that cannot be written, or is one of the files (or open file numbers) that are read."""
    name = OptionName(option)
    if not target.parent.is_dir():
        raise FileNotFoundError(Message(name, f" {target} lies in a folder that does not exist"))
    if target.is_dir():
        raise IsADirectoryError(Message(name, f" {target} is a folder; name a file in it"))
    if not os.access(target if _in_place(target) else target.parent, os.W_OK):
        raise PermissionError(Message(name, f" {target} may not be written; choose another place"))
    for source in sources if target.is_file() else ():
        if (isinstance(source, int) or source.exists()) and os.path.samestat(os.stat(source), target.stat()):
            raise ValueError(Message(name, f" {target} is the file that is being read; choose another"))


@contextmanager
def replacing(target: Path) -> Iterator[IO[str]]:
    """A text file that takes the target's place at the end; devices and pipes are written as they are.

    After an error the target is what it was, and what was written stays beside it: the error's note names it.
    """
    part = target
    if not _in_place(target):
        target = target.resolve()
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)
        if part != target and part.exists():
            if part.stat().st_size > 0:
                error.add_note(f"what was finished is in {part}")
            else:
                part.unlink()
        raise
    if part != target:
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)


def write_whole(target: Path, text: str) -> None:
    """Writes a text file: all of it, or the old one stays."""
    with replacing(target) as stream:
        stream.write(text)


def _in_place(target: Path) -> bool:
    """Whether the target is no file that another could take the place of."""
    return target.exists() and not (target.is_file() and os.access(target.resolve().parent, os.W_OK))
