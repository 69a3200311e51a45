"""docs/reliability.md's table: python -m bench.reliability [RECORDS …].

Rows stand in bench/reliability.toml: what is tried, by which tests or commands, what holds. How often: the cases that
pytest collects of these tests, and what campaigns counted (bench/reliability.json). RECORDS, lines of JSON that
`tests/fuzz/run.py --record` and `tests/kills.py --record` write, take the place of those that are kept of the same
campaigns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.regions import write_region
from kdtw_fast.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "bench" / "reliability.toml"
RECORDS = ROOT / "bench" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"

Counted = dict[str, dict[str, int]]  # count and wrong of what was tried, by its name


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """The table's rows: kind, tried, tests, commands, campaigns, holds."""
    empty = {"tests": [], "commands": [], "campaigns": []}
    return [empty | row for row in tomllib.loads(path.read_text(encoding="utf-8"))["row"]]


def summed(lines: Iterable[str]) -> dict[str, Counted]:
    """By campaign and what was tried, how often and how often it went wrong."""
    campaigns: dict[str, Counted] = {}
    for line in lines:
        record = json.loads(line)
        of = campaigns.setdefault(record["campaign"], {}).setdefault(record["of"], {"count": 0, "wrong": 0})
        of["count"] += record["count"]
        of["wrong"] += record["wrong"]
    return campaigns


def collected(tests: Iterable[str]) -> Counter[str]:
    """How many cases pytest finds of each test, the long ones among them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-o", "addopts="]
    files = sorted({test.split("::")[0] for test in tests})
    said = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return Counter(line.split("[")[0] for line in said.splitlines() if "::" in line)


def cases_of(test: str, cases: Mapping[str, int]) -> int:
    """Those of a test, or of all of a file; ValueError where there are none."""
    found = sum(count for name, count in cases.items() if name == test or name.startswith(test + "::"))
    if not found:
        raise ValueError(f"pytest finds no case of {test}, which bench/reliability.toml names")
    return found


def said_of(counted: Counted) -> str:
    """What a campaign counted, in a few words."""
    counts = {each["count"] for each in counted.values()}
    total, wrong = (sum(each[key] for each in counted.values()) for key in ("count", "wrong"))
    if len(counted) == 1:
        return f"{total:,} {next(iter(counted))}, {wrong:,} wrong"
    if len(counts) == 1:
        return f"{counts.pop():,} of each of {len(counted)}: {', '.join(counted)}; {wrong:,} wrong"
    each_of = ", ".join(f"{of} {each['count']:,}" for of, each in counted.items())
    return f"{total:,} ({each_of}), {wrong:,} wrong"


def table(rows: list[dict[str, Any]], cases: Mapping[str, int], campaigns: Mapping[str, Counted]) -> str:
    """The rows in Markdown."""
    lines = []
    for row in rows:
        places = [f"`{place}`" for place in [*row["tests"], *row["commands"]]]
        count = sum(cases_of(test, cases) for test in row["tests"])
        often = [f"{count:,} case{'s' if count != 1 else ''}"] if row["tests"] else []
        often += [said_of(campaigns[name]) for name in row["campaigns"] if name in campaigns]
        lines.append([str(row["kind"]), row["tried"], ", ".join(places), "; ".join(often) or "–", row["holds"]])
    return "\n".join(
        markdown_table(["kind", "what is tried", "test", "how often", "what holds"], lines, text_columns=5)
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", nargs="*", type=Path)
    kept: dict[str, Counted] = json.loads(RECORDS.read_text(encoding="utf-8"))
    lines = [line for path in parser.parse_args(arguments).records for line in path.read_text().splitlines()]
    kept |= summed(lines)
    RECORDS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    rows = read_rows()
    write_region(PAGE, "reliability", table(rows, collected(test for row in rows for test in row["tests"]), kept))


if __name__ == "__main__":
    main()
