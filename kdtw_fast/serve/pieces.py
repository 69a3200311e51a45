"""An output's text as its tokens come."""

from __future__ import annotations

from typing import Any

UNFINISHED = "\ufffd"  # what a tokenizer makes of the beginning of a character's bytes


class Pieces:
    """Turns tokens, one after the other, into the pieces of their text.

    What may still change is held back: white space, which some tokenizers take out before what follows, and characters
    whose bytes are not all there. All pieces together are the text that the tokenizer makes of all tokens. A token is
    read again a few times only: its piece is what it adds to the piece before.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._before = self._here = 0  # where the tokens of the last piece begin, and those that have none yet
        self._given: list[str] = []

    def add(self, token: int) -> str:
        """The piece that the token completes; "" where there is none yet."""
        self._tokens.append(token)
        before, text = self._text(self._before, self._here), self._text(self._before, None)
        if text != text.rstrip().rstrip(UNFINISHED) or not text.startswith(before) or text == before:
            return ""
        self._before, self._here = self._here, len(self._tokens)
        return self._give(text[len(before) :])

    def end(self) -> str:
        """What was held back."""
        text, given = self._text(0, None), "".join(self._given)
        return self._give(text[len(given) :]) if text.startswith(given) else ""

    def _text(self, start: int, end: int | None) -> str:
        text: str = self._tokenizer.decode(self._tokens[start:end], skip_special_tokens=True)
        return text

    def _give(self, piece: str) -> str:
        self._given.append(piece)
        return piece
