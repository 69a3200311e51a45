"""`kdtw generate`: texts in, their decoded lines out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from kdtw_fast.budgets import BUDGETS, resolve_budgets, written_budget
from kdtw_fast.cli.decoding_options import DEFAULTS, METHOD, decoding_options
from kdtw_fast.cli.errors import USER_ERROR, say, sentence, tell
from kdtw_fast.cli.jobs import Job
from kdtw_fast.cli.lines import Lines, decode
from kdtw_fast.cli.made_options import takes
from kdtw_fast.cli.options import (
    CacheWeights,
    Device,
    Dtype,
    GenerationConfig,
    PairName,
    Student,
    TeacherDtype,
    Teachers,
    Threads,
    TokenizerFolder,
    read_generation_config,
)
from kdtw_fast.cli.rendering import as_json, as_text, with_owners, writer
from kdtw_fast.extras import require
from kdtw_fast.files import check_target
from kdtw_fast.messages import Message, OptionName
from kdtw_fast.methods import METHODS, Method, find_method
from kdtw_fast.options import (
    MOST_ROWS,
    ON_ERROR,
    GenerateOptions,
    check_device,
    check_dtype,
    check_int,
    check_limit,
    check_word,
)
from kdtw_fast.owners_view import LEGEND

OUTPUT, RAY = "Output", "Several machines"  # panels of the help page
_METHOD_HELP = "How to decode: " + "; ".join(f"[bold]{name}[/bold]: {m.summary}" for name, m in METHODS.items()) + "."
_BUDGETED = [name for name, method in METHODS.items() if "budget" in method.call_options]
_BUDGET_HELP = (
    f"{', '.join(_BUDGETED)}: how much teacher the student is told to use, a phrase or its fraction: "
    + ", ".join(f"{b.phrase} ({b.fraction:g})" for b in BUDGETS)
    + ". Default: light. Of several teachers each has its own, with commas between. The student was trained to follow "
    "it; --max-teacher-fraction enforces."
)
EXAMPLES = """[bold]Examples[/bold]

    kdtw generate "Dieses Paket enthält die Dokumentation." --show-owners

    kdtw generate --file german.txt --output english.txt --budget moderate

    kdtw generate --file german.parquet --output english.txt --ray auto    (on a cluster; goes on after a stop)

    cat german.txt | kdtw generate --method speculative --jsonl > english.jsonl

    kdtw generate --file german.txt --max-teacher-fraction 0.05    (never more, at any length)

    kdtw generate --student runs/student --teacher runs/teacher "Ein Spiel für zwei."

An empty line gives an empty line, so line n of the output always belongs to line n of the input."""


@takes(decoding_options(), after="budget")
def generate(
    ctx: typer.Context,
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts, one output line each. Without them: --file, or stdin.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="UTF-8 text, one source per line, or NAME.parquet; - is stdin."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="The file has rows, and their texts are in this column: a JSON object per line, or Parquet (by "
            "default 'text'). Columns such as budget or max_new_tokens are options of their row.",
            show_default=False,
        ),
    ] = None,
    pair: PairName = None,
    student: Student = None,
    teacher: Teachers = None,
    tokenizer: TokenizerFolder = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help=_METHOD_HELP, rich_help_panel=METHOD)
    ] = "training-wheels",
    budget: Annotated[str | None, typer.Option("--budget", "-b", help=_BUDGET_HELP, rich_help_panel=METHOD)] = None,
    batch_size: Annotated[int, typer.Option(help="Lines decoded together; the results do not depend on it.")] = 8,
    on_error: Annotated[
        str | None,
        typer.Option(
            help="A line that cannot be decoded (too long, not UTF-8, …): 'raise' ends there; 'return' says so on "
            "stderr, gives an empty line (with --jsonl, the error) and goes on. Default: 'return' where a line is not "
            "UTF-8, with the exit status 2 at the end, and 'raise' for all else.",
            show_default=False,
        ),
    ] = None,
    num_threads: Threads = None,
    dtype: Dtype = "auto",
    teacher_dtype: TeacherDtype = None,
    device: Device = "cpu",
    generation_config: GenerationConfig = None,
    cache_weights: CacheWeights = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: stdout.", rich_help_panel=OUTPUT)
    ] = None,
    jsonl: Annotated[
        bool,
        typer.Option("--jsonl", help="One JSON object per line: text, tokens, owners, counts.", rich_help_panel=OUTPUT),
    ] = False,
    show_owners: Annotated[
        bool,
        typer.Option(
            "--show-owners", help=f"Mark who wrote what: {LEGEND}.".replace("[", "\\["), rich_help_panel=OUTPUT
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Decode --file into --output on a Ray cluster: its address, auto (this machine's) or local (its "
            "own). Finished pieces are kept beside the output, and the same command goes on with them. "
            "--threads are those of a task, by default 1.",
            show_default=False,
            rich_help_panel=RAY,
        ),
    ] = None,
    piece_rows: Annotated[int, typer.Option(help="Lines of a task.", rich_help_panel=RAY)] = 1000,
    **options: Any,
) -> None:
    """Decode texts: one line in, one line out, in order.

    With nothing else said, [bold]kdtw generate TEXT[/bold] translates German to English with the shipped pair
    and a light budget.
    """
    chosen = find_method(method)
    said = {name: value for name, value in options.items() if _was_said(ctx, name)}
    call, settings = _checked(method, chosen, budget, said)
    told = read_generation_config(generation_config)
    if jsonl and show_owners:
        raise ValueError("--jsonl holds the owners already; leave out --show-owners")
    check_int("batch_size", batch_size, 1, MOST_ROWS)
    if on_error is not None:
        check_word("on_error", on_error, ON_ERROR)
    if num_threads is not None:
        check_int("num_threads", num_threads, 1)
    check_dtype(dtype)
    check_dtype(teacher_dtype or dtype, "teacher_dtype")
    check_device(device)
    check_int("piece_rows", piece_rows, 1)
    if ray is None and _was_said(ctx, "piece_rows"):
        raise ValueError(Message(OptionName("piece_rows"), " goes with ", OptionName("ray")))
    dtypes = {"student": dtype, "teacher": teacher_dtype or dtype}
    asked = Job(
        *(method, settings, call, budget is not None, told, pair, student, teacher, tokenizer, dtypes, cache_weights),
        *(device, num_threads, batch_size, jsonl, column),
    )
    if ray is not None:
        _check_for_ray(text, file, output, show_owners, asked)
        assert file is not None and output is not None
        _on_ray(ctx, ray, asked, file, output, piece_rows, on_error)
        return
    lines = Lines.of(text, file, output, batch_size, column, asked.folders() if output is not None else ())
    decoder, call, words = asked.make()
    render = as_json(method) if jsonl else with_owners(words, chosen, call.get("budget")) if show_owners else as_text
    if show_owners and sys.stderr.isatty():
        print(LEGEND, file=sys.stderr)
    lines_are_seen = output is None and sys.stdout.isatty()
    hidden = lines.total is None or lines_are_seen or not sys.stderr.isatty()
    decoded = decode(decoder, lines, call, on_error)
    told_of = False
    with writer(output) as write, tqdm(total=lines.total, unit="line", file=sys.stderr, disable=hidden) as bar:
        for line in decoded:
            if line.error is not None:
                tell(line.error, ctx.command.params)
                told_of = True
            write(render(line))
            bar.update()
    if told_of and on_error is None:
        raise typer.Exit(USER_ERROR)


def _check_for_ray(text: list[str] | None, file: Path | None, output: Path | None, show_owners: bool, job: Job) -> None:
    if text or file is None or str(file) == "-" or output is None:
        both = OptionName("file"), " into an ", OptionName("output")
        raise ValueError(Message(OptionName("ray"), " decodes a ", *both, "; name both"))
    if show_owners:
        raise ValueError(Message(OptionName("show_owners"), " is for a terminal; choose ", OptionName("jsonl")))
    check_target("output", output, file, *job.folders())
    require("decoding on Ray", "kdtw generate --ray")


def _on_ray(
    ctx: typer.Context, address: str, job: Job, file: Path, output: Path, piece_rows: int, on_error: str | None
) -> None:
    if address == "local":  # read where Ray is imported: otherwise its processes listen on all interfaces
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from kdtw_fast.cli.on_ray import generate_on_ray

    def words(error: Exception) -> str:
        return sentence(error, ctx.command.params)

    with tqdm(unit="line", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def advance(count: int, total: int) -> None:
            bar.total = total
            bar.update(count)

        wrong = generate_on_ray(address, job, file, output, piece_rows, on_error, words, say, advance)
    if wrong and on_error is None:
        raise typer.Exit(USER_ERROR)


def _was_said(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _checked(
    name: str, method: Method, budget: str | None, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the decoder's call and the decoder's settings, as far as they can be checked without models."""
    given = {option: value for option, value in (options | {"budget": budget}).items() if value is not None}
    for option in given:
        owners = [other for other in METHODS if option in METHODS[other].own_options]
        if owners and name not in owners:
            raise ValueError(Message(OptionName(option), f" belongs to {', '.join(owners)}, not to {name}"))
    settings = {
        option: kind.value(option, given.pop(option)) for option, kind in method.settings.items() if option in given
    }
    told = given.pop("budget", "light")
    GenerateOptions(**(DEFAULTS | given))
    for limit in ("max_teacher_fraction", "max_teacher_calls"):
        check_limit(limit, given.get(limit))
    if "budget" in method.call_options:
        given["budget"] = written_budget(told)
        resolve_budgets(given["budget"])
    return given, settings
