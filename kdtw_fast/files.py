"""Files and folders that are written beside their target, whose place they take when they are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from kdtw_fast.messages import Message, OptionName

# The files of a folder that a model or its tokenizer may be made of.
_ENDINGS = (".gguf", ".jinja", ".json", ".model", ".packed", ".safetensors", ".spm")
_NAMES = ("merges.txt", "vocab.txt")
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


def check_target(option: str, target: Path, *sources: Path | int) -> None:
    """Refuses a target that cannot be written, or is one of the files (or open file numbers) that are read.

    Of a folder among them, a model's or a tokenizer's are read.
    """
    name = OptionName(option)
    if not target.parent.is_dir():
        raise FileNotFoundError(Message(name, f" {target} lies in a folder that does not exist"))
    if target.is_dir():
        raise IsADirectoryError(Message(name, f" {target} is a folder; name a file in it"))
    if not os.access(target if _in_place(target) else target.parent, os.W_OK):
        raise PermissionError(Message(name, f" {target} may not be written; choose another place"))
    for source in sources if target.is_file() else ():
        if isinstance(source, Path) and source.is_dir():
            files = [one for one in source.iterdir() if one.suffix in _ENDINGS or one.name in _NAMES]
            said = f" {target} is a file of {source}, which is being read; choose another"
        else:
            files, said = [source], f" {target} is the file that is being read; choose another"  # type: ignore[list-item]
        for file in files:
            if (isinstance(file, int) or file.exists()) and os.path.samestat(os.stat(file), target.stat()):
                raise ValueError(Message(name, said))


@contextmanager
def replacing(target: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file that takes the target's place at the end; devices and pipes are written as they are.

    After an error the target is what it was. What was written of a text stays beside it: the error's note names it.
    """
    part = target
    if not _in_place(target):
        target = target.resolve()
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
    text: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"} if mode == "w" else {}
    try:
        with part.open(mode, **text) as stream:
            yield stream
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)
        if part != target and part.exists():
            if mode == "w" and part.stat().st_size > 0:
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
    with replacing(target, "wb") as stream:
        stream.write(text.encode())


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A folder, not made yet, that takes the target's place at the end, whole; until then the target is what it was.

    Where a process was killed between the two renames, the next one puts the old folder back first.
    """
    target = target.resolve()
    scratch, old = _beside(target, "writing"), _beside(target, "old")
    if old.exists() and not target.exists():
        os.replace(old, target)
    for folder in (scratch, old):
        shutil.rmtree(folder, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if target.exists():
        os.replace(target, old)
    os.replace(scratch, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def putting_into(target: Path) -> Iterator[Path]:
    """A folder, not made yet, whose files are moved into the target at the end, each as a whole; others there stay.

    Where weights are among them, the weights that were there go: they would be read instead.
    """
    target = target.resolve()
    scratch = _beside(target, "writing")
    shutil.rmtree(scratch, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
        files = [file.relative_to(scratch) for file in sorted(scratch.rglob("*")) if not file.is_dir()]
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / file, target / file)
        stale = [file for pattern in _WEIGHTS for file in target.glob(pattern) if Path(file.name) not in files]
        for file in stale if any(file.suffix == ".safetensors" for file in files) else ():
            file.unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """A folder, made where it is not there, for one run at a time: False where another run has it.

    Who is killed holds nothing.
    """
    from filelock import FileLock, Timeout  # only who writes a folder waits for it

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _beside(target: Path, state: str) -> Path:
    """A name beside a folder that nobody else gives to one."""
    return target.with_name(f".{target.name}.{state}.kdtw")


def _in_place(target: Path) -> bool:
    """Whether the target is no file that another could take the place of."""
    return target.exists() and not (target.is_file() and os.access(target.resolve().parent, os.W_OK))
