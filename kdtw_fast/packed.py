"""Packed weights in a file beside their checkpoint: packed once, then mapped into memory and shared by processes.

The file: 8 bytes of magic, the header's length (8 bytes) and SHA-256 (32), the header (JSON), zeros up to a multiple
of 64, and the arrays, each on a multiple of 64.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdtw_fast import _core

_MAGIC, _START, _ALIGNMENT = b"kdtwpak3", 48, 64  # the magic changes with the header
_LONGEST_WAIT = 600.0  # seconds for another who packs the same weights


@dataclass(frozen=True)
class PackedWeights:
    """What the file holds; the arrays are views of the mapped file and keep it open.

    Args:
        spec: ``_core.Transformer``'s, but for name and cache_dtype.
        vectors: what the core does not pack, by its names of tensors, float32.
        blobs: what ``_core.Transformer.blobs`` was.
        file: where all of them lie; None of weights that are to be written.
    """

    spec: dict[str, Any]
    vectors: dict[str, npt.NDArray[np.float32]]
    blobs: list[npt.NDArray[np.uint8]]
    file: _core.MappedFile | None = None


class Source(NamedTuple):
    """A file, and how it was before it was opened: what is read from it is of this state while it stays so."""

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def seen(cls, path: Path) -> Source:
        """The file as it is now."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)


class PackedFile:
    """The file at ``path`` for weights that were made from the files ``sources`` in the way that ``key`` says."""

    def __init__(self, path: Path, sources: Sequence[Source], key: Mapping[str, Any]):
        self.path, self._sources = path, sources
        self._key = dict(key) | {"layout": _core.packed_layout}

    def read(self) -> PackedWeights | None:
        """The weights, or None where the file is absent, cut short, or was made from something else.

        The sources are the same when their sizes and times are, or else their contents. Of the file itself, header and
        length are checked; its arrays are not read. OSError where a source is no longer as it was.
        """
        try:
            header, data, file = self._open()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return None  # write() tells when it cannot be there
        if header["key"] != self._key or not self._made_from_sources(header["sources"]):
            return None
        self._check_sources()

        def array(entry: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
            return data[entry["offset"] : entry["offset"] + entry["bytes"]]

        vectors = {v["name"]: array(v).view(np.float32).reshape(v["shape"]) for v in header["vectors"]}
        return PackedWeights(header["spec"], vectors, [array(entry) for entry in header["blobs"]], file)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds off others who would pack the same weights meanwhile: what is written in here is there for them.

        The lock is on the first source. Where a file system has no locks, and where somebody holds one for more than
        ten minutes (whoever may read the file may lock it), each packs, and the last one's file stays.
        """
        with self._sources[0].path.open("rb") as source:
            end = time.monotonic() + _LONGEST_WAIT
            while time.monotonic() < end:
                try:
                    fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
                except OSError:
                    break
            yield

    def write(self, weights: PackedWeights) -> None:
        """Puts the file in place as a whole.

        Raises OSError saying where it could not be written, or that a source is no longer as it was, so that nobody
        knows which of its states the weights are.
        """
        sources = [
            {"name": path.name, "size": size, "mtime_ns": mtime_ns, "sha256": _digest(path)}
            for path, size, mtime_ns, _ in self._sources
        ]
        self._check_sources()  # behind the digests: the weights were read, and these made, of the same state
        arrays: list[npt.NDArray[Any]] = []
        offset = 0

        def place(array: npt.NDArray[Any]) -> dict[str, int]:
            nonlocal offset
            arrays.append(array)
            entry = {"offset": offset, "bytes": array.nbytes}
            offset = _rounded(offset + array.nbytes)
            return entry

        header: dict[str, Any] = {"key": self._key, "sources": sources, "spec": weights.spec}
        header["vectors"] = [{"name": n, "shape": v.shape} | place(v) for n, v in weights.vectors.items()]
        header["blobs"] = [place(blob) for blob in weights.blobs]
        header["bytes"] = offset
        text = json.dumps(header).encode()
        start = _MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
        try:
            self._put_in_place(np.frombuffer(start, np.uint8), *arrays)
        except OSError as error:
            message = f"packed weights cannot be written ({error.strerror}); leave out cache, or name a file for them"
            raise OSError(error.errno, message, str(self.path)) from None

    def _put_in_place(self, *arrays: npt.NDArray[Any]) -> None:
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=self.path.name, delete=False) as file:
            try:
                for array in arrays:
                    file.write(np.ascontiguousarray(array).data)
                    file.write(bytes(_rounded(array.nbytes) - array.nbytes))
                file.close()
                shutil.copymode(self._sources[0].path, file.name)  # who may read the checkpoint may read this
                os.replace(file.name, self.path)
            except BaseException:
                os.unlink(file.name)
                raise

    def _open(self) -> tuple[dict[str, Any], npt.NDArray[np.uint8], _core.MappedFile]:
        """Header, arrays, and the file that they lie in; ValueError when it is not whole."""
        self.path.open("rb").close()  # its errors tell one reason from another
        file = _core.MappedFile(str(self.path))
        data = file.bytes
        start = data[:_START].tobytes()
        length = int.from_bytes(start[8:16], "little")
        if len(start) < _START or start[:8] != _MAGIC or length > data.size:
            raise ValueError("not a file of packed weights")
        text = data[_START : _START + length].tobytes()
        if hashlib.sha256(text).digest() != start[16:]:
            raise ValueError("broken header")
        header = json.loads(text)
        begin = _rounded(_START + length)
        if data.size != begin + header["bytes"]:
            raise ValueError("cut short")
        return header, data[begin:], file

    def _made_from_sources(self, described: list[dict[str, Any]]) -> bool:
        if [entry["name"] for entry in described] != [source.path.name for source in self._sources]:
            return False
        for entry, source in zip(described, self._sources, strict=True):
            if source.size != entry["size"]:
                return False
            if source.mtime_ns != entry["mtime_ns"] and _digest(source.path) != entry["sha256"]:
                return False
        return True

    def _check_sources(self) -> None:
        for source in self._sources:
            if Source.seen(source.path) != source:
                message = "the file was changed while its model was loaded; load the model again"
                raise OSError(errno.EBUSY, message, str(source.path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
