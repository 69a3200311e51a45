"""What a check is: a named function that holds a device against an oracle; AssertionError where it differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtw_fast import _core
from kdtw_fast.selftest.agreement import Tally

# Number formats of weights; fp16 is for CUDA devices.
DTYPES = ("fp32", "fp16", "bf16", "int8")


class Trial:
    """What a check sees of a device, and what it measured there.

    Attributes:
        device: "cpu" or "cuda:<index>".
        operations: the device's operations on NumPy arrays.
        error, permitted: of all that was compared within a tolerance, the largest difference in parts of what was
            permitted there, and that; (0, 0) where everything had to be equal.
        tally: of the outputs that were compared with the oracle's.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.operations = _core.Operations(device)
        self.error = self.permitted = 0.0
        self.tally = Tally()

    def close(self, actual: npt.ArrayLike, expected: npt.ArrayLike, tolerance: Any, what: str = "") -> None:
        """|actual - expected| <= tolerance everywhere; the tolerance is a number or an array of that shape."""
        left, right = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert left.shape == right.shape, f"{what}: shape {left.shape}, expected {right.shape}"
        if left.size == 0:
            return
        error = np.abs(left - right)
        allowed = np.broadcast_to(np.asarray(tolerance, np.float64), error.shape)
        part = np.where(error == 0, 0.0, error / np.maximum(allowed, 1e-300))
        part[np.isnan(part)] = np.inf
        worst = np.unravel_index(int(part.argmax()), part.shape)
        self.measured(float(error[worst]), float(allowed[worst]))
        assert part[worst] <= 1, (
            f"{what}: {left[worst]:.9g} at {tuple(map(int, worst))}, expected {right[worst]:.9g} within "
            f"{allowed[worst]:.2g}; {int((part > 1).sum())} of {part.size} values differ by more than they may"
        )

    def same(self, actual: npt.ArrayLike, expected: npt.ArrayLike, what: str = "") -> None:
        """Equal bit for bit, NaNs in the same places."""
        left, right = np.asarray(actual), np.asarray(expected)
        assert left.shape == right.shape, f"{what}: shape {left.shape}, expected {right.shape}"
        number = left.dtype.kind == "f"
        assert np.array_equal(left, right, equal_nan=number), (
            f"{what}: {int((left != right).sum())} of {left.size} values differ"
        )

    def measured(self, error: float, permitted: float) -> None:
        """Notes a difference that was found, and what was permitted."""
        if self.permitted == 0 or error * self.permitted > self.error * permitted:
            self.error, self.permitted = error, permitted


@dataclass(frozen=True)
class Check:
    """A check by name.

    Attributes:
        name: what reports call it; its dtype comes last.
        dtype: of the weights or caches that it is about, or "".
        run: does it; AssertionError with the values where the device differs from the oracle.
    """

    name: str
    dtype: str
    run: Callable[[Trial], None]

    def there(self, device: str) -> bool:
        """Whether the device has the check's number format."""
        return device != "cpu" or self.dtype != "fp16"


class Checks(list[Check]):
    """Checks in the order in which they are declared."""

    def add(self, *dtypes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Declares a function as a check, called with the trial; with dtypes: as one for each, called with it too."""

        def declare(function: Callable[..., None]) -> Callable[..., None]:
            name = function.__name__.replace("_", " ")
            if not dtypes:
                self.append(Check(name, "", function))
            for dtype in dtypes:
                self.append(Check(f"{name}, {dtype}", dtype, partial(function, dtype=dtype)))
            return function

        return declare

    def on(self, device: str) -> Sequence[Check]:
        """Those that the device can do."""
        return [check for check in self if check.there(device)]
