"""`kdtw generate`: texts in, their decoded lines out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from kdtw_fast.budgets import BUDGETS, written_budget
from kdtw_fast.cli.lines import Lines, decode
from kdtw_fast.cli.models import load_models
from kdtw_fast.cli.options import MODELS, Device, Dtype, PairName, TeacherDtype, Threads
from kdtw_fast.cli.rendering import as_json, as_text, with_owners, writer
from kdtw_fast.methods import METHODS, find_method, make_decoder
from kdtw_fast.options import check_int, check_real
from kdtw_fast.owners_view import LEGEND

_METHOD_HELP = "How to decode: " + "; ".join(f"[bold]{name}[/bold]: {m.summary}" for name, m in METHODS.items()) + "."
_BUDGET_HELP = (
    "training-wheels, random, entropy: how much teacher the student is told to use, a phrase or its fraction: "
    + ", ".join(f"{b.phrase} ({b.fraction:g})" for b in BUDGETS)
    + ". Default: light. Of several teachers each has its own, with commas between. The student was trained to follow "
    "it; --max-teacher-fraction enforces."
)
EXAMPLES = """[bold]Examples[/bold]

    kdtw generate "Dieses Paket enthält die Dokumentation." --show-owners

    kdtw generate --file german.txt --output english.txt --budget moderate

    cat german.txt | kdtw generate --method speculative --jsonl > english.jsonl

    kdtw generate --file german.txt --max-teacher-fraction 0.05    (never more, at any length)

    kdtw generate --student runs/student --teacher runs/teacher "Ein Spiel für zwei."

An empty line gives an empty line, so line n of the output always belongs to line n of the input."""
_METHOD, _LIMITS, _SAMPLING, _OUTPUT = "Method", "Limits", "Sampling", "Output"


def generate(
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Texts, one output line each. Without them: --file, or stdin.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="UTF-8 text, one source per line; - is stdin.", show_default=False),
    ] = None,
    pair: PairName = None,
    student: Annotated[
        Path | None,
        typer.Option(help="Folder of a student, instead of --pair.", show_default=False, rich_help_panel=MODELS),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of its teacher, instead of --pair; once for each teacher of a student of several.",
            show_default=False,
            rich_help_panel=MODELS,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tokenizer. Default: the model's folder, or 'tokenizer' beside it.",
            show_default=False,
            rich_help_panel=MODELS,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help=_METHOD_HELP, rich_help_panel=_METHOD)
    ] = "training-wheels",
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help=_BUDGET_HELP, show_default=False, rich_help_panel=_METHOD)
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            help="auto: [bold]teacher[/bold] (exactly its output, the default), a budget, or [bold]student[/bold].",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    verify_lenience: Annotated[
        float | None,
        typer.Option(
            help="training-wheels: at each call the teacher also checks the drafts it reads anyway and takes back "
            "those less likely than this share of its best token, in 0..1. Default: 0 = off.",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    draft_length: Annotated[
        int | None,
        typer.Option(
            help="speculative, interleaved: tokens drafted per teacher pass (default 5); bild: at most so many.",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    lenience: Annotated[
        float | None,
        typer.Option(
            help="speculative: drafts pass that are at least this share as likely as the teacher's best, in 0..1. "
            "Default: 1 = exactly the teacher's output.",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    fallback: Annotated[
        float | None,
        typer.Option(
            help="bild: hand over where the student's best probability is below this (default 0.6).",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    rollback: Annotated[
        float | None,
        typer.Option(
            help="bild: take back from the first token whose -log p under the teacher is above this (default 5).",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    accept_top_k: Annotated[
        int | None,
        typer.Option(
            help="interleaved: a draft stays when among the teacher's best so many (default 25).",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="random: the teacher writes where a uniform number in 0..1 is above this (default 0.9); entropy: "
            "where the entropy of the student's distribution, in nats, is (default 2).",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    max_teacher_fraction: Annotated[
        float | None,
        typer.Option(
            help="training-wheels, random, entropy: hard bound on the teacher's share of every prefix of the output, "
            "in 0..1.",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_teacher_calls: Annotated[
        int | None,
        typer.Option(
            help="training-wheels, random, entropy: hard bound on the calls per line.",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest output, in tokens.", rich_help_panel=_LIMITS)] = 128,
    max_source_length: Annotated[
        int, typer.Option(help="Longest source, in tokens, prompt included.", rich_help_panel=_LIMITS)
    ] = 512,
    truncation: Annotated[
        bool, typer.Option("--truncate", help="Cut longer sources instead of stopping.", rich_help_panel=_LIMITS)
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="0 is greedy; above 0, student and teacher sample.", rich_help_panel=_SAMPLING)
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k best; 0 = all.", rich_help_panel=_SAMPLING)] = 0,
    top_p: Annotated[
        float,
        typer.Option(help="Sample among the best that make up this probability; 1 = all.", rich_help_panel=_SAMPLING),
    ] = 1.0,
    seed: Annotated[
        int,
        typer.Option(help="A line's random numbers depend on the seed and its number only.", rich_help_panel=_SAMPLING),
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Lines decoded together; the results do not depend on it.")] = 8,
    num_threads: Threads = None,
    dtype: Dtype = "auto",
    teacher_dtype: TeacherDtype = None,
    device: Device = "cpu",
    cache_weights: Annotated[
        bool,
        typer.Option(
            "--cache-weights",
            help="Keep the packed weights in files beside the models: the next start maps them into memory.",
            rich_help_panel=MODELS,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write. Default: stdout.", show_default=False, rich_help_panel=_OUTPUT
        ),
    ] = None,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="One JSON object per line: text, tokens, owners, counts.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    show_owners: Annotated[
        bool,
        typer.Option(
            "--show-owners", help=f"Mark who wrote what: {LEGEND}.".replace("[", "\\["), rich_help_panel=_OUTPUT
        ),
    ] = False,
) -> None:
    """Decode texts: one line in, one line out, in order.

    With nothing else said, [bold]kdtw generate TEXT[/bold] translates German to English with the shipped pair
    and a light budget.
    """
    chosen = find_method(method)
    own = {
        "budget": budget,
        "quality": None if quality is None else written_budget(quality),
        "max_teacher_fraction": max_teacher_fraction,
        "max_teacher_calls": max_teacher_calls,
        "verify_lenience": verify_lenience,
        "draft_length": draft_length,
        "lenience": lenience,
        "fallback": fallback,
        "rollback": rollback,
        "accept_top_k": accept_top_k,
        "threshold": threshold,
    }
    given = {name: value for name, value in own.items() if value is not None}
    for name in given:
        if name not in chosen.own_options:
            owners = ", ".join(other for other in METHODS if name in METHODS[other].own_options)
            raise ValueError(f"--{name.replace('_', '-')} belongs to {owners}, not to {method}")
    if jsonl and show_owners:
        raise ValueError("--jsonl holds the owners already; leave out --show-owners")
    check_int("batch_size", batch_size, 1)
    check_real("temperature", temperature, 0.0)
    if num_threads is not None:
        check_int("num_threads", num_threads, 1)
    if budget is not None:
        given["budget"] = written_budget(budget)
    elif "budget" in chosen.own_options:
        given["budget"] = "light"
    lines = Lines.of(text, file, output, batch_size)
    dtypes = {"student": dtype, "teacher": dtype if teacher_dtype is None else teacher_dtype}
    models, words = load_models(chosen.models, pair, student, teacher, tokenizer, dtypes, cache_weights, device)
    if budget is None and "budget" in given and len(models["student"].tau_token_ids) > 1:
        given["budget"] = ["light"] * len(models["student"].tau_token_ids)
    settings = {name: value for name, value in given.items() if name in chosen.settings}
    decoder = make_decoder(method, models, words, num_threads, **settings)
    options = {name: value for name, value in given.items() if name in chosen.call_options} | {
        "max_new_tokens": max_new_tokens,
        "max_source_length": max_source_length,
        "truncation": truncation,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    render = as_json(method) if jsonl else with_owners(words, chosen, given.get("budget")) if show_owners else as_text
    if show_owners and sys.stderr.isatty():
        print(LEGEND, file=sys.stderr)
    lines_are_seen = output is None and sys.stdout.isatty()
    hidden = lines.total is None or lines_are_seen or not sys.stderr.isatty()
    with writer(output) as write, tqdm(total=lines.total, unit="line", file=sys.stderr, disable=hidden) as bar:
        for line in decode(decoder, lines, options):
            write(render(line))
            bar.update()
