"""Writes the README's measured parts between their markers, so that no number in it was typed by hand.

`python -m bench.table bench build/bench.json` (from `pytest bench --benchmark-json=…`); `python -m bench.table demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
OURS = "kdtw_fast"
PEERS = {"Hugging Face generate": 2.5, "CTranslate2 float32": 1.5}  # the speed-ups this project sets itself


def fill(text: str, region: str, content: str) -> str:
    """``text`` with what stands between the region's two markers replaced; ValueError if a marker is missing."""
    begin, end = f"<!-- {region}:begin -->", f"<!-- {region}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the README needs the lines '{begin}' and '{end}', once each and in this order")
    head, tail = text.split(begin)[0], text.split(end)[1]
    return f"{head}{begin}\n\n{content.strip()}\n\n{end}{tail}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
    """A Markdown table; the first columns are text, the others numbers."""
    rule = "|---" * text_columns + "|---:" * (len(columns) - text_columns) + "|"
    return ["| " + " | ".join(columns) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]


def bench_markdown(results: dict[str, Any]) -> str:
    """The benchmark tables of pytest-benchmark's JSON."""
    machine, kdtw = results["machine_info"], results["machine_info"]["kdtw"]
    if kdtw["tiny"]:
        raise ValueError("these results were taken with --tiny, which measures nothing; run pytest bench without it")
    versions = ", ".join(f"{name} {number}" for name, number in kdtw["versions"].items())
    entries = [(b["extra_info"], b["stats"]) for b in results["benchmarks"]]
    one = [(info, stats) for info, stats in entries if info["kind"] == "one model"]
    two = [(info, stats) for info, stats in entries if info["kind"] == "two models"]
    return "\n".join(
        [
            f"`make bench` on {results['datetime'][:10]}: {machine['cpu'].get('brand_raw', 'unknown processor')}, "
            f"{kdtw['cores']} cores, {kdtw['simd']}, {machine['system']}; {versions}. "
            "Medians; the systems take turns in one process. Random weights, fp32, batch 1, greedy, "
            f"{entries[0][0]['source_tokens']} source and {entries[0][0]['new_tokens']} new tokens; "
            "times of whole calls, the encoder included.",
            "",
            *_one_model(one),
            "",
            *_two_models(two),
        ]
    )


def _one_model(entries: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    rows, notes = [], []
    for threads in sorted({info["threads"] for info, _ in entries}):
        here = {info["system"]: (info, stats["median"]) for info, stats in entries if info["threads"] == threads}
        ours_info, ours = here[OURS]
        for system, (info, seconds) in here.items():
            speed_up = "" if system == OURS else f"{seconds / ours:.2f}× (mark {PEERS[system]}×)"
            rows.append(
                [
                    system,
                    str(threads),
                    f"{1000 * seconds / info['new_tokens']:.2f}",
                    f"{info['new_tokens'] / seconds:.0f}",
                    speed_up,
                ]
            )
        read, used, size = ours_info["read_gb_per_s"], ours_info["gb_per_s"], ours_info["bytes_per_token"]
        notes.append(
            f"{threads} thread{'s' * (threads > 1)}: {used:.1f} GB/s of {read:.1f} GB/s "
            f"(roof {1000 * size / read / 1e9:.2f} ms per token)"
        )
    shape = entries[0][0]["shape"]
    columns = ("system", "threads", "ms per token", "tokens/s", "kdtw_fast is faster by")
    return [
        f"**One model, the shape of {shape}**",
        "",
        *markdown_table(columns, rows),
        "",
        f"A step must read {entries[0][0]['bytes_per_token'] / 1e6:.0f} MB of weights. kdtw_fast's decoder steps read "
        "them at this rate, beside what this machine read at best from a 256 MB array in the same minutes: "
        f"{'; '.join(notes)}.",
    ]


def _two_models(entries: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    lines: list[str] = []
    for student, teacher in dict.fromkeys((info["student"], info["teacher"]) for info, _ in entries):
        here = [(i, s["median"]) for i, s in entries if (i["student"], i["teacher"]) == (student, teacher)]
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
        columns = (
            "method",
            "ms per token",
            "against teacher alone",
            "passes: student + teacher",
            "loop's own time",
            "with Python around it",
        )
        threads = here[0][0]["threads"]
        lines += [f"**Two models: {student} with {teacher}, {threads} threads**", ""]
        lines += [*markdown_table(columns, rows), ""]
    return [
        *lines,
        "The loop's own time is what is left of a call after encoders and decoder passes (mark: 5 %). The two random "
        "models agree on nothing, so these rows are the loop's extremes, not what the methods gain on text: for that, "
        "see the demo.",
    ]


def demo_markdown() -> str:
    """The demo's table and examples on the shipped pair."""
    from kdtw_fast import build_info
    from kdtw_fast.demo import run_demo, spread
    from kdtw_fast.pairs import load_pair

    pair = load_pair()
    sample = [(s.source, s.target) for s in spread(pair.samples(), 100)]
    threads = min(2, int(build_info()["threads"]))
    # the folders hold bf16, which the native core reads as it is
    result = run_demo(pair.folder / "student", pair.folder / "teacher", pair.tokenizer, sample, num_threads=threads)
    machine = f"{_processor()}, {os.cpu_count()} cores, {build_info()['simd']}"
    return f"`make readme` on {date.today().isoformat()}: {machine}.\n\n{result.markdown()}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("region", choices=("bench", "demo"))
    parser.add_argument("results", type=Path, nargs="?", help="pytest-benchmark's JSON, for 'bench'")
    parser.add_argument("--readme", type=Path, default=README)
    arguments = parser.parse_args()
    if arguments.region == "bench":
        if arguments.results is None:
            parser.error("'bench' needs the JSON that pytest bench --benchmark-json=FILE wrote")
        content = bench_markdown(json.loads(arguments.results.read_text(encoding="utf-8")))
    else:
        content = demo_markdown()
    readme = fill(arguments.readme.read_text(encoding="utf-8"), arguments.region, content)
    arguments.readme.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
