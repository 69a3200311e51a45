"""The number format of a run's training passes where its recipe leaves it open: the faster one here, measured once.

With bf16 a processor without AMX or AVX512_BF16 trains several times slower, one with them, or a GPU, faster.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig

from kdtw_fast.shapes import T5Shape, random_t5

from . import processes
from .optimisation import use_fast_operators
from .settings import RunSettings

log = logging.getLogger(__name__)
ROUNDS, ROWS, SOURCE, TARGET = 3, 16, 48, 32


def decided(settings: RunSettings) -> RunSettings:
    """The settings with bf16 true or false: as a run in their `out` began, else by `seconds_of_a_pass`, and logged."""
    if settings.bf16 != "auto":
        return settings
    begun = Path(settings.out) / "recipe.yaml"
    if settings.out and begun.is_file():
        kept = yaml.safe_load(begun.read_text(encoding="utf-8")).get("bf16")
        if isinstance(kept, bool):
            return replace(settings, bf16=kept)
    model = settings.teacher if getattr(settings, "role", "student") == "teacher" else settings.student
    config = AutoConfig.from_pretrained(model.path, trust_remote_code=False) if model.path else model
    sizes = _sizes(config)
    bf16 = False
    if not settings.device.startswith("cuda") or torch.cuda.is_bf16_supported(including_emulation=False):
        seconds = [processes.from_first(seconds_of_a_pass(settings.device, sizes, chosen)) for chosen in (False, True)]
        bf16 = seconds[True] < 0.95 * seconds[False]
        log.info("bf16=auto: %s; a pass took %.4f s in float32, %.4f s in bf16", str(bf16).lower(), *seconds)
    return replace(settings, bf16=bf16)


def _sizes(config: Any) -> tuple[int, int, int, int]:
    """Width, head size, heads and feed-forward of a model's decoder, by the names of its family."""
    config = getattr(config, "decoder", config)
    heads = ("num_heads", "num_attention_heads", "decoder_attention_heads")
    wide = ("d_ff", "intermediate_size", "decoder_ffn_dim")
    size, count, inner = (
        next(getattr(config, name) for name in names if hasattr(config, name))
        for names in (("d_model", "hidden_size"), heads, wide)
    )
    head = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or size // count
    return size, head, count, inner


@cache
def seconds_of_a_pass(device: str, sizes: tuple[int, ...], bf16: bool) -> float:
    """The quickest of a few passes, forward and backward, of a random T5 with one block of these sizes on each side."""
    d_model, d_kv, heads, d_ff = sizes
    shape = T5Shape("measured", d_model, d_kv, heads, d_ff, layers=1, vocab_size=2048)
    model = random_t5(shape).requires_grad_(True)
    use_fast_operators(model)
    torch.nn.Module.to(model, device).train()
    source, labels = (torch.full((ROWS, width), 5, device=device) for width in (SOURCE, TARGET))
    found = []
    for _ in range(1 + ROUNDS):  # the first one warms up
        began = time.perf_counter()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=source, labels=labels, use_cache=False).loss
        loss.backward()
        float(model.encoder.final_layer_norm.weight.grad[0])  # waits for a GPU
        found.append(time.perf_counter() - began)
    return min(found[1:])
