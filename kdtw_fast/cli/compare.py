"""`kdtw compare`: every method on a pair's held-out sentences: raw results, figures and a table."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.markup import escape
from tqdm import tqdm

from kdtw_fast.cli.console import make_console
from kdtw_fast.cli.made_options import descriptions, make_option, takes
from kdtw_fast.cli.options import Device, Dtype, TeacherDtype, Threads
from kdtw_fast.comparison.named import check_named
from kdtw_fast.comparison.plan import GROUPS, QUICK, QUICK_SETTINGS, Choices, Settings, check_metric, make_plan
from kdtw_fast.extras import require
from kdtw_fast.files import alone_in, write_whole
from kdtw_fast.messages import Message, OptionName
from kdtw_fast.options import check_device, check_dtype
from kdtw_fast.pairs import DEFAULT_PAIR

_WHAT, _HOW = "What to compare", "How to measure"
_LISTS = {field.name for field in fields(Choices)}


def _words(values: Any) -> str:
    several = values if isinstance(values, Sequence) else [values]
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in several)


def _made() -> Iterator[inspect.Parameter]:
    """The fields of Choices, which are lists with commas, and of Settings."""
    for usual, quick, panel in ((Choices(), QUICK, _WHAT), (Settings(), QUICK_SETTINGS, _HOW)):
        kind, told = type(usual), descriptions(type(usual))
        for field in fields(kind):
            if field.name in ("groups", "threads"):  # --methods, and an option that other commands have too
                continue
            words, value, brief = told[field.name], getattr(usual, field.name), getattr(quick, field.name)
            differs = f" (--quick: {brief})" if kind is Settings and brief != value else ""
            text = f"{words[0].upper()}{words[1:]} Default: {_words(value)}{differs}."
            flag = "--" + field.name.replace("_", "-")
            yield make_option(field.name, flag, str if kind is Choices else int, escape(text), panel)


@takes(_made(), after="methods")
def compare(
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PAIR]...",
            help="Names of shipped pairs, folders with student, teacher and tokenizer, or recipes that were trained "
            f"(their best student, on their test split); a panel each. Default: {DEFAULT_PAIR}.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for everything that is written. Default: out/compare, or out/compare-quick."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer points, sentences and turns: a look in minutes.")
    ] = False,
    figures_only: Annotated[
        bool, typer.Option("--figures-only", help="Measure nothing; draw again what --out holds.")
    ] = False,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSONL with source and target, one file for each PAIR. Default: the sentences that ship with the "
            "pair, or the test split of the recipe's data.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    draft_student: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of the GKD student that drafts for DistillSpec, one for each PAIR. Default: the pair's folder "
            "gkd; without one its own student drafts, and the labels say so.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="With commas: " + "; ".join(f"[bold]{n}[/bold]: {words}" for n, words in GROUPS.items()) + ". "
            "Default: all.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    teacher_dtype: TeacherDtype = None,
    metric: Annotated[
        str, typer.Option(help="Quality in the figures and comparisons: rouge1, rouge2, rougeL, bleu or chrf.")
    ] = "rouge2",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    **made: Any,
) -> None:
    """Compare all methods on a pair: quality, latency and teacher use at every operating point.

    Everything runs in one process; the timed points take turns. Writes results.jsonl (raw), summary.json, table.md,
    claims.md and three figures (PNG, SVG) to --out. Stopped or killed, the same command goes on; docs/comparison.md has
    the details.

        kdtw compare --quick

        kdtw compare debian-de-en debian-synopsis

        kdtw compare my-pair --data test.jsonl --draft-student runs/my-task/gkd/best

        kdtw compare debian-de-en/phase2    # what that recipe trained
    """
    require("comparing", "kdtw compare")
    check_metric(metric)
    check_device(device)
    check_dtype(dtype)
    check_dtype(teacher_dtype or dtype, "teacher_dtype")
    base, settings = (QUICK, QUICK_SETTINGS) if quick else (Choices(), Settings())
    asked = {name: value for name, value in made.items() if value is not None}
    settings = replace(settings, **{name: asked.pop(name) for name in set(asked) - _LISTS}, threads=threads)
    chosen = {name: _values(name, text) for name, text in asked.items()}
    if methods is not None:
        chosen["groups"] = _split(methods)
    budgets = chosen.get("budgets", base.budgets)
    chosen.setdefault("control_budgets", [budget for budget in base.control_budgets if budget in budgets])
    choices = replace(base, **chosen)
    names = pairs or [DEFAULT_PAIR]
    for option, given in (("--data", data), ("--draft-student", draft_student)):
        if given and len(given) != len(names):
            raise ValueError(f"{option} was given {len(given)} times for {len(names)} pairs; give one for each")
    folder = out or Path("out/compare-quick" if quick else "out/compare")
    if figures_only:
        _present(folder, metric)
        return
    files: Sequence[Path | None] = data or [None] * len(names)
    drafts: Sequence[Path | None] = draft_student or [None] * len(names)
    for name, file, draft in zip(names, files, drafts):
        check_named(name, file, draft)
    with alone_in(folder) as alone:
        if not alone:
            said = " is being written by another run of kdtw compare; wait for its end, or choose another"
            raise ValueError(Message(OptionName("out", folder), said))
        common = {"sentences": settings.sentences, "dtype": dtype, "teacher_dtype": teacher_dtype, "device": device}
        each = [
            {"pair": name, "data": file, "draft_student": draft, **common}
            for name, file, draft in zip(names, files, drafts)
        ]
        _measure(each, choices, settings, folder, quiet)
        _present(folder, metric)


def _measure(each: Sequence[dict[str, Any]], choices: Choices, settings: Settings, folder: Path, quiet: bool) -> None:
    from kdtw_fast.comparison.contenders import load_contender
    from kdtw_fast.comparison.measure import Measurement, left_out
    from kdtw_fast.comparison.records import ResultsFile

    file = ResultsFile(folder / "results.jsonl")
    runs = []
    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=0.0, file=sys.stderr, disable=hidden, smoothing=0.1, bar_format=_BAR) as bar:

        def progress(work: float, what: str) -> None:
            if what:
                bar.set_description_str(what, refresh=False)
            bar.update(work)

        for arguments in each:
            contender = load_contender(**arguments)
            plan = make_plan(choices, contender.has_draft_student)
            reasons = left_out(plan, contender, settings)
            for group, reason in reasons.items():
                print(f"kdtw: {contender.name}: without {group}: {reason}", file=sys.stderr)
            kept = [point for point in plan if point.group not in reasons]
            runs.append(Measurement(contender, kept, settings, file, progress))
        bar.reset(total=sum(run.work() for run in runs))
        for run in runs:
            run.run()


_BAR = "{percentage:3.0f}%|{bar:20}| {elapsed} done, about {remaining} left; {desc}"


def _present(folder: Path, metric: str) -> None:
    from kdtw_fast.comparison.claims import claims, claims_tables
    from kdtw_fast.comparison.figures import draw
    from kdtw_fast.comparison.records import read
    from kdtw_fast.comparison.summary import sample, summarise
    from kdtw_fast.comparison.table import FOOTNOTE, points_tables, terminal_tables

    records = read(folder / "results.jsonl")
    samples = {pair: sample(records, pair) for pair in records.pairs}
    points = summarise(records, samples)
    found = claims(records, samples, points, metric)
    summary = {"points": [asdict(point) for point in points], "comparisons": [asdict(claim) for claim in found]}
    write_whole(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "table.md", points_tables(points) + "\n")
    write_whole(folder / "claims.md", claims_tables(records, samples, points, found, metric) + "\n")
    paths = draw(points, folder, metric)
    console = make_console()
    for table in terminal_tables(points):
        console.print(table, crop=False)
    console.print(FOOTNOTE, soft_wrap=True)
    written = [folder / name for name in ("results.jsonl", "summary.json", "table.md", "claims.md")] + paths
    console.print("\nwritten: " + ", ".join(map(str, written)), soft_wrap=True)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _values(name: str, text: str) -> list[Any]:
    """The values of one of the lists of :class:`Choices`."""
    (kind,) = get_args(get_type_hints(Choices)[name])
    try:
        return [kind(part) for part in _split(text)]
    except ValueError:
        usual = _words(getattr(Choices(), name))
        message = Message(OptionName(name), f" must be numbers with commas, such as {usual}, got {text!r}")
        raise ValueError(message) from None
