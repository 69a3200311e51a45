"""Steps that need the package: checks, logits and whole decodes on the first CUDA device, a line of JSON a result.

python -m kdtw_fast.selftest.first_day.work NAME [ARGUMENT…] [--tiny]
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

import kdtw_fast
from kdtw_fast import _core, decoders
from kdtw_fast.random_pairs import asking_student, plain, source, teacher_without
from kdtw_fast.roofline import decoder_pass, memory_rate
from kdtw_fast.selftest.agreement import as_array
from kdtw_fast.selftest.checks import Check, Trial
from kdtw_fast.shapes import SHAPES, T5Shape

SMOKE = T5Shape("smoke", 64, 16, 4, 96, 2, 160)
SOURCE = NEW = 64
ROUNDS, SECONDS = 7, 4.0  # of a decode at most
# Name -> class, its settings, which models, options of generate.
METHODS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "student alone": ("SingleModelDecoder", {}, "student", {}),
    "teacher alone": ("SingleModelDecoder", {}, "teacher", {}),
    "Training Wheels, 10 % teacher": ("TrainingWheelsDecoder", {}, "both", {"max_teacher_fraction": 0.1}),
    "speculative, all drafts rejected": ("SpeculativeDecoder", {"lenience": 1.0}, "both", {}),
    "speculative, all drafts accepted": ("SpeculativeDecoder", {"lenience": 0.0}, "both", {}),
    "speculative cascade": ("SpeculativeCascadeDecoder", {"deferral": 0.1}, "both", {}),
    "BiLD, drafts of 5": ("BigLittleDecoder", {"fallback_threshold": 0.0, "max_draft_length": 5}, "both", {}),
    "interleaved (SKD)": ("InterleavedDecoder", {}, "both", {}),
    "random calls, 10 %": ("RandomCallDecoder", {"threshold": 0.9}, "both", {}),
    "calls by entropy, 10 % at most": ("EntropyCallDecoder", {}, "both", {"max_teacher_fraction": 0.1}),
}


def method_call(name: str, models: Mapping[str, Any], ids: torch.Tensor, length: int, **shared: Any) -> Any:
    """A call that decodes so many tokens by a method of "student" and "teacher"; `shared` are the decoder's."""
    kind, settings, which, options = METHODS[name]
    given = [models[role] for role in ("student", "teacher") if which in (role, "both")]
    role = {"role": which} if len(given) == 1 else {}
    decoder = getattr(decoders, kind)(*given, **settings, **role, **shared)
    return partial(decoder.generate, ids, max_new_tokens=length, min_new_tokens=length, **options)


def say(**result: Any) -> None:
    """A result, for the report."""
    print(json.dumps(result), flush=True)


# --- Checks ------------------------------------------------------------------------------------------------


def checks(device: str, tiny: bool, group: str, way: str) -> None:
    """The self-test's: "operations", "some" of them, "decodes", or those beside "torch"; drafts taken as `way` says."""
    from kdtw_fast.selftest.decodes import DECODES
    from kdtw_fast.selftest.operations import OPERATIONS
    from kdtw_fast.selftest.run import run_checks

    if group == "torch" and not torch.cuda.is_available():
        say(needs=f"PyTorch with CUDA; this one is {torch.__version__}")
        return
    _core.use_cuda_drafting(way, 4)
    chosen: Sequence[Check] = (OPERATIONS if group in ("operations", "some") else DECODES).on(device)
    if tiny or group == "some":
        chosen = chosen[:: 12 if tiny else 6]
    if group == "torch":
        chosen = [Check(check.name, check.dtype, partial(_beside, check)) for check in chosen]
        before = torch.cuda.memory_allocated()
    for item in run_checks(device, chosen):
        if item.left_out:
            say(left_out=item.name, the_device_was_lost_in=item.left_out)
            continue
        rows = {"near ties": item.near_ties, "s": round(item.seconds, 2)}
        say(check=item.name, error=item.error, permitted=item.permitted, failure=item.failure, **rows)
    if group == "torch":
        gc.collect()
        kept = torch.cuda.memory_allocated() - before
        say(what="bytes of torch's memory that are not given back", bytes=kept, failure="kept" if kept else "")


def _beside(check: Check, trial: Trial) -> None:
    """A check while torch multiplies on a stream of its own, the current one; what torch computes stays right."""
    factor = torch.full((1024, 1024), 1 / 1024, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        product = torch.ones_like(factor)
        for _ in range(200):
            product = product @ factor
        check.run(trial)
        for _ in range(200):
            product = product @ factor
    torch.cuda.synchronize()
    trial.close(product.cpu().numpy(), np.ones((1024, 1024), np.float32), 1e-3, "torch's own product")


def sizes(device: str, tiny: bool) -> None:
    """Logits of FLAN-T5-small's shape with random weights, in every number format, against the CPU's."""
    shape = SMOKE if tiny else SHAPES["flan-t5-small"]
    ids, tokens = (source(shape, n, seed=n)[0].tolist() for n in ((8, 5) if tiny else (SOURCE, 33)))
    # The CPU has no fp16. On a device the encoder rounds tokens to 11 digits where weights have 16 bits; with int8 a
    # token may be rounded to one side or the other.
    for dtype, beside, permitted in (
        ("fp32", "fp32", 2e-3),
        ("fp16", "fp32", 0.1),
        ("bf16", "bf16", 0.05),
        ("int8", "int8", 0.25),
    ):
        there = plain(shape).native("model", dtype, device).decode_logits(ids, tokens)
        here = plain(shape).native("model", beside).decode_logits(ids, tokens)
        _logits(shape.name, f"{dtype}, CPU in {beside}", there, here, permitted)


def _logits(model: str, what: str, there: np.ndarray, here: np.ndarray, permitted: float) -> None:
    difference = float(np.abs(there - here).max())
    wrong = not difference <= permitted
    say(
        model=model,
        what=f"logits, {what}",
        tokens=len(here),
        difference=difference,
        permitted=permitted,
        same=f"{int((there.argmax(1) == here.argmax(1)).sum())} of {len(here)} first choices",
        failure=f"differ by {difference:.2g}" if wrong else "",
    )


def pairs(device: str, tiny: bool) -> None:
    """The pairs that ship: logits on the device against the CPU's, and what Training Wheels write there and here."""
    for name in kdtw_fast.pairs.pair_names()[: 1 if tiny else None]:
        pair = kdtw_fast.load_pair(name)
        texts = [sample.source for sample in pair.samples(1 if tiny else 16)]
        rows = [pair.tokenizer(text)["input_ids"][: 12 if tiny else 128] for text in texts]
        outputs = {}
        for where in (device, "cpu"):
            decoder = decoders.TrainingWheelsDecoder(pair.student, pair.teacher, tokenizer=pair.tokenizer, device=where)
            outputs[where] = decoder.generate(rows, max_new_tokens=3 if tiny else 64, max_teacher_fraction=0.2)
        there, here = (outputs[where].output_ids for where in (device, "cpu"))
        same = sum(a == b for a, b in zip(there, here, strict=True))
        for role in ("student", "teacher"):
            model = getattr(pair, role)
            native = {where: kdtw_fast.NativeT5.from_model(model, device=where) for where in (device, "cpu")}
            given = rows[0], [0, *here[0]]
            there_logits, here_logits = (native[where].decode_logits(*given) for where in (device, "cpu"))
            _logits(f"{name}, {role}", "fp32", there_logits, here_logits, 1e-2)
        told = f"{same} of {len(rows)} outputs of Training Wheels are the CPU's"
        say(model=name, what=told, failure="" if 2 * same >= len(rows) else "fewer than half")


# --- Times -------------------------------------------------------------------------------------------------


def _timed(call: Callable[[], Any], on_torch: bool, rounds: int) -> tuple[float, Any]:
    """Median seconds of `rounds` calls at most, after one, by CUDA events where torch has them; and a result."""
    result = call()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or (len(times) < rounds and time.perf_counter() < end):
        begin = time.perf_counter()
        if on_torch:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            result = call()
            events[1].record()
            events[1].synchronize()
            times.append(events[0].elapsed_time(events[1]) / 1e3)
        else:
            result = call()
            times.append(time.perf_counter() - begin)
    return median(times), result


def decodes(device: str, tiny: bool, student: str, teacher: str, dtype: str) -> None:
    """Whole decodes by every method, one row."""
    shapes = [SMOKE, SMOKE] if tiny else [SHAPES[student], SHAPES[teacher]]
    asking, asked = asking_student(shapes[0]), teacher_without(shapes[1], tau=shapes[0].vocab_size - 1)
    begin = time.perf_counter()
    models = {"student": asking.native("student", dtype, device), "teacher": asked.native("teacher", dtype, device)}
    say(what=f"{student} and {teacher} packed in {dtype}", seconds=round(time.perf_counter() - begin, 1))
    ids, length = source(shapes[0], 8 if tiny else SOURCE), 3 if tiny else NEW
    cuda = _core.build_info()["cuda"]
    rate = memory_rate(cuda["devices"][0]) if cuda["kind"] == "CUDA" else None
    for name in METHODS:
        call = method_call(name, models, ids, length)
        try:
            seconds, out = _timed(call, torch.cuda.is_available(), 1 if tiny else ROUNDS)
        except RuntimeError as error:
            say(method=name, dtype=dtype, failure=str(error))
            continue
        passes = [(shapes[0], out.student_passes), (shapes[1], out.teacher_passes)]
        moved = sum(n * decoder_pass(shape, length // 2, SOURCE, dtype).total for shape, n in passes)
        least = None if rate is None else 1e3 * moved / rate
        say(
            method=name,
            ms=1e3 * seconds,
            per_token=1e3 * seconds / int(as_array(out.lengths)[0]),
            student_passes=out.student_passes,
            teacher_passes=out.teacher_passes,
            roof_ms=least,
            of_the_roof=None if least is None else least / (1e3 * seconds),
        )


def peer(device: str, tiny: bool, kind: str) -> None:
    """Another system, alone, in fp16: Hugging Face "eager" or "compiled", or "ctranslate2"; base's shape, then XL's."""
    from kdtw_fast import peers

    where = "cuda" if torch.cuda.is_available() else "cpu"
    if kind != "ctranslate2" and where == "cpu" and not (tiny and kind == "eager"):
        say(needs=f"PyTorch with CUDA; this one is {torch.__version__}")
        return
    if kind == "ctranslate2":
        if not peers.has_ctranslate2():
            say(needs="CTranslate2, which is not installed")
            return
        import ctranslate2

        where = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        if where == "cpu" and not tiny:
            say(needs="a CTranslate2 that sees the device")
            return
    length = 3 if tiny else NEW
    for shape in [SMOKE] if tiny else [SHAPES["flan-t5-base"], SHAPES["flan-t5-xl"]]:
        try:
            call = partial(_peer(kind, shape, where, length), source(shape, 8 if tiny else SOURCE))
            seconds, _ = _timed(call, where == "cuda", 1 if tiny else ROUNDS)
        except Exception as error:  # whatever another system fails with: a line of the report, and no fault of ours
            say(system=kind, model=shape.name, where=where, said=f"{type(error).__name__}: {error}"[:300])
            continue
        say(system=kind, model=shape.name, where=where, ms=1e3 * seconds, per_token=1e3 * seconds / length)
        gc.collect()


def _peer(kind: str, shape: T5Shape, where: str, length: int) -> Any:
    from kdtw_fast import peers
    from kdtw_fast.shapes import random_tensors, t5_of

    if kind == "ctranslate2":
        compute = "float16" if where == "cuda" else "float32"
        return peers.CTranslate2(plain(shape).hugging_face()).generate(length, 1, compute, device=where)
    form = torch.float16 if where == "cuda" else torch.float32
    values = {name: make().to(where, form) for name, make in random_tensors(shape).items()}
    options: dict[str, Any] = {"cache_implementation": "static"} if kind == "compiled" else {}
    return peers.hugging_face(t5_of(shape, values).to(where), length, 1, **options)


# --- The command -------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Does a step; what it needs and is not here is said."""
    tiny = "--tiny" in arguments
    name, *rest = (argument for argument in arguments if argument != "--tiny")
    try:
        device = _core.resolve_device("cuda")
    except ValueError as error:
        say(needs=f"a device: {error}")
        return 0
    steps: dict[str, Callable[..., None]] = {step.__name__: step for step in (checks, sizes, pairs, decodes, peer)}
    with torch.inference_mode():
        steps[name](device, tiny, *rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
