"""Latency from recorded passes: by hand on round numbers, the check against measured turns, the device's roofline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from results import outputs, passes, sentence, small_records, timing
from typer.testing import CliRunner

import kdtw_fast.cli as cli
from kdtw_fast.comparison.projection import DEVICES, Device, Measured, Roofline, check, project, seconds
from kdtw_fast.comparison.records import Records, parse, to_line
from kdtw_fast.shapes import T5Shape, find_shape

MS = 1e-3
SHAPES = {"student": find_shape("flan-t5-small"), "teacher": find_shape("flan-t5-xl")}


def one(reads: tuple[list[int], list[int]], method: str = "training-wheels", **settings):
    made = sentence(0, ["▁a", "▁b"], "ss", "a b", "x", "y")
    made = replace(made, student_reads=reads[0], teacher_reads=reads[1])
    return outputs(method, [made], **settings)


@pytest.mark.parametrize(
    "point, expected",
    [
        (one(([1, 1, 1], []), "greedy-student"), 0.1 + 2 + 3),
        (one(([], [1, 1]), "greedy-teacher"), 0.4 + 20 + 20),
        (one(([1, 1], [])), 0.3 + 2 + 2),  # never asked: the teacher encodes nothing
        (one(([1, 1, 1], [3])), 0.2 + 2 + 20 + 3.5 + 13),  # a catch-up of 3, after which the student's caches are cold
        (one(([1, 1, 1], [3]), verify_lenience=0.3), 0.2 + 2 + 20 + 3.5 + 16),  # a verification of 3
        # the teacher goes on after itself once, and the student once
        (one(([2, 1], [3, 1]), "random"), 0.2 + 2 + 20 + 1.6 + 1 + 13 + 10),
        (one(([1, 2, 1], [5, 1]), "speculative"), 0.2 + 2 + 20 + 1.5 + 1.6 + 1 + 20 + 12),
    ],
)
def test_seconds_are_the_sum_of_the_passes(point, expected: float) -> None:
    assert seconds(point, point.sentences, Measured([passes()])) == pytest.approx(expected * MS)


def test_the_median_of_several_turns_counts() -> None:
    machine = Measured([passes(0, 3.0), passes(1, 1.0), passes(2, 2.0)])
    assert machine.read("teacher", "alone", 1, 0) == 20 * MS and machine.encode("student", 2) == 4 * MS


def test_check_holds_predictions_against_the_median_of_the_turns() -> None:
    records = Records()
    point = one(([1, 1, 1], [3]))
    records.add(point)
    for repetition, taken in enumerate((0.05, 0.0372, 0.043)):
        records.add(timing(point, repetition, [taken]))
    records.add(passes())
    (found,) = check(records, "de-en")
    assert found.measured == pytest.approx(21.5) and found.predicted == pytest.approx(19.35)
    assert found.error == pytest.approx(-0.1)


def test_what_is_missing_is_said() -> None:
    records = small_records()
    records.passes.clear()
    with pytest.raises(ValueError, match="no pass times of de-en"):
        check(records, "de-en")
    records.add(replace(passes(), call=[1e-4, 2e-4]))
    with pytest.raises(ValueError, match="of de-en were recorded by an older kdtw compare"):
        check(records, "de-en")
    records = small_records()
    records.timings.clear()
    with pytest.raises(ValueError, match="no timed point of de-en"):
        check(records, "de-en")
    for point in records.outputs.values():
        point.sentences[0] = replace(point.sentences[0], student_reads=None)
    with pytest.raises(ValueError, match="hold no recorded passes"):
        project(records, "de-en", DEVICES["t4"], SHAPES)
    batches = Records()
    point = one(([1], []))
    batches.add(point)
    batches.add(timing(point, 0, [1.0], batch=4))
    batches.add(passes())
    with pytest.raises(ValueError, match="batches of 4"):
        check(batches, "de-en")


def test_the_roofline_is_memory_arithmetic_and_launches() -> None:
    shape = T5Shape("s", d_model=8, d_kv=2, heads=4, d_ff=16, layers=3, vocab_size=100)
    machine = Roofline(Device("d", 1e9, 1e12, 0.5, 0.5, 0.0), {"student": shape})
    weights = 3 * (6 * 8 * 8 + 3 * 8 * 16) + 100 * 8
    caches = 3 * 2 * (4 + 10) * 8
    assert machine.read("student", "alone", 1, 14) == pytest.approx(2 * (weights + caches) / 0.5e9)
    arithmetic = replace(machine, device=Device("d", 1e15, 1e9, 0.5, 0.5, 0.0))
    flops = 2 * 5 * weights - 2 * 4 * 800 + 3 * 4 * 5 * 14 * 8  # four tokens of five do not reach the head
    assert arithmetic.read("student", "catch_up", 5, 14) == pytest.approx(flops / 0.5e9)
    launches = replace(machine, device=Device("d", 1e30, 1e30, kernel_seconds=1e-6))
    assert launches.read("student", "alone", 1, 0) == pytest.approx((3 * 9 + 6) * 1e-6)
    assert launches.encode("student", 10) == pytest.approx((3 * 13 + 2) * 1e-6)


def test_a_projection_has_a_range_and_is_about_the_shapes_asked_for() -> None:
    records = small_records()
    small = project(records, "de-en", DEVICES["t4"], SHAPES)
    assert [p.label for p in small] == ["student alone", "teacher alone", "KDTW, light", "speculative, lossless"]
    for point in small:
        assert 0 < point.low < point.ms_per_token < point.high
    assert small[1].speedup == 1.0 and small[0].speedup > 1.0
    # the teacher alone reads every weight of the decoder for every token
    least = 1000 * 2 * SHAPES["teacher"].step_parameters / 320e9
    alone = next(o for o in records.outputs.values() if o.group == "teacher")
    assert len(alone.sentences[0].teacher_reads) == 3 and small[1].low > least
    base = project(records, "de-en", DEVICES["t4"], SHAPES | {"teacher": find_shape("flan-t5-base")})
    assert base[1].ms_per_token < small[1].ms_per_token and base[0] == replace(small[0], speedup=base[0].speedup)


def test_passes_survive_the_file() -> None:
    assert parse(to_line(passes())) == passes()
    records = Records()
    records.add(passes())
    with pytest.raises(ValueError, match="twice"):
        records.add(passes())


@pytest.fixture
def results(tmp_path: Path) -> Path:
    records = small_records()
    lines = [*records.outputs.values(), *records.timings.values(), *records.passes.values()]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(map(to_line, lines)), encoding="utf-8")
    return path


def kdtw(*arguments: object):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_the_command_checks_projects_and_says_what_it_is(results: Path) -> None:
    result = kdtw("project", results.parent, "--json", results.with_name("p.json"))
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "A projection, not a measurement" in shown and "PROJECTION: flan-t5-small with flan-t5-xl" in shown
    assert "320 GB/s" in shown and "checked on made up" in shown and "Error of the prediction: median" in shown
    saved = json.loads(results.with_name("p.json").read_text())
    assert saved["device"]["bandwidth"] == 320e9
    assert len(saved["pairs"][0]["checks"]) == len(saved["pairs"][0]["projection"]) == 4


def test_a_device_of_ones_own(results: Path) -> None:
    mine = kdtw("project", results, "--device", "mine", "--bandwidth", "900", "--tflops", "120", "--launch-us", "2")
    assert mine.exit_code == 0 and "mine: 900 GB/s" in " ".join(mine.stdout.split())
    changed = kdtw("project", results, "--bandwidth", "100")
    assert "T4, fp16, changed: 100 GB/s" in " ".join(changed.stdout.split())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--device", "p100"], "known are 't4'"),
        (["--device", "mine", "--bandwidth", "9"], "give --bandwidth and --tflops"),
        (["--bandwidth", "0"], "--bandwidth must be in (0, inf)"),
        (["--teacher", "flan-t5-xxl"], "flan-t5-xl"),
        (["--json", "nowhere/p.json"], "lies in a folder that does not exist"),
    ],
)
def test_wrong_options_are_one_sentence(results: Path, arguments: list[str], words: str) -> None:
    result = kdtw("project", results, *arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
