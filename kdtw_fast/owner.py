"""Who wrote a token."""

from __future__ import annotations

from enum import IntEnum


class Owner(IntEnum):
    """Who wrote an output token; the codes of ``GenerationOutput.owners``."""

    NONE = 0
    """Nobody: the start token and padding."""
    STUDENT = 1
    """The student, unchecked."""
    TEACHER = 2
    """The teacher, when it was asked, or after a draft that passed whole."""
    ACCEPTED = 3
    """The student, and a check by the teacher let it stand."""
    CORRECTED = 4
    """The teacher, in the place of a draft that it rejected."""
    FORCED = 5
    """The caller (``forced_tokens``)."""

    @property
    def is_teacher(self) -> bool:
        """Whether a teacher wrote the token."""
        return self in (Owner.TEACHER, Owner.CORRECTED)
