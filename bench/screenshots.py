"""Pictures of the report in a browser at three widths, for docs/report.md.

python -m bench.screenshots out/demo/results.jsonl      # needs playwright and Chromium (the extra "browser")
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from PIL import Image

from bench.regions import RESULTS
from kdtw_fast.comparison.html import write_report
from kdtw_fast.comparison.records import read

WIDTHS = {1200: "light", 880: "dark", 390: "light"}  # pixels, and the theme
TALLEST = 1700  # pixels of a picture


def take(
    results: Annotated[Path, typer.Argument(help="results.jsonl of kdtw compare or kdtw demo.", exists=True)],
    out: Path = RESULTS.parent / "images",
    chromium: Annotated[str, typer.Option(help="The browser's command.")] = "chromium",
) -> None:
    """Writes figure-WIDTH.webp (the main figure) and report-WIDTH.webp (tables and sentences)."""
    from playwright.sync_api import sync_playwright

    if (program := shutil.which(chromium)) is None:
        raise typer.BadParameter(
            f"there is no command {chromium!r}; install Chromium (Debian: apt-get install chromium)"
        )
    out.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        write_report(read(results), page_file, sentences=3)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width, scheme in WIDTHS.items():
            page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            page.wait_for_selector("article")
            keep(page.locator("figure").first.screenshot(), out / f"figure-{width}.webp")
            top = page.locator("h2").nth(1).bounding_box()
            whole = page.screenshot(full_page=True)
            keep(whole, out / f"report-{width}.webp", int(top["y"]) - 20 if top else 0)
        browser.close()


def keep(png: bytes, path: Path, top: int = 0) -> None:
    """Writes a picture, as far as it may be tall, in few bytes."""
    with Image.open(io.BytesIO(png)) as full:
        part = full.crop((0, top, full.width, min(full.height, top + TALLEST))).convert("RGB")
    part.save(path, quality=50, method=6)
    print(f"{path}: {part.width} x {part.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(take)
