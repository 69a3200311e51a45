"""Inputs that the fuzzer of Python's side keeps, those among them that once broke something: tests/fuzz/boundary.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import boundary

CORPUS = sorted((Path(__file__).parent / "fuzz" / "corpus" / "boundary").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_kept_inputs_are_refused_in_a_sentence_or_obeyed(path: Path) -> None:
    boundary.try_one(path.read_bytes())


def test_what_no_user_should_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(data: boundary.Bytes) -> None:
        raise KeyError("a field")

    monkeypatch.setattr(boundary, "WAYS", [breaks])
    with pytest.raises(KeyError):
        boundary.try_one(b"\0\0")
