"""The two controls of a comparison: the threshold at which they ask the teacher as often as KDTW asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .records import Sentence

TOLERANCE, ROUNDS = 0.01, 12  # of the search


def find_threshold(
    write: Callable[[float], list[Sentence]], wanted: float, highest: float
) -> tuple[list[Sentence], dict[str, float]]:
    """The sentences that a control writes at the wanted use, and its settings as records have them.

    The threshold is searched for on these very sentences, which favours the control: by turns where a line between the
    nearest thresholds below and above meets the wanted use, and halfway between them, until use is within the tolerance
    or the rounds are over. The closest is taken.

    Args:
        write: all sentences, written with a threshold.
        wanted: teacher use, in [0, 1].
        highest: the threshold at which nothing is asked; at 0 everything may be.
    """
    low, high = (0.0, 1.0), (highest, 0.0)  # thresholds, and the use there
    tried: list[tuple[float, float, list[Sentence]]] = []
    for turn in range(ROUNDS):
        part = 0.5 if turn % 2 else (low[1] - wanted) / max(low[1] - high[1], 1e-9)
        threshold = low[0] + part * (high[0] - low[0])
        sentences = write(threshold)
        use = teacher_use(sentences)
        tried.append((threshold, use, sentences))
        if abs(use - wanted) <= TOLERANCE:
            break
        low, high = ((threshold, use), high) if use > wanted else (low, (threshold, use))
    threshold, use, sentences = min(tried, key=lambda one: abs(one[1] - wanted))
    return sentences, {"threshold": threshold, "wanted_use": wanted, "use": use, "tolerance": TOLERANCE}


def teacher_use(sentences: Sequence[Sentence]) -> float:
    """Share of all output tokens that the teacher wrote."""
    return sum(one.by_teacher for one in sentences) / max(1, sum(len(one.tokens) for one in sentences))
