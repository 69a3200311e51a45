"""Two checkouts beside each other: who takes turns, and what a ratio is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import paired


def test_checkouts_take_turns_and_the_ratio_is_new_over_old(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(checkout: Path, options: list[str]) -> paired.Medians:
        asked.append(checkout.name)
        factor = len(asked) * (1.5 if checkout.name == "b" else 1.0)  # a machine that slows down
        return {"x": 0.001 * factor, f"only {checkout.name}": 1.0}

    monkeypatch.setattr(paired, "run", run)
    taken = paired.in_turns(Path("a"), Path("b"), 2, [])
    assert asked == ["a", "b", "b", "a"]
    text = paired.ratios_table(taken)
    assert "| x | 2.500 | 3.750 | 2.062 | 1.125–3.000 |" in text
    assert "1 rows, 2 rounds; the median ratio of all rows is 2.062." in text
    assert "Not in both: only a" in text and "Not in both: only b" in text
    with pytest.raises(ValueError, match="no benchmark in common"):
        paired.ratios_table({"old": [{"a": 1.0}], "new": [{"b": 1.0}]})


def test_a_checkout_is_measured_by_its_own_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    row = {"kind": "k", "case": {"rows": 2}, "seconds": [3.0, 1.0, 2.0], "found": {}}
    program = f"""
import json, sys
_, _, file, name = sys.argv
assert name == "mine"
open(file, "w").write(json.dumps({{"rows": [{row!r}]}}))
"""
    (tmp_path / "bench/__main__.py").write_text(program, encoding="utf-8")
    assert paired.run(tmp_path, ["mine"]) == {"k, rows 2": 2.0}
    with pytest.raises(RuntimeError, match="failed"):
        paired.run(tmp_path, ["other"])
