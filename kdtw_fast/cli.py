"""The `kdtw` command and those in the cli_*.py beside this. Every error is one sentence on stderr.

Depends on everything in the package; nothing depends on it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import typer
from rich.text import Text
from tqdm import tqdm
from typer.core import TyperGroup

from kdtw_fast import __version__, build_info
from kdtw_fast.budgets import BUDGETS, resolve_budgets
from kdtw_fast.cli_bench import bench
from kdtw_fast.cli_compare import compare, demo
from kdtw_fast.cli_options import MODELS, Device, Dtype, PairName, TeacherDtype, Threads
from kdtw_fast.cli_project import project
from kdtw_fast.cli_report import report
from kdtw_fast.cli_selftest import selftest
from kdtw_fast.cli_train import curves, train
from kdtw_fast.methods import METHODS, Decoder, Method, find_method, make_decoder
from kdtw_fast.model import NativeT5
from kdtw_fast.options import check_int, check_real
from kdtw_fast.outputs import GenerationOutput, Owner
from kdtw_fast.owners_view import LEGEND, gauge, make_console, marked, runs, visible
from kdtw_fast.pairs import DEFAULT_PAIR, pair_folder, pair_names

USER_ERROR, INTERRUPTED = 2, 130

# What click raises for a wrong command line, wherever this typer keeps its click.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


class _OneSentence(TyperGroup):
    """Runs a command; what the user did wrong becomes one sentence on stderr and exit status 2.

    KDTW_TRACEBACK=1 in the environment lets exceptions through.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        try:
            status = super().main(*args, **kwargs)
        except _CommandLineError as error:
            _fail(error.format_message())  # type: ignore[attr-defined]
        except (typer.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        except (ValueError, TypeError, OSError, ArithmeticError, MemoryError, ImportError) as error:
            if os.environ.get("KDTW_TRACEBACK"):
                raise
            _fail(_in_cli_words(_sentence(error)))
        if status == INTERRUPTED:
            print("kdtw: interrupted", file=sys.stderr)
        sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"kdtw: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _sentence(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"the input is not UTF-8 text (byte 0x{error.object[error.start]:02x} at place {error.start} of a line)"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


_OPTION_NAMES = (
    "max_new_tokens",
    "max_source_length",
    "max_teacher_fraction",
    "max_teacher_calls",
    "verify_lenience",
    "draft_length",
    "accept_top_k",
    "num_threads",
    "temperature",
    "top_k",
    "top_p",
    "batch_size",
    "lenience",
    "seed",
)


def _in_cli_words(message: str) -> str:
    """A message of the Python API with the names that options have here."""
    message = message.replace("truncation=True", "--truncate").replace("num_threads", "threads")
    message = message.replace("fallback_threshold", "fallback").replace("rollback_threshold", "rollback")
    names = "|".join(
        (*_OPTION_NAMES, "threads(?= must)", "fallback(?= must)", "rollback(?= must)", "threshold(?= must)")
    )
    return re.sub(rf"(?<![\w-])({names})(?!\w)", lambda m: "--" + m[1].replace("_", "-"), message)


app = typer.Typer(
    cls=_OneSentence,
    name="kdtw",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Two T5 models decode together: a small student writes, a large teacher adds the tokens it is asked for.

Begin with [bold]kdtw demo[/bold] (every method on a held-out sample, one table) or translate something:

    kdtw generate "Dieses Paket enthält die Dokumentation."
""",
)


def main() -> None:
    """Entry point of `kdtw`."""
    app(prog_name="kdtw")


_METHOD_HELP = "How to decode: " + "; ".join(f"[bold]{name}[/bold]: {m.summary}" for name, m in METHODS.items()) + "."
_BUDGET_HELP = (
    "training-wheels, random, entropy: how much teacher the student is told to use, a phrase or its fraction: "
    + ", ".join(f"{b.phrase} ({b.fraction:g})" for b in BUDGETS)
    + ". Default: light. Of several teachers each has its own, with commas between. The student was trained to follow "
    "it; --max-teacher-fraction enforces."
)
_METHOD, _LIMITS, _SAMPLING, _OUTPUT = "Method", "Limits", "Sampling", "Output"


@app.command(
    epilog="""[bold]Examples[/bold]

    kdtw generate "Dieses Paket enthält die Dokumentation." --show-owners

    kdtw generate --file german.txt --output english.txt --budget moderate

    cat german.txt | kdtw generate --method speculative --jsonl > english.jsonl

    kdtw generate --file german.txt --max-teacher-fraction 0.05    (never more, at any length)

    kdtw generate --student runs/student --teacher runs/teacher "Ein Spiel für zwei."

An empty line gives an empty line, so line n of the output always belongs to line n of the input."""
)
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
    truncate: Annotated[
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
    threads: Threads = None,
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
        "quality": None if quality is None else _budget(quality),
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
    if threads is not None:
        check_int("num_threads", threads, 1)
    if budget is not None:
        given["budget"] = _budget(budget)
    elif "budget" in chosen.own_options:
        given["budget"] = "light"
    lines = _Lines.of(text, file, output, batch_size)
    dtypes = {"student": dtype, "teacher": dtype if teacher_dtype is None else teacher_dtype}
    models, words = _models(chosen.models, pair, student, teacher, tokenizer, dtypes, cache_weights, device)
    if budget is None and "budget" in given and len(models["student"].tau_token_ids) > 1:
        given["budget"] = ["light"] * len(models["student"].tau_token_ids)
    settings = {name: value for name, value in given.items() if name in chosen.settings}
    decoder = make_decoder(method, models, words, threads, **settings)
    options = {name: value for name, value in given.items() if name in chosen.call_options} | {
        "max_new_tokens": max_new_tokens,
        "max_source_length": max_source_length,
        "truncation": truncate,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    render = _jsonl(method) if jsonl else _with_owners(words, chosen, given.get("budget")) if show_owners else _plain
    if show_owners and sys.stderr.isatty():
        print(LEGEND, file=sys.stderr)
    lines_are_seen = output is None and sys.stdout.isatty()
    hidden = lines.total is None or lines_are_seen or not sys.stderr.isatty()
    with _writer(output) as write, tqdm(total=lines.total, unit="line", file=sys.stderr, disable=hidden) as bar:
        for line in _decode(decoder, lines, options):
            write(render(line))
            bar.update()


app.command()(demo)
app.command()(bench)
app.command()(compare)
app.command()(report)
app.command()(project)
app.command()(selftest)
app.command()(train)
app.command()(curves)


@app.command()
def info() -> None:
    """Version, build, SIMD level, threads and the shipped pairs."""
    build = build_info()
    rows = {
        "kdtw_fast": __version__,
        "compiler": build["compiler"],
        "torch at build": build["torch"],
        "CUDA": _cuda(build["cuda"]),
        "SIMD": f"{build['simd']} (built: {', '.join(build['simd_levels'])})",
        "threads": build["threads"],
        "pairs": ", ".join(pair_names()) or "none",
    }
    for name, value in rows.items():
        print(f"{name:<15} {value}")


def _cuda(library: dict[str, Any] | None) -> str:
    if library is None:
        return "not built in: this build decodes on the CPU only"
    devices = library["devices"]
    found = "no device here" if not devices else "; ".join(f"cuda:{i} is {device}" for i, device in enumerate(devices))
    return f"built for {library['architectures']}; {found}"


@dataclass(frozen=True)
class _Line:
    """A source line: its number from 1, its text; and what came out (None for an empty line)."""

    number: int
    source: str
    out: GenerationOutput | None = None

    @property
    def text(self) -> str:
        """The output text on one line."""
        if self.out is None or self.out.texts is None:
            return ""
        return " ".join(self.out.texts[0].splitlines())

    def tokens(self) -> tuple[list[int], list[int], list[int] | None]:
        """Output token ids, owner codes and, of several teachers, their numbers, without start token and padding."""
        if self.out is None or self.out.sequences is None or self.out.owners is None or self.out.experts is None:
            return [], [], None
        experts = self.out.experts[0, 1:].tolist() if self.experts > 1 else None
        return self.out.sequences[0, 1:].tolist(), self.out.owners[0, 1:].tolist(), experts

    @property
    def experts(self) -> int:
        """How many teachers there were."""
        return 0 if self.out is None or self.out.expert_calls is None else self.out.expert_calls.shape[1]


@dataclass(frozen=True)
class _Lines:
    """Where lines come from; ``total`` where it is known before reading."""

    lines: Iterable[str]
    total: int | None
    batch_size: int

    @classmethod
    def of(cls, texts: list[str] | None, file: Path | None, output: Path | None, batch_size: int) -> _Lines:
        """The lines of arguments, a file or stdin."""
        if texts and file is not None:
            raise ValueError(f"give texts or --file {file}, not both")
        if texts:
            return cls([" ".join(text.splitlines()) for text in texts], None, batch_size)
        if file is None or str(file) == "-":
            if sys.stdin.isatty():
                print("kdtw: reading lines from the keyboard; Ctrl-D ends", file=sys.stderr)
                batch_size = 1
            return cls(_read(sys.stdin.buffer), None, batch_size)
        if output is not None and output.exists() and output.samefile(file):
            raise ValueError(f"--output {output} is the --file that is being read; choose another")
        with file.open("rb") as stream:
            lines = list(_read(stream))
        return cls(lines, len(lines), batch_size)


def _read(stream: Iterable[bytes]) -> Iterator[str]:
    for number, raw in enumerate(stream):
        yield raw.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")


def _decode(decoder: Decoder, lines: _Lines, options: dict[str, Any]) -> Iterator[_Line]:
    """The lines with their outputs; empty ones are not decoded. An error names its line, after those before it."""
    read: deque[_Line] = deque()  # and not given out yet

    def items() -> Iterator[dict[str, Any]]:
        for number, source in enumerate(lines.lines, start=1):
            read.append(_Line(number, source))
            if source.strip():
                yield {"text": source, "row_id": number - 1}

    def empty_lines() -> Iterator[_Line]:
        while read and not read[0].source.strip():
            yield read.popleft()

    stream = decoder.stream(items(), batch_size=lines.batch_size, in_order=True, **options)
    try:
        for out in stream:
            yield from empty_lines()
            line = read.popleft()
            yield _Line(line.number, line.source, out)
    except (ValueError, FloatingPointError) as error:
        yield from empty_lines()
        if not read:  # it is the next line that could not be read
            raise
        message = str(error).replace(f"item {stream.failed}", "it").replace(f" at row {stream.failed},", " at")
        raise type(error)(f"line {read[0].number}: {message}") from error
    yield from empty_lines()


Render = Callable[[_Line], str | Text]


def _plain(line: _Line) -> str:
    return line.text


def _with_owners(tokenizer: Any, method: Method, budget: Any) -> Render:
    """The marked text, behind a gauge of the teachers' share, all together, where several models write."""
    asked = None if budget is None else sum(one.fraction for one in resolve_budgets(budget))

    def render(line: _Line) -> Text:
        tokens, owners, experts = line.tokens()
        text = marked(runs(tokens, owners, tokenizer, experts))
        if line.out is None or len(method.models) < 2:
            return text
        return Text.assemble(gauge(float(line.out["teacher_fraction"][0]), asked), "  ", text)

    return render


def _jsonl(method: str) -> Render:
    def render(line: _Line) -> str:
        tokens, owners, experts = line.tokens()
        record: dict[str, Any] = {"line": line.number, "source": line.source, "text": line.text}
        ran = None if line.out is None else line.out.prediction
        record["method"] = method if ran is None else ran.method
        record |= {"tokens": tokens, "owners": [Owner(code).name.lower() for code in owners]}
        for name in ("teacher_calls", "drafted", "accepted", "rolled_back"):
            record[name] = 0 if line.out is None else int(line.out[name][0])
        fraction = 0.0 if line.out is None else float(line.out["teacher_fraction"][0])
        record["teacher_fraction"] = round(fraction, 6)
        if line.out is not None and experts is not None:
            record |= {"experts": experts, "expert_calls": line.out["expert_calls"][0].tolist()}
        reasons = None if line.out is None else line.out.finish_reasons
        record["finish_reason"] = "empty" if reasons is None else reasons[0]
        return json.dumps(record, ensure_ascii=False)

    return render


@contextmanager
def _writer(output: Path | None) -> Iterator[Callable[[str | Text], None]]:
    """A function that writes one line, flushed, so that an interruption loses no finished line."""
    if output is None:
        console = make_console()

        def show(line: str | Text) -> None:
            if isinstance(line, Text):
                console.print(line, soft_wrap=True)
            else:
                print(visible(line) if console.is_terminal else line, flush=True)

        yield show
        return
    stream: IO[str]
    with output.open("w", encoding="utf-8", newline="\n") as stream:

        def write(line: str | Text) -> None:
            stream.write((line.plain if isinstance(line, Text) else line) + "\n")
            stream.flush()

        yield write


def _budget(value: str) -> Any:
    if "," in value:
        return [_budget(one) for one in value.split(",")]
    try:
        return float(value)
    except ValueError:
        return value


def _models(
    needed: tuple[str, ...],
    pair: str | None,
    student: Path | None,
    teacher: list[Path] | None,
    tokenizer: Path | None,
    dtypes: dict[str, str],
    cache: bool = False,
    device: str = "cpu",
) -> tuple[dict[str, Any], Any]:
    """The models that a method needs (several teachers: a list) and their tokenizer, from a shipped pair or folders."""
    folders = {"student": [] if student is None else [student], "teacher": teacher or []}
    if student is None and not teacher:
        if tokenizer is not None:
            raise ValueError("--tokenizer goes with --student and --teacher; a shipped pair has its own")
        home = pair_folder(pair or DEFAULT_PAIR)
        shipped = {
            role: NativeT5.from_pretrained(home / role, role, dtypes[role], cache=cache, device=device)
            for role in needed
        }
        return shipped, _tokenizer([home / "tokenizer"])
    if pair is not None:
        raise ValueError("give --pair, or --student and --teacher, not both")
    models: dict[str, Any] = {}
    for role in needed:
        if not folders[role]:
            raise ValueError(f"this method needs --{role} too")
        for folder in folders[role]:
            if not folder.is_dir():
                raise FileNotFoundError(f"--{role} {folder} is not a folder; give one written by save_pretrained")
        names = [role if len(folders[role]) == 1 else f"{role} {k}" for k in range(1, 1 + len(folders[role]))]
        found = [
            NativeT5.from_pretrained(folder, name, dtypes[role], cache=cache, device=device)
            for folder, name in zip(folders[role], names)
        ]
        models[role] = found if len(found) > 1 else found[0]
    beside = folders[needed[0]][0]
    return models, _tokenizer([beside, beside.parent / "tokenizer"] if tokenizer is None else [tokenizer])


def _tokenizer(folders: list[Path]) -> Any:
    from transformers import AutoTokenizer

    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "spiece.model")):
            return AutoTokenizer.from_pretrained(folder)
    raise FileNotFoundError(f"no tokenizer in {' or '.join(map(str, folders))}; name its folder with --tokenizer")
