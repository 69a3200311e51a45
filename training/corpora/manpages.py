"""Manual pages (troff with the man macros) as blocks of text; examples, tables and mdoc pages are left out."""

from __future__ import annotations

import gzip
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from .alignment import Block, plain

_FONTS = {"B", "I", "R", "BR", "RB", "IR", "RI", "BI", "IB", "SM", "SB", "MR"}
_BREAKS = {"PP", "P", "LP", "sp", "br", "RS", "RE", "HP"}
_VERBATIM = {"nf": "fi", "EX": "EE", "TS": "TE", "SY": "YS", "de": ".", "ig": ".", "PS": "PE", "EQ": "EN"}
_HEADINGS = {"SH", "SS"}


def read_page(path: Path) -> list[Block]:
    """The blocks of a page, packed by gzip or not; none for an alias (.so) or an mdoc page."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")
    return list(_without_translators(page_blocks(text)))


def _without_translators(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks but for the section on who translated, which has no original."""
    inside = False
    for block in blocks:
        if block.kind.startswith("#"):
            inside = block.text.startswith("ÜBERSETZ")
        if not inside:
            yield block


def page_blocks(text: str) -> Iterator[Block]:
    """The blocks of troff source: headings ("#SH", "#SS"), list tags ("tag") and paragraphs ("text")."""
    if re.search(r"^\.\s*(?:Dd|so)\b", text, re.MULTILINE):
        return
    lines: list[str] = []
    kind, until, depth = "text", "", 0

    def finish(following: str = "text") -> Iterator[Block]:
        nonlocal kind
        found = plain(" ".join(lines))
        if found:
            yield Block(kind, found)
        lines.clear()
        kind = following

    for line in text.replace("\\\n", "").splitlines():
        request, arguments = _request(line)
        if depth or request in ("if", "ie", "el"):  # conditions are left out, with what is between \{ and \}
            depth = max(0, depth + line.count("\\{") - line.count("\\}"))
        elif until:
            until = "" if request == until else until
        elif request is None:
            if not line.strip():
                yield from finish()
            elif kind in ("tag", *_HEADING_KINDS) and not lines:
                lines.append(unescape(line))
                yield from finish()
            else:
                lines.append(unescape(line))
        elif request in _VERBATIM:
            yield from finish()
            until = _VERBATIM[request]
        elif request in _HEADINGS:
            yield from finish("#" + request)
            if arguments:
                lines.append(" ".join(arguments))
                yield from finish()
        elif request in ("TP", "TQ"):
            yield from finish("tag")
        elif request == "IP":
            yield from finish("tag")
            if arguments and len(arguments[0]) > 1:
                lines.append(arguments[0])
                yield from finish()
            kind = "text"
        elif request in _BREAKS:
            yield from finish()
        elif request in _FONTS:
            lines.append(("" if len(request) == 2 and request not in ("SM", "SB") else " ").join(arguments))
            if kind in ("tag", *_HEADING_KINDS):
                yield from finish()
        elif request in ("UE", "ME") and arguments and lines:
            lines[-1] += arguments[0]
    yield from finish()


_HEADING_KINDS = tuple("#" + heading for heading in sorted(_HEADINGS))


def _request(line: str) -> tuple[str | None, list[str]]:
    """The request or macro of a line and its arguments; None for a line of text, "" for a comment."""
    if not line.startswith((".", "'")):
        return None, []
    words = line[1:].strip()
    if not words or words.startswith('\\"'):
        return ("." if line.startswith("..") else ""), []
    name, _, rest = words.partition(" ")
    if name == ".":
        return ".", []
    rest = re.sub(r'\s*\\".*$', "", rest)
    return name, [unescape(argument) for argument in _arguments(rest)]


def _arguments(text: str) -> list[str]:
    """Macro arguments: separated by blanks, quoted by double quotes; escaped blanks separate nothing."""
    try:
        lexer = shlex.shlex(text.replace("\\ ", "\u00a0"), posix=True)
        lexer.whitespace, lexer.whitespace_split = " \t", True
        lexer.quotes, lexer.escape, lexer.commenters = '"', "", ""
        return list(lexer)
    except ValueError:  # a quote that is not closed
        return text.replace('"', "").split()


_CHARACTERS = {
    **{"aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–", "bu": "•", "co": "©"},
    **{"ti": "~", "ha": "^", "rs": "\\", "ga": "`", "->": "→", "<-": "←", "mu": "×", "+-": "±", "<=": "≤", ">=": "≥"},
    **{":a": "ä", ":o": "ö", ":u": "ü", ":A": "Ä", ":O": "Ö", ":U": "Ü", "ss": "ß", "'e": "é", "Fo": "«", "Fc": "»"},
    **{"Po": "£", "Eu": "€", "rg": "®", "tm": "™", "sc": "§", "de": "°", "mc": "µ", "hy": "-", "lB": "[", "rB": "]"},
    **{"or": "|", "ba": "|", "at": "@", "sh": "#", "Bq": "„", "bq": "‚", "!=": "≠", "==": "≡", "**": "*", "pl": "+"},
}
_ESCAPE = re.compile(
    r"\\(?:f(?:\[\w*\]|\(\w\w|.)|s(?:[-+]?\d+|\[[-+]?\d+\])|[mMFX](?:\[[^]]*\]|\w)|[hwvlLDbo]'[^']*'|n(?:\[[^]]*\]|\(..|.)"
    r"|\*\(?(?P<string>\[[^]]*\]|..)|\((?P<two>..)|\[(?P<name>[^]]*)\]|(?P<one>.)|$)"
)
_SINGLE = {**{one: one for one in "-\\'`_."}, **dict.fromkeys(" ~0", " "), "e": "\\", '"': ""}


def unescape(text: str) -> str:
    """A line of troff as characters: fonts, sizes and motions go, named characters come."""

    def character(match: re.Match[str]) -> str:
        name = match["two"] or match["name"] or (match["string"] or "").strip("[]")
        if name:
            if re.fullmatch(r"u[0-9A-F]{4,5}", name):
                return chr(int(name[1:], 16))
            return _CHARACTERS.get(name, "")
        return _SINGLE.get(match["one"] or "", "")

    return _ESCAPE.sub(character, text)


def page_pairs(folders: list[Path]) -> Iterator[tuple[str, Path, Path]]:
    """(name, German page, English page) of every page that unpacked packages have in both languages."""
    sides: list[dict[str, Path]] = []
    for language in ("de/", ""):
        found: dict[str, Path] = {}
        for folder in folders:
            for path in sorted((folder / "usr/share/man").glob(f"{language}man[1-9]/*")):
                if path.is_file() and not path.is_symlink():
                    found.setdefault(path.name.removesuffix(".gz"), path)
        sides.append(found)
    for name in sorted(sides[0].keys() & sides[1].keys()):
        yield name, sides[0][name], sides[1][name]
