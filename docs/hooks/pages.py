"""What MkDocs is told beyond mkdocs.yml: pages made from the code, and Markdown inside <details>."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from rich.text import Text

from kdtw_fast.cli import app

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs loads hooks by their path
import recipes


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made from the code."""
    files.append(File.generated(config, "reference/cli.md", content="\n".join(_commands())))
    files.append(File.generated(config, "reference/recipes.md", content=recipes.page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """GitHub renders Markdown inside <details>; Python-Markdown wants to be asked."""
    return markdown.replace("<details>", '<details markdown="1">')


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Fails where a page would fetch something from elsewhere."""
    fetched = re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="https?://[^>]+>', output)
    if fetched:
        raise PluginError(f"{page.file.src_uri} would fetch {fetched[0]}")
    return output


def _commands() -> Iterator[str]:
    yield "# Commands\n\nMade from the command line itself: `kdtw COMMAND --help` says the same.\n"
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        yield f"## kdtw {name}\n"
        yield f"{_plain(command.help)}\n"
        yield from _parameters(command.params)
        if command.epilog:
            yield f"```text\n{_plain(command.epilog)}\n```\n"


def _parameters(parameters: list[Any]) -> Iterator[str]:
    panels: dict[str, list[str]] = {}
    for p in parameters:
        if getattr(p, "hidden", False) or p.name == "help":
            continue
        names = [*p.opts, *p.secondary_opts] if p.param_type_name == "option" else [(p.metavar or p.name).upper()]
        default = "" if p.default in (None, False, []) or callable(p.default) else f" *Default: {p.default}.*"
        line = f"- {', '.join(f'`{name}`' for name in names)}: {_line(p.help)}{default}"
        panels.setdefault(getattr(p, "rich_help_panel", None) or "Options", []).append(line)
    for panel, lines in panels.items():
        yield f"**{panel}**\n"
        yield "\n".join(lines) + "\n"


def _plain(text: str | None) -> str:
    return Text.from_markup(text or "").plain.replace("\b", "").strip()


def _line(text: str | None) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", " ".join(_plain(text).split())).replace("<", "&lt;")
