"""Where a record comes from: machine, build, versions, commit, command, seed, and what exactly was compared."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kdtw_fast
from kdtw_fast.machine import machine, versions

SEED = 0  # of everything random in a comparison: the control that asks at random, the bootstrap


def provenance(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The part that all records of one run share; :func:`stamped` adds the time.

    Args:
        origin: what the results depend on (weights, data, settings), by name; a file is continued only where it
            agrees.
    """
    here = machine()
    here["versions"] |= versions("sacrebleu", "rouge-score", "numpy")
    return {
        "machine": here,
        "commit": commit(),
        "command": shlex.join(["kdtw", *sys.argv[1:]]),
        "seed": SEED,
        "subject": dict(origin),
    }


def stamped(shared: Mapping[str, Any]) -> dict[str, Any]:
    """``shared`` with the present time (UTC, ISO 8601)."""
    return {**shared, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def commit() -> str | None:
    """The commit of the checkout that this package lies in, "-dirty" behind it where files differ; None elsewhere."""
    root = Path(kdtw_fast.__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed copy may lie in a checkout of something else
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of byte strings, the first 16 digits; where one ends and the next begins counts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Digest of a model folder's config and safetensors files."""
    files = sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])
    return digest(part for file in files for part in (file.name.encode(), file.read_bytes()))


def check_same(path: Path, recorded: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Raises ValueError if a file's records were taken of something else, naming what differs."""
    for name in [*origin, *(key for key in recorded if key not in origin)]:
        then, now = recorded.get(name), origin.get(name)
        if then != now:
            raise ValueError(
                f"{path} holds results with {name} = {then}, and this run has {name} = {now}; "
                f"choose another --out, or move that file away"
            )
