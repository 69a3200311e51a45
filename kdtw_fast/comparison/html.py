"""The report for reading: one HTML file with figures, tables and all sentences side by side, which needs no network.

Texts are foreign here. All of them are made visible (:func:`kdtw_fast.visible.visible`), those in the page are
escaped by the template, those for its script travel as base64 and become text nodes; a content security policy allows
the one script and nothing that is loaded. Needs matplotlib (the extra "compare").
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdtw_fast.files import write_whole
from kdtw_fast.owner import Owner
from kdtw_fast.owners_view import MARKS, shown_pieces
from kdtw_fast.visible import visible

from .contenders import chosen
from .figures import STYLES, draw
from .plan import METRICS, check_metric
from .records import Outputs, Records, Sentence, Timing
from .summary import Point, Samples, judged, sample, summarise
from .table import ALL_COLUMNS, COLUMNS, FOOTNOTE, NONE, caption, cells, shown

TEMPLATE = "report.html.jinja"
END = "</s>"  # T5's end token as a piece
WORDS: dict[Owner, str] = {
    Owner.STUDENT: "student",
    Owner.TEACHER: "teacher",
    Owner.ACCEPTED: "student, checked by the teacher",
    Owner.CORRECTED: "teacher, in the place of a draft",
    Owner.FORCED: "caller",
}
FIGURES = {
    "quality-latency": "Quality against latency: the points of the tables below, and the other systems.",
    "quality-use": "Quality against the share of tokens that the teacher wrote.",
    "budgets": "What was asked for and what was used; the dashed line is what was asked.",
}
# The methods that are shown at first.
_FIRST = ("student", "training-wheels", "teacher")


def write_report(records: Records, path: Path, metric: str = "rouge2", sentences: int = 0) -> None:
    """Writes the report; the same records give the same bytes.

    Args:
        records: of a results file.
        path: the HTML file; it is there as a whole or not at all.
        metric: quality in figures and of sentences, of :data:`kdtw_fast.comparison.quality.METRICS`; the corpus metrics
            BLEU and chrF judge sentences by ROUGE-2.
        sentences: how many to show side by side, evenly spread; 0 = all. Figures and tables are about all.

    Raises:
        ValueError: an unknown metric, or records without outputs.
        ImportError: matplotlib is not installed.
    """
    write_whole(path, render(records, metric, sentences))


def render(records: Records, metric: str = "rouge2", sentences: int = 0) -> str:
    """The report's HTML; see :func:`write_report`."""
    check_metric(metric)
    samples = {pair: sample(records, pair) for pair in records.pairs}
    points = summarise(records, samples)
    by_sentence = metric if metric.startswith("rouge") else "rouge2"
    here = files("kdtw_fast.comparison")
    return _template().render(
        style=Markup((here / "report.css").read_text(encoding="utf-8")),
        script=Markup((here / "report.js").read_text(encoding="utf-8")),
        title=" and ".join(records.pairs),
        measured=_measured(records),
        captions=[caption([p for p in points if p.pair == pair]) for pair in records.pairs],
        figures=_figures(points, metric),
        tables=[_table([p for p in points if p.pair == pair]) for pair in records.pairs],
        footnote=FOOTNOTE,
        legend=[
            {"owner": int(owner), "open": opening, "close": closing, "words": WORDS[owner]}
            for owner, (opening, closing, _) in MARKS.items()
        ],
        metric=METRICS[by_sentence],
        data=_packed(_data(records, samples, by_sentence, sentences)),
        provenance=[_provenance(records, pair) for pair in records.pairs],
    )


def _template() -> Any:
    def inert(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("kdtw_fast.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template(TEMPLATE)


# --- Figures and tables ----------------------------------------------------------------------------------


def _figures(points: Sequence[Point], metric: str) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        paths = {path.stem: path for path in draw(points, Path(folder), metric) if path.suffix == ".svg"}
        return [
            {"caption": words, "svg": Markup(_inline(paths[name].read_text(encoding="utf-8"), name))}
            for name, words in FIGURES.items()
        ]


def _inline(svg: str, name: str) -> str:
    """An SVG file as an element of a page: no prolog, comments or metadata; its own ids, the page's ink and paper."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("stroke: #ffffff", "stroke: var(--sheet)").replace("fill: #ffffff", "fill: none")
    svg = svg.replace("#000000", "currentColor").replace("#444444", "var(--quiet)")
    for style in STYLES.values():
        svg = svg.replace(style.colour.lower(), f"light-dark({style.colour}, {style.night})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


def _table(points: Sequence[Point]) -> dict[str, Any]:
    """The table of docs/results.md, and one of all points with every metric and interval."""
    return {
        "caption": caption(points),
        "columns": COLUMNS,
        "rows": [cells(point) for point in shown(points)],
        "all_columns": ALL_COLUMNS,
        "all_rows": [cells(point, ALL_COLUMNS, intervals=ALL_COLUMNS) for point in points],
    }


# --- Sentences, for the page's script ----------------------------------------------------------------------


def _number(pieces: dict[str, int], text: str) -> int:
    """The number of a string that tokens show; strings are numbered as they come up."""
    return pieces.setdefault(visible(text), len(pieces))


def _data(records: Records, samples: Mapping[str, Samples], metric: str, sentences: int) -> dict[str, Any]:
    """What the script gets: strings by number, and by pair its points and its sentences with all their outputs."""
    pieces: dict[str, int] = {}
    end = _number(pieces, END)
    pairs: list[dict[str, Any]] = []
    for pair in records.pairs:
        points = judged(records, pair)
        scores = [samples[pair].statistics[outputs.id].sums[metric][:, 0] for outputs in points]
        count = len(points[0].sentences)

        def row(i: int, points: list[Outputs] = points, scores: list[Any] = scores) -> list[Any]:
            first = points[0].sentences[i]
            written = [
                [round(float(score[i]), 1), *_output(outputs.sentences[i], pieces)]
                for outputs, score in zip(points, scores)
            ]
            return [i, visible(first.source), visible(first.reference), written]

        pairs.append(
            {
                "name": visible(pair),
                "task": visible(points[0].task),
                "points": [_point(outputs) for outputs in points],
                "sentences": [row(i) for i in chosen(range(count), sentences)],
            }
        )
    marks = {int(owner): [opening, closing, WORDS[owner]] for owner, (opening, closing, _) in MARKS.items()}
    return {"end": end, "marks": marks, "pieces": list(pieces), "pairs": pairs}


def _point(outputs: Outputs) -> dict[str, Any]:
    first = outputs.group in _FIRST and outputs.budget != 0.0
    return {
        "label": visible(outputs.label),
        "group": visible(outputs.group),
        "budget": outputs.budget,
        "first": first,
        "asks": outputs.method == "training-wheels",
    }


def _output(sentence: Sentence, pieces: dict[str, int]) -> list[Any]:
    """Text alone where owners are not told, else text 0, strings, owner codes, and both models' surprises."""
    if not sentence.owners:
        return [visible(sentence.text)]
    owners = "".join(str(int(Owner[name.upper()])) for name in sentence.owners)
    numbers = [_number(pieces, text) for text in shown_pieces(sentence.tokens)]
    return [0, numbers, owners, _surprises(sentence.student_logprobs), _surprises(sentence.teacher_logprobs)]


def _surprises(logprobs: Sequence[float | None] | None) -> list[int] | int:
    """Hundredths of nats, -1 where there is none; 0 for none at all."""
    if logprobs is None or all(value is None for value in logprobs):
        return 0
    return [-1 if value is None else max(0, round(-100 * value)) for value in logprobs]


def _packed(data: Mapping[str, Any]) -> str:
    """JSON, gzip, base64: nothing in it can end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


# --- Provenance --------------------------------------------------------------------------------------------


def _provenance(records: Records, pair: str) -> dict[str, Any]:
    """What the records say of where they come from: each field with its values, most frequent first."""
    found: dict[str, Counter[str]] = {}
    outputs = {key: value for key, value in records.outputs.items() if value.pair == pair}
    timings = [timing for (name, _), timing in records.timings.items() if name in outputs]
    recorded: list[Outputs | Timing] = [*outputs.values(), *timings]
    for record in recorded:
        for name, value in _flat(record.provenance):
            found.setdefault(name, Counter())[value] += 1
    for one in outputs.values():
        for metric, signature in one.signatures.items():
            found.setdefault(METRICS.get(metric, metric), Counter())[signature] += 1
    times = sorted(found.pop("time", ()))
    fields = [(name, [value for value, _ in values.most_common()]) for name, values in found.items()]
    if times:
        fields.append(("time", [times[0]] if len(times) == 1 else [f"{times[0]} to {times[-1]}"]))
    return {"pair": pair, "fields": fields}


def _measured(records: Records) -> str:
    """The machines and days of the records, in a line; empty where they do not say."""
    recorded: list[Outputs | Timing] = [*records.outputs.values(), *records.timings.values()]
    machines: list[str] = []
    days: list[str] = []
    for one in recorded:
        machine = one.provenance.get("machine") or {}
        words = [str(machine["processor"])] if machine.get("processor") else []
        words += [f"{machine['cores']} cores"] if machine.get("cores") else []
        machines.append(", ".join(words))
        days.append(str(one.provenance.get("time") or "")[:10])
    named = [name for name in dict.fromkeys(machines) if name]
    known = sorted({day for day in days if day})
    when = "" if not known else known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return f"Measured on {'; '.join(named)}{f', {when}' if when else ''}." if named else ""


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}, {key}" if name else str(key))
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, NONE if value is None else str(value)
