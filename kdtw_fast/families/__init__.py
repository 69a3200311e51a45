"""Families of models: a table of values and a map of names each. The core knows none of them (docs/families.md).

May depend on transformers' configs, never on decoders.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdtw_fast.families import bart, gemma, llama, t5
from kdtw_fast.families.description import Description, Fields, Part, Tensors

# model_type of a Hugging Face config: what describes such a model.
FAMILIES: dict[str, Callable[[Fields, Tensors], Description]] = {
    **dict.fromkeys(("t5", "mt5", "umt5"), t5.describe),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "m2m_100"), bart.describe),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"), llama.describe),
    **dict.fromkeys(("gemma2", "gemma3_text", "t5gemma"), gemma.describe),
}

__all__ = ["FAMILIES", "Description", "Fields", "Part", "Tensors", "describe", "unknown_kind"]


def unknown_kind(name: str, kind: object) -> str:
    """What is said of a model of an unknown model_type: which are known, and the nearest."""
    known = ", ".join(repr(each) for each in FAMILIES)
    close = difflib.get_close_matches(str(kind), FAMILIES, n=1)
    near = f"; the nearest is {close[0]!r}" if close else ""
    return f"{name}: model_type is {kind!r}; the core decodes {known}{near}"


def describe(config: Mapping[str, Any], tensors: Tensors, name: str, ignored: Iterable[str] = ()) -> Description:
    """What the core is told of a model.

    Args:
        config: the fields of a Hugging Face config.
        tensors: its tensors by Hugging Face's names.
        name: what messages call the model.
        ignored: config fields that are known not to change the maths.

    Raises:
        ValueError: no family is known for it, or a field or tensor is not what the family knows, naming it.
    """
    kind = config.get("model_type", "t5")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(unknown_kind(name, kind))
    fields = Fields(config, name, tensors, ignored)
    model = FAMILIES[kind](fields, tensors)
    if "teacher_token_embedding" in tensors:
        shape = tensors["teacher_token_embedding"]().shape
        model.spec["teachers"] = shape[0] if len(shape) == 2 else 1
        scale = model.mark_scale
        model.parts["mark"] = Part("teacher_token_embedding", (lambda x: x * scale) if scale != 1.0 else None)
    stored = {part.stored for part in model.parts.values() if isinstance(part, Part)}
    missing = sorted(stored - set(tensors))
    adapted = any(".lora_" in each for each in tensors)
    adapter = "; merge the adapter into the model with merge_and_unload() first" if adapted else ""
    if missing:
        raise ValueError(
            f"{name}: tensor '{missing[0]}' is missing from the checkpoint ({len(missing)} such tensors){adapter}"
        )
    extra = sorted(set(tensors) - stored - model.unused)
    if extra:
        raise ValueError(
            f"{name}: tensor '{extra[0]}' is not part of a {kind} with this config ({len(extra)} such tensors){adapter}"
        )
    return model
