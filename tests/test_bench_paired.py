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
        return {"bench/x": 0.001 * factor, f"bench/only {checkout.name}": 1.0}

    monkeypatch.setattr(paired, "run", run)
    taken = paired.in_turns(Path("a"), Path("b"), 2, [])
    assert asked == ["a", "b", "b", "a"]
    text = paired.ratios_table(taken)
    assert "| x | 2.500 | 3.750 | 2.062 | 1.125–3.000 |" in text
    assert "1 rows, 2 rounds; the median ratio of all rows is 2.062." in text
    assert "Not in both: bench/only a" in text and "Not in both: bench/only b" in text
    with pytest.raises(ValueError, match="no benchmark in common"):
        paired.ratios_table({"old": [{"a": 1.0}], "new": [{"b": 1.0}]})


def test_a_checkout_is_measured_by_its_own_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in which pytest-benchmark measures nothing
    (tmp_path / "bench").mkdir()
    test = "def test_it(benchmark):\n    benchmark.pedantic(lambda: None, rounds=3)\n"
    (tmp_path / "bench/test_one.py").write_text(test, encoding="utf-8")
    found = paired.run(tmp_path, ["-k", "it"])
    assert list(found) == ["bench/test_one.py::test_it"] and found["bench/test_one.py::test_it"] > 0
    with pytest.raises(RuntimeError, match="failed"):
        paired.run(tmp_path, ["-k", "nothing"])
