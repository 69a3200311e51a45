"""Debian package descriptions as a parallel corpus (German to English) and as one-line summaries.

Fetches the lists with apt into a folder of one's own (no root, nothing installed), aligns, filters, splits
and writes JSONL.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kdtw_fast.files import replacing
from kdtw_fast.loaders import jsonl_lines
from kdtw_fast.pairs import Sample as Example  # what is trained on is of the kind that ships

APT_HELPER = "/usr/lib/apt/apt-helper"
SPLITS = ("train", "validation", "test")
TASKS = ("translation", "summary")


@dataclass(frozen=True)
class Description:
    """A package description: the one-line synopsis and the raw lines of the long text."""

    synopsis: str
    lines: tuple[str, ...]


# ---------------------------------------------------------------- fetching and reading the lists


def require_apt() -> None:
    """Raise RuntimeError with one sentence where apt is missing (this builder needs Debian or a derivative)."""
    missing = [tool for tool in ("apt-get", APT_HELPER) if shutil.which(tool) is None]
    if missing:
        raise RuntimeError(
            f"the Debian data need apt, but {' and '.join(missing)} cannot be found on this machine; build the data "
            "on Debian (a container will do) and copy the JSONL files, or train on JSONL of your own"
        )


def apt_get(lists: Path, options: Iterable[str], *words: str, cwd: Path | None = None) -> str:
    """Run apt-get on package lists of our own, without root; returns its last words if it fails, else ""."""
    require_apt()
    own = (f"Dir::State::Lists={lists.resolve()}", "APT::Sandbox::User=", *options)
    command = ["apt-get", *(word for option in own for word in ("-o", option)), "-q", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
    return said[-1] if done.returncode else ""


def fetch_lists(folder: Path) -> None:
    """Let apt fetch package lists and their German and English descriptions into `folder`.

    Raises RuntimeError with apt's last words if it fails; the system's own lists are not touched.
    """
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    failed = apt_get(folder, ["Acquire::Languages=de,en"], "update")
    if failed or not list(folder.glob("*_i18n_Translation-de*")):
        reason = failed or "there are none"
        raise RuntimeError(f"apt-get could not fetch the German descriptions into {folder}: {reason}")


def read_list(path: Path) -> str:
    """The text of one apt list, whatever its compression (apt itself decompresses it)."""
    if path.suffix in (".lz4", ".xz", ".gz", ".bz2", ".zst"):
        require_apt()
        return subprocess.run([APT_HELPER, "cat-file", str(path)], capture_output=True, check=True).stdout.decode()
    return path.read_text(encoding="utf-8")


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Fields of each stanza of an apt list; continuation lines keep their leading blank."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                if name:
                    fields[name] += "\n" + line
            elif ":" in line:
                name, value = line.split(":", 1)
                fields[name] = value.strip()
        if fields:
            yield fields


def read_descriptions(lists: Path, language: str) -> dict[str, Description]:
    """Descriptions in `language` by the MD5 of the English original (Debian's key between languages)."""
    found: dict[str, Description] = {}
    key = f"Description-{language}"
    for path in sorted(lists.glob(f"*_i18n_Translation-{language}*")):
        for fields in stanzas(read_list(path)):
            if key in fields and "Description-md5" in fields:
                first, *rest = fields[key].split("\n")
                found.setdefault(fields["Description-md5"], Description(first, tuple(rest)))
    return found


def read_owners(lists: Path) -> dict[str, set[str]]:
    """Source packages that carry a description, by its MD5."""
    owners: dict[str, set[str]] = {}
    for path in sorted(lists.glob("*_binary-*_Packages*")):
        for fields in stanzas(read_list(path)):
            if "Description-md5" in fields:
                source = fields.get("Source", fields["Package"]).split(" ")[0]
                owners.setdefault(fields["Description-md5"], set()).add(source)
    return owners


# ---------------------------------------------------------------- alignment

_BULLET = re.compile(r"^\s+(?:[*+•o–-]|\d{1,2}[.)])\s+(?=\S)")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"»“)]*\s+(?=[\"„«(]?[A-ZÄÖÜ0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:z|B|u|a|d|h|i|e|g|o|ä|s|v|Abk|bzw|ca|cf|Co|Dr|etc|evtl|ggf|inkl|Inc|incl|Jr|max|min|Mr|Mrs|Nr|No|Prof|"
    r"resp|sog|St|usw|vgl|vs|[A-Z])|\b\d{1,2})\.$"
)


def tidy(text: str) -> str:
    """NFC, single spaces, no control characters."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def segments(lines: Iterable[str]) -> list[str]:
    """Paragraphs and list items of a long description, each joined into one line.

    Verbatim lines (two blanks or more) without a bullet that follow no list item stay segments of their own.
    """
    out: list[str] = []
    start = True
    in_item = False
    for line in lines:
        if line.strip() in (".", ""):
            start, in_item = True, False
        elif _BULLET.match(line):
            out.append(_BULLET.sub("", line))
            start, in_item = False, True
        elif line.startswith("  ") and not in_item:
            out.append(line)
            start = True
        elif start or (in_item and not line.startswith("  ")):
            out.append(line)
            start, in_item = False, False
        else:
            out[-1] += " " + line
    return [text for text in map(tidy, out) if text]


def sentences(text: str) -> list[str]:
    """Sentences of a segment; abbreviations and ordinals do not end one."""
    out: list[str] = []
    begin = 0
    for match in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text[begin : match.start()]):
            continue
        out.append(text[begin : match.end()].strip())
        begin = match.end()
    out.append(text[begin:].strip())
    return [sentence for sentence in out if sentence]


def aligned_pairs(german: Description, english: Description) -> Iterator[tuple[str, str]]:
    """Sentence pairs (German, English): synopsis to synopsis, then 1:1 where both sides cut alike.

    A description whose segments do not match one to one gives its synopsis only; a segment whose sentences
    do not match gives itself as one pair.
    """
    yield tidy(german.synopsis), tidy(english.synopsis)
    sides = segments(german.lines), segments(english.lines)
    if len(sides[0]) != len(sides[1]):
        return
    for source, target in zip(*sides, strict=True):
        cut = sentences(source), sentences(target)
        if len(cut[0]) == len(cut[1]):
            yield from zip(*cut, strict=True)
        else:
            yield source, target


ENGLISH = "the of and is that for with this are it from you your which can be by an"
GERMAN = "der die das und ist für mit dem den des ein eine einer von zu dieses sie auf im werden wird"
_ENGLISH, _GERMAN = frozenset(ENGLISH.split(" ")), frozenset(GERMAN.split(" "))


def looks_aligned(source: str, target: str, max_words: int = 60) -> bool:
    """Whether a German–English pair looks like a translation: lengths, numbers, languages, not a copy."""
    words = source.split(), target.split()
    if not all(2 <= len(side) <= max_words for side in words):
        return False
    if any(sum(c.isalpha() for c in side) < 0.6 * len(side.replace(" ", "")) for side in (source, target)):
        return False
    ratio = (len(source) + 5) / (len(target) + 5)
    if not 0.6 <= ratio <= 2.0:
        return False
    if text_key(source) == text_key(target):
        return False
    lower = [[word.strip(".,;:()\"'").lower() for word in side] for side in words]
    if sum(w in _ENGLISH for w in lower[0]) > sum(w in _GERMAN for w in lower[0]):
        return False
    if sum(w in _GERMAN for w in lower[1]) > sum(w in _ENGLISH for w in lower[1]):
        return False
    shared = sum((Counter(lower[0]) & Counter(lower[1])).values())
    if shared > 0.7 * min(map(len, words)) and len(words[0]) > 4:
        return False
    numbers = [set(re.findall(r"\d{2,}", side)) for side in (source, target)]
    return len(numbers[0] ^ numbers[1]) <= 1


# ---------------------------------------------------------------- splits


def text_key(text: str) -> str:
    """What makes two texts identical: letters and digits, without case, punctuation and blanks."""
    return "".join(c for c in text.casefold() if c.isalnum())


def grouped(sets: Iterable[Iterable[str]]) -> dict[str, str]:
    """The smallest name of each name's group; sets that share a name are of one group."""
    members: dict[str, set[str]] = {}
    for names in sets:
        joined = set(names).union(*(members.get(name, ()) for name in names))
        members |= dict.fromkeys(joined, joined)
    return {name: min(group) for name, group in members.items()}


def keyed_hash(text: str, key: str) -> bytes:
    """Eight bytes that put texts into an order of the key's own."""
    return hashlib.blake2b(text.encode(), key=key.encode(), digest_size=8).digest()


def split_of(group: str, key: str, held_out: float) -> str:
    """The split of a group of source packages: a hash keyed with `key`; `held_out` for validation and test each."""
    u = int.from_bytes(keyed_hash(group, key), "big") / 2.0**64
    return "test" if u < held_out else "validation" if u < 2 * held_out else "train"


def make_splits(
    examples: Iterable[Example], groups: Mapping[str, str], key: str = "kdtw", held_out: float = 0.025
) -> dict[str, list[Example]]:
    """Deterministic splits: no group of packages and no identical text, on either side, in two of them.

    `groups` names the group of a package, which is its own where it says nothing.
    A text that several groups use stays in train and leaves test and validation (test before validation).
    Exact duplicates are kept once.
    """
    ordered = sorted(set(examples), key=lambda e: (e.package, e.source, e.target))
    by_split: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example in ordered:
        by_split[split_of(groups.get(example.package, example.package), key, held_out)].append(example)
    taken: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    out: dict[str, list[Example]] = {}
    for split in ("train", "test", "validation"):
        kept = []
        keys: set[str] = set()
        for example in by_split[split]:
            both = text_key(example.source), text_key(example.target)
            if (split == "train" or taken.isdisjoint(both)) and both not in pairs:
                kept.append(example)
                keys.update(both)
                pairs.add(both)
        taken |= keys
        out[split] = kept
    return {split: out[split] for split in SPLITS}


# ---------------------------------------------------------------- the builder


def build(lists: Path, out: Path, key: str = "kdtw", held_out: float = 0.025) -> dict[str, dict[str, int]]:
    """Write OUT/{translation,summary}/{train,validation,test}.jsonl from apt's lists; returns the counts.

    Raises RuntimeError if `lists` holds no German or no English descriptions.
    """
    german, english, owners = read_descriptions(lists, "de"), read_descriptions(lists, "en"), read_owners(lists)
    if not german or not english or not owners:
        raise RuntimeError(
            f"{lists} holds {len(german)} German descriptions, {len(english)} English ones and {len(owners)} packages; "
            "fetch all three with `python -m kdtw_fast.training.debian`"
        )
    groups = grouped(owners.values())
    examples: dict[str, list[Example]] = {task: [] for task in TASKS}
    for md5, description in english.items():
        if md5 not in owners:
            continue
        package = min(owners[md5])
        if md5 in german:
            for source, target in aligned_pairs(german[md5], description):
                if looks_aligned(source, target):
                    examples["translation"].append(Example(source, target, package))
        text, synopsis = " ".join(segments(description.lines)), tidy(description.synopsis)
        if 8 <= len(text.split()) <= 300 and 2 <= len(synopsis.split()) <= 25:
            examples["summary"].append(Example(text, synopsis, package))
    counts: dict[str, dict[str, int]] = {}
    for task in TASKS:
        counts[task] = {}
        for split, rows in make_splits(examples[task], groups, key, held_out).items():
            write_jsonl(out / task / f"{split}.jsonl", rows)
            counts[task][split] = len(rows)
    return counts


def write_jsonl(path: Path, rows: Iterable[Example]) -> None:
    """One JSON object a line: source, target, package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[Example]:
    """Examples of a JSONL file; ValueError names the file and line of a row without source or target."""
    rows = []
    for number, line in jsonl_lines(path):
        try:
            row = json.loads(line)
            rows.append(Example(row["source"], row["target"], row.get("package", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number}: expected a JSON object with source and target, got {line.strip()[:80]!r}"
            ) from error
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, default=Path("runs/apt-lists"), help="folder for apt's lists")
    parser.add_argument("--out", type=Path, default=Path("runs/debian"), help="folder for the JSONL files")
    parser.add_argument("--no-fetch", action="store_true", help="use the lists that are already there")
    parser.add_argument("--key", default="kdtw", help="key of the hash that splits source packages")
    parser.add_argument(
        "--held-out", type=float, default=0.025, help="fraction of packages for validation, and for test"
    )
    args = parser.parse_args()
    if not args.no_fetch:
        fetch_lists(args.lists)
    print(json.dumps(build(args.lists, args.out, args.key, args.held_out), indent=2))


if __name__ == "__main__":
    main()
