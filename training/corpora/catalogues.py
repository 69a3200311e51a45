"""Interface strings: gettext's compiled catalogues (.mo), whose message is English and whose translation is German."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polib

from .alignment import Pair

_TAGS = re.compile(
    r"</?(?:b|i|u|em|strong|tt|code|p|a|span|font|filename|interface|application|link|emphasis|note|title|para|ul|ol|li|qt|"
    r"center|h[1-6]|big|small|sub|sup|nobr|shortcut|command|icode|html|head|body|div|table|tr|td|th|br|hr)\b[^<>]*/?>",
    re.IGNORECASE,
)


def read_catalogue(path: Path) -> Iterator[Pair]:
    """The paragraphs of every translated message, German first."""
    for entry in polib.mofile(str(path)):
        forms = [(entry.msgid, entry.msgstr or entry.msgstr_plural.get(0, ""))]
        if entry.msgid_plural:
            forms.append((entry.msgid_plural, entry.msgstr_plural.get(1, "")))
        for english, german in forms:
            if english and german:
                yield from _paragraphs(*_readable(german, english))


def _paragraphs(german: str, english: str) -> Iterator[Pair]:
    cut = [re.split(r"\n\s*\n|\n(?=\s*[-*•]\s)", text.strip()) for text in (german, english)]
    if len(cut[0]) == len(cut[1]):
        yield from zip(*cut, strict=True)
    else:
        yield german, english


def _readable(german: str, english: str) -> Pair:
    """Both texts as a user sees them: without tags, keyboard marks and a translator's context ("noun^point")."""
    english = re.sub(r"^[\w *:-]{1,40}\^", "", english)
    both = [re.sub(r"%[<>]", '"', _TAGS.sub(_tag, text)) for text in (german, english)]
    for mark in "_&~":
        places = [re.findall(rf"\S*{mark}\w\S*", text) for text in both]
        if all(len(found) == 1 for found in places) and places[0] != places[1]:
            both = [re.sub(rf"{mark}(?=\w)", "", text, count=1) for text in both]
    return both[0], both[1]


def _tag(match: re.Match[str]) -> str:
    name = match.group().strip("</> ").lower()
    return "\n\n" if re.match(r"(?:p|li|h[1-6]|div|tr|title|para)\b", name) else " " if name.startswith("br") else ""


def find_catalogues(folder: Path) -> Iterator[Path]:
    """Every German catalogue of an unpacked package."""
    yield from sorted(path for path in folder.glob("**/de/**/*.mo") if path.is_file() and not path.is_symlink())
