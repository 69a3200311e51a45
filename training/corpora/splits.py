"""Training, validation and test: whole pages and catalogues, and nothing held out that training has almost seen."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from ..debian import keyed_hash

NEAR = 0.5  # share of word pairs from which two texts count as nearly the same


def assign(sizes: Mapping[str, int], test: int, validation: int, key: str = "kdtw") -> dict[str, str]:
    """The split of each unit (page or catalogue), given how many pairs each has.

    Units in the order of a keyed hash fill the test set with about `test` pairs, then the validation set; one that
    would overfill its set by half goes to training. Depends on names and sizes alone.
    """
    found: dict[str, str] = {}
    wanted = {"test": test, "validation": validation}
    for unit in sorted(sizes, key=lambda unit: keyed_hash(unit, key)):
        found[unit] = "train"
        for split, left in wanted.items():
            if left > 0 and sizes[unit] <= 1.5 * left:
                found[unit] = split
                wanted[split] -= sizes[unit]
                break
    return found


def skeleton(text: str) -> tuple[str, ...]:
    """The words of a text without case, punctuation and the values of numbers."""
    return tuple(re.findall(r"\w+", re.sub(r"\d+", "0", text.casefold())))


def seen_before(texts: Sequence[str], known: Iterable[str]) -> set[int]:
    """Indices of the texts that are in `known` or nearly so.

    Short texts (up to three words) must have the same words; of longer ones at least NEAR of the pairs of neighbouring
    words of both together must be in both.
    """
    shapes = [skeleton(text) for text in texts]
    others = {skeleton(text) for text in known}
    found = {i for i, shape in enumerate(shapes) if shape in others}
    often: Counter[tuple[str, str]] = Counter()
    for shape in shapes:
        often.update(set(pairwise(shape)))
    index: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    bags = [frozenset(pairwise(shape)) for shape in shapes]
    for i, bag in enumerate(bags):
        if len(shapes[i]) > 3 and i not in found:
            for pair in _rarest(bag, often):
                index[pair].append(i)
    for other in others:
        if len(other) > 3:
            bag = frozenset(pairwise(other))
            near = {i for pair in _rarest(bag, often) for i in index.get(pair, ())}
            found |= {i for i in near if len(bag & bags[i]) >= NEAR * len(bag | bags[i])}
    return found


def _rarest(bag: frozenset[tuple[str, str]], often: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """So many of a text's rarest pairs that any text near it has one of them among its own rarest."""
    count = int((1 - NEAR) * len(bag)) + 1
    return sorted(bag, key=lambda pair: (often[pair], pair))[:count]
