"""Rotary positions (Su et al. 2021) and their scalings, by the frequencies that transformers itself computes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

import torch

from kdtw_fast.families.description import Description, Fields

# Scalings whose frequencies do not depend on how long a text is.
_FIXED = ("default", "linear", "llama3", "yarn")
_NUMBERS = ["rope_theta", "factor", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"]
_NUMBERS += ["original_max_position_embeddings", "partial_rotary_factor", "mscale", "mscale_all_dim"]


def rotary(model: Description, fields: Fields, stack: str, kinds: Sequence[str] = ()) -> None:
    """Gives a stack its rotary frequencies.

    Args:
        model: the description, with the stack's spec; gets tensors and spec fields.
        fields: the stack's config.
        stack: "decoder" or "encoder".
        kinds: where layers of different types rotate differently (Gemma 3), the types in the core's order.

    Raises:
        ValueError: a scaling that the core does not know, or a number that is none, naming it.
    """
    config = fields.as_transformers()
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rope_local_base_freq"):
        fields.get(key)
    parameters = config.rope_parameters
    for each in parameters.values() if kinds else [parameters]:
        kind = each.get("rope_type", "default") if isinstance(each, Mapping) else each
        if kind not in _FIXED:
            known = ", ".join(f"'{each}'" for each in _FIXED)
            raise ValueError(f"{fields.name}: config field rope_type is {kind!r}; the core knows {known}")
        if isinstance(each, Mapping):
            for key, value in each.items():
                _check(fields.name, key, value)
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    (name,) = [each for each in vars(module) if each.endswith("RotaryEmbedding")]
    with torch.device("cpu"):
        try:
            embedding = getattr(module, name)(config)
        except Exception as error:  # whatever is raised for numbers that do not go together
            raise ValueError(
                f"{fields.name}: transformers makes no rotary positions of {parameters!r} ({error})"
            ) from None
    prefixes = [f"{kind}_" for kind in kinds] or [""]
    for i, prefix in enumerate(prefixes):
        turns = getattr(embedding, f"{prefix}inv_freq").float()
        if not bool((turns <= 64).all()):  # the core's angles have 30 bits before the point
            raise ValueError(f"{fields.name}: {parameters!r} turns positions by more than 64 radians each")
        model.parts[f"{stack}.rotary.{i}"] = turns
    frequencies = model.parts[f"{stack}.rotary.0"]
    assert isinstance(frequencies, torch.Tensor)
    scales = [float(getattr(embedding, f"{prefix}attention_scaling")) for prefix in prefixes]
    model.spec[stack] |= {"rotary_pairs": len(frequencies), "rotary_scales": scales}


def _check(model: str, key: str, value: object) -> None:
    """ValueError for what a number of rotary positions cannot be."""
    if key not in _NUMBERS or value is None:
        return
    most = 1.0 if key == "partial_rotary_factor" else sys.float_info.max
    if key.startswith("mscale") and value in (0, 0.0) and not isinstance(value, bool):  # which says nothing
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        bound = ", at most 1" if most == 1.0 else ""
        raise ValueError(f"{model}: config field {key} must be a number above 0{bound}, got {value!r}")
