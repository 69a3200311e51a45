"""From blocks of text in two languages to sentence pairs: aligned by name or by structure, cut alike, filtered."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..debian import looks_aligned, sentences, tidy

Pair = tuple[str, str]  # German, English


@dataclass(frozen=True)
class Block:
    """A paragraph, heading or list item: its kind, its text on one line, and its name where the format gives one.

    Blocks of one kind may be each other's translation. A kind that starts with "#" is a heading.
    """

    kind: str
    text: str
    name: str = ""


def plain(text: str) -> str:
    """The text on one line, NFC, without soft hyphens and joiners of no width."""
    return tidy(re.sub("[\u00ad\u200b\u200c\u200d\u2060\ufeff]", "", text))


# ---------------------------------------------------------------- alignment


def align(german: Sequence[Block], english: Sequence[Block]) -> Iterator[Pair]:
    """Pairs of blocks that translate each other.

    By name where blocks have names. Else by structure: pages of the same kinds in the same order go block by block, and
    so do sections, where both pages have as many headings; what remains is matched in order by kind, length and the
    words that no translation changes (numbers, options, functions), and only if most of it matches.
    """
    if any(block.name for block in german):
        originals = {block.name: block for block in english if block.name}
        yield from ((b.text, originals[b.name].text) for b in german if b.name in originals)
        return
    if _kinds(german) == _kinds(english):
        yield from _zipped(german, english)
        return
    sides = _sections(german), _sections(english)
    if len(sides[0]) == len(sides[1]):
        for one, other in zip(*sides, strict=True):
            yield from _zipped(one, other) if _kinds(one) == _kinds(other) else _matched(one, other)
    else:
        yield from _matched(german, english)


def _kinds(blocks: Sequence[Block]) -> list[str]:
    return [block.kind for block in blocks]


def _zipped(german: Sequence[Block], english: Sequence[Block]) -> Iterator[Pair]:
    return ((one.text, other.text) for one, other in zip(german, english, strict=True))


def _sections(blocks: Sequence[Block]) -> list[list[Block]]:
    found: list[list[Block]] = [[]]
    for block in blocks:
        if block.kind.startswith("#"):
            found.append([])
        found[-1].append(block)
    return found


MOST = 0.7  # of the shorter side must match, or the section is left out
LARGEST = 3_000_000  # cells of a matching's table


def _matched(german: Sequence[Block], english: Sequence[Block]) -> list[Pair]:
    """The pairs of the best matching in order; none if less than MOST matches or if the table would be too large."""
    rows, columns = len(german), len(english)
    if not rows or not columns or rows * columns > LARGEST:
        return []
    fixed = [_unchanged(b.text) for b in german], [_unchanged(b.text) for b in english]
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]  # of the blocks from (i, j) on
    gains: dict[tuple[int, int], float] = {}
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            if german[i].kind == english[j].kind:
                gain = _likeness(german[i].text, english[j].text, fixed[0][i], fixed[1][j])
                if gain > 0 and gain + best[i + 1][j + 1] >= best[i][j]:
                    best[i][j] = gain + best[i + 1][j + 1]
                    gains[i, j] = gain
    pairs: list[Pair] = []
    i = j = 0
    while i < rows and j < columns:
        if (i, j) in gains and best[i][j] == gains[i, j] + best[i + 1][j + 1]:
            pairs.append((german[i].text, english[j].text))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs if len(pairs) >= MOST * min(rows, columns) else []


def _unchanged(text: str) -> frozenset[str]:
    """The words of a text that a translation keeps: numbers, options, functions, names with an underscore."""
    return frozenset(re.findall(r"\d+|--[a-z][\w-]+|\w+_\w+|\w+\(\w*\)", text))


def _likeness(german: str, english: str, one: frozenset[str], other: frozenset[str]) -> float:
    """How much two blocks look like a translation; 0 or less: they do not."""
    lengths = abs(math.log((len(german) + 10) / (1.1 * len(english) + 10)))
    shared = 1.5 * len(one & other) / len(one | other) - 0.5 if one or other else 0.0
    return 1 - 1.5 * lengths + shared


# ---------------------------------------------------------------- sentences and filters


def sentence_pairs(german: str, english: str) -> Iterator[Pair]:
    """The sentences of two blocks, one to one where both are cut alike; else the blocks as one pair."""
    german, english = _unnumbered(plain(german), plain(english))
    cut = sentences(german), sentences(english)
    if len(cut[0]) == len(cut[1]):
        yield from zip(*cut, strict=True)
    else:
        yield german, english


_NUMBERING = re.compile(r"^(?:\d+(?:\.\d+)*[.)]?|[A-Z](?:\.\d+)+\.?|[•·*–-])\s+(?=\S)")


def _unnumbered(german: str, english: str) -> Pair:
    """Both texts without the number or bullet that both begin with."""
    found = _NUMBERING.match(german), _NUMBERING.match(english)
    if found[0] and found[1] and found[0].group() == found[1].group():
        return german[found[0].end() :], english[found[1].end() :]
    return german, english


_PLACEHOLDER = re.compile(
    r"%\(\w+\)[a-z]|%(?:\d+\$)?[-+#0]*[\d*]*(?:\.[\d*]+)?(?:hh?|ll?|[zqjt])?[diouxXeEfFgGcspm](?![a-zäöüß])|%q?[+#]?[A-Z]"
    r"|%\d+|%%|\$\{?\w+\}?|\$\(\w+\)|\{\w*\}|@\w+@|%[A-Z]+"
)


def placeholders(text: str) -> Counter[str]:
    """What a program fills in, as a multiset; positions (%1$s) do not count."""
    return Counter(re.sub(r"\d+\$", "", found) for found in _PLACEHOLDER.findall(text))


_REMAINS = re.compile(r"\ufffc|</?\w+[^<>]*>|\\f[BIRP]|&\w+;|https?:\S+\s+https?:|^\W*[.,;:)]|#.*\s#\s")  # of markup


def acceptable(german: str, english: str) -> bool:
    """Whether a pair looks like a translation without remains of markup and keeps every placeholder."""
    return (
        looks_aligned(german, english)
        and not _REMAINS.search(german)
        and not _REMAINS.search(english)
        and placeholders(german) == placeholders(english)
        and not _english(german)
    )


_ENGLISH_ONLY = re.compile(r"\b(?:the|and|with|you|your|this|that|which|are|from|should|have|been)\b")


def _english(text: str) -> bool:
    """Whether a text that ought to be German holds two English words that German does not have."""
    return len(_ENGLISH_ONLY.findall(text)) >= 2
