"""Names that changed: the old one keeps working and says what to write instead."""

from __future__ import annotations

import warnings
from typing import Any


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """A DeprecationWarning at the caller's caller: ``old`` is now ``new``."""
    warnings.warn(f"{old} is deprecated; use {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed_field(owner: str, old: str, new: str) -> Any:
    """A property ``old`` of the class named ``owner`` that reads the field ``new`` and warns."""

    def read(self: Any) -> Any:
        warn_renamed(f"{owner}.{old}", new)
        return getattr(self, new)

    return property(read, doc=f"Deprecated name of ``{new}``.")
