"""An output's text as its tokens come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MOST_READ = 8  # tokens that are read with those that have come
UNFINISHED = "\ufffd"  # what a tokenizer makes of the beginning of a character's bytes


class Pieces:
    """Turns tokens into the pieces of their text.

    What may still change is held back: white space, which some tokenizers take out before what follows, characters
    whose bytes are not all there, and what may be the beginning of a stop. All pieces together are the output's whole
    text. A token is read again a few times only: a piece is what its tokens add to the text of the few before them.

    Args:
        tokenizer: of the output.
        stops: texts at which it ends; it does not show them.
        stop_ids: tokens at which it ends, which it does not show either.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), stop_ids: Iterable[int] = ()):
        self._tokenizer = tokenizer
        self._stops, self._stop_ids = tuple(stops), frozenset(stop_ids)
        self._tokens: list[int] = []
        self._begin = self._here = 0  # where the tokens begin that are read, and those that have no piece yet
        self._read = ""  # the text between
        self._held = ""  # may begin a stop
        self._given: list[str] = []

    def add(self, tokens: Iterable[int], forced: bool = False) -> str:
        """The piece that these tokens complete; "" where there is none yet. Stops are not looked for in forced ones."""
        self._tokens += [token for token in tokens if token not in self._stop_ids]
        text, read = self._text(self._begin), self._read
        if text != text.rstrip().rstrip(UNFINISHED) or not text.startswith(read) or text == read:
            return ""
        piece, begin, self._here, self._read = text[len(read) :], self._here, len(self._tokens), text
        if self._here - self._begin > MOST_READ:
            self._begin, self._read = begin, self._text(begin)
        return self._give(piece if forced else self._released(piece))

    def end(self, whole: str) -> str:
        """What was held back of the output's whole text."""
        given = "".join(self._given)
        return self._give(whole[len(given) :]) if whole.startswith(given) else ""

    def _released(self, piece: str) -> str:
        """What of the text so far is before a stop, and no beginning of one."""
        held = self._held + piece
        cuts = [place for stop in self._stops if (place := _begins(held, stop)) >= 0]
        cut = min(cuts, default=len(held))
        self._held = held[cut:]
        return held[:cut]

    def _text(self, begin: int) -> str:
        text: str = self._tokenizer.decode(self._tokens[begin:], skip_special_tokens=True)
        return text

    def _give(self, piece: str) -> str:
        self._given.append(piece)
        return piece


def _begins(text: str, stop: str) -> int:
    """Where the stop stands in the text, or, at its end, the beginning of one; -1: nowhere."""
    found = text.find(stop)
    if found >= 0:
        return found
    return next((i for i in range(max(0, len(text) - len(stop) + 1), len(text)) if stop.startswith(text[i:])), -1)
