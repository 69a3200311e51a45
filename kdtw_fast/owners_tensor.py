"""Owner codes that print as names."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch

from kdtw_fast.owner import Owner

SHOWN_ROWS = 8  # of a batch, when it is printed


class Owners(torch.Tensor):
    """uint8 [R, T]: who wrote each token, as :class:`Owner` codes. A tensor in all but how it prints.

    What is computed from it (a comparison, a sum, a copy) is a plain tensor; parts of it are Owners.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, codes: torch.Tensor) -> Owners:
        """The same memory, with names."""
        return codes.as_subclass(cls)

    def __getitem__(self, key: Any) -> torch.Tensor:
        part = super().__getitem__(key)
        return part.as_subclass(Owners) if part.ndim else part

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Runs of one owner: "student x 6, teacher, student x 4"; a line for each row."""
        plain = self.as_subclass(torch.Tensor)
        if plain.ndim not in (1, 2) or plain.dtype != torch.uint8:
            return repr(plain)
        rows = plain.tolist() if plain.ndim == 2 else [plain.tolist()]
        lines = [_runs(row) for row in rows[:SHOWN_ROWS]]
        if plain.ndim == 1:
            return f"Owners({lines[0]})"
        more = [f"… {len(rows) - SHOWN_ROWS} more rows"] if len(rows) > SHOWN_ROWS else []
        return "\n".join(
            [f"Owners, {plain.shape[0]} rows of {plain.shape[1]}:", *(f"  {line}" for line in lines + more)]
        )

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if self.ndim else format(self.as_subclass(torch.Tensor), spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A plain tensor's: a file with outputs is read where this class is not known."""
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Owners:
        return Owners.of(self.as_subclass(torch.Tensor).clone())


def _runs(codes: list[int]) -> str:
    names = {int(owner): owner.name.lower() for owner in Owner} | {0: "-"}
    runs = [(code, len(list(run))) for code, run in groupby(codes)]
    return (
        ", ".join(names.get(code, str(code)) + (f" × {count}" if count > 1 else "") for code, count in runs) or "none"
    )
