"""The corpus on disk: every source read, its pairs filtered, counted and split, and its licences kept beside."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdtw_fast.files import write_whole
from kdtw_fast.tables import markdown_table

from .. import debian
from ..debian import SPLITS, Example, text_key, write_jsonl
from .alignment import acceptable, sentence_pairs
from .packages import copyright_file, licences, version
from .sources import SOURCES, Source
from .splits import assign, seen_before

DESCRIPTIONS = "descriptions"


Report = dict[str, Any]  # what became of a source, as `_report` gives it


def build(
    lists: Path, cache: Path, out: Path, test: int, validation: int, key: str, tell: Callable[[str], None]
) -> list[Report]:
    """Write OUT/{train,validation,test}.jsonl, OUT/test/SOURCE.jsonl, OUT/sources.json and OUT/licences/PACKAGE.

    Rows say where they are from ("manpages/tar.1") as their package. A pair that several sources have belongs to the
    first. Raises ValueError for a source without a pair.
    """
    files = cache / "files"
    packages = {s.name: [name for name in s.packages if (files / name).is_dir()] for s in SOURCES}
    copyrights = {name: copyright_file(files, name) for names in packages.values() for name in names}
    rows: dict[str, dict[str, list[Example]]] = {}
    taken: set[tuple[str, str]] = set()
    rows[DESCRIPTIONS] = _descriptions(lists, out / "debian", key, tell)
    for held in rows[DESCRIPTIONS].values():
        taken |= {(text_key(row.source), text_key(row.target)) for row in held}
    for source in SOURCES:
        examples = read_source(source, [files / name for name in packages[source.name]], taken)
        tell(f"{source.name}: {len(examples):,} pairs")
        if not examples:
            raise ValueError(f"no pair was found in {source.name}; does {files} hold its packages?")
        rows[source.name] = _split(source, examples, test, validation, key)
    dropped = _leave_out_known(rows, tell)
    unseen = {source.name for source in SOURCES if not source.trained}
    for split in SPLITS:
        write_jsonl(out / f"{split}.jsonl", [r for n, found in rows.items() if n not in unseen for r in found[split]])
    reports = [_report(DESCRIPTIONS, "package descriptions", rows[DESCRIPTIONS], dropped, {}, [])]
    for source in SOURCES:
        names = packages[source.name]
        main = Counter(found[0] for name in names if (found := licences(copyrights[name])))
        named = [licence for licence, _ in sorted(main.items(), key=lambda item: (-item[1], item[0]))]
        versions = {name: version(cache, name) for name in names}
        reports.append(_report(source.name, source.what, rows[source.name], dropped, versions, named))
    for name, splits in rows.items():
        write_jsonl(out / "test" / f"{name}.jsonl", splits["test"])
    (out / "licences").mkdir(exist_ok=True)
    for name, path in copyrights.items():
        shutil.copyfile(path, out / "licences" / name)
    table = json.dumps(reports, indent=1, ensure_ascii=False)
    write_whole(out / "sources.json", table + "\n")
    return reports


def read_source(source: Source, folders: list[Path], taken: set[tuple[str, str]]) -> list[Example]:
    """The acceptable pairs of a source that are not `taken`, which grows by them."""
    examples: list[Example] = []
    for unit, (german, english) in source.read(folders):
        for pair in sentence_pairs(german, english):
            keys = text_key(pair[0]), text_key(pair[1])
            if keys not in taken and acceptable(*pair):
                taken.add(keys)
                examples.append(Example(*pair, f"{source.name}/{unit}"))
    return examples


def _descriptions(lists: Path, folder: Path, key: str, tell: Callable[[str], None]) -> dict[str, list[Example]]:
    counts = debian.build(lists, folder, key)
    tell(f"{DESCRIPTIONS}: {sum(counts['translation'].values()):,} pairs")
    found = {split: debian.read_jsonl(folder / "translation" / f"{split}.jsonl") for split in SPLITS}
    return {s: [Example(r.source, r.target, f"{DESCRIPTIONS}/{r.package}") for r in rows] for s, rows in found.items()}


def _split(source: Source, examples: list[Example], test: int, validation: int, key: str) -> dict[str, list[Example]]:
    if not source.trained:
        return {"train": [], "validation": [], "test": examples}
    test = min(test, max(650, int(0.15 * len(examples))), int(0.3 * len(examples)))
    validation = min(validation, int(0.05 * len(examples)))
    split_of = assign(Counter(row.package for row in examples), test, validation, key)
    found: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row in examples:
        found[split_of[row.package]].append(row)
    return found


def _leave_out_known(rows: dict[str, dict[str, list[Example]]], tell: Callable[[str], None]) -> Counter[str]:
    """Take out of test what training has, out of validation what either has, or nearly so, on either side."""
    dropped: Counter[str] = Counter()
    known = [row for found in rows.values() for row in found["train"]]
    for split in ("test", "validation"):
        held_out = [(name, i, row) for name, found in rows.items() for i, row in enumerate(found[split])]
        again = seen_before([row.source for *_, row in held_out], (row.source for row in known))
        again |= seen_before([row.target for *_, row in held_out], (row.target for row in known))
        tell(f"{split}: {len(again):,} of {len(held_out):,} pairs left out, since another split has almost the same")
        kept: dict[str, list[Example]] = {name: [] for name in rows}
        for number, (name, _, row) in enumerate(held_out):
            if number in again:
                dropped[name] += 1
            else:
                kept[name].append(row)
        for name in rows:
            rows[name][split] = kept[name]
        known += [row for _, _, row in held_out]
    return dropped


def _report(
    name: str,
    what: str,
    splits: dict[str, list[Example]],
    dropped: Counter[str],
    versions: dict[str, str],
    named: list[str],
) -> Report:
    rows = [row for split in SPLITS for row in splits[split]]
    return {
        "name": name,
        "what": what,
        "pairs": len(rows),  # distinct ones
        "words": sum(len(row.source.split()) for row in rows),  # German ones
        **{split: len(splits[split]) for split in SPLITS},
        "near_duplicates": dropped[name],  # held out by their page, but another split has almost the same
        "packages": versions,
        "licences": named,  # that of most files of each package; OUT/licences has the whole
    }


def sources_table(reports: Sequence[Report]) -> str:
    """A Markdown table of what came of each source, and of all."""
    sizes = [[r[name] for name in ("pairs", "words", *SPLITS)] for r in reports]
    rows = [[r["name"], r["what"], ", ".join(r["licences"][:3])] for r in reports] + [["all", "", ""]]
    sizes.append([sum(column) for column in zip(*sizes, strict=True)])
    columns = ["source", "what", "main licences", "pairs", "German words", "train", "validation", "test"]
    cells = [[*row, *(f"{n:,}" for n in numbers)] for row, numbers in zip(rows, sizes, strict=True)]
    return "\n".join(markdown_table(columns, cells, text_columns=3))
