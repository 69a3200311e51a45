"""Random T5s of known shapes, and one model in the three systems that are compared. Depends on kdtw_fast and torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from kdtw_fast import GreedyDecoder, NativeT5
from kdtw_fast.modeling import TrainingWheelsT5

PAD, EOS = 0, 1


@dataclass(frozen=True)
class Decoded:
    """Output ids without the start token, and the seconds of the decoder's passes where the system tells them."""

    ids: list[int]
    decoder_seconds: float | None = None


Generate = Callable[[torch.Tensor], Decoded]  # source ids [1, S] in


@dataclass(frozen=True)
class Shape:
    """Sizes of a T5 v1.1 (gated-gelu, untied head)."""

    name: str
    d_model: int
    d_kv: int
    heads: int
    d_ff: int
    layers: int
    vocab_size: int = 32128


FLAN_T5_SMALL = Shape("FLAN-T5-small", 512, 64, 6, 1024, 8)
FLAN_T5_BASE = Shape("FLAN-T5-base", 768, 64, 12, 2048, 12)
TINY_STUDENT = Shape("1M student", 96, 32, 3, 256, 2, 4096)
TINY_TEACHER = Shape("1M teacher", 96, 32, 3, 256, 3, 4096)
SMOKE = Shape("smoke", 32, 8, 3, 64, 2, 160)


def random_t5(shape: Shape, seed: int = 0) -> T5ForConditionalGeneration:
    """An fp32 T5 with Hugging Face's initial weights and a head of its own, in eval mode."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        num_heads=shape.heads,
        d_ff=shape.d_ff,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    model = T5ForConditionalGeneration(config)
    # transformers 5 ties the head of a new T5 whatever its config says
    model.lm_head.weight = nn.Parameter(torch.randn(shape.vocab_size, shape.d_model) * shape.d_model**-0.5)
    model.config.tie_word_embeddings = False
    return model.eval()


def asking_student(shape: Shape, seed: int = 1) -> TrainingWheelsT5:
    """A random student that chooses <tau> (its last row) wherever it may, so that the ledger alone sets its use.

    Every embedding gets a large first coordinate that only the <tau> row of the head reads.
    """
    model = random_t5(shape, seed)
    tau = shape.vocab_size - 1
    with torch.no_grad():
        model.shared.weight[:, 0] = 20.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tau] = 0.0
        model.lm_head.weight[tau, 0] = 100.0
    return TrainingWheelsT5.from_t5(model, tau_token_id=tau).eval()


def teacher_without(shape: Shape, tau: int, seed: int = 0) -> T5ForConditionalGeneration:
    """A random teacher that never prefers <tau>: alone it may write that id, beside a student it may not."""
    model = random_t5(shape, seed)
    with torch.no_grad():
        model.lm_head.weight[tau] = 0.0
    return model


def source(shape: Shape, length: int, seed: int = 0) -> torch.Tensor:
    """Random source ids [1, length], ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, shape.vocab_size - 1, (1, length), generator=generator)
    ids[0, -1] = EOS
    return ids


def bytes_read_per_token(shape: Shape) -> int:
    """Bytes of fp32 weights that one decoder step of one row must read: layers and head, each once.

    Keys and values of the cross-attention are computed once per sentence and not counted, nor are caches.
    """
    inner = shape.d_kv * shape.heads
    layer = 6 * shape.d_model * inner + 3 * shape.d_model * shape.d_ff
    return 4 * (shape.layers * layer + shape.vocab_size * shape.d_model)


def native(model: T5ForConditionalGeneration, new_tokens: int, threads: int) -> Generate:
    """kdtw_fast's GreedyDecoder on `model`."""
    decoder = GreedyDecoder(NativeT5.from_model(model), num_threads=threads)

    def generate(ids: torch.Tensor) -> Decoded:
        out = decoder.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        return Decoded(out.sequences[0, 1:].tolist(), out.timings.student)

    return generate


def hugging_face(model: T5ForConditionalGeneration, new_tokens: int, threads: int) -> Generate:
    """Hugging Face's generate on `model`."""

    def generate(ids: torch.Tensor) -> Decoded:
        torch.set_num_threads(threads)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
        )
        return Decoded(out[0, 1:].tolist())

    return generate


def ctranslate2(model: T5ForConditionalGeneration, new_tokens: int, threads: int) -> Generate:
    """CTranslate2 in float32 on `model`, converted in a folder that is gone afterwards."""
    import ctranslate2 as ct2
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(3, model.config.vocab_size))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")

    class InMemory(TransformersConverter):
        """Converts what is already loaded."""

        def load_model(self, *args: Any, **kwargs: Any) -> T5ForConditionalGeneration:
            return model

        def load_tokenizer(self, *args: Any, **kwargs: Any) -> PreTrainedTokenizerFast:
            return tokenizer

    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        converted = InMemory(folder).convert(str(Path(folder) / "converted"))
        translator = ct2.Translator(
            converted, device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
        )

    def generate(ids: torch.Tensor) -> Decoded:
        result = translator.translate_batch(
            [[pieces[i] for i in ids[0].tolist()]],
            beam_size=1,
            min_decoding_length=new_tokens,
            max_decoding_length=new_tokens,
            max_input_length=0,
            return_end_token=True,
        )
        return Decoded([vocabulary[piece] for piece in result[0].hypotheses[0]])

    return generate


SYSTEMS: dict[str, Callable[[T5ForConditionalGeneration, int, int], Generate]] = {
    "kdtw_fast": native,
    "Hugging Face generate": hugging_face,
    "CTranslate2 float32": ctranslate2,
}
