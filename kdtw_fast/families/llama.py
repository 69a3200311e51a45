"""Llama and the decoders built like it: Mistral, Qwen2, Qwen3, SmolLM3 and OLMo 2."""

from __future__ import annotations

from typing import Any

import torch

from kdtw_fast.families.description import Description, Fields, Tensors
from kdtw_fast.families.rotary import rotary


def describe(fields: Fields, tensors: Tensors) -> Description:
    """The model of such a config and tensors."""
    fields = fields.completed("num_hidden_layers")
    kind = fields.get("model_type")
    size, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    layers = fields.layers("num_hidden_layers")
    default_bias = kind == "qwen2"  # of queries, keys and values; that it has one is no field of its config
    attention_bias, feed_forward_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    stack: dict[str, Any] = {
        "layers": layers,
        "model_size": size,
        "heads": heads,
        "key_heads": fields.integer("num_key_value_heads", heads),
        "head_size": fields.size("head_dim", max(size // heads, 1)),
        "feed_forward": fields.integer("intermediate_size"),
        "function": fields.function("hidden_act"),
        "gated": True,
        "epsilon": fields.number("rms_norm_eps"),
        "windows": windows(fields, layers),
    }
    stack["query_norm_whole"] = kind == "olmo2"
    stack["attention_scale"] = stack["head_size"] ** -0.5
    model = Description({"vocabulary": fields.integer("vocab_size"), "decoder": stack})
    rotary(model, fields, "decoder")
    if kind == "smollm3":
        unrotated(model, fields, layers)
    model.embeddings(tensors, fields, ("model.embed_tokens",), "lm_head", False)
    model.weight("decoder.norm", "model.norm")
    for i in range(layers):
        stored, made = f"model.layers.{i}", f"decoder.{i}"
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
            biased = bool(attention_bias) or (default_bias and name != "output")
            model.linear(f"{made}.self.{name}", f"{stored}.self_attn.{letter}_proj", biased)
        for name, projection in (("gate", "gate"), ("in", "up"), ("out", "down")):
            model.linear(f"{made}.feed_forward.{name}", f"{stored}.mlp.{projection}_proj", bool(feed_forward_bias))
        if kind in ("qwen3", "olmo2"):
            model.weight(f"{made}.self.query_norm", f"{stored}.self_attn.q_norm")
            model.weight(f"{made}.self.key_norm", f"{stored}.self_attn.k_norm")
        if kind == "olmo2":  # norms stand over what the parts give
            model.weight(f"{made}.self.inside", f"{stored}.post_attention_layernorm")
            model.weight(f"{made}.feed_forward.inside", f"{stored}.post_feedforward_layernorm")
        else:
            model.weight(f"{made}.self.before", f"{stored}.input_layernorm")
            model.weight(f"{made}.feed_forward.before", f"{stored}.post_attention_layernorm")
    fields.only("pretraining_tp", 1)
    fields.only("rope_interleaved", False)
    fields.only("use_mrope", False)
    fields.refuse_others(
        (
            "max_position_embeddings",
            "use_sliding_window",
            "max_window_layers",
            "no_rope_layer_interval",
            "is_llama_config",
            "transformers.js_config",
        )
    )
    return model


def windows(fields: Fields, layers: int) -> list[int]:
    """Of each layer, the sliding window that its config means; 0 = it sees everything."""
    width, types = fields.get("sliding_window"), fields.get("layer_types")
    if types is None:  # Mistral's layers are alike, and others without types have no windows
        slides = width is not None and fields.get("model_type") == "mistral"
        types = ["sliding_attention" if slides else "full_attention"] * layers
    if not isinstance(types, list) or len(types) != layers:
        raise ValueError(f"{fields.name}: config field layer_types must name {layers} layers, got {types!r}")
    for each in types:
        if each not in ("full_attention", "sliding_attention"):
            raise ValueError(
                f"{fields.name}: config field layer_types has {each!r}; the core knows 'full_attention' and "
                "'sliding_attention'"
            )
    return [fields.integer("sliding_window") if each == "sliding_attention" else 0 for each in types]


def unrotated(model: Description, fields: Fields, layers: int) -> None:
    """SmolLM3 leaves some layers without rotary positions: their frequencies are zero."""
    rotated = fields.get("no_rope_layers", [])
    if not isinstance(rotated, list) or len(rotated) != layers:
        raise ValueError(f"{fields.name}: config field no_rope_layers must have {layers} entries, got {rotated!r}")
    frequencies = model.parts["decoder.rotary.0"]
    assert isinstance(frequencies, torch.Tensor)
    model.parts["decoder.rotary.1"] = torch.zeros_like(frequencies)
    model.spec["decoder"]["rotary_kind"] = [0 if flag else 1 for flag in rotated]
    model.spec["decoder"]["rotary_scales"].append(1.0)
