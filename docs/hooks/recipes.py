"""The page of recipes and settings, made from the recipes that ship and from the comments beside each setting."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import get_type_hints

from kdtw_fast.training import recipes
from kdtw_fast.training.explained import own_settings


def page() -> str:
    """The whole page in Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield (
        "# Recipes and settings\n\n"
        "A recipe, TASK/NAME, is an algorithm and its settings. `kdtw train TASK/NAME setting=value` changes some of\n"
        "them; with `--settings` it shows all, resolved, and stops. Settings with a dot are parts of one: "
        "`optimiser.rate=1e-4`.\n\n"
        "## Recipes that ship\n\n| name | tasks | what |\n|---|---|---|"
    )
    tasks: dict[str, list[str]] = {}
    for name in recipes.recipe_names():
        tasks.setdefault(name.rpartition("/")[2], []).append(name.rpartition("/")[0])
    for name, within in tasks.items():
        yield f"| `{name}` | {', '.join(within)} | {recipes.summary(f'{within[0]}/{name}')} |"

    own = {algorithm: recipes.find_algorithm(algorithm)[0] for algorithm in recipes.ALGORITHMS}
    users: dict[type, list[str]] = {}
    for algorithm, settings in own.items():
        for cls in reversed(settings.__mro__):
            if is_dataclass(cls):
                users.setdefault(cls, []).append(f"`{algorithm}`")
    for cls, names in sorted(users.items(), key=lambda item: -len(item[1])):
        yield from _settings(cls, "All recipes" if len(names) == len(own) else ", ".join(names))
        if len(names) == len(own):
            parts: dict[type, list[str]] = {}
            for field, kind in get_type_hints(cls).items():
                if is_dataclass(kind):
                    parts.setdefault(kind, []).append(f"`{field}`")
            for kind, fields in parts.items():
                yield from _settings(kind, f"Parts of {', '.join(fields)}")


def _settings(cls: type, title: str) -> Iterator[str]:
    fields = list(own_settings(cls))
    if fields:
        yield f"\n## {title}\n"
        yield _cell(inspect.cleandoc(cls.__doc__ or "")) + "\n"
        yield "| setting | default | |\n|---|---|---|"
        for name, default, text in fields:
            yield f"| `{name}` | {_cell(default)} | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
