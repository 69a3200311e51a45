"""`kdtw bench`: what a pair, a model or a named shape costs here, in tables and JSON."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from kdtw_fast.cli.console import make_console
from kdtw_fast.cli.options import MODELS, Device, Dtype, PairName, TeacherDtype, Threads
from kdtw_fast.files import check_target, write_whole
from kdtw_fast.options import CACHE_DTYPES, check_device, check_dtype, check_int
from kdtw_fast.shapes import SHAPES

_MEASURE = "What to measure"


def bench(
    pair: PairName = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of one model, instead of a pair.", rich_help_panel=MODELS)
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help=f"One model of this shape with random weights, instead of a pair: {', '.join(SHAPES)}.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    teacher_shape: Annotated[
        str | None, typer.Option(help="With --shape: a teacher of this shape too.", rich_help_panel=MODELS)
    ] = None,
    dtype: Dtype = "auto",
    teacher_dtype: TeacherDtype = None,
    cache_dtype: Annotated[
        str, typer.Option(help=f"Keys and values: {', '.join(CACHE_DTYPES)}.", rich_help_panel=MODELS)
    ] = "auto",
    device: Device = "cpu",
    threads: Threads = None,
    rows: Annotated[str, typer.Option(help="Batch sizes, with commas.", rich_help_panel=_MEASURE)] = "1,4,8,32",
    source_tokens: Annotated[int, typer.Option(help="Length of the sources.", rich_help_panel=_MEASURE)] = 64,
    new_tokens: Annotated[int, typer.Option(help="Outputs per row.", rich_help_panel=_MEASURE)] = 64,
    rounds: Annotated[int, typer.Option(help="Measured turns of everything.", rich_help_panel=_MEASURE)] = 5,
    with_peers: Annotated[
        bool | None,
        typer.Option(
            "--peers/--no-peers",
            help="Hugging Face and CTranslate2 beside it. Default: where installed and memory allows.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file too.")] = None,
) -> None:
    """Measure what decoding costs here: each phase beside the machine's roofs, whole decodes beside other systems.

    Encoder, steps, catch-ups and verifications with their time, their share of the roof (the rate at which this
    machine reads memory, or multiplies) and the operations it goes to; memory; for a pair, what each method would take.
    On a CUDA device: passes that the host enqueues, by their time alone, and whole decodes.

        kdtw bench --shape flan-t5-small --teacher-shape flan-t5-base --rows 1,8
    """
    check_device(device)
    check_dtype(dtype)
    check_dtype(teacher_dtype or dtype, "teacher_dtype")
    check_dtype(cache_dtype, "cache_dtype", CACHE_DTYPES)
    sizes: dict[str, Any] = {
        "rows": _rows(rows),
        "source_tokens": check_int("source_tokens", source_tokens, 2),
        "new_tokens": check_int("new_tokens", new_tokens, 1),
        "rounds": check_int("rounds", rounds, 1),
    }
    if threads is not None:
        check_int("threads", threads, 1)
    given = {"--pair": pair, "--model": model, "--shape": shape}
    if len(names := [name for name, value in given.items() if value is not None]) > 1:
        raise ValueError(f"give one of {', '.join(given)}, not {' and '.join(names)}")
    if teacher_shape is not None and shape is None:
        raise ValueError(f"--teacher-shape {teacher_shape} goes with --shape, the student's")
    if json_file is not None:
        check_target("json_file", json_file, *([model] if model is not None else []))

    # Imported here: PyTorch takes seconds that a wrong option need not wait for.
    from kdtw_fast import _core
    from kdtw_fast.cli.bench_models import find_models, find_systems, make_peers
    from kdtw_fast.profiling import Plan, profile

    where = _core.resolve_device(device)
    plan = Plan(**sizes, threads=threads or _core.hardware_threads())
    benched = find_models(pair, model, shape, teacher_shape)
    if teacher_dtype is not None and "teacher" not in benched:
        raise ValueError("--teacher-dtype was given, but there is no teacher; add --teacher-shape or choose a pair")
    models = {
        name: one.native(
            name=name,
            dtype=(teacher_dtype or dtype) if name == "teacher" else dtype,
            cache_dtype=cache_dtype,
            device=where,
        )
        for name, one in benched.items()
    }
    systems, left_out = find_systems(models, with_peers)
    settings = {"command": shlex.join(["kdtw", *sys.argv[1:]]), "peers_left_out": left_out}
    with tqdm(
        total=plan.turns([len(systems[name]) for name in models]),
        unit="turn",
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
    ) as bar:
        report = profile(
            models,
            plan,
            peers_of=lambda name: make_peers(benched[name], systems[name], models[name].dtype, where),
            settings=settings,
            on_turn=bar.update,
        )
    if json_file is not None:
        write_whole(json_file, json.dumps(report.to_json(), indent=1))
    console = make_console()
    console.print(report.caption, soft_wrap=True)
    for table in report.tables():
        console.print()
        console.print(table, crop=False)
    if left_out:
        console.print(f"\n{left_out}", soft_wrap=True)


def _rows(text: str) -> tuple[int, ...]:
    try:
        rows = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--rows must be batch sizes with commas, such as 1,4,8, got {text!r}") from None
    for count in rows:
        check_int("rows", count, 1)
    return tuple(dict.fromkeys(rows))
