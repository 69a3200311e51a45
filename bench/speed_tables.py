"""The speed tables of docs/benchmarks.md, from pytest-benchmark's JSON.

    python -m bench.speed_tables build/bench.json        # what `pytest bench --benchmark-json=build/bench.json` wrote

Of several files, a later one's benchmarks of a kind take the place of an earlier one's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.regions import BENCHMARKS, write_region
from kdtw_fast.profiling import OURS
from kdtw_fast.tables import markdown_table

# The goals this project sets itself; the tables show them beside what was measured.
FASTER_THAN = {"Hugging Face generate": 3.0, "CTranslate2 float32": 1.7, "CTranslate2 int8": 2.5}
OF_READ_RATE = {"fp32": 80, "bf16": 80, "int8": 60}  # percent
STEPS_OF_CATCH_UP = {("int8", 4): 1.5, ("int8", 8): 2.2}  # at most
OF_GEMM_RATE = {"fp32": 70}  # percent
FASTER_BATCH = {"fp32": 1.8, "int8": 2.0}
LOOP_OVERHEAD = 3  # percent, at most
LARGE_TEACHER = {"speculative": 1.5, "Training Wheels": 6.0}  # by the method's first words
MEMORY = 6e9  # bytes, at most
ROLLOUTS = 5.0  # times Hugging Face
RENEWAL = 2  # percent of a training batch, at most
FASTER_STEPS, FASTER_READING = 1.3, 1.0  # of language models, than the fastest other
FASTER_ENCODED = {1: 1.5, 32: 1.3}  # by rows

Entry = tuple[dict[str, Any], float]  # what a benchmark says of itself, and its median seconds
Entries = dict[str, list[Entry]]  # by kind


def speed_tables(*runs: dict[str, Any]) -> str:
    """The benchmark tables of pytest-benchmark's JSON; what did not run is left out.

    Of several runs on one machine, a later one's benchmarks of a kind take the place of an earlier one's.

    Raises:
        ValueError: a run with --tiny, runs of several machines or builds, or an unknown kind of benchmark.
    """
    machine, kdtw = runs[0]["machine_info"], runs[0]["machine_info"]["kdtw"]
    if any(run["machine_info"]["kdtw"]["tiny"] for run in runs):
        raise ValueError("these results were taken with --tiny, which measures nothing; run pytest bench without it")
    if any(run["machine_info"]["kdtw"] != kdtw for run in runs):
        raise ValueError("these results were taken on different machines or builds; they do not make one table")
    versions = ", ".join(f"{name} {number}" for name, number in kdtw["versions"].items())
    entries: Entries = {}
    for run in runs:
        found: Entries = {}
        for result in run["benchmarks"]:
            found.setdefault(result["extra_info"]["kind"], []).append((result["extra_info"], result["stats"]["median"]))
        entries |= found
    sections = {
        "one model": _one_model,
        "catch-up": _catch_up,
        "encoder": _encoder,
        "batch": _batch,
        "stream": _stream,
        "large teacher": _large_teacher,
        "memory": _memory,
        "two models": _two_models,
        "rollout": _rollout,
        "phase 2": _phase_2,
        "language model": _language_model,
        "encoded model": _encoded_model,
    }
    unknown = sorted(set(entries) - set(sections) - {"verification"})
    if unknown:
        raise ValueError(f"the results hold benchmarks of kind {unknown[0]!r}, for which there is no table")
    lines = [
        f"`make bench` on {' and '.join(dict.fromkeys(run['datetime'][:10] for run in runs))}"
        f"{f', in {len(runs)} runs' if len(runs) > 1 else ''}: {machine['cpu'].get('brand_raw', 'unknown processor')}, "
        f"{kdtw['cores']} cores, {kdtw['simd']}, {machine['system']}; {versions}. Medians; what is compared takes "
        "turns in one process. Unless said otherwise random weights, greedy, one row, 64 source and 64 new tokens; "
        "times of whole calls, the encoder included. In brackets: the mark this project sets itself.",
    ]
    for kind, section in sections.items():
        if kind in entries:
            lines += ["", *section(entries[kind], entries)]
    return "\n".join(lines)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _mark(mark: float | None, unit: str, least: bool = True) -> str:
    """The mark in brackets: at least so much, or at most."""
    return "" if mark is None else f" ({'≥' if least else '≤'} {mark:g}{unit})"


def _grouped(entries: list[Entry], *keys: str) -> dict[tuple[Any, ...], list[Entry]]:
    """Entries by what they say of themselves under these keys, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[0][key] for key in keys), []).append(entry)
    return groups


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    return [f"**{title}**", "", *markdown_table(columns, rows, text_columns), ""]


def _one_model(entries: list[Entry], _: Entries) -> list[str]:
    ours = {(info["dtype"], info["threads"]): seconds for info, seconds in entries if info["system"] == OURS}

    def row(info: dict[str, Any], seconds: float) -> list[str]:
        dtype, tokens = info["dtype"], info["new_tokens"]
        share = faster = ""
        if info["system"] == OURS:
            share = f"{100 * info['gb_per_s'] / info['read_gb_per_s']:.0f} %{_mark(OF_READ_RATE[dtype], ' %')}"
        else:
            factor = seconds / ours[dtype, info["threads"]]
            faster = f"{factor:.2f}×{_mark(FASTER_THAN[info['system']], '×')}"
        name = info["system"] if dtype in info["system"] else f"{info['system']}, {dtype}"
        speed = f"{1000 * seconds / tokens:.2f}", f"{tokens / seconds:.0f}"
        return [name, str(info["threads"]), *speed, share, faster]

    rows = [row(*entry) for entry in sorted(entries, key=lambda entry: entry[0]["threads"])]
    rates = {info["threads"]: info["read_gb_per_s"] for info, _ in entries}
    sizes = {info["dtype"]: info["bytes_per_token"] for info, _ in entries}
    two = [f"{dtype} {ours[dtype, 1] / ours[dtype, 2]:.2f}×" for dtype in sizes if (dtype, 2) in ours]
    columns = ("system", "threads", "ms per token", "tokens/s", "steps, of read rate", "kdtw_fast is faster by")
    return [
        *_section(f"One model, the shape of {entries[0][0]['shape']}", columns, rows),
        "A step must read the weights: "
        + ", ".join(f"{size / 1e6:.0f} MB in {dtype}" for dtype, size in sizes.items())
        + ". The read rate is what this machine read at best from a 256 MB array in the same minutes: "
        + ", ".join(f"{rate:.1f} GB/s with {_threads(count)}" for count, rate in sorted(rates.items()))
        + "."
        + (f" Two threads against one (≥ 1×): {', '.join(two)}." if two else ""),
    ]


def _catch_up(entries: list[Entry], everything: Entries) -> list[str]:
    passes = {
        (info["kind"], info["dtype"], info["tokens"]): seconds
        for info, seconds in entries + everything.get("verification", [])
    }
    lengths = sorted({length for _, _, length in passes if length > 1})
    rows = []
    for kind, dtype in dict.fromkeys((kind, dtype) for kind, dtype, _ in passes):
        step = passes["catch-up", dtype, 1]
        marks = {n: STEPS_OF_CATCH_UP.get((dtype, n)) if kind == "catch-up" else None for n in lengths}
        cells = [f"{passes[kind, dtype, n] / step:.2f}×{_mark(marks[n], '×', least=False)}" for n in lengths]
        rows.append([f"{kind}, {dtype}", f"{1000 * step:.2f}", *cells])
    title = "**Reading several tokens in one pass, against a step** (the same model; a verification also asks the head "
    columns = ("pass", "step, ms", *(f"{n} tokens" for n in lengths))
    return [f"{title}about each token; {_threads(entries[0][0]['threads'])})", "", *markdown_table(columns, rows)]


def _encoder(entries: list[Entry], _: Entries) -> list[str]:
    rows = []
    for info, seconds in entries:
        share = 100 * info["gflop_per_s"] / info["gemm_gflop_per_s"]
        mark = _mark(OF_GEMM_RATE.get(info["dtype"]), " %")
        rows.append([info["dtype"], f"{1000 * seconds:.1f}", f"{info['gflop_per_s']:.0f}", f"{share:.0f} %{mark}"])
    info = entries[0][0]
    return [
        f"**Its encoder, {info['tokens']} tokens, {_threads(info['threads'])}** (torch multiplies large fp32 matrices "
        f"at {info['gemm_gflop_per_s']:.0f} GFLOP/s here)",
        "",
        *markdown_table(("dtype", "ms", "GFLOP/s", "of torch's fp32 rate"), rows),
    ]


def _batch(entries: list[Entry], _: Entries) -> list[str]:
    rows = []
    for (dtype,), here in _grouped(entries, "dtype").items():
        ours = next(seconds for info, seconds in here if info["system"] == OURS)
        best = min(seconds for info, seconds in here if info["system"] != OURS)
        for info, seconds in here:
            factor = f"{seconds / ours:.2f}×{_mark(FASTER_BATCH[dtype] if seconds == best else None, '×')}"
            name, speed = f"{info['system']}, {dtype}, {info['setting']}", f"{info['tokens'] / seconds:.0f}"
            rows.append([name, speed, "" if info["system"] == OURS else factor])
    title = f"The same model, {entries[0][0]['rows']} rows at once"
    return _section(title, ("system", "tokens/s", "kdtw_fast is faster by"), rows)[:-1]


def _stream(entries: list[Entry], _: Entries) -> list[str]:
    lines: list[str] = []
    for (student, teacher, threads), here in _grouped(entries, "student", "teacher", "threads").items():
        contestants = list(dict.fromkeys(info["contestant"] for info, _ in here))
        rows = []
        for (method, count), these in _grouped(here, "method", "rows").items():
            speeds = {info["contestant"]: info["tokens"] / seconds for info, seconds in these}
            rows.append([method, str(count), *(f"{speeds[name]:.0f}" for name in contestants)])
        title = f"Streams: tokens/s of {student} with {teacher}, {_threads(threads)}, sampled"
        lines += _section(title, ["method", "rows", *contestants], rows)
    return [
        *lines,
        "Rows ask and end at random, at their own times; a row that ends makes room for the next. Rows that wait for "
        "the teacher are held until so many wait (`teacher_batch`). Last column: `generate` on one batch after the "
        "other, each as long as its longest row.",
    ]


def _large_teacher(entries: list[Entry], _: Entries) -> list[str]:
    def per_token(entry: Entry) -> float:
        return 1000 * entry[1] / entry[0]["new_tokens"]

    def phases(entry: Entry) -> list[float]:
        """ms per token of encoders, student's and teacher's passes; nothing of Hugging Face's."""
        return [per_token(entry) * share for share in entry[0].get("shares", {}).values()]

    alone: dict[bool, float] = {}  # by whether it is Hugging Face's
    for entry in entries:
        if entry[0]["method"].endswith("teacher alone"):
            alone[entry[0]["method"].startswith("Hugging Face")] = per_token(entry)
    rows, notes = [], []
    for entry in entries:
        info, ms, parts = entry[0], per_token(entry), phases(entry)
        method = info["method"]
        start, mark = next(((s, m) for s, m in LARGE_TEACHER.items() if method.startswith(s)), ("", None))
        factor = f"{alone[method.startswith('Hugging Face')] / ms:.2f}×{_mark(mark, '×')}"
        times = [f"{ms:.2f}", *([f"{part:.2f}" for part in parts] or [""] * 3)]
        rows.append([method, info["student"] or "–", str(info["new_tokens"]), *times, factor])
        if mark and parts and alone[False] / mark < parts[0] + parts[2] and not any(start in note for note in notes):
            notes.append(
                f" {start} at {mark:g}× may take {alone[False] / mark:.2f} ms per token; encoders and teacher's passes "
                f"alone take {parts[0] + parts[2]:.2f}."
            )
    info = entries[0][0]
    columns = ("method", "student", "new tokens", "ms per token", "of it encoders", "student's passes")
    columns += ("teacher's passes", "against its teacher alone")
    title = f"A teacher of {info['teacher']}'s shape in {info['dtype']}, {_threads(info['threads'])}"
    return [
        *_section(title, columns, rows, text_columns=2),
        "The models are random and of full size; their greedy choices are arranged so that the student agrees with the "
        "teacher as often as it says, or asks as often." + "".join(notes),
    ]


def _memory(entries: list[Entry], _: Entries) -> list[str]:
    return [
        f"**Memory**: a model of {info['shape']}'s shape in {info['dtype']} decodes at "
        f"{1000 * seconds / info['new_tokens']:.0f} ms per token ({info['new_tokens']} new tokens) in a process of "
        f"{info['peak_rss'] / 1e9:.2f} GB at most{_mark(MEMORY / 1e9, ' GB', least=False)}: weights "
        f"{info['weights'] / 1e9:.2f} GB, caches {info['caches'] / 1e9:.3f} GB, the rest Python, torch and packing."
        for info, seconds in entries
    ]


def _two_models(entries: list[Entry], _: Entries) -> list[str]:
    columns = ("method", "ms per token", "against teacher alone", "passes: student + teacher")
    columns += (f"loop's own time{_mark(LOOP_OVERHEAD, ' %', least=False)}", "with Python around it")
    lines: list[str] = []
    for (student, teacher, threads), here in _grouped(entries, "student", "teacher", "threads").items():
        alone = next(seconds for info, seconds in here if info["method"] == "teacher alone")
        rows = [
            [
                info["method"],
                f"{1000 * seconds / info['new_tokens']:.2f}",
                f"{alone / seconds:.2f}×",
                f"{info['student_passes']} + {info['teacher_passes']}",
                f"{100 * info['loop_overhead']:.2f} %",
                f"{100 * info['overhead']:.2f} %",
            ]
            for info, seconds in here
        ]
        lines += _section(f"Two models: {student} with {teacher}, fp32, {_threads(threads)}", columns, rows)
    return [
        *lines,
        "The loop's own time is what is left of a call after encoders and decoder passes. The two random models agree "
        "on nothing, so these rows are the loop's extremes, not what the methods gain on text: for that, see the demo.",
    ]


# Rollouts by the models that write, and what they are for.
ROLLED = {
    "both": "student and teacher (phase 2)",
    "student": "student alone (GKD)",
    "teacher": "teacher alone (the oracle's)",
}


def _rollout(entries: list[Entry], _: Entries) -> list[str]:
    rates = {(info["models"], info["system"]): info["tokens_per_second"] for info, _ in entries}
    systems = list(dict.fromkeys(system for _, system in rates))
    ours, theirs = systems[0], systems[-1]
    rows = []
    for models in dict.fromkeys(models for models, _ in rates):
        cells = [f"{rates[models, one]:.0f}" if (models, one) in rates else "–" for one in systems]
        other = rates.get((models, theirs))
        factor = "–" if other is None else f"{rates[models, ours] / other:.1f}×{_mark(ROLLOUTS, '×')}"
        rows.append([ROLLED[models], *cells, factor])
    beside = " and ".join(
        f"{rates['both', ours] / rates[one, theirs]:.1f} times {theirs}'s of the {one}"
        for one in ("student", "teacher")
    )
    title = "Sampled rollouts on the shipped pair: 48 sentences, six budgets; ours with log-probabilities; tokens/s"
    lines = _section(title, ("rollouts", *systems, "faster by"), rows)
    return [*lines, f"Rollouts of both models together write {beside} alone."]


def _phase_2(entries: list[Entry], _: Entries) -> list[str]:
    seconds = {info["part"]: value for info, value in entries}
    share = 100 * seconds["renewal"] / seconds["batch"]
    return [
        f"A batch of phase 2 on that pair takes {seconds['batch']:.2f} s, renewing the decoder's weights "
        f"{1000 * seconds['renewal']:.1f} ms of it: {share:.2f} %{_mark(RENEWAL, ' %', least=False)}."
    ]


def _language_model(entries: list[Entry], _: Entries) -> list[str]:
    lines: list[str] = []
    for (model, group), here in _grouped(entries, "model", "group").items():
        rows = []
        for (threads,), these in _grouped(here, "threads").items():
            infos = [info for info, _ in these]
            (own,) = (info for info in infos if info["system"] == OURS)
            best = {part: min((i[part] for i in infos if i is not own), default=0.0) for part in ("reading", "step")}
            for info in infos:
                cells = []
                for part, scale, mark in (("reading", 1e3, FASTER_READING), ("step", 1e3, FASTER_STEPS)):
                    seconds = info[part]
                    marked = _mark(mark if seconds == best[part] else None, "×")
                    cells += [
                        f"{scale * seconds:.{0 if part == 'reading' else 2}f}",
                        f"{100 * info[f'{part}_of_roof']:.0f} %",
                    ]
                    cells.append("" if info is own else f"{seconds / own[part]:.2f}×{marked}")
                rows.append([f"{info['system']}, {info['format']}", str(threads), *cells])
        columns = ("system", "threads", "prompt, ms", "of roof", "faster by", "step, ms", "of roof", "faster by")
        lines += _section(f"{model}'s shape, {group}", columns, rows)
    told = entries[0][0]
    rates = {info["threads"]: (info["read_gb_per_s"], info["gemm_gflop_per_s"]) for info, _ in entries}
    build = f" (the wheel xllamacpp, built for {told['llama_cpp']})" if told["llama_cpp"] else ""
    return [
        *lines,
        f"One row: a prompt of {told['prompt_tokens']} tokens up to the first output, then a step for each of "
        f"{told['new_tokens'] - 1} more. Times of llama.cpp{build} are those of its own clocks, which leave out its "
        "server; the others' are from the call to the first token, and between tokens. Roof of a step: its own bytes "
        "of weights, keys and values at the rate at which this machine reads; of a prompt: its operations at torch's "
        "fp32 rate, which int8 may exceed ("
        + "; ".join(f"{a:.1f} GB/s and {b:.0f} GFLOP/s with {_threads(n)}" for n, (a, b) in sorted(rates.items()))
        + '). Columns "faster by": kdtw_fast against that row.',
    ]


def _encoded_model(entries: list[Entry], _: Entries) -> list[str]:
    lines: list[str] = []
    for (model, dtype), here in _grouped(entries, "model", "dtype").items():
        rows = []
        for (count,), these in _grouped(here, "rows").items():
            own = {info["threads"]: seconds for info, seconds in these if info["system"] == OURS}
            used = sorted({info["threads"] * info["workers"] for info, _ in these})
            best = {
                n: min(s for i, s in these if i["system"] != OURS and i["threads"] * i["workers"] == n) for n in used
            }
            for info, seconds in these:
                threads = info["threads"] * info["workers"]
                mark = _mark(FASTER_ENCODED.get(count) if seconds == best[threads] else None, "×")
                factor = "" if info["system"] == OURS else f"{seconds / own[threads]:.2f}×{mark}"
                setting = f"{info['workers']} workers" if info["workers"] > 1 else _threads(info["threads"])
                speed = f"{1000 * seconds:.0f}", f"{info['tokens'] / seconds:.0f}", f"{100 * info['of_roof']:.0f} %"
                rows.append([f"{info['system']}, {setting}", str(count), *speed, factor])
        columns = ("system", "rows", "ms", "tokens/s", "of roof", "faster by")
        lines += _section(f"{model}'s shape, {dtype}", columns, rows)
    told = entries[0][0]
    return [
        *lines,
        f"Whole calls, {told['source_tokens']} source tokens, {told['tokens'] // told['rows']} new ones a row. Roof: "
        "the encoder's and each step's weights at the rate at which this machine reads, or their operations at torch's "
        "fp32 rate, whichever takes longer.",
    ]


def main(
    results: Annotated[list[Path], typer.Argument(help="pytest-benchmark's JSON files.", exists=True, dir_okay=False)],
    into: Annotated[Path, typer.Option(help="The file with the two markers.")] = BENCHMARKS,
    region: Annotated[str, typer.Option(help="The name in the markers.")] = "bench",
) -> None:
    """Writes the speed tables between the markers of a file."""
    write_region(into, region, speed_tables(*(json.loads(file.read_text(encoding="utf-8")) for file in results)))


if __name__ == "__main__":
    typer.run(main)
