"""`kdtw bench` and what is behind it: arithmetic of phases and roofs, a whole report of a tiny model, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories import SHAPES as TINY_SHAPES
from factories import random_t5 as tiny_t5
from factories import with_tau
from rich.console import Console
from typer.testing import CliRunner

import kdtw_fast.cli as cli
from kdtw_fast import peers, profiling
from kdtw_fast.cli import bench_models
from kdtw_fast.costs import Costs, ModelCosts
from kdtw_fast.machine import Roof
from kdtw_fast.paired_timing import take_turns
from kdtw_fast.profiling import OPERATIONS, OURS, Phase, Plan, profile
from kdtw_fast.shapes import SHAPES, T5Shape, cache_bytes, random_native

SHAPE = T5Shape("tiny", 64, 8, 4, 64, 2, 160)  # sizes that packing does not pad
ROOF = Roof(threads=1, read=10e9, gemm=100e9)


def phase(seconds: list[float], weight_bytes: float, flops: float, rows: int = 1, tokens: int = 1) -> Phase:
    one = {"linear": (0.0, weight_bytes, flops), **dict.fromkeys(OPERATIONS[1:], (0.0, 0.0, 0.0))}
    return Phase("model", "step", rows, tokens, 1, seconds, [one | {"head": (s / 2, 0.0, 0.0)} for s in seconds])


def test_the_roof_is_the_slower_of_reading_and_multiplying() -> None:
    few = phase([0.04, 0.02, 0.03], weight_bytes=100e6, flops=50e6)  # reading takes 10 ms, multiplying 0.5
    assert few.median == 0.03 and few.of_roof(ROOF) == (pytest.approx(1 / 3), "memory")
    many = phase([0.5], weight_bytes=100e6, flops=40e9, rows=4, tokens=25)  # 400 ms of products
    assert many.of_roof(ROOF) == (pytest.approx(0.8), "compute")
    assert many.ms_per_token == pytest.approx(5.0)
    known = many.to_json(ROOF)
    assert known["gb_per_s"] == pytest.approx(0.2) and known["gflop_per_s"] == pytest.approx(80.0)
    assert few.operations["head"][0] == 0.015  # the middle round's
    json.dumps(known)


def test_measured_roofs_are_positive_and_leave_torchs_threads_alone() -> None:
    import torch

    before = torch.get_num_threads()
    roof = Roof.measure(2, rounds=1, read_bytes=1 << 20, size=32)
    assert roof.threads == 2 and roof.read > 0 and roof.gemm > 0
    assert torch.get_num_threads() == before


def test_contestants_take_turns_and_begin_in_turn() -> None:
    order: list[str] = []
    turns: list[None] = []
    recorded = take_turns(
        {name: lambda name=name: order.append(name) or name for name in "abc"}, 4, lambda: turns.append(None)
    )
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert len(turns) == 15 and recorded["b"].results == ["b"] * 4 and len(recorded["b"].seconds) == 4


@pytest.mark.parametrize("name", SHAPES)
def test_the_largest_named_shapes_caches_are_what_the_docs_say(name: str) -> None:
    shape = SHAPES[name]
    spec = random_native(SHAPE).spec
    spec["decoder"] |= {"key_heads": shape.heads, "head_size": shape.d_kv, "layers": shape.layers}
    # 64 + 65 positions in blocks of 16, keys and values, 4 bytes
    assert cache_bytes(spec, 2, 64, 64) == shape.layers * 2 * (64 + 80) * shape.heads * shape.d_kv * 2 * 4
    spec["cache_dtype"] = "bf16"
    assert cache_bytes(spec, 2, 64, 64) == shape.layers * 2 * (64 + 80) * shape.heads * shape.d_kv * 2 * 2


@pytest.fixture(scope="module")
def report() -> profiling.Report:
    models = {"student": random_native(SHAPE), "teacher": random_native(SHAPE, seed=1)}
    plan = Plan(rows=(1, 3), source_tokens=9, new_tokens=5, rounds=2, threads=1)
    turns: list[None] = []
    asked: list[str] = []

    def peers_of(name: str) -> profiling.Peers:
        asked.append(name)
        assert len(turns) >= 2 * 2  # our own decodes, by which memory is read, came before
        return {"other": lambda new_tokens, threads: peers.native(models[name], new_tokens, threads)}

    made = profile(models, plan, peers_of=peers_of, settings={"command": "x"}, on_turn=lambda: turns.append(None))
    assert asked == ["student", "teacher"]
    assert len(turns) == plan.turns([1, 1])
    return made


def test_a_report_has_every_phase_of_every_model(report: profiling.Report) -> None:
    for model in ("student", "teacher"):
        phases = [(p.name, p.rows, p.tokens, p.asked) for p in report.phases if p.model == model]
        assert phases == [
            ("encoder", 1, 9, 0),
            ("step", 1, 1, 1),
            ("step", 3, 1, 1),
            *(("catch-up", 1, n, 1) for n in (2, 4, 8, 16)),
            *(("verification", 1, n, n) for n in (2, 4, 8, 16)),
        ]
    assert all(len(p.seconds) == 2 and p.median > 0 and set(p.operations) == set(OPERATIONS) for p in report.phases)
    step, three = (p for p in report.phases if p.model == "student" and p.name == "step")
    assert step.weight_bytes == three.weight_bytes == 4 * SHAPE.step_parameters
    assert [(w.model, w.rows, w.system) for w in report.whole] == [
        (model, rows, system) for model in ("student", "teacher") for rows in (1, 3) for system in (OURS, "other")
    ]
    matrices = [size for name, size in SHAPE.tensors.items() if len(size) == 2 and "bias" not in name]
    assert [m.weights for m in report.memory] == [4 * sum(rows * columns for rows, columns in matrices)] * 2
    assert {m.cache_rows for m in report.memory} == {3} and report.peak_rss > 1e7


def test_a_reports_predictions_come_from_its_phases(report: profiling.Report) -> None:
    def costs(model: str) -> ModelCosts:
        passes = {(p.name, p.tokens): p.median for p in report.phases if p.model == model and p.rows == 1}
        catch_up = {n: passes["catch-up" if n > 1 else "step", n] for n in (1, 2, 4, 8, 16)}
        return ModelCosts(
            passes["encoder", 9], catch_up, {n: passes["verification", n] for n in (2, 4, 8, 16)} | {1: catch_up[1]}
        )

    made_of = Costs(costs("student"), costs("teacher"), new_tokens=5)
    by_method = {p.method: p for p in report.predictions}
    assert list(by_method) == ["greedy-student", "greedy-teacher", "training-wheels", "speculative"]
    for prediction in report.predictions:
        again = made_of.predict(prediction.method, **prediction.settings)
        assert prediction.ms_per_token == pytest.approx(again.ms_per_token)


def test_a_report_is_json_and_tables(report: profiling.Report) -> None:
    known = json.loads(json.dumps(report.to_json()))
    assert set(known) == {"settings", "machine", "roof", "phases", "generate", "predictions", "memory", "device"}
    assert known["settings"] == {
        "rows": [1, 3],
        "source_tokens": 9,
        "new_tokens": 5,
        "rounds": 2,
        "threads": 1,
        "command": "x",
    }
    assert {"processor", "cores", "build", "versions"} <= set(known["machine"])
    console = Console(width=200, record=True)
    for table in report.tables():
        console.print(table)
    text = console.export_text()
    for word in (*OPERATIONS, "verification", "% memory", "other is", OURS, "against the teacher", "peak"):
        assert word in text or word == "other is", word
    assert report.caption.count("GB/s") == 1


# --- the command ------------------------------------------------------------------------------------------

QUICK = ["--rounds", "1", "--source-tokens", "6", "--new-tokens", "4", "--threads", "1"]


@pytest.fixture
def small_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Roof, "measure", lambda threads: Roof(threads, 10e9, 100e9))


@pytest.fixture
def kdtw(small_roofs: None):
    runner = CliRunner()
    return lambda *args: runner.invoke(cli.app, ["bench", *map(str, args)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    tiny_t5(TINY_SHAPES[4], 64, seed=0).save_pretrained(path / "teacher")
    with_tau(tiny_t5(TINY_SHAPES[0], 64, seed=1), 63, beta_scale=1.0, seed=2).save_pretrained(path / "student")
    return path


@pytest.mark.long
def test_a_folder_is_measured_beside_the_other_systems(kdtw, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    for role in ("teacher", "student"):
        result = kdtw("--model", folder / role, *QUICK, "--rows", "1,2", "--json", file)
        assert result.exit_code == 0, result.stderr
        known = json.loads(file.read_text(encoding="utf-8"))
        systems = [OURS, peers.HUGGING_FACE, *(["CTranslate2 float32"] if peers.has_ctranslate2() else [])]
        assert [(w["system"], w["rows"]) for w in known["generate"]] == [(s, r) for r in (1, 2) for s in systems]
        assert all(system in result.stdout for system in systems) and "10.0 GB/s read" in result.stdout
        assert known["settings"]["command"].split()[0] == "kdtw" and known["predictions"] == []


def test_named_shapes_are_measured_as_a_pair(kdtw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("flan-t5-small", "flan-t5-base"):
        monkeypatch.setitem(SHAPES, name, T5Shape(name, 32, 8, 2, 48, 1, 96))
    monkeypatch.setattr(bench_models, "random_t5", lambda *_: pytest.fail("a model that no other system is to run"))
    shapes = ["--shape", "flan-t5-small", "--teacher-shape", "flan-t5-base"]
    result = kdtw(*shapes, *QUICK, "--rows", "2", "--no-peers", "--json", tmp_path / "o")
    assert result.exit_code == 0, result.stderr
    known = json.loads((tmp_path / "o").read_text(encoding="utf-8"))
    assert [m["model"] for m in known["memory"]["models"]] == ["student", "teacher"]
    assert {w["system"] for w in known["generate"]} == {OURS} and len(known["predictions"]) == 6
    assert "what the methods would take" in result.stdout and "Left out" not in result.stdout


def test_systems_that_would_not_fit_are_left_out_and_said_so(
    kdtw, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_models, "available_memory", lambda: 1000)
    result = kdtw("--model", folder / "teacher", *QUICK, "--rows", "1")
    assert result.exit_code == 0, result.stderr
    assert (
        "Left out: Hugging Face and CTranslate2 would take about" in result.stdout
        and peers.HUGGING_FACE not in result.stdout
    )
    result = kdtw("--model", folder / "teacher", *QUICK, "--rows", "1", "--peers")
    assert result.exit_code == 2 and "leave out --peers" in result.stderr
    monkeypatch.setattr(peers, "has_ctranslate2", lambda: False)
    monkeypatch.setattr(bench_models, "available_memory", lambda: 10**12)
    result = kdtw("--model", folder / "teacher", *QUICK, "--rows", "1")
    assert "CTranslate2, which is not installed" in result.stdout and peers.HUGGING_FACE in result.stdout


def test_models_on_a_device_are_measured_by_their_time(kdtw, folder: Path, tmp_path: Path, simulated: str) -> None:
    result = kdtw("--model", folder / "teacher", "--device", "cuda", *QUICK, "--rows", "1", "--json", tmp_path / "o")
    assert result.exit_code == 0, result.stderr
    known = json.loads((tmp_path / "o").read_text(encoding="utf-8"))
    assert known["device"] == simulated and known["predictions"] == []
    assert all(phase["ms"] > 0 and "share_of_roof" not in phase for phase in known["phases"])
    assert [whole["system"] for whole in known["generate"]] == [OURS] and known["memory"]["models"][0]["caches"] is None
    assert "cuda:0 is simulated device" in result.stdout and "of roof" not in result.stdout
    assert "Left out: other systems: PyTorch" in result.stdout
    result = kdtw("--model", folder / "teacher", "--device", "cuda", *QUICK, "--rows", "1", "--peers")
    assert result.exit_code == 2 and "leave out --peers" in result.stderr


def test_another_system_that_fails_is_named(kdtw, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> peers.Generate:
        def generate(ids: object) -> peers.Decoded:
            raise IndexError("list index out of range")

        return generate

    monkeypatch.setattr(peers, "hugging_face", failing)
    result = kdtw("--model", folder / "teacher", *QUICK, "--rows", "1")
    assert result.exit_code == 2 and result.stdout == ""
    assert "Hugging Face generate cannot decode this model (IndexError('list index out of range'))" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int4"], "unknown --dtype 'int4'; did you mean 'int8'?"),
        (["--teacher-dtype", "fp31"], "unknown --teacher-dtype 'fp31'; did you mean 'fp32'?"),
        (["--cache-dtype", "int8"], "unknown --cache-dtype 'int8'; known are 'auto', 'fp32', 'fp16', 'bf16'"),
        (["--rows", "1,x"], "--rows must be batch sizes with commas, such as 1,4,8, got '1,x'"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--new-tokens", "0"], "--new-tokens must be at least 1, got 0"),
        (["--source-tokens", "1"], "--source-tokens must be at least 2, got 1"),
        (["--shape", "flan-t5-xxl"], "unknown shape 'flan-t5-xxl'; did you mean 'flan-t5-xl'?"),
        (["--shape", "flan-t5-xl", "--pair", "debian-de-en"], "not --pair and --shape"),
        (["--model", "x", "--shape", "flan-t5-xl"], "not --model and --shape"),
        (["--teacher-shape", "flan-t5-xl"], "--teacher-shape flan-t5-xl goes with --shape"),
        (["--model", "{folder}/teacher", "--teacher-dtype", "fp32"], "there is no teacher"),
        (["--model", "/nowhere"], "no config.json in /nowhere"),
        (["--json", "/nowhere/out.json"], "--json /nowhere/out.json lies in a folder that does not exist"),
    ],
)
def test_errors_are_one_sentence(kdtw, folder: Path, arguments: list[str], message: str) -> None:
    result = kdtw(*(argument.format(folder=folder) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("kdtw: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
