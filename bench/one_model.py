"""One model as `kdtw bench` measures it, in every number format: greedy decodes beside the peers, passes, a batch.

Passes stand beside the machine's read rate and torch's products, CTranslate2's batch at its best setting of one or two
threads. How much memory the largest shape needs is asked of a process of its own, as a user would start it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench.models import FLAN_T5_SMALL, SMOKE, Made
from bench.rows import How, Row
from kdtw_fast.model import NativeT5
from kdtw_fast.peers import HUGGING_FACE, CTranslate2, Generate, ctranslate2_beside, hugging_face, native
from kdtw_fast.profiling import OURS, Peers, Phase, Plan, profile, random_sources

DTYPES = ("fp32", "bf16", "int8")
BESIDE_CTRANSLATE2 = ("fp32", "int8")
NEW_TOKENS, ROWS, ENCODED_TOKENS = 64, 32, 512
# CTranslate2's threads of one batch, and batches side by side
SETTINGS = {"1 thread": (1, 1), "2 threads": (2, 1), "2 workers": (1, 2)}
LARGEST_BYTES = 6e9


def measure(how: How) -> Iterator[Row]:
    """Kinds "one model", "catch-up", "verification", "encoder", "batch" and "memory"."""
    shape = SMOKE if how.tiny else FLAN_T5_SMALL
    model = Made(shape)
    ours = {dtype: model.native("model", dtype) for dtype in DTYPES}
    reference = model.hugging_face()
    converted = CTranslate2(reference)

    def beside(dtype: str) -> Peers:
        systems: dict[str, Any] = {HUGGING_FACE: partial(hugging_face, reference)} if dtype == "fp32" else {}
        if dtype in BESIDE_CTRANSLATE2:
            name = ctranslate2_beside(dtype)
            systems[name] = partial(converted.generate, compute_type=name.split()[-1])
        return systems

    def settings(dtype: str) -> Peers:
        def make(own: int, workers: int, new_tokens: int, threads: int) -> Generate:
            kind = ctranslate2_beside(dtype).split()[-1]
            return converted.generate(new_tokens, min(own, threads), kind, min(workers, threads))

        return {name: partial(make, own, workers) for name, (own, workers) in SETTINGS.items()}

    _assert_same_tokens(ours["fp32"], {**beside("fp32"), **settings("fp32")}, how.threads)
    phases: list[Phase] = []
    for threads in range(1, how.threads + 1):
        plan = Plan((1,), new_tokens=NEW_TOKENS, rounds=how.rounds(11), threads=threads)
        found = profile(ours, plan, peers_of=beside)
        phases, roof = found.phases, found.roof
        steps = {phase.model: phase for phase in phases if phase.name == "step"}
        for whole in found.whole:
            step = steps[whole.model]
            of_step = {"bytes_per_token": step.weight_bytes, "gb_per_s": step.weight_bytes / step.median / 1e9}
            seen = {"shape": shape.name, "new_tokens": NEW_TOKENS, "read_gb_per_s": roof.read / 1e9, **of_step}
            case = {"system": whole.system, "dtype": whole.model, "threads": threads}
            yield Row("one model", case, whole.seconds, seen)
    for phase in phases:
        if phase.name != "encoder":
            for kind in ("catch-up", "verification") if phase.name == "step" else (phase.name,):
                case = {"dtype": phase.model, "tokens": phase.tokens}
                yield Row(kind, case, phase.seconds, {"threads": how.threads})
    plan = Plan((1,), source_tokens=ENCODED_TOKENS, new_tokens=2, rounds=how.rounds(11), threads=how.threads)
    found = profile(ours, plan)
    for phase in found.phases:
        if phase.name == "encoder":
            rates = {"gflop_per_s": phase.flops / phase.median / 1e9, "gemm_gflop_per_s": found.roof.gemm / 1e9}
            seen = {"tokens": ENCODED_TOKENS, "threads": how.threads, **rates}
            yield Row("encoder", {"dtype": phase.model}, phase.seconds, seen)
    plan = Plan((ROWS,), new_tokens=NEW_TOKENS, rounds=how.rounds(5), threads=how.threads)
    for whole in profile({dtype: ours[dtype] for dtype in BESIDE_CTRANSLATE2}, plan, peers_of=settings).whole:
        own = whole.system == OURS
        case = {"system": OURS if own else "CTranslate2", "setting": "2 threads" if own else whole.system}
        seen = {"rows": ROWS, "tokens": ROWS * NEW_TOKENS}
        yield Row("batch", {**case, "dtype": whole.model}, whole.seconds, seen)
    yield _memory_of_the_largest(how)


def _assert_same_tokens(model: NativeT5, systems: Mapping[str, Any], threads: int) -> None:
    """In fp32 all systems must do the same work; random weights in fewer bits are another random model."""
    ids = random_sources(model, 1, 64)
    expected = native(model, NEW_TOKENS, threads)(ids).ids
    for name, make in systems.items():
        assert make(NEW_TOKENS, threads)(ids).ids == expected, f"{name} wrote other tokens: the systems differ in work"


def _memory_of_the_largest(how: How) -> Row:
    """A model of FLAN-T5-XL's shape in int8."""
    shape = "flan-t5-small" if how.tiny else "flan-t5-xl"
    command = ["bench", "--shape", shape, "--dtype", "int8", "--no-peers", "--rows", "1", "--new-tokens", "16"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command += ["--threads", str(how.threads), "--rounds", str(how.rounds(3)), "--json", str(file)]
        subprocess.run([sys.executable, "-m", "kdtw_fast", *command], stdout=subprocess.DEVNULL, check=True)
        result = json.loads(file.read_text(encoding="utf-8"))
    (whole,), (model,) = result["generate"], result["memory"]["models"]
    sizes = {"weights": model["weights"], "caches": model["caches"], "peak_rss": result["memory"]["peak_rss"]}
    assert sizes["peak_rss"] <= LARGEST_BYTES, f"decoding {shape} took {sizes['peak_rss'] / 1e9:.2f} GB"
    seen = {"dtype": model["dtype"], "new_tokens": whole["new_tokens"], **sizes}
    return Row("memory", {"shape": shape}, whole["seconds"], seen)
