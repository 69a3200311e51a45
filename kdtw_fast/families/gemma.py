"""Gemma 2, Gemma 3 (its text model) and T5Gemma."""

from __future__ import annotations

import math
from typing import Any

from kdtw_fast.families.description import Description, Fields, Part, Tensors
from kdtw_fast.families.llama import windows
from kdtw_fast.families.rotary import rotary

_WITHOUT_EFFECT = (
    "max_position_embeddings",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "hidden_act",
    "attn_logit_softcapping",
)


def describe(fields: Fields, tensors: Tensors) -> Description:
    """The model of a Gemma 2's, Gemma 3's or T5Gemma's config and tensors."""
    if fields.get("model_type") != "t5gemma":
        fields = fields.completed("num_hidden_layers")
        model = Description({"vocabulary": fields.integer("vocab_size")})
        stack(model, fields, "decoder", "model")
        model.spec["head_cap"] = cap(fields, "final_logit_softcapping")
        model.embeddings(tensors, fields, ("model.embed_tokens",), "lm_head", True)
        fields.refuse_others(_WITHOUT_EFFECT)
        return model
    for name in ("encoder", "decoder"):
        fields.inner(name).layers("num_hidden_layers")
    fields = fields.completed()
    model = Description({"vocabulary": fields.inner("decoder").integer("vocab_size")})
    for name in ("encoder", "decoder"):
        inner = fields.inner(name)
        stack(model, inner, name, f"model.{name}")
        if name == "decoder":
            model.spec["head_cap"] = cap(inner, "final_logit_softcapping")
        inner.get("final_logit_softcapping")
        inner.only("vocab_size", model.spec["vocabulary"])
        inner.only("cross_attention_hidden_size", model.spec["encoder"]["model_size"])
        inner.refuse_others((*_WITHOUT_EFFECT, "tie_word_embeddings"))
    model.mark_scale = model.spec["decoder"]["embedding_scale"]
    model.parts["encoder.embedding"] = Part("model.encoder.embed_tokens.weight")
    model.embeddings(tensors, fields, ("model.decoder.embed_tokens",), "lm_head.out_proj", True)
    fields.refuse_others(("classifier_dropout_rate", "vocab_size"))
    return model


def cap(fields: Fields, key: str) -> float:
    """A soft cap; 0 where there is none."""
    return 0.0 if fields.get(key) is None else fields.number(key)


def stack(model: Description, fields: Fields, name: str, stored: str) -> None:
    """One stack of the model, from its config's fields and the tensors below ``stored``."""
    size, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    layers, bias = fields.layers("num_hidden_layers"), bool(fields.flag("attention_bias", False))
    gemma3 = fields.get("model_type") == "gemma3_text"
    spec: dict[str, Any] = {
        "layers": layers,
        "model_size": size,
        "heads": heads,
        "key_heads": fields.integer("num_key_value_heads", heads),
        "head_size": fields.size("head_dim"),
        "feed_forward": fields.integer("intermediate_size"),
        "function": fields.function("hidden_activation"),
        "gated": True,
        "epsilon": fields.number("rms_norm_eps"),
        "embedding_scale": math.sqrt(size),
        "attention_scale": fields.number("query_pre_attn_scalar") ** -0.5,
        # transformers reads Gemma 3's and does not use it.
        "attention_cap": 0.0 if gemma3 else cap(fields, "attn_logit_softcapping"),
        "windows": windows(fields, layers),
    }
    model.spec[name] = spec
    fields.only("use_bidirectional_attention", None, False)
    if gemma3:
        slides = [window > 0 for window in spec["windows"]]
        kinds = [kind for kind, found in (("full_attention", False), ("sliding_attention", True)) if found in slides]
        rotary(model, fields, name, kinds)
        spec["rotary_kind"] = [int(each and len(kinds) > 1) for each in slides]
    else:
        rotary(model, fields, name)
    if name == "encoder":  # transformers counts a window's ends in where it reaches to both sides
        spec["windows"] = [window + 1 if window else 0 for window in spec["windows"]]

    def norm(part: str, tensor: str) -> None:
        model.weight(part, tensor, lambda x: 1.0 + x)

    parts = [("self", "self_attn")] + [("cross", "cross_attn")] * (stored == "model.decoder")
    norms = {
        "self": ("input", "post_attention"),
        "cross": ("pre_cross_attn", "post_cross_attn"),
        "feed_forward": ("pre_feedforward", "post_feedforward"),
    }
    if stored != "model":  # T5Gemma's names
        norms["self"] = ("pre_self_attn", "post_self_attn")
    for i in range(layers):
        of, made = f"{stored}.layers.{i}", f"{name}.{i}"
        for part, attention in parts:
            for projection, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
                model.linear(f"{made}.{part}.{projection}", f"{of}.{attention}.{letter}_proj", bias)
        for projection, short in (("gate", "gate"), ("in", "up"), ("out", "down")):
            model.linear(f"{made}.feed_forward.{projection}", f"{of}.mlp.{short}_proj")
        for part in [each for each, _ in parts] + ["feed_forward"]:
            norm(f"{made}.{part}.before", f"{of}.{norms[part][0]}_layernorm")
            norm(f"{made}.{part}.inside", f"{of}.{norms[part][1]}_layernorm")
        if gemma3:
            norm(f"{made}.self.query_norm", f"{of}.self_attn.q_norm")
            norm(f"{made}.self.key_norm", f"{of}.self_attn.k_norm")
    norm(f"{name}.norm", f"{stored}.norm")
