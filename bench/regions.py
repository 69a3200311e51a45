"""The measured parts of README.md and docs/: each stands between two markers, so that no number is typed by hand."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
README, RESULTS, BENCHMARKS = ROOT / "README.md", ROOT / "docs/results.md", ROOT / "docs/benchmarks.md"


def split(text: str, region: str) -> tuple[str, str, str]:
    """``text`` up to the region's first marker, between the two, and from the second on; ValueError without them."""
    begin, end = f"<!-- {region}:begin -->", f"<!-- {region}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the file needs the lines '{begin}' and '{end}', once each and in this order")
    head, rest = text.split(begin)
    content, tail = rest.split(end)
    return head + begin, content.strip(), end + tail


def read_region(file: Path, region: str) -> str:
    """What stands between the region's markers."""
    return split(file.read_text(encoding="utf-8"), region)[1]


def write_region(file: Path, region: str, content: str) -> None:
    """Replaces what stands between the region's markers."""
    head, _, tail = split(file.read_text(encoding="utf-8"), region)
    file.write_text(f"{head}\n\n{content.strip()}\n\n{tail}", encoding="utf-8")
