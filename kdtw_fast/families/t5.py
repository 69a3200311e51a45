"""T5 (Raffel et al. 2020) and what is built like it: T5 v1.1, FLAN-T5, ByT5, MADLAD-400, mT5, umT5."""

from __future__ import annotations

import numpy as np
import torch

from kdtw_fast.families.description import Description, Fields, Part, Tensors

# feed_forward_proj: the core's function, whether it gates, and the name that dense_act_fn has beside it.
_ACTIVATIONS = {
    "relu": ("relu", False, "relu"),
    "gelu": ("gelu", False, "gelu"),
    "gated-relu": ("relu", True, "relu"),
    "gated-gelu": ("gelu_tanh", True, "gelu_new"),
    "gated-silu": ("silu", True, "silu"),
}
# Some published T5 v1.0 checkpoints carry this tensor; no T5 has ever used it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def describe(fields: Fields, tensors: Tensors) -> Description:
    """The model of a T5's, mT5's or umT5's config and tensors."""
    kind = fields.get("model_type", "t5")
    layers = {"encoder": fields.layers("num_layers")}
    layers["decoder"] = fields.layers("num_decoder_layers", layers["encoder"])
    activation = fields.get("feed_forward_proj", "relu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        known = ", ".join(f"'{each}'" for each in _ACTIVATIONS)
        raise ValueError(f"{fields.name}: feed_forward_proj is {activation!r}; the core knows {known}")
    function, gated, dense = _ACTIVATIONS[activation]
    for key, value in (("dense_act_fn", dense), ("is_gated_act", gated)):
        if fields.get(key, value) != value:
            raise ValueError(
                f"{fields.name}: config says feed_forward_proj={activation!r} but {key}={fields.get(key)!r}"
            )
    size, heads, head_size = (fields.integer(key) for key in ("d_model", "num_heads", "d_kv"))
    buckets = fields.integer("relative_attention_num_buckets", 32, 4, 2**13)
    if buckets % 2:
        raise ValueError(
            f"{fields.name}: config field relative_attention_num_buckets must be even and at least 4, got {buckets}"
        )
    stack = {
        "model_size": size,
        "heads": heads,
        "key_heads": heads,
        "head_size": head_size,
        "feed_forward": fields.integer("d_ff"),
        "function": function,
        "gated": gated,
        "epsilon": fields.number("layer_norm_epsilon", 1e-6),
        "bias_buckets": buckets,
        "bias_max_distance": fields.integer("relative_attention_max_distance", 128, buckets // 2 + 1, 2**14),
        "bias_per_layer": kind == "umt5",
    }
    model = Description(
        {"vocabulary": fields.integer("vocab_size")} | {each: stack | {"layers": layers[each]} for each in layers}
    )
    copies = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    model.embeddings(tensors, fields, copies, "lm_head", True)
    tied, scaled = fields.flag("tie_word_embeddings", True), fields.flag("scale_decoder_outputs")
    scales = kind != "mt5" and (tied if scaled is None else scaled)
    factor = torch.tensor(np.float32(1) / np.sqrt(np.float32(size)))

    for name, count in layers.items():
        parts = [("self", "SelfAttention")] + [("cross", "EncDecAttention")] * (name == "decoder")
        for i in range(count):
            stored, made = f"{name}.block.{i}.layer", f"{name}.{i}"
            for at, (part, attention) in enumerate(parts):
                for projection, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
                    model.weight(f"{made}.{part}.{projection}", f"{stored}.{at}.{attention}.{letter}")
                model.weight(f"{made}.{part}.before", f"{stored}.{at}.layer_norm")
            bias = f"{stored}.0.SelfAttention.relative_attention_bias"
            if kind == "umt5":
                model.weight(f"{made}.self.bias", bias)
            elif i == 0:
                model.weight(f"{name}.bias", bias)
            at, dense = len(parts), "DenseReluDense"
            model.weight(f"{made}.feed_forward.before", f"{stored}.{at}.layer_norm")
            model.weight(f"{made}.feed_forward.in", f"{stored}.{at}.{dense}.{'wi_1' if gated else 'wi'}")
            if gated:
                model.weight(f"{made}.feed_forward.gate", f"{stored}.{at}.{dense}.wi_0")
            model.weight(f"{made}.feed_forward.out", f"{stored}.{at}.{dense}.wo")
    model.weight("encoder.norm", "encoder.final_layer_norm")
    # T5 v1.0 scales the decoder's output by d_model^-1/2 before the head: folded into the last norm.
    model.parts["decoder.norm"] = Part("decoder.final_layer_norm.weight", (lambda x: x * factor) if scales else None)
    model.unused.add(_UNUSED)
    fields.refuse_others(("n_positions", "layer_types", "cross_attention_hidden_size"))
    return model
