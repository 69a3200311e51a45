"""A long run's progress: pieces of its output in a folder, each whole or absent, and what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdtw_fast.files import write_whole
from kdtw_fast.messages import Message, OptionName

_MANIFEST = "manifest.json"
_LOCK = "lock"
_PIECES = "[0-9]*-[0-9]*.json"
_LAYOUT = 2


class Progress:
    """The finished pieces of a run, in the folder ``OUTPUT.pieces`` beside its output.

    A piece has a range of the input's lines; its file is one JSON object: "lines", as they are to be written, and
    "errors", each a line's number, what was wrong with it, and whether it was that it is no UTF-8.

    Args:
        output: the file that the run is to write.
        made_from: what decides the pieces' contents, by name.
    """

    def __init__(self, output: Path, made_from: Mapping[str, Any]):
        self.folder = output.with_name(f"{output.name}.pieces")
        self._output = output
        self._removed = False
        self._made_from = json.loads(json.dumps({"layout": _LAYOUT} | dict(made_from), default=str))

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, for this process alone.

        Raises:
            BlockingIOError: another process has it.
            ValueError: its pieces were made from something else, naming the first difference.
        """
        self.folder.mkdir(exist_ok=True)
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            said = f" is being written by another process ({self.folder}); wait for it, or choose another"
            raise BlockingIOError(Message(OptionName("output", self._output), said)) from None
        self._removed = False
        try:
            self._begin()
            yield
        finally:
            lock.release()
            if self._removed:
                with suppress(OSError):  # there is something else in it
                    (self.folder / _LOCK).unlink(missing_ok=True)
                    self.folder.rmdir()

    def piece(self, first: int, count: int) -> dict[str, Any] | None:
        """The finished piece of so many lines from the line of that number on; None where it is to be made."""
        with suppress(FileNotFoundError, ValueError):
            found: dict[str, Any] = json.loads(self._file(first, count).read_text(encoding="utf-8"))
            if len(found["lines"]) == count:
                return found
        return None

    def finish(self, first: int, lines: list[str], errors: list[tuple[int, str, bool]]) -> None:
        """Keeps a piece."""
        text = json.dumps({"lines": lines, "errors": errors}, ensure_ascii=False)
        write_whole(self._file(first, len(lines)), text)

    @property
    def begun(self) -> bool:
        """Whether there are finished pieces."""
        return any(self.folder.glob(_PIECES))

    def remove(self) -> None:
        """Ends the progress that is held, once the output is written; the folder goes when it is held no more."""
        self._clear(_PIECES)
        self._clear(_MANIFEST)  # last: pieces never lie there without what they were made from
        self._removed = True

    def _file(self, first: int, count: int) -> Path:
        return self.folder / f"{first:012d}-{first + count - 1:012d}.json"

    def _clear(self, names: str) -> None:
        for file in self.folder.glob(f"{names}*"):  # what was not written to its end, too
            file.unlink()

    def _begin(self) -> None:
        manifest = self.folder / _MANIFEST
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._clear(_PIECES)  # of who knows what
            write_whole(manifest, json.dumps(self._made_from, indent=1, ensure_ascii=False))
            return
        was, now = _flat(found), _flat(self._made_from)
        for name in was | now:
            if was.get(name) != now.get(name):
                raise ValueError(
                    f"{self.folder} has the progress of another run: {name} was {_told(was.get(name))} there and is "
                    f"{_told(now.get(name))} now; go on with what it was, or remove the folder to begin anew"
                )


def digest(file: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def digest_folder(place: Path) -> str:
    """SHA-256 of what decides a model or a tokenizer: the names and contents of its JSON, text, and weights."""
    files = [place] if place.is_file() else [one for one in sorted(place.iterdir()) if one.suffix in _MEANING]
    told = [[file.name, digest(file)["sha256"]] for file in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


_MEANING = (".json", ".jinja", ".model", ".safetensors", ".txt")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: one for k, v in value.items() for key, one in _flat(v, f"{name}.{k}" if name else k).items()}


def _told(value: Any) -> str:
    return "not said" if value is None else repr(value)
