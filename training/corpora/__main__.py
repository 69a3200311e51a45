"""The command: fetches the packages, builds the corpus and says what became of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from ..debian import fetch_lists
from .packages import fetch

try:
    from .build import build, sources_table
    from .sources import SOURCES
except ModuleNotFoundError as missing:
    library = str(missing.name).partition(".")[0]
    if library not in ("lxml", "polib"):
        raise
    sys.exit(f"reading the packages needs {library}; install with: pip install lxml polib")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kdtw_fast.training.corpora", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tech"), help="folder for the JSONL files")
    parser.add_argument("--cache", type=Path, default=Path("runs/packages"), help="folder for the packages (4 GB)")
    parser.add_argument("--lists", type=Path, default=Path("runs/apt-lists"), help="folder for apt's lists")
    parser.add_argument("--no-fetch", action="store_true", help="use the lists and packages that are already there")
    parser.add_argument("--skip-missing", action="store_true", help="go on without packages that apt does not know")
    parser.add_argument("--test", type=int, default=1200, help="pairs of each source that are held out for its test")
    parser.add_argument("--validation", type=int, default=300, help="pairs of each source for validation")
    parser.add_argument("--key", default="kdtw", help="key of the hash that splits pages and catalogues")
    args = parser.parse_args()
    console = Console(stderr=True)
    if not args.no_fetch:
        if not list(args.lists.glob("*_Packages*")):
            console.print("fetching apt's lists")
            fetch_lists(args.lists)
        names = [name for source in SOURCES for name in source.packages]
        missing = fetch(names, args.lists, args.cache, console.print)
        if missing and not args.skip_missing:
            sys.exit(f"apt knows no package {', '.join(missing)}; --skip-missing goes on without them")
        for name in missing:
            console.print(f"went on without {name}, which apt does not know")
    reports = build(args.lists, args.cache, args.out, args.test, args.validation, args.key, console.print)
    print(sources_table(reports))


if __name__ == "__main__":
    main()
