"""What `kdtw bench` measures: the models of a pair, a folder or a shape, and the other systems beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdtw_fast import peers
from kdtw_fast.machine import available_memory
from kdtw_fast.model import NativeT5
from kdtw_fast.pairs import DEFAULT_PAIR, pair_folder
from kdtw_fast.profiling import Peers
from kdtw_fast.shapes import BYTES, find_shape, random_native, random_t5
from kdtw_fast.weights import own_files

# Other systems hold the fp32 weights several times over: Hugging Face's, the converter's, the translator's.
PEER_COPIES = 4


@dataclass(frozen=True)
class BenchedModel:
    """A model by its two makers: packed for the core in given dtypes, and as Hugging Face's for the other systems."""

    native: Callable[..., NativeT5]
    reference: Callable[[], Any]


def find_models(
    pair: str | None, model: Path | None, shape: str | None, teacher_shape: str | None
) -> dict[str, BenchedModel]:
    """The models to measure by their roles: a shipped pair's, the one in a folder, or random ones of named shapes."""
    if model is not None:
        return {"model": _saved(model)}
    if shape is None:
        home = pair_folder(pair or DEFAULT_PAIR)
        return {role: _saved(home / role) for role in ("student", "teacher")}
    shapes = {"model": shape} if teacher_shape is None else {"student": shape, "teacher": teacher_shape}
    return {
        role: BenchedModel(
            partial(random_native, find_shape(name), seed=seed), partial(random_t5, find_shape(name), seed)
        )
        for seed, (role, name) in enumerate(shapes.items())
    }


def _saved(folder: Path) -> BenchedModel:
    def reference() -> Any:
        from transformers import T5ForConditionalGeneration

        return T5ForConditionalGeneration.from_pretrained(own_files(folder, folder.name), dtype=torch.float32).eval()

    return BenchedModel(partial(NativeT5.from_pretrained, folder), reference)


def find_systems(models: dict[str, NativeT5], wanted: bool | None) -> tuple[dict[str, list[str]], str]:
    """The other systems to run beside each model, and a sentence on those left out though nobody said so."""
    none: dict[str, list[str]] = {name: [] for name in models}
    if wanted is False:
        return none, ""
    device = next(iter(models.values())).device
    if reason := peers.out_of_reach(device):
        if wanted:
            raise ValueError(f"{reason}; leave out --peers")
        return none, f"Left out: other systems: {reason}."
    largest = max(model.num_bytes * 4 // BYTES[model.dtype] for model in models.values())
    free = available_memory()
    if PEER_COPIES * largest > free:
        reason = (
            f"Hugging Face and CTranslate2 would take about {PEER_COPIES * largest / 1e9:.0f} GB for these weights in "
            f"fp32, and {free / 1e9:.0f} GB are free"
        )
        if wanted:
            raise MemoryError(f"{reason}; leave out --peers")
        return none, f"Left out: {reason}."
    systems = {name: [peers.HUGGING_FACE] for name in models}
    if not peers.has_ctranslate2():
        return systems, "Left out: CTranslate2, which is not installed."
    for name, model in models.items():
        systems[name].append(peers.ctranslate2_beside(model.dtype, device))
    return systems, ""


def make_peers(model: BenchedModel, systems: list[str], dtype: str, device: str) -> Peers:
    """The other systems that decode this model, by name, on our device; each is made when its turn comes."""
    if not systems:
        return {}  # and no model for them: it may not even fit
    reference = model.reference()

    def make(system: str, new_tokens: int, threads: int) -> peers.Generate:
        if system == peers.HUGGING_FACE:
            decode = peers.hugging_face(peers.beside(reference, dtype, device), new_tokens, threads)
        else:
            decode = converted[0].generate(new_tokens, threads, compute_type=system.split()[-1], device=device)

        def generate(ids: peers.Rows) -> peers.Decoded:
            try:
                return decode(ids)
            except Exception as error:  # whatever another system fails with
                raise ValueError(
                    f"{system} cannot decode this model ({error!r}); leave it out with --no-peers"
                ) from error

        return generate

    converted = [peers.CTranslate2(reference) for system in systems if system != peers.HUGGING_FACE]
    return {system: partial(make, system) for system in systems}
