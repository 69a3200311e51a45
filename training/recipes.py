"""Recipes: an algorithm and its settings in YAML, changed from the command line, checked, and run.

A recipe names its `algorithm`; all other keys are fields of that algorithm's `Settings`. `base` names a recipe to start
from. The shipped ones, named TASK/RECIPE, stand in the books of recipes/ (training/README.md says how).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from kdtw_fast.deprecation import warn_renamed
from kdtw_fast.options import nearest

from .algorithm import Learning
from .books import read
from .books import recipe_names as recipe_names
from .books import summary as summary
from .memory import keep_freed_memory
from .models import check_place
from .number_format import decided
from .settings import RENAMED, RunSettings
from .trainer import Outcome, Trainer, alone_in

# Each is a module, imported when a recipe asks for it: its `build` takes its `Settings`.
ALGORITHMS = ("fit", "behaviour_cloning", "path_consistency", "gkd", "skd", "minillm")


@dataclass(frozen=True)
class Recipe:
    """An algorithm's name and its settings, resolved and checked."""

    algorithm: str
    settings: RunSettings

    def build(self) -> Learning:
        """The algorithm, ready for its first batch: models loaded, data tokenised."""
        return find_algorithm(self.algorithm)[1](decided(self.settings))


def find_algorithm(name: str) -> tuple[type[RunSettings], Callable[[Any], Learning]]:
    """The settings class and the builder of an algorithm; ValueError for an unknown one, naming the nearest."""
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}{nearest(name, ALGORITHMS)}")
    module = importlib.import_module(f"{__package__}.{name}")
    return module.Settings, module.build


def resolve(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file or of a shipped name, with overrides such as "steps=10" or "student.d_model=64".

    Raises ValueError for an unknown recipe, algorithm or setting (naming the nearest known one) and for a value of the
    wrong type or out of range, FileNotFoundError for a file that is not there.
    """
    given = read(str(name))
    algorithm = given.pop("algorithm", None)
    if not isinstance(algorithm, str):
        raise ValueError(f"{name} names no algorithm; add `algorithm: NAME`, one of {', '.join(ALGORITHMS)}")
    schema: DictConfig = OmegaConf.structured(find_algorithm(algorithm)[0])
    merged = _merged(schema, OmegaConf.create(given), f"recipe {name}")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ValueError(f"an override is written setting=value, got {override!r}")
        try:
            change = OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException):
            raise ValueError(f"cannot read the override {override!r}; put quotes around its value") from None
        merged = _merged(merged, change, f"override {override!r}")
    try:
        settings = OmegaConf.to_object(merged)
    except (ValueError, TypeError) as error:
        raise type(error)(f"recipe {name}: {error}") from None
    assert isinstance(settings, RunSettings)
    return Recipe(algorithm, settings)


def to_yaml(recipe: Recipe, base: str | None = None) -> str:
    """The resolved recipe, every setting in it, or what it has other than a shipped `base`; `kdtw train` takes both."""
    own = {"algorithm": recipe.algorithm, **asdict(recipe.settings)}
    if base is not None:
        under = resolve(base)
        theirs = {"algorithm": under.algorithm, **asdict(under.settings), "summary": ""}  # which is not inherited
        own = {"base": base, **_changes(own, theirs)}
    return OmegaConf.to_yaml(OmegaConf.create(own))


def _changes(own: dict[str, Any], under: dict[str, Any]) -> dict[str, Any]:
    """What differs; groups of settings with nothing in them are left out."""
    found = {k: _changes(v, under[k]) if isinstance(v, dict) else v for k, v in own.items() if v != under.get(k)}
    return {k: v for k, v in found.items() if v != {}}


def train(recipe: Recipe | str | Path, *overrides: str, quiet: bool = False) -> Outcome:
    """Run a recipe (or its name, with overrides) to its end, continuing what its `out` holds; see Trainer."""
    if not isinstance(recipe, Recipe):
        recipe = resolve(recipe, overrides)
    elif overrides:
        raise TypeError(f"overrides go with a recipe's name or file, got a Recipe and {overrides!r}")
    if recipe.settings.threads:
        torch.set_num_threads(recipe.settings.threads)
    if recipe.settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device={recipe.settings.device}, but torch sees no CUDA device here; device=cpu works anywhere"
        )
    if not recipe.settings.out:
        raise ValueError("out is empty; name the folder for checkpoints and models (out=runs/NAME)")
    try:
        torch.device(recipe.settings.device)
    except RuntimeError:
        raise ValueError(f"device={recipe.settings.device} is none that torch knows; set cpu or cuda") from None
    for setting, place in recipe.settings.places().items():
        check_place(place, setting)
    keep_freed_memory()
    with alone_in(Path(recipe.settings.out)):
        recipe = replace(recipe, settings=decided(recipe.settings))
        return Trainer(recipe.build(), recipe.settings, recipe.algorithm, quiet).run()


def _merged(schema: DictConfig, change: Any, origin: str) -> DictConfig:
    for old in [name for name in RENAMED if name in change and name not in schema and RENAMED[name] in schema]:
        warn_renamed(f"{origin}: the setting {old}", RENAMED[old])
        change[RENAMED[old]] = change.pop(old)
    for key in _nulls(OmegaConf.to_container(change)):
        known = OmegaConf.select(schema, key)
        if isinstance(known, str):
            OmegaConf.update(change, key, "")
            continue
        try:
            alone: Any = None
            for part in reversed(key.split(".")):
                alone = {part: alone}
            OmegaConf.merge(schema, alone)
        except ConfigKeyError:  # no setting
            continue
        except OmegaConfBaseException:
            wanted = "settings by name" if isinstance(known, DictConfig) else f"such as {key}={known}"
            raise ValueError(f"{origin}: {key} is empty; give a value, {wanted}, or leave it out") from None
    try:
        merged = OmegaConf.merge(schema, change)
    except ConfigKeyError as error:
        *parents, key = str(error.full_key).split(".")
        known = OmegaConf.select(schema, ".".join(parents)) if parents else schema
        raise ValueError(f"{origin}: there is no setting {error.full_key!r}{nearest(key, map(str, known))}") from None
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise ValueError(f"{origin}: {key}{str(error).splitlines()[0]}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _nulls(change: Any, above: str = "") -> Iterator[str]:
    """The full names of settings that were given nothing, which YAML reads as null."""
    for name, value in change.items():
        if value is None:
            yield f"{above}{name}"
        elif isinstance(value, dict):
            yield from _nulls(value, f"{above}{name}.")
