"""The page of recipes and settings, made from the recipes that ship and from the comments beside each setting."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass

from kdtw_fast.training import recipes, settings

_FIELD = re.compile(r"    (\w+): ([^=#]+?) = (.+?)(?:  # (.*))?$")


def page() -> str:
    """The whole page in Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield (
        "# Recipes and settings\n\n"
        "A recipe names an algorithm; its other keys are settings of that algorithm.\n"
        "`kdtw train RECIPE setting=value` changes some, `kdtw train RECIPE --settings` shows all, resolved.\n\n"
        "## Recipes that ship\n\n| recipe | |\n|---|---|"
    )
    for name in recipes.recipe_names():
        yield f"| `{name}` | {recipes.summary(name)} |"
    parts = [cls for _, cls in inspect.getmembers(settings, inspect.isclass) if is_dataclass(cls)]
    shared = {cls for cls in parts if cls.__module__ == settings.__name__}
    seen: set[type] = set()
    for algorithm in recipes.ALGORITHMS:
        own = recipes.find_algorithm(algorithm)[0]
        for cls in reversed(own.__mro__):
            if is_dataclass(cls) and cls not in seen:
                seen.add(cls)
                yield from _settings(cls, algorithm if cls is own else "")
    for cls in sorted(shared - seen, key=lambda cls: cls.__name__):
        yield from _settings(cls, f"{cls.__name__.lower()}.…")


def _settings(cls: type, of: str) -> Iterator[str]:
    fields = list(_fields(cls))
    if not fields:
        return
    everybody = "several algorithms" if cls.__bases__ != (object,) else "all"
    yield f"\n## {f'`{of}`' if of else f'Shared by {everybody}'}\n"
    yield inspect.cleandoc(cls.__doc__ or "").replace("<", "&lt;") + "\n"
    yield "| setting | default | |\n|---|---|---|"
    for name, default, text in fields:
        yield f"| `{name}` | {default} | {text} |"


def _fields(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and comment of the settings that a class adds."""
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        match = _FIELD.match(line)
        if match:
            name, _, default, beside = match.groups()
            text = beside or (" ".join(above) if " ".join(above).endswith(".") else "")
            default = "" if "field(" in default else f"`{default}`"
            yield name, default.replace("|", "\\|"), text.replace("|", "\\|").replace("<", "&lt;")
        above = [*above, line.strip()[2:]] if line.strip().startswith("# ") else []
