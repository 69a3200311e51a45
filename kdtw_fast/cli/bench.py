"""`kdtw bench`: what a pair, a model or a named shape costs here, in tables and JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from kdtw_fast import _core, peers
from kdtw_fast.cli.options import MODELS, Dtype, PairName, TeacherDtype, Threads
from kdtw_fast.machine import available_memory
from kdtw_fast.model import CACHE_DTYPES, NativeT5, check_dtype
from kdtw_fast.options import check_int
from kdtw_fast.owners_view import make_console
from kdtw_fast.pairs import DEFAULT_PAIR, pair_folder
from kdtw_fast.profiling import Peers, Plan, profile
from kdtw_fast.shapes import BYTES, SHAPES, find_shape, random_native, random_t5

# Other systems hold the fp32 weights several times over: Hugging Face's, the converter's, the translator's.
PEER_COPIES = 4

_MEASURE = "What to measure"


@dataclass(frozen=True)
class Subject:
    """A model by its two makers: packed for the core in given dtypes, and as Hugging Face's for the other systems."""

    native: Callable[..., NativeT5]
    reference: Callable[[], Any]


def bench(
    pair: PairName = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of one model, instead of a pair.", show_default=False, rich_help_panel=MODELS),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help=f"One model of this shape with random weights, instead of a pair: {', '.join(SHAPES)}.",
            show_default=False,
            rich_help_panel=MODELS,
        ),
    ] = None,
    teacher_shape: Annotated[
        str | None,
        typer.Option(help="With --shape: a teacher of this shape too.", show_default=False, rich_help_panel=MODELS),
    ] = None,
    dtype: Dtype = "auto",
    teacher_dtype: TeacherDtype = None,
    cache_dtype: Annotated[
        str, typer.Option(help=f"Keys and values: {', '.join(CACHE_DTYPES)}.", rich_help_panel=MODELS)
    ] = "auto",
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
            show_default=False,
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file too.", show_default=False)
    ] = None,
) -> None:
    """Measure what decoding costs here: each phase beside the machine's roofs, whole decodes beside other systems.

    Encoder, steps, catch-ups and verifications with their time, their share of the roof (the rate at which this
    machine reads memory, or multiplies) and the operations it goes to; memory; for a pair, what each method would take.

        kdtw bench --shape flan-t5-small --teacher-shape flan-t5-base --rows 1,8
    """
    check_dtype(dtype)
    check_dtype(teacher_dtype or dtype, "teacher_dtype")
    check_dtype(cache_dtype, "cache_dtype", CACHE_DTYPES)
    plan = Plan(
        rows=_rows(rows),
        source_tokens=check_int("source_tokens", source_tokens, 2),
        new_tokens=check_int("new_tokens", new_tokens, 1),
        rounds=check_int("rounds", rounds, 1),
        threads=_core.hardware_threads() if threads is None else check_int("threads", threads, 1),
    )
    if json_file is not None and not json_file.parent.is_dir():
        raise FileNotFoundError(f"--json {json_file} lies in a folder that does not exist")
    subjects = _subjects(pair, model, shape, teacher_shape)
    if teacher_dtype is not None and "teacher" not in subjects:
        raise ValueError("--teacher-dtype was given, but there is no teacher; add --teacher-shape or choose a pair")
    models = {
        name: subject.native(
            name=name, dtype=(teacher_dtype or dtype) if name == "teacher" else dtype, cache_dtype=cache_dtype
        )
        for name, subject in subjects.items()
    }
    systems, left_out = _systems(models, with_peers)
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
            peers_of=lambda name: _peers(subjects[name], systems[name]),
            settings=settings,
            on_turn=bar.update,
        )
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
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


def _subjects(pair: str | None, model: Path | None, shape: str | None, teacher_shape: str | None) -> dict[str, Subject]:
    given = {"--pair": pair, "--model": model, "--shape": shape}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"give one of {', '.join(given)}, not {' and '.join(names)}")
    if teacher_shape is not None and shape is None:
        raise ValueError(f"--teacher-shape {teacher_shape} goes with --shape, the student's")
    if model is not None:
        return {"model": _saved(model)}
    if shape is None:
        home = pair_folder(pair or DEFAULT_PAIR)
        return {role: _saved(home / role) for role in ("student", "teacher")}
    shapes = {"model": shape} if teacher_shape is None else {"student": shape, "teacher": teacher_shape}
    return {
        role: Subject(partial(random_native, find_shape(name), seed=seed), partial(random_t5, find_shape(name), seed))
        for seed, (role, name) in enumerate(shapes.items())
    }


def _saved(folder: Path) -> Subject:
    def reference() -> Any:
        from transformers import T5ForConditionalGeneration

        return T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    return Subject(partial(NativeT5.from_pretrained, folder), reference)


def _systems(models: dict[str, NativeT5], wanted: bool | None) -> tuple[dict[str, list[str]], str]:
    """The other systems to run beside each model, and a sentence on those left out though nobody said so."""
    none: dict[str, list[str]] = {name: [] for name in models}
    if wanted is False:
        return none, ""
    largest = max(model.num_bytes * 4 // BYTES[model.dtype] for model in models.values())
    free = available_memory()
    if PEER_COPIES * largest > free:
        reason = (
            f"Hugging Face and CTranslate2 would take about {PEER_COPIES * largest / 1e9:.0f} GB for these weights in "
            f"fp32, and {free / 1e9:.0f} GB are free"
        )
        if wanted:
            raise MemoryError(f"{reason}; leave out --peers")
        return none, f"Left out: {reason}."
    systems = {name: [peers.HUGGING_FACE] for name in models}
    if not peers.has_ctranslate2():
        return systems, "Left out: CTranslate2, which is not installed."
    for name, model in models.items():
        systems[name].append(peers.ctranslate2_beside(model.dtype))
    return systems, ""


def _peers(subject: Subject, systems: list[str]) -> Peers:
    if not systems:
        return {}  # and no model for them: it may not even fit
    reference = subject.reference()

    def make(system: str, new_tokens: int, threads: int) -> peers.Generate:
        if system == peers.HUGGING_FACE:
            decode = peers.hugging_face(reference, new_tokens, threads)
        else:
            decode = converted[0].generate(new_tokens, threads, compute_type=system.split()[-1])

        def generate(ids: peers.Rows) -> peers.Decoded:
            try:
                return decode(ids)
            except Exception as error:  # whatever another system fails with
                raise ValueError(
                    f"{system} cannot decode this model ({error!r}); leave it out with --no-peers"
                ) from error

        return generate

    converted = [peers.CTranslate2(reference) for system in systems if system != peers.HUGGING_FACE]
    return {system: partial(make, system) for system in systems}
