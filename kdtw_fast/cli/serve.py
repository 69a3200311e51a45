"""`kdtw serve`: a pair behind an address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.markup import escape

from kdtw_fast.cli.made_options import descriptions, make_option, takes
from kdtw_fast.cli.options import (
    CacheWeights,
    Device,
    Dtype,
    GenerationConfig,
    Student,
    TeacherDtype,
    Teachers,
    Threads,
    TokenizerFolder,
    read_generation_config,
)
from kdtw_fast.extras import require
from kdtw_fast.methods import find_method
from kdtw_fast.options import check_device, check_dtype, check_int
from kdtw_fast.pair_folders import check_places, load_models
from kdtw_fast.pairs import DEFAULT_PAIR
from kdtw_fast.serve.settings import TRANSLATES, ServeOptions

LIMITS = "Limits"
EXAMPLES = """[bold]Examples[/bold]

    kdtw serve                                     (the shipped pair, at http://127.0.0.1:8000, with a page)

    kdtw serve --student runs/student --teacher runs/teacher --name mine --port 9000

    KDTW_API_KEY=secret kdtw serve --host 0.0.0.0

    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Ein Spiel."}'"""


def _limits() -> Iterator[Any]:
    told = descriptions(ServeOptions)
    for field in fields(ServeOptions):
        text = told[field.name]
        flag = f"--{field.name.replace('_', '-')}"
        yield make_option(
            field.name, flag, type(field.default), escape(text[:1].upper() + text[1:]), LIMITS, field.default
        )


@takes(_limits(), after="translates")
def serve(
    pair: Annotated[str | None, typer.Argument(help=f"A shipped pair. Default: {DEFAULT_PAIR}.")] = None,
    student: Student = None,
    teacher: Teachers = None,
    tokenizer: TokenizerFolder = None,
    name: Annotated[
        str | None,
        typer.Option(help="What requests call the model. Default: the name of the pair or folder."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port; 0 is any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="KDTW_API_KEY",
            help="What requests must bring as Authorization: Bearer KEY. Better in the environment: other users of the "
            "machine see command lines.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Of requests that name none. Default: training-wheels.")
    ] = None,
    translates: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO",
            help="Language codes of a pair that translates, for /translate. A shipped pair has its own.",
            show_default=False,
        ),
    ] = None,
    num_threads: Threads = None,
    dtype: Dtype = "auto",
    teacher_dtype: TeacherDtype = None,
    device: Device = "cpu",
    cache_weights: CacheWeights = False,
    generation_config: GenerationConfig = None,
    **options: Any,
) -> None:
    """Serve a pair over HTTP: OpenAI's completions, LibreTranslate's translate, metrics, and a page at /."""
    limits = ServeOptions(**options)
    check_int("port", port, 0, 65535)
    if num_threads is not None:
        check_int("num_threads", num_threads, 1)
    check_dtype(dtype)
    check_dtype(teacher_dtype or dtype, "teacher_dtype")
    check_device(device)
    told = read_generation_config(generation_config)
    if method is not None:
        find_method(method)
    languages = _languages(translates)
    if languages is None and student is None:
        languages = TRANSLATES.get(pair or DEFAULT_PAIR)
    if api_key is not None and not api_key.strip():
        raise ValueError("the API key is empty; leave it out, or give one")
    require("serving", "kdtw serve")
    alone = student is not None and not teacher
    roles = ("student",) if alone else ("teacher",) if teacher and student is None else ("student", "teacher")
    check_places(roles, pair, student, teacher, tokenizer)
    folder = student or (teacher[0] if teacher else None)
    called = name or (folder.resolve().name if folder is not None else pair or DEFAULT_PAIR)
    if not re.fullmatch(r"[\w.:-]+", called):
        raise ValueError(f"name must be of letters, digits and ._:-, got {called!r}; give another with --name")
    from kdtw_fast.serve.app import Service
    from kdtw_fast.serve.run import listen, run
    from kdtw_fast.serve.served import Served

    listening = listen(host, port)
    dtypes = {"student": dtype, "teacher": teacher_dtype or dtype}
    models, words = load_models(roles, pair, student, teacher, tokenizer, dtypes, cache_weights, device)
    served = Served(called, models, words, limits, method, num_threads, told)
    run(Service(served, api_key, languages), listening, lambda line: print(line, flush=True))


def _languages(told: str | None) -> tuple[str, str] | None:
    if told is None:
        return None
    source, colon, target = told.partition(":")
    if not (source and colon and target):
        raise ValueError(f"--translates is two language codes with a colon between, such as de:en, got {told!r}")
    return source, target
