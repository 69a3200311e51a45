"""Language models, one row, greedy: a prompt of 512 tokens and steps behind it, beside llama.cpp and CTranslate2.

Published shapes with random weights. In one group stand the engines that hold the weights in about as many bytes:
int8 (llama.cpp's Q8_0), and bf16 (llama.cpp's F16 and BF16; CTranslate2, which has neither on this processor, in fp32).
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.family_models import (
    LANGUAGE_MODELS,
    Generator,
    LlamaCpp,
    Work,
    Writer,
    Written,
    has_llama_cpp,
    llama_cpp_build,
    ours,
    random_model,
    write_gguf,
)
from bench.replay import rates, replay_timer, report
from kdtw_fast import NativeModel, SingleModelDecoder
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.peers import has_ctranslate2
from kdtw_fast.profiling import OURS

PROMPT_TOKENS, NEW_TOKENS = 512, 33  # the first is read out of the prompt
THREADS = (1, 2)
LLAMA_CPP, CTRANSLATE2 = "llama.cpp", "CTranslate2"
# (system, its number format, bytes of a weight, bytes of a cached number) by ours
GROUPS = {
    "int8": [(OURS, "int8", 1.0, 2), (LLAMA_CPP, "Q8_0", 34 / 32, 2), (CTRANSLATE2, "int8", 1.0, 4)],
    "bf16": [
        *((OURS, "bf16", 2.0, 4), (LLAMA_CPP, "F16", 2.0, 2), (LLAMA_CPP, "BF16", 2.0, 2)),
        (CTRANSLATE2, "float32", 4.0, 4),
    ],
}
CASES = [
    (name, dtype, threads, *system)
    for name in LANGUAGE_MODELS
    for dtype in GROUPS
    for threads in THREADS
    for system in GROUPS[dtype]
]


@dataclass(frozen=True)
class Engines:
    """The engines of a group, by threads, system and format, and our five likeliest first tokens."""

    name: str
    dtype: str
    work: Work
    prompt: list[int]
    writers: dict[tuple[int, str, str], Writer]
    likeliest: list[int]
    taken: dict[int, dict[str, Recorded]]  # by threads


@pytest.fixture(scope="module")
def engines(request: pytest.FixtureRequest, tiny: bool) -> Iterator[Engines]:
    """Made once for a model and a format, for all numbers of threads."""
    name, dtype = request.param
    model = random_model(name, tiny)
    work = Work.of(model)
    length = 16 if tiny else PROMPT_TOKENS
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
    native = NativeModel.from_model(model, "model", dtype)
    out = SingleModelDecoder(native).generate([prompt], max_new_tokens=1, top_logprobs=5)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for system, kind, *_ in GROUPS[dtype]:
            if system == LLAMA_CPP and has_llama_cpp():
                files[kind] = Path(folder) / f"{kind}.gguf"
                write_gguf(model, files[kind], kind)
        converted = Generator(model) if has_ctranslate2() else None  # takes the model apart
        del model
        writers: dict[tuple[int, str, str], Writer] = {}
        for threads in THREADS:
            for system, kind, *_ in GROUPS[dtype]:
                key = threads, system, kind
                if system == OURS:
                    writers[key] = ours(native, threads)
                elif kind in files:
                    writers[key] = LlamaCpp(files[kind], threads, length + NEW_TOKENS + 16)
                elif system == CTRANSLATE2 and converted is not None:
                    writers[key] = converted.writer(threads, kind)
        yield Engines(name, dtype, work, prompt, writers, out.top_ids[0, -1].tolist(), {})
        writers.clear()
    gc.collect()


def take(engines: Engines, threads: int, tiny: bool, rounds: int | None) -> dict[str, Recorded]:
    """What the engines with so many threads do in turns, beside the machine's rates."""
    if threads not in engines.taken:
        contestants: dict[str, Callable[[], Any]] = {
            f"{system} {kind}": partial(write, engines.prompt, NEW_TOKENS)
            for (count, system, kind), write in engines.writers.items()
            if count == threads
        }
        engines.taken[threads] = take_turns(contestants | rates(threads, tiny), rounds or 5)
    return engines.taken[threads]


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize(
    ("engines", "threads", "system", "kind", "weight", "cached"),
    [((name, dtype), threads, *system) for name, dtype, threads, *system in CASES],
    indirect=["engines"],
    ids=[f"{name}-{dtype}-{threads}-{system[0]}-{system[1]}" for name, dtype, threads, *system in CASES],
)
def test_language_model(
    benchmark: BenchmarkFixture,
    engines: Engines,
    tiny: bool,
    rounds: int | None,
    threads: int,
    system: str,
    kind: str,
    weight: float,
    cached: int,
) -> None:
    if (threads, system, kind) not in engines.writers:
        pytest.skip(f"{system} is not installed")
    recorded = take(engines, threads, tiny, rounds)
    written: list[Written] = recorded[f"{system} {kind}"].results
    benchmark.group = f"{engines.name}, {engines.dtype}, {threads} threads"
    report(benchmark, [one.reading + one.writing for one in written])
    read, gemm = (max(recorded[f"{rate} {threads}"].results) for rate in ("read", "gemm"))
    work, tokens = engines.work, len(engines.prompt)
    reading = median_low(one.reading for one in written)
    step = median_low(one.writing / (NEW_TOKENS - 1) for one in written)
    held = tokens + NEW_TOKENS / 2  # positions that a step reads, in the middle of the output
    multiplied = 2 * (work.read * tokens + work.step - work.read + work.mixed * tokens**2 / 2)
    benchmark.extra_info |= {
        "kind": "language model",
        "model": engines.name,
        "group": engines.dtype,
        "system": system,
        "format": kind,
        "threads": threads,
        "prompt_tokens": tokens,
        "new_tokens": NEW_TOKENS,
        "reading": reading,
        "step": step,
        "reading_of_roof": multiplied / gemm / reading,
        "step_of_roof": (work.step * weight + work.cached * held * cached) / read / step,
        "read_gb_per_s": read / 1e9,
        "gemm_gflop_per_s": gemm / 1e9,
        "llama_cpp": llama_cpp_build() if has_llama_cpp() else None,
    }
    ids, expected = written[0].ids, recorded[f"{OURS} {engines.dtype}"].results[0].ids
    benchmark.extra_info["tokens_as_ours"] = sum(a == b for a, b in zip(ids, expected))
    assert len(ids) == NEW_TOKENS
    # Random weights in fewer bits are another random model: what is asked is that it is nearly the same one.
    assert ids[0] in engines.likeliest, f"{system} begins with {ids[0]}, which is none of our five likeliest tokens"
