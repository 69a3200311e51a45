"""The toy task for pairs of other families than T5: tiny random models, and a teacher that was fitted on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from kdtw_fast.training.debian import write_jsonl
from kdtw_fast.training.tokenizer import padded_vocabulary, train_tokenizer
from toy_training import fit, toy_examples

from kdtw_fast.budgets import BUDGETS, TEACHER_PROMPT, student_prompt

DECODER = {
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
ENCODER = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "init_std": 0.1,
}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<answer> {% endif %}"
)


def random_pair_member(kind: str, rows: int, width: int, seed: int) -> Any:
    """A tiny random model of a family, with `rows` of vocabulary."""
    if kind == "bart":
        sizes: dict[str, Any] = {"d_model": width, "encoder_ffn_dim": 2 * width, "decoder_ffn_dim": 2 * width}
        fields = ENCODER | sizes
    else:
        heads = {"num_attention_heads": 4, "head_dim": width // 4, "initializer_range": 0.1}
        fields = DECODER | heads | {"hidden_size": width, "intermediate_size": 2 * width, "tie_word_embeddings": True}
    config = transformers.AutoConfig.for_model(kind, vocab_size=rows, **fields)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "bart" else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    return auto.from_config(config)


def make_decoders(root: Path, kind: str, steps: int = 150, rows: int = 60) -> Path:
    """Data, tokenizer with a chat template, a fitted teacher and a hardly fitted student of a family, under `root`."""
    write_jsonl(root / "data/train.jsonl", toy_examples(rows))
    write_jsonl(root / "data/validation.jsonl", toy_examples(6, rows))
    texts = [text for row in toy_examples(rows) for text in (row.source, row.target)]
    prompts = [TEACHER_PROMPT, *(student_prompt(budget) for budget in BUDGETS)]
    tokenizer = train_tokenizer(texts, 340, prompts)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(root / "tokenizer")
    vocabulary = padded_vocabulary(len(tokenizer))
    for role, width, seed, count in (("teacher", 32, 1, steps), ("student", 16, 2, 6)):
        random_pair_member(kind, vocabulary, width, seed).save_pretrained(root / role / "random")
        start = {f"{role}__path": root / role / "random"}
        fit(root, out=root / role, role=role, steps=count, dropout=0.0, bf16="false", **start)
    return root
