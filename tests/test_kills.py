"""The command that kills trainings and comparisons, briefly; and it tells a run that ended with other bits."""

from __future__ import annotations

from pathlib import Path

import kills
import pytest


@pytest.mark.long
@pytest.mark.parametrize("name", ["fit", "phase2", "gkd"])
def test_a_training_that_is_killed_has_the_bits_of_one_that_is_not(name: str, toy: Path, tmp_path: Path) -> None:
    tried = kills.try_trainer(toy, tmp_path, name, 1, 2)
    assert tried.kills == 2 and tried.runs >= 1 and tried.wrong == []


@pytest.mark.long
def test_a_comparison_that_is_killed_goes_on(tmp_path: Path) -> None:
    tried = kills.try_compare(tmp_path, 2)
    assert tried.kills == 2 and tried.runs >= 1 and tried.wrong == []


def test_other_bits_and_runs_that_fail_are_told(tmp_path: Path) -> None:
    def differs(out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "said").write_text(out.name)

    tried = kills.kill_until(
        1, tmp_path / "whole", tmp_path / "runs", differs, lambda out: (out / "said").read_text(), 1
    )
    assert tried.wrong and "other bits" in tried.wrong[0]
    tried = kills.kill_until(1, tmp_path / "whole", tmp_path / "runs", lambda out: 1 / 0, lambda out: None, 1)
    assert tried.wrong == ["the whole run failed: ZeroDivisionError: division by zero"]
