"""Models of other families than T5, with random weights of published shapes, and what runs them beside us.

CTranslate2's Generator and llama.cpp (the wheel xllamacpp, fed by a GGUF file that is written here). Every engine is a
call that reads a prompt, writes tokens greedily, and says when the first was there: reading and writing are told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdtw_fast import NativeModel, SingleModelDecoder
from kdtw_fast.peers import CTranslate2

UNK, PAD, EOS = 0, 1, 2  # of language models
_BLOCK = 1_000_003  # random numbers that all tensors are cut from

# Fields of published configs.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000.0,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1000000.0,
    },
}
_ENCODED = {"d_model": 1024, "encoder_attention_heads": 16, "decoder_attention_heads": 16}
ENCODED_MODELS: dict[str, dict[str, Any]] = {
    "distilbart-12-6": _ENCODED
    | {"model_type": "bart", "vocab_size": 50264, "encoder_layers": 12, "decoder_layers": 6}
    | {"encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "max_position_embeddings": 1024},
    "bart-large": _ENCODED
    | {"model_type": "bart", "vocab_size": 50265, "encoder_layers": 12, "decoder_layers": 12}
    | {"encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "max_position_embeddings": 1024},
    "NLLB-600M": _ENCODED
    | {"model_type": "m2m_100", "vocab_size": 256206, "encoder_layers": 12, "decoder_layers": 12}
    | {"encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "scale_embedding": True},
}
SMOKE = {
    "SmolLM2-135M": {
        "vocab_size": 640,
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
    "Qwen3-0.6B": {
        "vocab_size": 640,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
} | dict.fromkeys(
    ENCODED_MODELS,
    {"d_model": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 320}
    | {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96},
)


def random_model(name: str, tiny: bool = False) -> Any:
    """A Hugging Face model of a published shape (tiny: of its kind), fp32, with random weights.

    Matrices have a standard deviation of inputs^-1/2, embeddings one of 2 size^-1/2, norms are one, biases about 0.1.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.initialization import no_init_weights

    causal = name in LANGUAGE_MODELS
    fields = {**(LANGUAGE_MODELS if causal else ENCODED_MODELS)[name], **(SMOKE[name] if tiny else {})}
    fields |= {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 0, "tie_word_embeddings": True}
    fields |= {} if causal else {"decoder_start_token_id": EOS, "forced_eos_token_id": None, "dropout": 0.0}
    config = AutoConfig.for_model(**fields)
    with no_init_weights():
        model = (AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM).from_config(config)
    model.tie_weights()
    block = np.random.default_rng(0).standard_normal(_BLOCK, dtype=np.float32)
    for place, (key, tensor) in enumerate(model.named_parameters()):
        if tensor.dim() == 1:
            values = torch.from_numpy(0.1 * np.resize(np.roll(block, -place), tensor.shape))
            tensor.data.copy_(values if key.endswith("bias") else torch.ones(tensor.shape))
            continue
        values = torch.from_numpy(np.resize(np.roll(block, -7919 * place), tuple(tensor.shape)))
        tensor.data.copy_(values).mul_((2.0 if "embed" in key or "shared" in key else 1.0) * tensor.shape[1] ** -0.5)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Work:
    """What a model must do.

    Attributes:
        read: weights that a source's or prompt's tokens are multiplied with.
        step: weights that a written token is multiplied with, the head included.
        cached: numbers of keys and values that a step reads of one earlier position.
        mixed: multiply-adds of attention of one token with one earlier position.
    """

    read: int
    step: int
    cached: int
    mixed: int

    @classmethod
    def of(cls, model: Any) -> Work:
        """By a Hugging Face model's parameters."""
        config = model.config
        sizes = {name: tensor.numel() for name, tensor in model.named_parameters() if tensor.dim() > 1}
        head = model.get_output_embeddings().weight.numel()
        if config.is_encoder_decoder:
            crossed = sum(
                size for name, size in sizes.items() if ".encoder_attn.k" in name or ".encoder_attn.v" in name
            )
            inside = {"encoder": 0, "decoder": 0}
            for name, size in sizes.items():
                for stack in inside:
                    inside[stack] += size if f"{stack}.layers" in name else 0
            wide = 2 * config.d_model * config.decoder_layers
            return cls(inside["encoder"] + crossed, inside["decoder"] - crossed + head, wide, wide)
        layers = sum(size for name, size in sizes.items() if ".layers." in name)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            layers,
            layers + head,
            2 * size * config.num_key_value_heads * config.num_hidden_layers,
            2 * size * config.num_attention_heads * config.num_hidden_layers,
        )


@dataclass(frozen=True)
class Written:
    """The tokens of one prompt, the seconds until the first was there, and the seconds from there to the last."""

    ids: list[int]
    reading: float
    writing: float


Writer = Callable[[Sequence[int], int], Written]  # (prompt, tokens to write)


def ours(model: NativeModel, threads: int) -> Writer:
    """kdtw_fast's SingleModelDecoder."""
    decoder = SingleModelDecoder(model, num_threads=threads, generation_config="ignore")

    def write(prompt: Sequence[int], count: int) -> Written:
        at = [time.perf_counter()]
        out = decoder.generate(
            [list(prompt)],
            max_new_tokens=count,
            min_new_tokens=count,
            max_source_length=len(prompt),
            streamer=lambda *told: at.append(time.perf_counter()),
        )
        return Written(out.output_ids[0], at[1] - at[0], at[-1] - at[1])

    return write


class Generator(CTranslate2):
    """A Hugging Face model without encoder converted to CTranslate2; the conversion takes the model apart."""

    def writer(self, threads: int, compute_type: str) -> Writer:
        """Greedy decoding; loads the model once more."""
        import ctranslate2

        generator = ctranslate2.Generator(
            self.converted, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
        )

        def write(prompt: Sequence[int], count: int) -> Written:
            at = [time.perf_counter()]

            def told(step: Any) -> bool:
                at.append(time.perf_counter())
                return False

            (result,) = generator.generate_batch(
                [[self.pieces[i] for i in prompt]],
                beam_size=1,
                sampling_topk=1,
                min_length=count,
                max_length=count,
                include_prompt_in_result=False,
                callback=told,
            )
            return Written(result.sequences_ids[0], at[1] - at[0], at[-1] - at[1])

        return write


def write_gguf(model: Any, path: Path, kind: str) -> None:
    """Writes a Llama or Qwen 3 for llama.cpp, its matrices as "Q8_0", "F16" or "BF16"; token i is the word "wi"."""
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
    from gguf.quants import quantize

    config = model.config
    llama = config.model_type == "llama"
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer = GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(getattr(LlamaFileType, f"MOSTLY_{kind}"))
    count = config.vocab_size
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"\u2581w{i}" for i in range(count)])
    writer.add_token_scores([0.0] * count)
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    writer.add_token_types(types + [TokenType.NORMAL] * (count - len(types)))
    writer.add_unk_token_id(UNK)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"}
    names |= {"self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    for key, tensor in model.named_parameters():
        values = tensor.numpy()
        parts = key.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            to = f"blk.{parts[1]}.{names[parts[2]]}.weight"
        else:
            to = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[0]]
        if llama and key.endswith(("q_proj.weight", "k_proj.weight")):  # its pairs of a head lie beside each other
            of = heads if "q_proj" in key else key_heads
            values = values.reshape(of, 2, size // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if tensor.dim() == 1:
            writer.add_tensor(to, values)
        else:
            number = GGMLQuantizationType[kind]
            writer.add_tensor(to, quantize(np.ascontiguousarray(values), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp on a GGUF file that `write_gguf` wrote; its own clocks say what reading and writing took."""

    def __init__(self, path: Path, threads: int, longest: int):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = longest
        params.n_batch = params.n_ubatch = 512
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_prompt = False
        params.warmup = True
        params.verbosity = -1
        self._server = xllamacpp.Server(params)

    def __call__(self, prompt: Sequence[int], count: int) -> Written:
        answer = self._server.handle_completions(
            {
                "prompt": list(prompt),
                "max_tokens": count,
                "temperature": 0.0,
                "samplers": ["temperature"],
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        timings = answer["timings"]
        assert timings["prompt_n"] == len(prompt), timings
        words = answer["choices"][0]["text"].split()
        # Its clock of writing starts when the first token is there.
        return Written([int(word[1:]) for word in words], timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3)


def has_llama_cpp() -> bool:
    """True where llama.cpp's wheel and the writer of its files are installed."""
    from importlib.util import find_spec

    return find_spec("xllamacpp") is not None and find_spec("gguf") is not None


def llama_cpp_build() -> str:
    """The instruction sets that the wheel was built for, as it tells them."""
    import xllamacpp

    parts = [part.split(" = ")[0].strip() for part in xllamacpp.get_system_info().split("|") if " = 1" in part]
    return ", ".join(part.removeprefix("CPU : ") for part in parts)
