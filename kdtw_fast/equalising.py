"""Channels made even before weights are quantised to int8: what one tensor makes large and the next makes small again.

int8 has one step for all that a token holds, and one for all inputs of an output. A channel k that is f times larger
than the others, and whose weights behind it are as much smaller, costs both of them bits. Where nothing but a
multiplication lies between, the tensor before may be divided by a number and the one behind multiplied with it
(Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction"): with powers of two, the
model computes the same to the bit. Three places are such: a norm and what is projected from it; values and attention's
output; the inner layer of a feed-forward that gates or has ReLU, and its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Values = Callable[[str], "Array | None"]

# A channel that is less far from the others stays as it is: those of healthy weights do. A norm's are less alike.
LEAST, LEAST_OF_NORMS = 4.0, 16.0


@dataclass(frozen=True)
class _Place:
    """Tensors that make channels, and the matrices that read them; ``heads`` read each of values."""

    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    heads: int = 1
    head_size: int = 1


@dataclass
class Equaliser:
    """What tensors are multiplied with.

    Args:
        spec: the core's of the model.
        values: gives a tensor of the core by its name, or None where there is none.
        moved: how many channels were changed so far.
    """

    spec: Mapping[str, Any]
    values: Values
    moved: int = 0
    _factors: dict[str, Array | None] = field(default_factory=dict)

    def apply(self, key: str, array: Array) -> Array:
        """The tensor of that name, made even; the array itself where nothing changes."""
        part, _, word = key.rpartition(".")
        if word == "bias":
            part, _, word = part.rpartition(".")
            return self._scaled(array, self._made(part, word), 0)
        array = self._scaled(array, self._made(part, word), 0)
        return self._scaled(array, self._read(part, word), 1) if array.ndim == 2 else array

    def _scaled(self, array: Array, factors: Array | None, axis: int) -> Array:
        if factors is None or array.shape[axis] != factors.size:
            return array
        return np.ascontiguousarray(
            array * (factors[None, :] if axis else factors.reshape(-1, *[1] * (array.ndim - 1)))
        )

    def _made(self, part: str, word: str) -> Array | None:
        place = _places(self.spec, part).get(word)
        factors = self._of(part, word, place) if place is not None else None
        return None if factors is None else 1.0 / factors

    def _read(self, part: str, word: str) -> Array | None:
        for name, place in _places(self.spec, part).items():
            if word in place.read_by:
                factors = self._of(part, name, place)
                if factors is None or place.heads == 1:
                    return factors
                return np.repeat(factors.reshape(-1, 1, place.head_size), place.heads, 1).reshape(-1)
        return None

    def _of(self, part: str, name: str, place: _Place) -> Array | None:
        key = f"{part}.{name}"
        if key not in self._factors:
            made = [self.values(f"{part}.{each}") for each in place.made_by]
            read = [self.values(f"{part}.{each}") for each in place.read_by]
            self._factors[key] = found = _factors(made, read, place)
            self.moved += 0 if found is None else int((found != 1.0).sum())
        return self._factors[key]


def _places(spec: Mapping[str, Any], part: str) -> dict[str, _Place]:
    """By the last word of the tensor that makes the channels."""
    stack = spec.get(part.partition(".")[0])
    if not isinstance(stack, Mapping) or part.count(".") != 2:
        return {}
    kind = part.rpartition(".")[2]
    if kind == "feed_forward":
        gated = stack.get("gated", False)  # the core's own defaults
        places = {"before": _Place(("before",), ("gate", "in") if gated else ("in",))}
        if gated or stack.get("function", "relu") == "relu":
            places["in"] = _Place(("in",), ("out",))
        return places
    places = {"value": _Place(("value",), ("output",), stack["heads"] // stack["key_heads"], stack["head_size"])}
    places["before"] = _Place(("before",), ("query", "key", "value") if kind == "self" else ("query",))
    return places


def _factors(made: Sequence[Array | None], read: Iterable[Array | None], place: _Place) -> Array | None:
    """What each channel is divided by where it is made: powers of two; None where all are 1."""
    sizes = [_largest(array, 0) for array in made if array is not None]
    behind = [_largest(array, 1) for array in read if array is not None]
    if place.heads > 1:
        behind = [b.reshape(-1, place.heads, place.head_size).max(1).reshape(-1) for b in behind]
    if not sizes or not behind or len({array.shape for array in (*sizes, *behind)}) != 1:
        return None  # the core says which is missing or has another shape
    before, after = np.maximum.reduce(sizes), np.maximum.reduce(behind)
    with np.errstate(all="ignore"):
        ratio = np.sqrt(before.astype(np.float64) / after)
        usual = np.isfinite(ratio) & (ratio > 0)
        if not usual.any():
            return None
        factors = ratio / np.median(ratio[usual])
    least = LEAST_OF_NORMS if place.made_by == ("before",) else LEAST
    far = usual & ((factors >= least) | (factors <= 1 / least))
    if not far.any():
        return None
    return np.exp2(np.where(far, np.round(np.log2(np.where(far, factors, 1.0))), 0.0)).astype(np.float32)


def _largest(array: Array, axis: int) -> Array:
    """The largest magnitude of each channel, which is a row (0) or a column (1)."""
    found: Array = np.abs(array) if array.ndim == 1 else np.abs(array).max(1 - axis)
    return found
