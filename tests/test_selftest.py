"""The checks of `kdtw selftest` on the CPU and on the simulated CUDA device, the command, and that it sees faults."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner

import kdtw_fast.cli as cli
from gpu_proof import mutations
from gpu_proof.build import build_simulated
from kdtw_fast import _core
from kdtw_fast.selftest import run
from kdtw_fast.selftest.agreement import Tally
from kdtw_fast.selftest.checks import Check, Trial
from kdtw_fast.selftest.operations import OPERATIONS
from kdtw_fast.selftest.run import CHECKS, run_checks
from kdtw_fast.shapes import T5Shape


@pytest.mark.parametrize("check", CHECKS.on("cpu"), ids=lambda check: check.name)
def test_on_the_cpu(check: Check, oracle_tally: Tally) -> None:
    passes("cpu", check, oracle_tally)


@pytest.mark.parametrize("check", OPERATIONS, ids=lambda check: check.name)
def test_operations_on_the_simulated_device(check: Check, simulated: str, oracle_tally: Tally) -> None:
    passes(simulated, check, oracle_tally)


@pytest.mark.parametrize("check", [check for check in CHECKS if check not in OPERATIONS], ids=lambda check: check.name)
def test_decodes_on_the_simulated_device(check: Check, simulated: str, oracle_tally: Tally) -> None:
    passes(simulated, check, oracle_tally)


def passes(device: str, check: Check, oracle_tally: Tally) -> None:
    trial = Trial(device)
    check.run(trial)
    oracle_tally.add(trial.tally)
    assert trial.tally.differing == 0  # an excuse that a device needs, and these do not
    assert trial.error <= trial.permitted


# --- What a trial objects to -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actual", "expected", "tolerance"),
    [
        ([1.0, 2.0], [1.0, 2.1], 0.05),
        ([1.0, np.nan], [1.0, 2.0], 1.0),
        ([1.0, np.inf], [1.0, 2.0], 1.0),
        ([1.0], [1.0, 1.0], 1.0),
        ([1.0, 2.0], [1.0, 2.1], [1.0, 0.05]),
    ],
)
def test_values_that_are_not_close(actual: list[float], expected: list[float], tolerance: float) -> None:
    with pytest.raises(AssertionError, match="of the thing"):
        Trial("cpu").close(actual, expected, np.asarray(tolerance), "of the thing")


@pytest.mark.parametrize(("actual", "expected"), [([1.0], [1.0 + 1e-15]), ([1], [1, 1]), ([np.nan], [1.0])])
def test_values_that_are_not_the_same(actual: list[float], expected: list[float]) -> None:
    with pytest.raises(AssertionError, match="of the thing"):
        Trial("cpu").same(actual, expected, "of the thing")


def test_the_largest_error_is_that_nearest_to_its_limit() -> None:
    trial = Trial("cpu")
    trial.close([1.0, 5.0], [1.5, 5.0], 1.0)
    trial.close([1.0], [1.01], 0.011)
    trial.close([7.0], [7.4], 1.0)
    assert (trial.error, trial.permitted) == (pytest.approx(0.01), 0.011)


@pytest.fixture
def faulty(request: pytest.FixtureRequest, simulated: str) -> Iterator[str]:
    """The simulated device with a planted bug in its kernels."""
    before = _core.build_info()["cuda"]["library"]
    bug = next(bug for bug in mutations.bugs() if bug.name == request.param)
    _core.use_cuda_library(str(build_simulated(csrc=mutations.plant(bug))))
    yield simulated
    _core.use_cuda_library(before)


@pytest.mark.parametrize(
    ("faulty", "name"),
    [
        ("tensor-wrong-row-of-a-fragment", "product of an encoder, fp16"),
        ("activation-wrong-half", "activation"),
    ],
    indirect=["faulty"],
)
def test_a_planted_bug_fails_its_check(faulty: str, name: str) -> None:
    (item,) = run_checks(faulty, [check for check in OPERATIONS if check.name == name])
    assert "values differ by more than they may" in item.failure


# --- The command -----------------------------------------------------------------------------------------


def some(*names: str) -> list[Check]:
    return [check for check in CHECKS if check.name in names]


def test_a_report_of_what_passes(monkeypatch: pytest.MonkeyPatch, simulated: str) -> None:
    monkeypatch.setattr(run, "CHECKS", run.Checks(some("norm", "gather", "rounding, fp16")))
    for device, count in ((simulated, 3), ("cpu", 2)):
        done = CliRunner().invoke(cli.app, ["selftest", "--device", device, "--quick"])
        assert done.exit_code == 0, done.output
        assert f"{count} of {count} checks passed on {device}" in done.output
        assert done.output.count("\npass") == count and "largest error" in done.output
        assert "g++" in done.output and "torch" in done.output
    assert "latenc" not in done.output


def test_latencies(monkeypatch: pytest.MonkeyPatch, simulated: str) -> None:
    monkeypatch.setattr(run, "CHECKS", run.Checks(some("gather")))
    monkeypatch.setattr(run, "SHAPES", {"flan-t5-small": T5Shape("tiny", 8, 4, 2, 8, 1, vocab_size=1000)})
    done = CliRunner().invoke(cli.app, ["selftest", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines() if line.startswith("flan-t5-small")]
    assert [row[1] for row in rows] == ["fp32", "bf16", "int8"]
    assert all(float(row[2]) > 0 and all(math.isfinite(float(value)) for value in row[3:]) for row in rows)
    done = CliRunner().invoke(cli.app, ["selftest", "--device", simulated])
    assert "no latencies: simulated device" in done.output and "flan-t5-small" not in done.output


def test_a_check_that_fails_is_told_and_the_rest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(trial: Trial) -> None:
        trial.close([1.0], [2.0], 0.5, "the number")

    def breaks(trial: Trial) -> None:
        raise RuntimeError("CUDA error in linear: too bad")

    checks = [Check("differs", "", differs), Check("breaks", "", breaks), *some("gather")]
    monkeypatch.setattr(run, "CHECKS", run.Checks(checks))
    done = CliRunner().invoke(cli.app, ["selftest", "--device", "cpu", "--quick"])
    assert done.exit_code == 1
    assert "the number: 1 at (0,), expected 2 within 0.5" in done.output
    assert "RuntimeError: CUDA error in linear: too bad" in done.output
    assert "1 of 3 checks passed on cpu" in done.output


def test_after_a_device_is_lost_the_checks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(trial: Trial) -> None:
        monkeypatch.setattr(run, "_answers", lambda device: False)
        raise RuntimeError("CUDA error in attend: an illegal memory access was encountered; it stays")

    monkeypatch.setattr(run, "CHECKS", run.Checks([Check("breaks", "", breaks), *some("gather", "norm")]))
    done = CliRunner().invoke(cli.app, ["selftest", "--device", "cpu", "--quick"])
    assert done.exit_code == 1 and "0 of 3 checks passed on cpu" in done.output
    assert done.output.count("FAIL") == 1 and done.output.count("the device was lost in 'breaks'") == 2
