"""Texts whose characters must do nothing where they are shown."""

from __future__ import annotations

import unicodedata


class _Placeholders(dict[int, str]):
    """Code point -> what is shown for it; filled as characters come up."""

    def __missing__(self, code: int) -> str:
        shown = char = chr(code)
        if code < 0x20:
            shown = chr(0x2400 + code)
        elif code == 0x7F:
            shown = "\u2421"
        elif unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d":
            shown = f"\u27e8U+{code:04X}\u27e9"
        self[code] = shown
        return shown


_PLACEHOLDERS = _Placeholders()


def visible(text: str) -> str:
    """The text with a visible sign in the place of every character that acts instead of showing.

    Control characters (so that no escape sequence reaches a terminal), line ends, marks that turn the direction of
    writing, invisible format characters and lone surrogates: U+2400… for the first 32, otherwise "⟨U+202E⟩". The
    joiners U+200C and U+200D stay, which emoji and several scripts are written with.
    """
    return text.translate(_PLACEHOLDERS)
