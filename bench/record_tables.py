"""The tables of docs/results.md, from the raw records of `kdtw compare`, and the README's short one.

python -m bench.record_tables points out/compare/results.jsonl      # also: examples, claims, students, seeds
python -m bench.record_tables summary       # README.md's, from the points in docs/results.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from bench.ablation import seeds_text, students_table
from bench.regions import README, RESULTS, read_region, write_region
from kdtw_fast.comparison.examples import examples, examples_text
from kdtw_fast.comparison.figures import NAMED, Mark, Panel, latency_panels, write_figure
from kdtw_fast.comparison.quality import Interval
from kdtw_fast.comparison.records import Records, read
from kdtw_fast.comparison.summary import summarise
from kdtw_fast.comparison.table import points_tables
from kdtw_fast.owners_view import LEGEND
from kdtw_fast.pairs import DEFAULT_PAIR
from kdtw_fast.tables import markdown_table

FOLDED = ("verify", "bild", "interleaved", "random", "entropy")  # in a second table, which a reader unfolds

RecordsFile = Annotated[Path, typer.Argument(help="results.jsonl of kdtw compare.", exists=True, dir_okay=False)]
Into = Annotated[Path, typer.Option(help="The file with the two markers.")]
Region = Annotated[str, typer.Option(help="The name in the markers.")]


def points_text(records: Records) -> str:
    """Machine, command and date of a comparison, and the tables of all its points."""
    if not records.timings:
        raise ValueError("the records hold no timings yet; let kdtw compare end")
    last = {records.outputs[timing.id].pair: timing.provenance for timing in records.timings.values()}
    machine = next(iter(last.values()))["machine"]
    commands = dict.fromkeys(f"`{one['command']}` on {one['time'][:10]}" for one in last.values())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['build']['simd']}; {'; '.join(commands)}."
    return f"{where}\n\n{points_tables(summarise(records), FOLDED)}"


def examples_of_pairs(records: Records) -> str:
    """A few sentences of each pair."""
    blocks = [f"{pair}:\n\n{examples_text(examples(records, pair))}" for pair in records.pairs]
    return "\n\n".join([f"Who wrote what ({LEGEND}), from the same records:", *blocks])


def read_tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Markdown tables as rows of cells by column, under the bold line before them."""
    tables: dict[str, list[dict[str, str]]] = {}
    title, columns = "", list[str]()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("**"):
            title, columns = line.strip("*"), []
        elif not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif not line.startswith("|---"):
            tables.setdefault(title, []).append(dict(zip(columns, cells, strict=True)))
    return tables


def summary_text(points: str, one_thread: str, pair: str = DEFAULT_PAIR) -> str:
    """The README's table of eight rows: the two ends, KDTW between them, the lossless rival and other systems.

    Args:
        points: the text of :func:`points_text`.
        one_thread: the same of a comparison with one thread, where CTranslate2 is at its fastest.
        pair: whose rows.
    """
    rows, single = (_rows_of(text, pair) for text in (points, one_thread))
    lossless = min(
        (name for name in rows if name.startswith("speculative, lossless")), key=lambda n: float(_ms(rows[n]))
    )
    theirs = "CTranslate2, teacher"
    chosen = [
        ("student alone", rows["student alone"]),
        *((f"KDTW, “{budget}” budget", rows[f"KDTW, {budget}"]) for budget in ("light", "moderate", "very high")),
        ("speculative, lossless", rows[lossless]),
        ("teacher alone", rows["teacher alone"]),
        ("CTranslate2, teacher, 1 thread", single[theirs]),
        ("Hugging Face, teacher", rows["Hugging Face generate, teacher"]),
    ]
    cells = [[words, row["used"], row["ROUGE-2"], _ms(row)] for words, row in chosen]
    title = next(title for title in read_tables(points) if title.startswith(f"{pair}:"))
    return "\n".join(
        [
            *markdown_table(("method", "by the teacher", "ROUGE-2", "ms/token"), cells),
            "",
            f"{title}. CTranslate2 stands with one thread, where it is fastest (with two {_ms(rows[theirs])}); our "
            f"teacher alone takes {_ms(single['teacher alone'])} with one. {points.splitlines()[0]}",
        ]
    )


GROUPS = {  # of figures, by the beginning of a label; the first that fits
    "GKD student": "gkd",
    "student": "student",
    "teacher": "teacher",
    "speculative, lossless": "speculative",
    "DistillSpec": "distillspec",
    "lossy, own student": "distillspec",  # with the other drafter
    "BiLD": "bild",
    "interleaved": "interleaved",
    "random calls": "random",
    "calls by entropy": "entropy",
    "Hugging Face generate": "hugging-face",
    "CTranslate2": "ctranslate2",
}


def recorded_panels(points: str) -> dict[str, list[Panel]]:
    """By pair: quality against latency of the points in the text of :func:`points_text` that have a quality."""
    panels = {}
    for title, rows in read_tables(points).items():
        marks = [mark for row in rows if (mark := _mark(row)) is not None]
        panels[title.split(":")[0]] = latency_panels(title.split(", greedy")[0], "ROUGE-2", marks)
    return panels


def _mark(row: dict[str, str]) -> Mark | None:
    """A row as a point of the figure; None where only time was measured.

    Milliseconds are those of "tokens/s", which has more digits.
    """
    label, text = row["method"], ""
    group = next((group for start, group in GROUPS.items() if label.startswith(start)), None)
    if label.startswith("KDTW, "):
        text = label.removeprefix("KDTW, ")
        group, text = ("verify", "") if "verify" in text else ("training-wheels", text)
    if group is None or not (quality := _numbers(row["ROUGE-2"])):
        return None
    value, half = quality
    ms = 1000 / float(row["tokens/s"])
    words = label if group in NAMED else text
    return Mark(group, Interval(ms, ms, ms), Interval(value, value - half, value + half), words)


def _numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[0-9.]+", cell)]


def _rows_of(text: str, pair: str) -> dict[str, dict[str, str]]:
    found = [rows for title, rows in read_tables(text).items() if title.startswith(f"{pair}:")]
    if not found:
        raise ValueError(f"there is no table of {pair}")
    return {row["method"]: row for row in found[0]}


def _ms(row: dict[str, str]) -> str:
    """The median of a cell like "0.11 (0.10–0.12)"."""
    return row["ms/token"].split()[0]


def shrink(image: Path) -> None:
    """Keep a picture with 256 colours, a third of the bytes; the octree keeps colours that few pixels have."""
    with Image.open(image) as full:
        few = full.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(image, optimize=True)


app = typer.Typer(help=__doc__, add_completion=False)


Text = Callable[[Path], str]
TEXTS: dict[str, tuple[str, Text, str]] = {  # command: region, what stands there, help
    "points": ("points", lambda file: points_text(read(file)), "Every point: quality, latency and use."),
    "examples": ("examples", lambda file: examples_of_pairs(read(file)), "A few sentences in full."),
    "claims": (
        "claims",
        lambda file: (file.parent / "claims.md").read_text(encoding="utf-8"),
        "The paper's claims, which kdtw compare wrote beside its records.",
    ),
    "students": ("ablation", lambda file: students_table(read(file)), "Several trained students of one pair."),
    "seeds": ("seeds", lambda file: seeds_text(read(file)), "A recipe with several seeds, and how far they lie apart."),
}


def _writing(usual: str, text: Text) -> Callable[..., None]:
    def write(results: RecordsFile, into: Into = RESULTS, region: Region = usual) -> None:
        write_region(into, region, text(results))

    return write


for _name, (_usual, _text, _help) in TEXTS.items():
    app.command(_name, help=_help)(_writing(_usual, _text))


@app.command()
def summary(source: Annotated[Path, typer.Option("--from")] = RESULTS, into: Into = README) -> None:
    """The README's eight rows, from the tables of all points."""
    write_region(into, "summary", summary_text(read_region(source, "points"), read_region(source, "one-thread")))


@app.command()
def figure(source: Annotated[Path, typer.Option("--from")] = RESULTS, out: Path = RESULTS.parent) -> None:
    """Quality against latency of each pair, drawn from the tables of all points."""
    for pair, panels in recorded_panels(read_region(source, "points")).items():
        name = "comparison" if pair == DEFAULT_PAIR else f"comparison-{pair}"
        write_figure(panels, [out / f"{name}.png"])
        shrink(out / f"{name}.png")


if __name__ == "__main__":
    app()
