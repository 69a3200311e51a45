"""Checkpoints that survive kill -9: written aside and renamed, the one before kept, a damaged one refused.

A checkpoint is a file of torch.save with its SHA-256 behind it, so torch.load reads it too.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdtw_fast.files import sync_folder

LATEST, PREVIOUS, SCRATCH = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.writing"
DIGEST_BYTES = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write FOLDER/checkpoint.pt; what was there becomes FOLDER/checkpoint.previous.pt, if it is whole.

    At every moment one of the two is whole: the new one is on the disk before the names change, and a damaged one never
    takes the place of the one before. `state` may hold tensors, numbers, strings, None and dictionaries, lists and
    tuples of them.
    """
    scratch = folder / SCRATCH
    with scratch.open("w+b") as file:
        torch.save(dict(state), file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    if (folder / LATEST).exists() and _damage(folder / LATEST) is None:
        os.replace(folder / LATEST, folder / PREVIOUS)
    os.replace(scratch, folder / LATEST)
    sync_folder(folder)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of `folder`, None if there is none at all.

    A damaged one is named in a warning and the one before is taken; ValueError where no whole one is left.
    """
    damaged: list[Path] = []
    for path in (folder / LATEST, folder / PREVIOUS):
        if not path.exists():
            continue
        reason = _damage(path)
        if reason is None:
            if damaged:
                log.warning("going on from %s", path)
            return torch.load(path, map_location="cpu", weights_only=True)
        log.warning("refused %s: %s", path, reason)
        damaged.append(path)
    if damaged:
        names = " and ".join(map(str, damaged))
        raise ValueError(f"no whole checkpoint is left: {names} is damaged; delete it to begin again")
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None."""
    size = path.stat().st_size
    if size <= DIGEST_BYTES:
        return f"it has {size} bytes, too few for a checkpoint"
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as data,
    ):
        whole = hashlib.sha256(data[:-DIGEST_BYTES]).digest() == data[-DIGEST_BYTES:]
    return None if whole else "its checksum does not match, so it is cut off or damaged"
