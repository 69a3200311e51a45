"""Native output against the oracle's rows: equal in everything, except where the oracle saw a near tie."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdtw_fast.reference import ReferenceRow


@dataclass
class Tally:
    """What a run of comparisons has seen; printed at the end of the session."""

    cases: int = 0
    rows: int = 0
    tokens: int = 0
    near_ties: int = 0  # rows with a decision too close to hold anybody to
    differing: int = 0  # of those, rows that came out differently
    largest_logprob_difference: float = 0.0
    owners: Counter[int] = field(default_factory=Counter)
    by_teacher: Counter[int] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    rolled_back: int = 0

    def add(self, other: Tally) -> None:
        """Counts what another has seen, too."""
        largest = max(self.largest_logprob_difference, other.largest_logprob_difference)
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        self.largest_logprob_difference = largest

    def __str__(self) -> str:
        return (
            f"{self.cases} cases, {self.rows} rows, {self.tokens} tokens; rows with a near tie: "
            f"{self.near_ties}, of which differing: {self.differing}; largest difference of a log-probability: "
            f"{self.largest_logprob_difference:.1e}"
        )


def output_row(output: Any, row: int) -> dict[str, Any]:
    """Row `row` of a GenerationOutput without start token and padding, named as in ReferenceRow."""
    length = int(output.lengths[row])
    result: dict[str, Any] = {
        "tokens": as_array(output.sequences)[row, 1 : 1 + length].tolist(),
        "owners": as_array(output.owners)[row, 1 : 1 + length].tolist(),
        "teacher_index": as_array(output.teacher_index)[row, 1 : 1 + length].tolist(),
        "calls_by_teacher": as_array(output.calls_by_teacher)[row].tolist(),
        "fraction_by_teacher": [round(value, 5) for value in as_array(output.fraction_by_teacher)[row].tolist()],
    }
    for name in ("teacher_calls", "drafted", "accepted", "rolled_back"):
        result[name] = int(getattr(output, name)[row])
    result["teacher_fraction"] = float(output.teacher_fraction[row])
    return result


def as_array(value: Any) -> np.ndarray:
    """A field of an output, a list or a tensor, as an array."""
    return np.asarray(value)


def check_padding(output: Any, start: int, pad: int) -> None:
    """Start token first, then `lengths` outputs, then pad; owners 0 exactly outside the outputs."""
    sequences, owners = as_array(output.sequences), as_array(output.owners)
    lengths = as_array(output.lengths)
    assert sequences.shape == owners.shape
    assert sequences.shape[1] == 1 + lengths.max()
    assert (sequences[:, 0] == start).all()
    outside = np.arange(sequences.shape[1]) > lengths[:, None]
    assert (sequences[outside] == pad).all()
    outside[:, 0] = True
    assert ((owners == 0) == outside).all()


def compare(output: Any, expected: list[ReferenceRow], context: str = "", tolerance: float = 1e-4) -> Tally:
    """Assert that `output` equals the oracle's rows; returns what was seen.

    A row may differ only if it has a near tie no later than its first difference. Log-probabilities, where
    the output has them, may differ by `tolerance`, and are NaN in the same places.
    """
    tally = Tally(cases=1, rows=len(expected))
    assert len(as_array(output.lengths)) == len(expected), context
    for index, reference in enumerate(expected):
        native = output_row(output, index)
        oracle = {name: getattr(reference, name) for name in native}
        oracle["fraction_by_teacher"] = [round(value, 5) for value in oracle["fraction_by_teacher"]]
        tally.tokens += len(reference.tokens)
        tally.near_ties += bool(reference.near_ties)
        tally.owners.update(reference.owners)
        tally.by_teacher.update(reference.teacher_index)
        tally.finished[output.finish_reasons[index]] += 1
        tally.rolled_back += reference.rolled_back
        native_fraction, oracle_fraction = native.pop("teacher_fraction"), oracle.pop("teacher_fraction")
        if native == oracle and abs(native_fraction - oracle_fraction) < 1e-6:
            if getattr(output, "student_logprobs", None) is not None:
                difference = _compare_logprobs(output, index, reference, context, tolerance)
                tally.largest_logprob_difference = max(tally.largest_logprob_difference, difference)
            continue
        first = first_difference(native, oracle)
        excused = any(position <= first for position in reference.near_ties)
        message = (
            f"{context} row {index}: native and oracle differ from position {first}\n native {native}\n"
            f" oracle {oracle}\n near ties at {sorted(reference.near_ties)}"
        )
        assert excused, message
        tally.differing += 1
    return tally


def first_difference(native: dict[str, Any], oracle: dict[str, Any]) -> int:
    """The first position where tokens or owners differ; the shorter length where none does."""
    pairs = list(zip(native["tokens"], native["owners"], strict=True))
    others = list(zip(oracle["tokens"], oracle["owners"], strict=True))
    for position, (left, right) in enumerate(zip(pairs, others, strict=False)):
        if left != right:
            return position
    return min(len(pairs), len(others))


def _compare_logprobs(output: Any, index: int, reference: ReferenceRow, context: str, tolerance: float) -> float:
    largest = 0.0
    for name in ("student_logprobs", "teacher_logprobs"):
        values = as_array(getattr(output, name))[index, 1 : 1 + len(reference.tokens)]
        wanted = np.array(getattr(reference, name))
        where = f"{context} row {index} {name}: native {values.tolist()}, oracle {wanted.tolist()}"
        assert (np.isnan(values) == np.isnan(wanted)).all(), where
        difference = float(np.nanmax(np.abs(values - wanted), initial=0.0))
        assert difference < tolerance, where
        largest = max(largest, difference)
    return largest
