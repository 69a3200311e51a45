"""Recipes as they stand in files: the books that ship, and YAML of one's own. Read without PyTorch."""

from __future__ import annotations

import difflib
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from kdtw_fast.deprecation import warn_renamed

BOOKS = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """The shipped recipes, as `kdtw train` takes them."""
    return sorted(name for name, keys in _shipped().items() if "renamed" not in keys)


def summary(name: str) -> str:
    """A recipe's one line."""
    return str(read(name).get("summary", ""))


def check(name: str) -> None:
    """Raises as `read` does; an old name is no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(name)


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    """The keys of every shipped recipe by its name: those of its task, of its book, of its base, and its own."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(BOOKS.glob("*.yaml")):
        book = _load(path)
        for task, of_task in book["tasks"].items():
            common = OmegaConf.merge(of_task, book.get("shared", {}), {"out": "runs/${task}/${recipe}"})
            made: dict[str, Any] = {}  # of this task, before places are filled in
            for name, entry in book["recipes"].items():
                own = dict(entry)
                base, only, here = own.pop("base", None), own.pop("only", task), own.pop("in", {})
                if only != task:
                    continue
                made[name] = OmegaConf.merge(made[base] if base else common, own, here.get(task, {}))
                places = OmegaConf.create({"task": task, "recipe": name, "keys": made[name]})
                found[f"{task}/{name}"] = OmegaConf.to_container(places["keys"], resolve=True)  # type: ignore[assignment]
    return found


def _load(path: Path) -> dict[str, Any]:
    """A YAML file of settings by name, as it stands."""
    try:
        found = OmegaConf.load(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"{path} is not YAML{place}: {getattr(error, 'problem', error)}") from None
    if not isinstance(found, DictConfig):
        raise ValueError(f"{path} must hold settings by name, got a list or nothing")
    return {str(key): value for key, value in OmegaConf.to_container(found).items()}  # type: ignore[union-attr]


def read(name: str, beside: Path = Path(), seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's keys, those of its base under them; a file is looked for beside the one that names it, too.

    Raises ValueError for an unknown name (naming the nearest) and for a file that holds no settings, FileNotFoundError
    for one that is not there.
    """
    if name in _shipped():
        found = dict(_shipped()[name])
        if "renamed" in found:
            warn_renamed(f"the recipe {name}", name.split("/")[0] + "/" + found.pop("renamed"))
        return found
    path = beside / name if (beside / name).is_file() else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        close = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.6)
        meant = f"did you mean {close[0]!r}?" if close else "kdtw train --list shows them all"
        raise ValueError(f"unknown recipe {name!r}; {meant}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe file {name}; kdtw train --list shows the recipes by name")
    if str(path) in seen:
        raise ValueError(f"{path} is its own base, by way of {', '.join(seen[1:]) or 'itself'}")
    own = _load(path)
    base = own.pop("base", None)
    if base is None:
        return own
    under = read(str(base), path.parent, (*seen, str(path)))
    under.pop("summary", None)
    merged = OmegaConf.to_container(OmegaConf.merge(under, own))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}
