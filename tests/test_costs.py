"""The cost model is arithmetic: every formula is done again here by hand, on made-up costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from factories import random_pair

from kdtw_fast import NativeT5, cost_measuring
from kdtw_fast.cost_measuring import POINTS, measure_costs
from kdtw_fast.costs import Costs, ModelCosts, expected_run

# A student step takes 1, reading two tokens 1.5; a teacher step 10, each further token 1 more, a check 0.5 each.
STUDENT = ModelCosts(encode=4.0, catch_up={1: 1.0, 2: 1.5})
TEACHER = ModelCosts(
    encode=40.0, catch_up={1: 10.0, 5: 14.0, 17: 26.0}, verify={n: 9 + n + 0.5 * n for n in (1, 2, 5, 17)}
)
COSTS = Costs(STUDENT, TEACHER, rows=1, new_tokens=20)


@pytest.mark.parametrize(
    ("points", "x", "expected"),
    [
        ({1: 10.0, 5: 14.0}, 1, 10.0),
        ({1: 10.0, 5: 14.0}, 3, 12.0),
        ({1: 10.0, 5: 14.0, 9: 30.0}, 5, 14.0),
        ({1: 10.0, 5: 14.0, 9: 30.0}, 8, 26.0),
        ({1: 10.0, 5: 14.0}, 7.5, 16.5),
        ({1: 10.0, 5: 8.0}, 3, 9.0),
        ({1: 10.0, 5: 8.0}, 9, 8.0),  # what measured noise says is not extended
        ({1: 10.0}, 4, 10.0),
    ],
)
def test_points_are_joined_by_lines(points: dict[int, float], x: float, expected: float) -> None:
    assert ModelCosts(0.0, points).catching_up(x) == pytest.approx(expected)
    assert ModelCosts(0.0, {1: 0.0}, points).verifying(x) == pytest.approx(expected)


def test_a_model_that_only_catches_up_verifies_at_that_cost() -> None:
    assert STUDENT.verifying(2) == 1.5 and STUDENT.step == 1.0


@pytest.mark.parametrize(
    ("method", "settings", "encode", "student", "teacher"),
    [
        ("greedy-student", {}, 4.0, 1.0, 0.0),
        ("greedy-teacher", {}, 40.0, 0.0, 10.0),
        # one call in ten tokens, which reads ten
        ("training-wheels", {"use": 0.1}, 44.0, 1.0, 0.1 * 19.0),
        ("training-wheels", {"use": 1.0}, 44.0, 1.0, 10.0),
        ("training-wheels", {"use": 0.0}, 4.0, 1.0, 0.0),
        # one call in a hundred tokens: one output of twenty in five has the teacher read its source
        ("training-wheels", {"use": 0.01}, 4.0 + 0.2 * 40.0, 1.0, 0.01 * 109.0),
        # nothing passes: five drafts and a check of six tokens for each token written
        ("speculative", {"draft_length": 5, "acceptance": 0.0}, 44.0, 5.0, 18.0),
        # all pass: six tokens a round, and the student reads two in its first pass
        ("speculative", {"draft_length": 5, "acceptance": 1.0}, 44.0, 5.5 / 6, 18.0 / 6),
        ("speculative", {"draft_length": 2, "acceptance": 0.5}, 44.0, (2 + 0.25 * 0.5) / 1.75, 13.5 / 1.75),
        # a call every four tokens checks four; with a fifth of the drafts taken back, 4.8 and 1.2 student passes
        ("bild", {"call_rate": 0.25}, 44.0, 1.0, 0.25 * 15.0),
        ("bild", {"call_rate": 0.25, "rolled_back": 0.2}, 44.0, 1.2, 0.25 * 16.2),
    ],
)
def test_predictions_by_hand(
    method: str, settings: dict[str, float], encode: float, student: float, teacher: float
) -> None:
    prediction = COSTS.predict(method, **settings)
    assert (prediction.encode, prediction.student, prediction.teacher) == pytest.approx((encode, student, teacher))
    assert (prediction.method, prediction.settings) == (method, settings)
    assert prediction.ms_per_token == pytest.approx(1000 * (encode / 20 + student + teacher))
    assert prediction.seconds(3) == pytest.approx(encode + 3 * (student + teacher))


def test_a_batch_spreads_a_pass_over_its_rows() -> None:
    batch = Costs(STUDENT, TEACHER, rows=8, new_tokens=20)
    assert batch.predict("greedy-teacher").ms_per_token == pytest.approx(1000 * (40 / 20 + 10) / 8)


@pytest.mark.parametrize(("k", "a"), [(1, 0.5), (4, 0.8), (16, 0.3), (7, 1.0), (3, 0.0)])
def test_the_expected_run_is_the_mean_of_the_runs(k: int, a: float) -> None:
    chances = [a**i * (1 - a) for i in range(k)] + [a**k]  # i drafts pass and the next fails, or all pass
    assert expected_run(k, a) == pytest.approx(sum(p * (i + 1) for i, p in enumerate(chances)))


def test_the_best_draft_length_grows_with_acceptance() -> None:
    lengths = [int(COSTS.best_speculative(a).settings["draft_length"]) for a in (0.0, 0.5, 0.8, 0.95, 1.0)]
    assert lengths == sorted(lengths) and lengths[0] == 1 and lengths[-1] == 16 and 1 < lengths[2] < 16
    best = COSTS.best_speculative(0.8)
    assert best.ms_per_token == min(
        COSTS.predict("speculative", draft_length=k, acceptance=0.8).ms_per_token for k in range(1, 17)
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: COSTS.predict("speculativ"), ValueError, "'speculativ'; did you mean 'speculative'"),
        (lambda: COSTS.predict("interleaved"), ValueError, "no costs are known for method 'interleaved'"),
        (lambda: COSTS.predict("training-wheels"), TypeError, "need use"),
        (lambda: COSTS.predict("greedy-student", use=0.1), TypeError, "no setting 'use'"),
        (lambda: COSTS.predict("training-wheels", use=1.5), ValueError, "use must be in .0, 1., got 1.5"),
        (lambda: COSTS.predict("speculative", draft_length=0, acceptance=1), ValueError, "draft_length must be"),
        (lambda: COSTS.predict("speculative", draft_length=1, acceptance=-1), ValueError, "acceptance must be"),
        (lambda: COSTS.predict("bild", call_rate=0), ValueError, "call_rate must be in .0, 1., got 0"),
        (lambda: measure_costs(*PAIR, rows=0), ValueError, "rows must be at least 1, got 0"),
        (lambda: measure_costs(*PAIR, seconds=0), ValueError, "seconds must be in"),
        (lambda: measure_costs(*PAIR, num_threads=0), ValueError, "num_threads must be at least 1"),
    ],
)
def test_bad_settings_are_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


PAIR = random_pair("noisy", seed=2)


def test_measured_costs_have_every_point(device: str) -> None:
    pair = [NativeT5.from_model(model, device=device) for model in PAIR]
    costs = measure_costs(*pair, rows=3, source_tokens=9, new_tokens=8, num_threads=1, seconds=0.2)
    assert (costs.rows, costs.source_tokens, costs.new_tokens, costs.num_threads) == (3, 9, 8, 1)
    found = [set(costs.teacher.catch_up), set(costs.teacher.verify)]
    assert found == [set(POINTS)] * 2 if device == "cpu" else all({1, 17} <= points for points in found)
    assert set(costs.student.catch_up) == {1, 2} and not costs.student.verify
    times = [costs.student.encode, costs.teacher.encode, *costs.student.catch_up.values()]
    times += [*costs.teacher.catch_up.values(), *costs.teacher.verify.values()]
    assert all(0 < seconds < 60 for seconds in times)
    assert costs.predict("speculative", draft_length=4, acceptance=0.7).ms_per_token > 0


def test_a_large_batch_is_measured_in_passes_of_at_most_256_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    probe = cost_measuring._core.Probe

    def recorded(device: str, model: Any, rows: int, source: int, history: int, most: int, threads: int) -> Any:
        made.append((rows, most))
        return probe(device, model, rows, source, history, most, threads)

    monkeypatch.setattr(cost_measuring._core, "Probe", recorded)
    costs = measure_costs(*PAIR, rows=64, source_tokens=16, new_tokens=2, num_threads=1, seconds=0.05)
    assert made == [(16, 1), (64, 3)] * 2
    assert set(costs.teacher.catch_up) == {1, 2, 3}
    times = {("teacher", "encode", 0): [2.0, 4.0, 3.0], ("teacher", "catch_up", 1): [1.0]}
    assert cost_measuring._model_costs("teacher", times, 64 / 16) == ModelCosts(12.0, {1: 1.0})


class Clock:
    """A clock that passes move: ``passes[key](repeats)`` takes ``seconds`` each, the first turn twice as long."""

    def __init__(self, seconds: float):
        self.now, self.runs = 0.0, list[tuple[Any, int]]()
        self.passes = {
            (role, kind, n): self._pass((role, kind, n), seconds)
            for role, kind, n in [
                ("student", "encode", 0),
                ("student", "catch_up", 1),
                ("student", "catch_up", 2),
                *(("teacher", kind, n) for n in POINTS for kind in ("catch_up", "verify")),
                ("teacher", "encode", 0),
            ]
        }

    def _pass(self, key: Any, seconds: float) -> Callable[[int], Any]:
        def run(repeats: int) -> tuple[list[float], dict[str, Any]]:
            times = [seconds * (1 if any(ran == key for ran, _ in self.runs) else 2)] * repeats
            self.runs.append((key, repeats))
            self.now += sum(times)
            return times, {}

        return run

    def perf_counter(self) -> float:
        return self.now


def test_measuring_a_slow_pair_ends_once_what_is_needed_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(10.0)
    monkeypatch.setattr(cost_measuring, "time", clock)
    recorded = cost_measuring._in_turns(clock.passes, 1.0)
    assert len(clock.runs) == len(recorded) == 8  # two encoders, the student's two, two teacher's points of each kind
    assert {n for role, kind, n in recorded if role == "teacher" and kind != "encode"} == {1, 17}
    assert all(times == [20.0] for times in recorded.values())


def test_measuring_a_fast_pair_drops_the_first_turn_and_repeats_short_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.001)
    monkeypatch.setattr(cost_measuring, "time", clock)
    recorded = cost_measuring._in_turns(clock.passes, 1.0)
    assert recorded.keys() == clock.passes.keys()
    assert clock.now == pytest.approx(1.0, abs=0.01)
    assert all(len(times) > 3 and set(times) == {0.001} for times in recorded.values())
    assert {repeats for _, repeats in clock.runs} == {1, 3}


def test_the_old_place_of_measure_costs_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="use kdtw_fast.cost_measuring.measure_costs"):
        from kdtw_fast.costs import measure_costs as old
    assert old is measure_costs
    with pytest.raises(ImportError):
        from kdtw_fast.costs import unknown  # type: ignore[attr-defined]  # noqa: F401
