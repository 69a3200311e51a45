"""Every family against transformers: random tiny configs in which every field varies, logits and greedy tokens.

`--configs 200` tries so many of each family.
"""

from __future__ import annotations

import copy
import json
import math
import random
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from factories import mostly_long
from safetensors.torch import load_file, save_file

from kdtw_fast import NativeModel, Owner, SingleModelDecoder, SpeculativeDecoder
from kdtw_fast.selftest.agreement import Tally

V = 61
Make = Callable[[random.Random], Mapping[str, Any]]


def t5_like(rng: random.Random) -> dict[str, Any]:
    return {
        "vocab_size": V,
        "d_model": rng.choice([8, 21, 32]),
        "d_kv": rng.choice([4, 7, 16]),
        "num_heads": rng.choice([1, 3, 4]),
        "d_ff": rng.choice([16, 33]),
        "num_layers": rng.choice([1, 2, 3]),
        "num_decoder_layers": rng.choice([1, 2]),
        "relative_attention_num_buckets": rng.choice([4, 8, 32]),
        "relative_attention_max_distance": rng.choice([17, 40, 128]),
        "layer_norm_epsilon": rng.choice([1e-6, 1e-3]),
        "feed_forward_proj": rng.choice(["relu", "gated-gelu", "gated-silu", "gelu", "gated-relu"]),
        "tie_word_embeddings": rng.choice([True, False]),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def bart_like(rng: random.Random) -> dict[str, Any]:
    heads = rng.choice([1, 2, 4])
    return {
        "vocab_size": V,
        "d_model": heads * 4 * rng.choice([1, 2, 3]),
        "encoder_layers": rng.choice([1, 2]),
        "decoder_layers": rng.choice([1, 2, 3]),
        "encoder_attention_heads": rng.choice([1, heads]),
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": rng.choice([16, 33]),
        "decoder_ffn_dim": rng.choice([16, 33]),
        "activation_function": rng.choice(["gelu", "relu", "silu", "gelu_new"]),
        "scale_embedding": rng.choice([True, False]),
        "max_position_embeddings": rng.choice([32, 40]),
        "pad_token_id": 1,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        "init_std": 0.3,
    }


def marian_like(rng: random.Random) -> dict[str, Any]:
    return bart_like(rng) | {"decoder_vocab_size": V, "pad_token_id": V - 1, "decoder_start_token_id": V - 1}


def llama_like(rng: random.Random) -> dict[str, Any]:
    heads = rng.choice([2, 4, 6])
    rope: dict[str, Any] = rng.choice(
        [
            {"rope_type": "default", "rope_theta": 10000.0},
            {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
            {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16},
        ]
    )
    return {
        "vocab_size": V,
        "hidden_size": heads * 8,
        "intermediate_size": rng.choice([16, 33]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([1, 2, heads]),
        "head_dim": rng.choice([4, 8, 16]),
        "hidden_act": rng.choice(["silu", "gelu", "relu"]),
        "rms_norm_eps": rng.choice([1e-6, 1e-3]),
        "max_position_embeddings": 64,
        "rope_parameters": rope,
        "tie_word_embeddings": rng.choice([True, False]),
        "attention_bias": rng.choice([True, False]),
        "mlp_bias": rng.choice([True, False]),
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def without(make: Make, *fields: str, **more: Any) -> Make:
    """The same config without some fields, with others; callables among them draw their value."""

    def made(rng: random.Random) -> dict[str, Any]:
        config = {key: value for key, value in make(rng).items() if key not in fields}
        return config | {key: value(rng) if callable(value) else value for key, value in more.items()}

    return made


def sliding(rng: random.Random) -> dict[str, Any]:
    config = llama_like(rng)
    layers = config["num_hidden_layers"]
    types = [rng.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]
    return config | {"sliding_window": rng.choice([1, 3, 8, 20]), "layer_types": types, "use_sliding_window": True}


def gemma_like(rng: random.Random) -> dict[str, Any]:
    config = sliding(rng)
    for key in ("hidden_act", "mlp_bias", "use_sliding_window"):
        config.pop(key)
    return config | {
        "hidden_activation": rng.choice(["gelu_pytorch_tanh", "silu"]),
        "query_pre_attn_scalar": rng.choice([4, 10]),
        "attn_logit_softcapping": rng.choice([None, 2.0, 50.0]),
        "final_logit_softcapping": rng.choice([None, 3.0]),
        "tie_word_embeddings": True,
    }


def gemma3(rng: random.Random) -> dict[str, Any]:
    config = gemma_like(rng)
    full = config.pop("rope_parameters")
    if full["rope_type"] == "yarn":
        full = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0}
    return config | {
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": rng.choice([10.0, 10000.0])},
        }
    }


def t5gemma(rng: random.Random) -> dict[str, Any]:
    encoder, decoder = gemma_like(rng), gemma_like(rng)
    return {
        "encoder": encoder,
        "decoder": decoder | {"cross_attention_hidden_size": encoder["hidden_size"]},
        "vocab_size": V,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "decoder_start_token_id": 2,
    }


FAMILIES: dict[str, Make] = {
    "t5": t5_like,
    "mt5": t5_like,
    "umt5": t5_like,
    "bart": bart_like,
    "mbart": bart_like,
    "pegasus": bart_like,
    "marian": marian_like,
    "m2m_100": bart_like,
    "llama": llama_like,
    "mistral": without(llama_like, "attention_bias", "mlp_bias", sliding_window=lambda rng: rng.choice([None, 3, 9])),
    "qwen2": without(sliding, "attention_bias", "mlp_bias", "head_dim"),
    "qwen3": without(sliding, "mlp_bias"),
    "smollm3": without(
        llama_like, "head_dim", num_hidden_layers=3, no_rope_layers=lambda rng: rng.choices([0, 1], k=3)
    ),
    "olmo2": without(llama_like, "mlp_bias", "head_dim"),
    "gemma2": gemma_like,
    "gemma3_text": gemma3,
    "t5gemma": t5gemma,
}
CLASSES = dict.fromkeys(("t5", "mt5", "umt5", "t5gemma", *list(FAMILIES)[3:8]), transformers.AutoModelForSeq2SeqLM)


def random_model(kind: str, seed: int, fields: Mapping[str, Any] | None = None) -> Any:
    """A random model of this kind in eval mode, fp32, whose every vector is random too; of random fields, or these."""
    fields = FAMILIES[kind](random.Random(f"{kind} {seed}")) if fields is None else fields
    config = transformers.AutoConfig.for_model(kind, **fields)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = CLASSES.get(kind, transformers.AutoModelForCausalLM).from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if (tensor.ndim == 1 and "inv_freq" not in name) or "final_logits_bias" in name:
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    return model.eval()


def rows_of(kind: str, seed: int, count: int) -> list[list[int]]:
    rng = random.Random(f"rows {kind} {seed}")
    return [[rng.randrange(3, V - 1) for _ in range(rng.choice([1, 2, 7, 12, 19]))] for _ in range(count)]


@torch.no_grad()
def logits_of(model: Any, source: list[int], tokens: list[int]) -> np.ndarray:
    """What transformers makes of a source and the outputs after it, [T, V]."""
    if model.config.is_encoder_decoder:
        out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([tokens]), use_cache=False)
        return out.logits[0].numpy()
    out = model(input_ids=torch.tensor([source + tokens[1:]]), use_cache=False)
    return out.logits[0, len(source) - 1 :].numpy()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "config_seed" in metafunc.fixturenames:
        metafunc.parametrize("config_seed", range(metafunc.config.getoption("configs")))


@pytest.mark.parametrize("kind", FAMILIES)
def test_logits_are_those_of_transformers(kind: str, config_seed: int, device: str) -> None:
    seed = config_seed
    model = random_model(kind, seed)
    native = NativeModel.from_model(model, device=device)
    for source in rows_of(kind, seed, 2):
        tokens = [native.decoder_start_token_id, *random.Random(seed).choices(range(3, V - 1), k=9)]
        expected = logits_of(model, source, tokens)
        whole = native.decode_logits(source, tokens)
        np.testing.assert_allclose(whole, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))
        np.testing.assert_array_equal(native.decode_logits(source, tokens, chunks=[1] * 10, num_threads=2), whole)


@pytest.mark.parametrize("heads", [(2, 1), (6, 2), (14, 2), (7, 7)], ids=lambda heads: f"{heads[0]} of {heads[1]}")
@pytest.mark.parametrize("dtype", ["fp32", "int8"])  # fp32 and bf16 keys
def test_heads_that_share_keys_have_the_bits_that_each_has_alone(
    heads: tuple[int, int], dtype: str, simd_level: str
) -> None:
    """A step takes a token's heads together, a pass of many tokens takes the tokens of a head."""
    fields = {"vocab_size": V, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 18}
    fields |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "pad_token_id": 0, "eos_token_id": 1}
    for window in (None, 21):
        model = random_model("mistral", 1, fields | {"sliding_window": window})
        native = NativeModel.from_model(model, dtype=dtype)
        rng = random.Random(5)
        source, tokens = rng.choices(range(3, V - 1), k=70), [0, *rng.choices(range(3, V - 1), k=20)]
        whole = native.decode_logits(source, tokens)
        if dtype == "fp32":
            np.testing.assert_allclose(whole, logits_of(model, source, tokens), atol=1e-3)
        for threads in (1, 2):
            for chunks in ([1] * 21, [1, 6, 1, 13]):
                one_by_one = native.decode_logits(source, tokens, chunks=chunks, num_threads=threads)
                np.testing.assert_array_equal(one_by_one, whole)


def greedy(model: Any, source: list[int], new_tokens: int) -> tuple[list[int], list[float], float]:
    """Transformers' greedy output (without what stands before it), its log-probabilities, the least lead of a pick."""
    if model.config.is_encoder_decoder:
        tokens, skipped = [model.config.decoder_start_token_id], 1
    else:
        tokens, skipped = [source[-1]], 1
    lead, logprobs = float("inf"), []
    ends = model.config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    while len(tokens) <= new_tokens and (len(tokens) == 1 or tokens[-1] not in ends):
        logits = logits_of(model, source, tokens)[-1]
        best = np.sort(logits)[-2:]
        lead = min(lead, float(best[1] - best[0]))
        tokens.append(int(logits.argmax()))
        logprobs.append(float(torch.log_softmax(torch.from_numpy(logits).double(), 0).max()))
    return tokens[skipped:], logprobs, lead


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_method_decodes_every_family(kind: str, config_seed: int, device: str, oracle_tally: Tally) -> None:
    """Greedy tokens are transformers'; speculative decoding is the teacher alone; a batch is its rows, bit for bit."""
    seed = config_seed
    teacher = random_model(kind, seed)
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in student.parameters():
            tensor += 0.1 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
    rows = rows_of(kind, seed, 4)
    options: dict[str, Any] = {"max_new_tokens": 9, "output_logprobs": True}
    oracle_tally.cases += 1
    for dtype in ("fp32", "bf16", "int8", *(["fp16"] if device != "cpu" else [])):
        alone = SingleModelDecoder(teacher, role="teacher", dtype=dtype, device=device)
        whole = alone.generate(rows, **options)
        for r, row in enumerate(rows):
            own = alone.generate([row], row_ids=[r], num_threads=2, **options)
            assert own.output_ids[0] == whole.output_ids[r]
            assert torch.equal(own.teacher_logprobs[0, own.spans[0]], whole.teacher_logprobs[r, whole.spans[r]])
            assert own.sequences[0, : own.spans[0].start].tolist() == (
                [alone.model.decoder_start_token_id] if alone.model.has_encoder else row
            )
            if dtype == "fp32":
                expected, logprobs, lead = greedy(teacher, row, 9)
                oracle_tally.rows, oracle_tally.tokens = oracle_tally.rows + 1, oracle_tally.tokens + len(expected)
                oracle_tally.near_ties += lead < 1e-4
                if whole.output_ids[r] != expected:
                    assert lead < 1e-4
                    oracle_tally.differing += 1
                    continue
                apart = np.abs(whole.teacher_logprobs[r, whole.spans[r]].numpy() - logprobs).max()
                assert apart < 1e-4
                oracle_tally.largest_logprob_difference = max(oracle_tally.largest_logprob_difference, float(apart))
        drafter = SpeculativeDecoder(student, teacher, dtype=dtype, draft_length=3, device=device)
        drafted = drafter.generate(rows, **options)
        assert drafted.output_ids == whole.output_ids


@pytest.mark.parametrize("kind", FAMILIES)
def test_folders_mean_what_the_model_in_memory_does(kind: str, tmp_path: Path) -> None:
    """As transformers saves them, which leaves out what is its default."""
    model = random_model(kind, 1)
    model.save_pretrained(tmp_path)
    native, other = NativeModel.from_model(model), NativeModel.from_pretrained(tmp_path)
    assert other.spec | {"name": native.name} == native.spec
    for source in rows_of(kind, 1, 2):
        tokens = [native.decoder_start_token_id, 5, 6, 7]
        np.testing.assert_array_equal(other.decode_logits(source, tokens), native.decode_logits(source, tokens))


# Fields that published configs lack, because they were saved before the field existed or it has its default.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "gemma2": ("layer_types", "query_pre_attn_scalar", "hidden_activation"),
    "gemma3_text": ("layer_types",),
    "mistral": ("num_key_value_heads", "sliding_window"),
    "llama": ("num_key_value_heads", "head_dim"),
    "qwen2": ("layer_types", "max_window_layers"),
    "smollm3": ("no_rope_layers", "layer_types"),
    "m2m_100": ("scale_embedding", "activation_function"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
@pytest.mark.parametrize("seed", mostly_long(range(4)))
def test_a_field_that_is_left_out_means_what_transformers_says(kind: str, seed: int, tmp_path: Path) -> None:
    fields = dict(FAMILIES[kind](random.Random(f"left out {kind} {seed}")))
    fields |= {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 64, "head_dim": 8}
    fields["num_key_value_heads"] = random.Random(seed).choice([1, 2, 4])
    fields = {key: value for key, value in fields.items() if key not in LEFT_OUT[kind]}
    if kind == "m2m_100":
        fields = {key: value for key, value in bart_like(random.Random(seed)).items() if key not in LEFT_OUT[kind]}
    model = random_model(kind, seed, fields)
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    saved = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in saved.items() if key not in LEFT_OUT[kind]}))
    native = NativeModel.from_pretrained(tmp_path)
    for source in rows_of(kind, seed, 2):
        tokens = [native.decoder_start_token_id, 5, 6, 7, 8, 9]
        expected = logits_of(model, source, tokens)
        whole = native.decode_logits(source, tokens)
        np.testing.assert_allclose(whole, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_the_forced_first_token_of_a_checkpoint_is_obeyed(where: str, tmp_path: Path) -> None:
    model = random_model("mbart", 3)
    model.generation_config.forced_bos_token_id, model.generation_config.forced_eos_token_id = 17, None
    model.save_pretrained(tmp_path)
    decoder = SingleModelDecoder(model if where == "memory" else tmp_path)
    (row,) = rows_of("mbart", 3, 1)
    theirs = model.generate(torch.tensor([row]), max_new_tokens=8, do_sample=False, num_beams=1)[0].tolist()
    out = decoder.generate([row], max_new_tokens=8)
    assert out.sequences[0].tolist() == theirs and theirs[1] == 17
    assert Owner(int(out.owners[0, 1])) is Owner.FORCED
    assert decoder.generate([row], max_new_tokens=8, forced_tokens=[9]).output_ids[0][0] == 9


def test_positions_beyond_the_table_are_refused() -> None:
    model = random_model("bart", 0)
    most = model.config.max_position_embeddings
    decoder = SingleModelDecoder(model)
    with pytest.raises(
        ValueError, match=f"model: sources of up to {most + 1} tokens .* table of positions ends at {most}"
    ):
        decoder.generate([[5] * (most + 1)], max_new_tokens=4)
    with pytest.raises(ValueError, match=f"model: outputs of up to {most + 1} tokens"):
        decoder.generate([[5, 6]], max_new_tokens=most + 1)
    assert decoder.generate([[5] * most], max_new_tokens=4, min_new_tokens=4).lengths.tolist() == [4]
    native = NativeModel.from_model(model, dtype="int8")
    assert native.decode_logits([5], [5] * most).shape[0] == most
    for read in (native.decode_logits, lambda *lists: native.core.int8_losses(lists)):
        with pytest.raises(ValueError, match=f"model: outputs of up to {most + 1} tokens"):
            read([5], [5] * (most + 1))


@pytest.mark.parametrize("kinds", [("t5", "llama"), ("llama", "t5")], ids="-".join)
def test_a_pair_may_mix_models_with_and_without_an_encoder(kinds: tuple[str, str]) -> None:
    student, teacher = (random_model(kind, 1) for kind in kinds)
    rows = rows_of("mixed", 1, 4)
    alone = SingleModelDecoder(teacher, role="teacher").generate(rows, max_new_tokens=9)
    drafted = SpeculativeDecoder(student, teacher, draft_length=3).generate(rows, max_new_tokens=9)
    assert drafted.output_ids == alone.output_ids
    before = [[0]] * 4 if kinds[0] == "t5" else rows
    assert [ids[: span.start] for ids, span in zip(drafted.sequences.tolist(), drafted.spans)] == before


SIZES: list[tuple[str, dict[str, Any], str]] = [
    ("marian", {"max_position_embeddings": 10**8}, "max_position_embeddings"),
    ("m2m_100", {"max_position_embeddings": 10**8}, "max_position_embeddings"),
    ("pegasus", {"d_model": 2**30, "encoder_attention_heads": 1, "decoder_attention_heads": 1}, "d_model"),
    ("marian", {"d_model": 2**30, "encoder_attention_heads": 1, "decoder_attention_heads": 1}, "d_model"),
    ("m2m_100", {"pad_token_id": 2**31 - 2}, "pad_token_id"),
    ("llama", {"head_dim": 2**31 - 2}, "head_dim"),
    ("gemma2", {"head_dim": 2**31 - 2}, "head_dim"),
    *(
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": value}}, "rope_theta")
        for value in (math.inf, True, "x", -1.0, 10**400)
    ),
    ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1e9}}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "2"}}, "factor"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [1.0]}},
        "rope_type is",
    ),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e-9}}, "turns positions by more than 64"),
    ("smollm3", {"no_rope_layers": 5}, "no_rope_layers"),
]


@pytest.mark.parametrize(("kind", "changes", "field"), SIZES, ids=lambda value: str(value)[:60])
def test_nothing_is_made_of_sizes_that_the_tensors_do_not_have(
    kind: str, changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    random_model(kind, 4).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=field) as raised:
        NativeModel.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


@pytest.mark.parametrize("kind", ["llama", "t5gemma"])
def test_a_classifiers_labels_are_not_counted_out(kind: str, tmp_path: Path) -> None:
    random_model(kind, 4).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_labels": 3 * 10**6}))
    started = time.process_time()
    NativeModel.from_pretrained(tmp_path)
    assert time.process_time() - started < 8  # 17 seconds before


@pytest.mark.parametrize("kind", ["t5", "bart", "marian", "llama", "gemma2"])
def test_a_tied_embedding_may_be_stored_as_its_head(kind: str, tmp_path: Path) -> None:
    model = next(m for m in (random_model(kind, seed) for seed in range(20)) if m.config.tie_word_embeddings)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (name,) = (key for key in tensors if key.endswith(("shared.weight", "embed_tokens.weight")))
    tensors["lm_head.weight"] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    native, plain = NativeModel.from_pretrained(tmp_path), NativeModel.from_model(model)
    assert (native.decode_logits([5, 6, 7], [4, 5]) == plain.decode_logits([5, 6, 7], [4, 5])).all()
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(ValueError, match=f"tensor '{name}' is missing"):
        NativeModel.from_pretrained(tmp_path)
