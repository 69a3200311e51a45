"""Who wrote a token."""

from __future__ import annotations

from enum import IntEnum


class Owner(IntEnum):
    """Who wrote an output token; the codes of ``GenerationOutput.owners``."""

    NONE = 0  # the start token and padding
    STUDENT = 1  # the student, unchecked
    TEACHER = 2  # the teacher, when asked (or after a fully accepted draft)
    ACCEPTED = 3  # the student, and a check by the teacher let it stand
    CORRECTED = 4  # the teacher, in the place of a draft that it rejected
    FORCED = 5  # the caller (``forced_tokens``)
