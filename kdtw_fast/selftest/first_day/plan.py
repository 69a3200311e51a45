"""What is done on a first day, the most valuable first: where minutes are few, the last steps are left out."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from kdtw_fast.selftest.first_day.machine import architecture, tool
from kdtw_fast.selftest.first_day.runner import Step

HERE = Path(__file__).parent
# Decodes of the tests that a real device can do, too; those that count launches or schedule threads skip themselves.
TESTS = ("tests/test_cuda_decode.py", "tests/test_cuda_drafting.py", "tests/test_rules.py", "tests/test_exactness.py")


def make_plan(root: Path, out: Path, tiny: bool) -> list[Step]:
    """The steps in their order.

    Args:
        root: the source tree.
        out: where a step may leave files.
        tiny: sizes that the simulated device can do in seconds.
    """
    library = os.environ.get("KDTW_CUDA_LIBRARY") or str(root / "kdtw_fast/libkdtw_cuda.so")
    no_torch = "" if find_spec("torch") else "needs PyTorch, which this Python does not have"
    no_tests = no_torch or ("" if find_spec("pytest") else "needs pytest, which this Python does not have")
    small = ["--tiny"] if tiny else []
    common = {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))}

    def plain(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(HERE / f"{name}.py"), *arguments]

    def work(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "kdtw_fast.selftest.first_day.work", *arguments, *small]

    def decodes(student: str, teacher: str, dtype: str, limit: int) -> Step:
        what = f"every method, {student} and {teacher}, {dtype}, random weights, a source of 64 tokens, 64 tokens out"
        command = work("decodes", student, teacher, dtype)
        return Step(f"decodes {teacher} {dtype}", what, command, limit, common, no_torch)

    def peer(kind: str, what: str, limit: int) -> Step:
        told = f"{what} alone, of flan-t5-base and xl with random weights, 64 tokens out"
        return Step(f"peer {kind}", told, work("peer", kind), limit, common, no_torch)

    def checks(group: str, way: str, what: str, limit: int = 90) -> Step:
        return Step(f"{group} {way}".strip(), what, work("checks", group, way or "auto"), limit, common, no_torch)

    def sanitizer(kind: str) -> Step:
        program = tool("compute-sanitizer")
        command = [program, "--tool", kind, "--error-exitcode", "9", "--target-processes", "all"]
        missing = no_torch or ("" if program else "needs compute-sanitizer, which is not here")
        what = f"compute-sanitizer's {kind} of a sixth of the operations' checks"
        return Step(kind, what, [*command, *work("checks", "some", "auto")], 120, common, missing)

    on_it = common | {"KDTW_CUDA_LIBRARY": library}
    profiler = tool("ncu")
    profiled = plain("ncu", profiler, library)
    no_profiler = "" if profiler else "needs ncu, which is not here"
    chosen = [TESTS[0], "-k", "updated or named"] if tiny else [*TESTS, "-k", "simulated or cuda"]
    tests = [sys.executable, "-m", "pytest", "-m", "not gpu_proof", "--tb=line", *chosen]
    return [
        Step("machine", "what stands here", plain("machine"), 30),
        Step("build", "the core, and the kernels for the device found", plain("build", architecture()), 300),
        Step("kernels", "time and memory rate of products, attention and picks", plain("kernels", library, *small), 90),
        checks("operations", "", "every operation against NumPy"),
        checks("decodes", "loop", "whole decodes of tiny models, drafts in a graph's loop"),
        decodes("flan-t5-small", "flan-t5-base", "fp16", 90),
        Step("sizes", "logits of FLAN-T5-small's shape, device against CPU", work("sizes"), 90, common, no_torch),
        Step("pairs", "the shipped pairs, device against CPU", work("pairs"), 90, common, no_torch),
        checks("torch", "", "whole decodes beside torch's own work, with its allocator and on a stream of its own"),
        decodes("flan-t5-small", "flan-t5-xl", "fp16", 150),
        peer("eager", "Hugging Face's generate, eager, fp16,", 90),
        checks("decodes", "ahead", "the same decodes, drafts launched ahead of the host"),
        checks("decodes", "host", "the same decodes, the host takes every step"),
        Step("tests", "the suite's tests of decodes", tests, 150, on_it, no_tests),
        peer("ctranslate2", "CTranslate2, float16,", 90),
        peer("compiled", "Hugging Face's generate, static cache and compiled, fp16,", 150),
        sanitizer("memcheck"),
        sanitizer("racecheck"),
        Step("ncu", "Nsight Compute's numbers of some kernels", profiled, 90, missing=no_profiler),
        decodes("flan-t5-small", "flan-t5-base", "int8", 90),
    ]
