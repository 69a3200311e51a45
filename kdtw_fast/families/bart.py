"""BART (Lewis et al. 2020) and what is built like it: mBART, Pegasus, Marian, M2M-100 and NLLB."""

from __future__ import annotations

import importlib
import math

import torch

from kdtw_fast.families.description import Description, Fields, Tensors


def describe(fields: Fields, tensors: Tensors) -> Description:
    """The model of such a config and tensors."""
    fields = fields.completed()
    kind = fields.get("model_type")
    before = kind in ("mbart", "pegasus", "m2m_100")  # norms stand before the parts; else over them
    size, vocabulary = fields.size("d_model"), fields.integer("vocab_size")
    scale = math.sqrt(size) if fields.flag("scale_embedding") else 1.0
    length = fields.integer("max_position_embeddings")
    model = Description({"vocabulary": vocabulary}, mark_scale=scale if kind in ("pegasus", "marian") else 1.0)
    fields.only("share_encoder_decoder_embeddings", True)
    fields.only("decoder_vocab_size", vocabulary)
    for name in ("encoder", "decoder"):
        heads = fields.integer(f"{name}_attention_heads")
        if size % heads:
            raise ValueError(f"{fields.name}: d_model ({size}) must be a multiple of {name}_attention_heads ({heads})")
        model.spec[name] = {
            "layers": fields.layers(f"{name}_layers"),
            "model_size": size,
            "heads": heads,
            "key_heads": heads,
            "head_size": size // heads,
            "feed_forward": fields.integer(f"{name}_ffn_dim"),
            "function": fields.function("activation_function"),
            "layer_norm": True,
            "epsilon": 1e-5,
            "embedding_scale": scale,
            "attention_scale": (size // heads) ** -0.5,
        }
        positions(model, fields, tensors, name, length, size)
        if kind in ("bart", "mbart"):
            model.linear(f"{name}.embedding_norm", f"model.{name}.layernorm_embedding", True)
        if before:
            model.linear(f"{name}.norm", f"model.{name}.layer_norm", True)
        parts = [("self", "self_attn")] + [("cross", "encoder_attn")] * (name == "decoder")
        for i in range(model.spec[name]["layers"]):
            stored, made = f"model.{name}.layers.{i}", f"{name}.{i}"
            for part, attention in parts:
                for projection, short in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
                    model.linear(f"{made}.{part}.{projection}", f"{stored}.{attention}.{short}_proj", True)
            model.linear(f"{made}.feed_forward.in", f"{stored}.fc1", True)
            model.linear(f"{made}.feed_forward.out", f"{stored}.fc2", True)
            place = "before" if before else "after"
            for part, norm in [*parts, ("feed_forward", "final")]:
                model.linear(f"{made}.{part}.{place}", f"{stored}.{norm}_layer_norm", True)
    copies = ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens")
    model.embeddings(tensors, fields, copies, "lm_head", True)
    if "final_logits_bias" in tensors:
        model.parts["head.bias"] = tensors["final_logits_bias"]().detach().float().reshape(-1)
        model.unused.add("final_logits_bias")
    fields.refuse_others(("num_hidden_layers", "normalize_before", "normalize_embedding", "static_position_embeddings"))
    return model


def positions(model: Description, fields: Fields, tensors: Tensors, stack: str, length: int, size: int) -> None:
    """The stack's table of positions: learned, or sinusoidal, which checkpoints need not hold."""
    kind, stored = fields.get("model_type"), f"model.{stack}.embed_positions"
    first = 0
    if kind in ("bart", "mbart"):
        first = 2  # fairseq's offset
        model.weight(f"{stack}.positions", stored)
    elif f"{stored}.weight" in tensors:
        model.weight(f"{stack}.positions", stored)
    else:
        fields.check_made("max_position_embeddings", length, size)
        module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        prefix = {"pegasus": "Pegasus", "marian": "Marian", "m2m_100": "M2M100"}[str(kind)]
        sinusoids = getattr(module, f"{prefix}SinusoidalPositionalEmbedding")
        with torch.device("cpu"):
            if kind == "m2m_100":
                first = fields.integer("pad_token_id", 1, 0, length) + 1
                model.parts[f"{stack}.positions"] = sinusoids.get_embedding(length + 2, size, first - 1).float()
            else:
                model.parts[f"{stack}.positions"] = sinusoids(length, size).create_weight().float()
    model.spec[stack] |= {
        "positions": length + (2 if kind in ("bart", "mbart", "m2m_100") else 0),
        "first_position": first,
    }
