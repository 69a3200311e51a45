"""What each setting means: the comment beside it in its class, for the site and for `kdtw train --settings`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

WIDTH = 118
_FIELD = re.compile(r"    (\w+): ([^=#]+?) = (.+?)(?:  # (.*))?$")


def own_settings(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and comment (beside it, or a sentence above it) of the settings that a class adds to its base."""
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        match = _FIELD.match(line)
        if match:
            name, _, default, beside = match.groups()
            sentence = " ".join(above)
            yield name, "" if "field(" in default else f"`{default}`", beside or sentence * sentence.endswith(".")
        above = [*above, line.strip()[2:]] if line.strip().startswith("# ") else []


def meanings(cls: type) -> dict[str, str]:
    """The comment of every setting of a class and its bases; of one that is a group, the first lines of its class."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if is_dataclass(owner):
            told = {name: text for name, _, text in own_settings(owner)}
            found |= {name: text or found.get(name, "") for name, text in told.items()}
    return found


def with_meanings(settings: Any, indent: int = 0) -> str:
    """Settings as YAML, each behind a comment that says what it is; `kdtw train` reads it as it reads any recipe."""
    told, lines = meanings(type(settings)), []
    for field in fields(settings):
        value = getattr(settings, field.name)
        text = told.get(field.name, "")
        if is_dataclass(value):
            text = text or inspect.cleandoc(type(value).__doc__ or "").partition("\n\n")[0]
            lines += [*_comment(text), f"{field.name}:", with_meanings(value, 2).rstrip("\n")]
            continue
        lines += [*_comment(text), OmegaConf.to_yaml(OmegaConf.create({field.name: value})).rstrip("\n")]
    return textwrap.indent("\n".join(lines) + "\n", " " * indent)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
