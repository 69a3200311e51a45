"""Debian's binary packages as folders of files: fetched by name with apt and unpacked, never installed (no root)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote

from ..debian import apt_get, require_apt, stanzas


class PackageMissingError(RuntimeError):
    """apt knows no package of that name."""


def fetch(names: Iterable[str], lists: Path, cache: Path, tell: Callable[[str], None]) -> list[str]:
    """Fetch and unpack the named packages into CACHE/files/NAME; returns the names that apt does not know.

    With a package whose documents are a link to another's comes that other one, for its copyright file.
    `lists` holds apt's package lists (`debian.fetch_lists`). What is in the cache already is taken from there, so a
    second build sees the same versions. Raises RuntimeError with apt's last words if a download fails.
    """
    require_apt()
    if shutil.which("dpkg-deb") is None:
        raise RuntimeError("dpkg-deb, which unpacks Debian's packages, cannot be found on this machine")
    archives = cache / "packages"
    archives.mkdir(parents=True, exist_ok=True)
    wanted, missing = sorted(set(names)), []
    for name in wanted:  # grows by packages that hold another's copyright file
        folder = cache / "files" / name
        if not folder.is_dir():
            if not archive_of(archives, name):
                tell(f"fetching {name}")
                try:
                    download(name, lists, archives)
                except PackageMissingError:
                    missing.append(name)
                    continue
            unpack(archives, name, folder)
        documents = folder / "usr/share/doc" / name
        if documents.is_symlink() and documents.readlink().name not in wanted:
            wanted.append(documents.readlink().name)
    return missing


def download(name: str, lists: Path, folder: Path) -> None:
    """Let apt put the newest archive of package `name` into `folder`; PackageMissingError if it knows none."""
    if reason := apt_get(lists, [f"Dir::Cache={folder.resolve()}"], "download", name, cwd=folder):
        if "Unable to locate package" in reason or "no installation candidate" in reason or "No candidate" in reason:
            raise PackageMissingError(reason)
        raise RuntimeError(f"apt-get could not fetch {name} into {folder}: {reason}")


def archive_of(folder: Path, name: str) -> Path | None:
    """The archive of a package in `folder`, None if there is none; ValueError if there are two versions."""
    found = sorted(folder.glob(f"{name}_*.deb"))
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} versions of {name}; delete those that are not meant")
    return found[0] if found else None


def unpack(archives: Path, name: str, folder: Path) -> None:
    """Unpack an archive into `folder`, which appears when it is whole."""
    scratch = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    archive = archive_of(archives, name)
    subprocess.run(["dpkg-deb", "-x", str(archive), str(scratch)], check=True)
    scratch.rename(folder)


def version(cache: Path, name: str) -> str:
    """The version of a fetched package, as its archive's name says."""
    archive = archive_of(cache / "packages", name)
    return unquote(archive.name).split("_")[1] if archive else ""


# Names by which a copyright file that is not machine readable gives its licence, the first that fits.
_FREE_FORM = {
    r"Creative Commons Attribution-Share ?Alike (\d\.\d)": r"CC-BY-SA-\1",
    r"GNU (?:General Public License|GPL)|GPL": "GPL",
    r"GNU Lesser General Public License": "LGPL",
    r"GNU Free Documentation License": "GFDL",
    r"make and distribute verbatim copies.*permission notice identical to this one": "copyleft of its own",
    r"Mozilla Public License": "MPL",
    r"PostgreSQL Licen[cs]e|Permission to use, copy, modify, and distribute this software and its": "PostgreSQL",
    r"BSD": "BSD",
    r"MIT|Permission is hereby granted, free of charge": "MIT",
}


def copyright_file(files: Path, name: str) -> Path:
    """A package's copyright file, in its own folder or in the package its documents link to; ValueError without one."""
    documents = files / name / "usr/share/doc" / name
    owner = documents.readlink().name if documents.is_symlink() else name
    found = files / owner / "usr/share/doc" / owner / "copyright"
    if not found.is_file():
        raise ValueError(f"{name} has no copyright file ({found}), so nothing says whether its text may be used")
    return found


def licences(path: Path) -> list[str]:
    """Short names of the licences in a copyright file: that of most files first, then the others by name."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if re.search(r"^Format:\s", text, re.MULTILINE | re.IGNORECASE):
        named: dict[str, None] = {}
        for fields in sorted(stanzas(text), key=lambda fields: fields.get("Files") != "*"):
            licence = fields.get("License", "").split("\n")[0].strip()
            if licence and "Format" not in fields:
                named[licence] = None
        first, *others = list(named) or [""]
        return [first, *sorted(others)]
    flat = " ".join(text.split())
    return [m.expand(short) for pattern, short in _FREE_FORM.items() if (m := re.search(pattern, flat))][:3]
