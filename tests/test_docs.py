"""The examples of README and docs: Python runs, shown outputs are real, and commands name what exists."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from kdtw_fast.training import recipes
from typer.testing import CliRunner

from kdtw_fast.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("training/*.md")]
)
RUN = [
    ROOT / "README.md",
    ROOT / "docs/index.md",
    ROOT / "docs/concepts.md",
    ROOT / "docs/serving.md",
    ROOT / "docs/huggingface.md",
    *sorted((ROOT / "docs/howto").glob("*.md")),
]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.filterwarnings("error:.*is deprecated; use:DeprecationWarning")  # docs use the names of today


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def examples(page: Path) -> Iterator[tuple[str, str, str | None]]:
    """Language, code and, where a ``text`` block follows at once, the output that the page shows for it."""
    text = page.read_text(encoding="utf-8")
    blocks = list(FENCE.finditer(text))
    for block, following in zip(blocks, [*blocks[1:], None]):
        shown = following is not None and following[1] == "text" and not text[block.end() : following.start()].strip()
        yield block[1], block[2], following[2] if shown and following else None


@pytest.mark.parametrize("page", RUN, ids=named)
def test_examples_run_and_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code, shown in examples(page):
        if language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, named(page), "exec"), names)
            output = printed.getvalue()
        elif language == "bash" and shown is not None:
            result = CliRunner().invoke(app, shlex.split(code.replace("\\\n", " "))[1:])
            assert result.exit_code == 0, result.output
            output = result.stdout
        else:
            continue
        if shown is not None:
            assert [line.rstrip() for line in output.splitlines()] == [line.rstrip() for line in shown.splitlines()], (
                code
            )


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines of a page's code blocks, as words up to a pipe or a redirection."""
    for line in re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8")).splitlines():
        line = re.sub(r"^(?:    |\$ )", "", line)
        if re.match(r"(?:kdtw|make|python -m) ", line):
            words = shlex.split(line, comments=True)
            yield words[: next((i for i, word in enumerate(words) if word in ("|", ">", ";", "&&")), len(words))]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_name_what_exists(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rules = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    for words in commands(page):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif words[0] == "python":
            assert importlib.util.find_spec(words[2]) is not None, words
        elif words[1:2] and words[1].islower():
            assert words[1] in known, words
            options = {name for p in known[words[1]].params for name in (*p.opts, *p.secondary_opts)}
            given = {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
            assert given <= options | {"--help", "-h"}, (words, given - options)
            if words[1] == "train" and words[2:] and not re.match(r"-|.*[$A-Z{].*|.*\.yaml$", words[2]):
                recipes.resolve(words[2], [word for word in words[3:] if "=" in word and not word.startswith("-")])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_name_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:csrc|kdtw_fast|training|gpu_proof|tests|bench|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
