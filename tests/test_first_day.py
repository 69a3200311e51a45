"""The first minutes with a GPU: limits, reports that stay valid, and every step on the simulated device, tiny."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdtw_fast import _core
from kdtw_fast.roofline import memory_rate
from kdtw_fast.selftest.first_day import __main__ as command
from kdtw_fast.selftest.first_day import kernels, ncu, work
from kdtw_fast.selftest.first_day.plan import make_plan
from kdtw_fast.selftest.first_day.runner import Run, Step

HERE = Path(command.__file__).parent
HERE_MODULE = "kdtw_fast.selftest.first_day"


def script(name: str, code: str, limit: int = 60, **more: Any) -> Step:
    return Step(name, f"what {name} does", [sys.executable, "-c", code], limit, **more)


def run(out: Path, *steps: Step, seconds: float = 60.0) -> tuple[Run, dict[str, Any], str]:
    running = Run(out, seconds, Path.cwd(), tiny=True)
    for step in steps:
        running.step(step)
    running.end()
    return running, read(out), (out / "report.md").read_text(encoding="utf-8")


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def test_results_faults_and_needs(tmp_path: Path) -> None:
    good = script("good", 'print("words"); print(\'{"kernel": "a | b", "us": 2.5}\')')
    faulty = script("faulty", 'print(\'{"check": "norm", "error": 1, "permitted": 2, "failure": "off by one"}\')')
    breaks = script("breaks", 'print(\'{"us": 1}\', flush=True); raise SystemExit("no such thing")')
    lacking = script("lacking", 'print(\'{"needs": "a device"}\')')
    absent = Step("absent", "calls a program", [str(tmp_path / "nothing")], 9)
    known = script("known", "", missing="needs luck")
    running, report, text = run(tmp_path, good, faulty, breaks, lacking, absent, known)
    assert running.faults == 2 and report["finished"]
    status = {step["name"]: step["status"] for step in report["steps"]}
    assert status == {
        "good": "done",
        "faulty": "failed",
        "breaks": "failed",
        "lacking": "not run",
        "absent": "not run",
        "known": "not run",
    }
    assert "a \\| b" in text and "off by one" in text and "no such thing" in text
    assert "needs a device" in text and "needs luck" in text and "No such file" in text
    assert "words" in (tmp_path / "good.log").read_text(encoding="utf-8")


def test_a_step_that_takes_too_long_keeps_what_it_found(tmp_path: Path) -> None:
    slow = "import time, subprocess\nprint('{\"n\": 1}', flush=True)\nsubprocess.Popen(['sleep', '60'])\ntime.sleep(60)"
    _, report, text = run(tmp_path, script("slow", slow, limit=2), script("next", "print('{\"n\": 2}')"))
    slowly, following = report["steps"]
    assert slowly["status"] == "out of time" and slowly["results"] == [{"n": 1}]
    assert following["status"] == "done" and "stopped after 2 s" in text


def test_no_step_begins_without_time(tmp_path: Path) -> None:
    _, report, _ = run(tmp_path, script("late", "print('{\"n\": 1}')"), seconds=1.0)
    assert report["steps"][0]["said"] == "no time left"


def test_a_killed_run_leaves_a_report(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from kdtw_fast.selftest.first_day.runner import Run, Step
says = "import time; print('{{\\"n\\": 1}}', flush=True); time.sleep(9)"
Run(Path({str(tmp_path)!r}), 60, Path.cwd(), True).step(Step("slow", "waits", [sys.executable, "-c", says], 60))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    path = tmp_path / "report.json"
    end = time.monotonic() + 60
    while not (path.exists() and any(step["results"] for step in read(tmp_path)["steps"])):
        assert time.monotonic() < end, "the step said nothing"
        time.sleep(0.05)
    process.kill()
    process.wait()
    report = read(tmp_path)
    assert not report["finished"] and report["steps"][0]["status"] == "running"
    assert "did not come to its end" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("environment", [{}, {"without": "torch"}], ids=["with PyTorch", "without"])
def test_plain_steps(tmp_path: Path, simulated: str, environment: dict[str, str]) -> None:
    """The machine and the kernels' times need no package at all; nor does the plan."""
    library = _core.build_info()["cuda"]["library"]
    start = [sys.executable, str(HERE / "__main__.py")] if environment else [sys.executable, "-m", HERE_MODULE]
    if environment:  # an interpreter that finds no packages
        start[1:1] = ["-S", "-E"]
    done = subprocess.run(
        [*start, "--tiny", "--out", str(tmp_path), "--only", "machine,kernels,sizes" if environment else "machine"],
        env=os.environ | {"KDTW_CUDA_LIBRARY": library},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    status = {step["name"]: step for step in read(tmp_path)["steps"]}
    assert status["machine"]["status"] == "done"
    if environment:
        assert "needs PyTorch" in status["sizes"]["said"]
        kernels = status["kernels"]["results"]
        assert len(kernels) == 31 and not any("failure" in row for row in kernels)
        assert {row["tokens"] for row in kernels[1:]} == {1, 8} and all(row["us"] > 0 for row in kernels[1:])


@pytest.mark.parametrize(
    "step",
    [
        ("sizes",),
        ("checks", "operations", "auto"),
        ("decodes", "flan-t5-small", "flan-t5-base", "fp16"),
        ("peer", "eager"),
        ("peer", "ctranslate2"),
        pytest.param(("pairs",), marks=pytest.mark.long),
        pytest.param(("checks", "decodes", "loop"), marks=pytest.mark.long),
        pytest.param(("decodes", "flan-t5-small", "flan-t5-xl", "int8"), marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_a_step_of_the_package(step: tuple[str, ...], simulated: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert work.main([*step, "--tiny"]) == 0
    finally:
        _core.use_cuda_drafting("auto", 4)
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert results and not any(result.get("failure") for result in results), results
    if step[0] == "decodes":
        assert {result.get("method") for result in results[1:]} == {*work.METHODS}
    if step[0] == "peer":
        assert all("ms" in result or "needs" in result for result in results), results


@pytest.mark.parametrize("step", [("checks", "torch", "auto"), ("peer", "compiled")], ids=" ".join)
def test_what_a_step_needs_is_said(step: tuple[str, ...], simulated: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert work.main([*step, "--tiny"]) == 0
    assert "PyTorch with CUDA" in json.loads(capsys.readouterr().out)["needs"]


def test_the_plan_names_each_step_once(tmp_path: Path) -> None:
    steps = make_plan(Path.cwd(), tmp_path, tiny=False)
    assert len({step.name for step in steps}) == len(steps)
    assert [step.name for step in steps[:3]] == ["machine", "build", "kernels"]


def test_unknown_steps_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), "--only", "machine,kernel"])
    assert "unknown steps: kernel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "rate"),
    [
        ("Tesla T4", 320),
        ("NVIDIA A10G", 600),
        ("NVIDIA L4", 300),
        ("NVIDIA A100-SXM4-40GB", 1555),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H200", 4800),
        ("NVIDIA B200", 8000),
        ("NVIDIA L40S", None),
        ("simulated device", None),
    ],
)
def test_memory_rates(device: str, rate: float | None) -> None:
    assert memory_rate(device) == (None if rate is None else 1e9 * rate)


def test_what_a_profiler_prints() -> None:
    columns = '"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"'
    name = "void kdtw::cuda::<unnamed>::linear_kernel<kdtw::cuda::Fp16, 1, 2>(const uint4 *, int)"
    lines = [
        "==PROF== Connected",
        columns,
        f'"0","{name}","(72, 1, 1)","gpu__time_duration.sum","nsecond","7,904"',
        f'"0","{name}","(72, 1, 1)","launch__registers_per_thread","register/thread","52"',
    ]
    row = {"kernel": "linear_kernel<Fp16, 1, 2>", "grid": "(72, 1, 1)", "us": pytest.approx(7.904), "registers": 52}
    assert ncu.rows(lines) == [row]


def test_the_notebook_has_three_cells_and_calls_what_is_there() -> None:
    path = Path(__file__).parent.parent / "docs/first_day.ipynb"
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 3
    (line,) = [line for line in cells[2]["source"] if line.startswith("!python -m")]
    module, *arguments = line.removeprefix("!python -m ").split()
    assert module == HERE_MODULE and command.main([*arguments, "--list"]) == 0


def test_the_table_is_that_of_the_header() -> None:
    """What kernels.py says of the library by hand: its version, functions, structs and chunks."""
    csrc = Path(__file__).parent.parent / "csrc"
    header, passes = ((csrc / name).read_text(encoding="utf-8") for name in ("backend/cuda/kernels.h", "core/pass.h"))
    for name, value in (
        ("kKdtwCudaVersion", kernels.VERSION),
        ("kKdtwChunk", kernels.CHUNK),
        ("kKdtwAttentionChunk", kernels.ATTENTION_CHUNK),
    ):
        assert re.search(rf"{name} = (\d+)", header)[1] == str(value), name  # type: ignore[index]
    for name, value in (("KdtwSummary", kernels.SUMMARY), ("KdtwSift", kernels.SIFT)):
        assert f"sizeof({name}) == {value})" in header
    table = re.search(r"struct KdtwCudaTable \{(.*?)\n\};", header, re.DOTALL)
    assert table is not None
    assert tuple(re.findall(r"\(\*(\w+)\)\(", table[1])) == kernels.FUNCTIONS
    structs = {
        "KdtwWeight": kernels.Weight,
        "KdtwCache": kernels.Cache,
        "TokenAt": kernels.TokenAt,
        "PositionBias": kernels.Bias,
        "Sampling": kernels.Sampling,
        "KdtwCapture": kernels.Capture,
        "KdtwDevice": kernels.Device,
    }
    for name, mirror in structs.items():
        body = re.search(rf"struct {name} \{{(.*?)\n\}};", header + passes, re.DOTALL)
        assert body is not None, name
        lines = (line.split("//")[0] for line in body[1].splitlines())
        declared = re.findall(r"(\w+)(?:\[\d+\])?(?: = [^,;]+)?[,;]", " ".join(lines))
        assert declared == [field for field, *_ in mirror._fields_], name
