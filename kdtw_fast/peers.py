"""Other systems that decode the same weights, behind one signature: Hugging Face and CTranslate2."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kdtw_fast.decoders import SingleModelDecoder
from kdtw_fast.generation import IGNORE
from kdtw_fast.machine import torch_threads
from kdtw_fast.model import NativeT5
from kdtw_fast.options import tau_token_ids
from kdtw_fast.special_tokens import FIELDS, with_tokens

HUGGING_FACE = "Hugging Face generate"


@dataclass(frozen=True)
class Decoded:
    """Output ids of each row without the start token, and the seconds of the decoder's passes where they are told."""

    ids: list[list[int]]
    decoder_seconds: float | None = None


Rows = torch.Tensor | Sequence[Sequence[int]]  # source ids [R, S], or R lists of ids of any lengths
Generate = Callable[[Rows], Decoded]


def native(model: NativeT5, new_tokens: int, threads: int) -> Generate:
    """kdtw_fast's SingleModelDecoder on ``model``, ``new_tokens`` for every row."""
    decoder = SingleModelDecoder(model, num_threads=threads, generation_config=IGNORE)

    def generate(ids: Rows) -> Decoded:
        out = decoder.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        assert out.timings is not None
        return Decoded(out.output_ids, out.timings.student + out.timings.teacher)

    return generate


def hugging_face(
    model: Any, new_tokens: int, threads: int, min_new_tokens: int | None = None, **options: Any
) -> Generate:
    """Hugging Face's greedy generate on its own ``model``; ``options`` are more keywords of its generate.

    Every row writes ``new_tokens``; with ``min_new_tokens`` it may end earlier, and is cut after its end token. Of the
    model's generation config, which is replaced, special tokens hold, and a student's <tau> stays suppressed.
    """
    least = new_tokens if min_new_tokens is None else min_new_tokens
    told = model.generation_config = only_tokens(model)
    ends = told.eos_token_id if isinstance(told.eos_token_id, list) else [told.eos_token_id]

    def generate(ids: Rows) -> Decoded:
        ids, mask = (part.to(model.device) for part in padded(ids, model.config.pad_token_id))
        with torch_threads(threads):
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                min_new_tokens=least,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                **options,
            )
        rows = out[:, 1:].tolist()
        return Decoded([cut(row, ends) for row in rows] if least < new_tokens else rows)

    return generate


def only_tokens(model: Any) -> Any:
    """A generation config that says no more than a model's special tokens, which is what "ignore" leaves ours."""
    from transformers import GenerationConfig

    taus = tau_token_ids(lambda field: getattr(model.config, field, None), "student")
    tokens = with_tokens(model.config.to_dict(), model.generation_config.to_dict())
    return GenerationConfig(**{field: tokens.get(field) for field in FIELDS}, suppress_tokens=taus or None)


def padded(rows: Rows, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as ids [R, S] with padding behind them, and the mask [R, S] of what is no padding."""
    if isinstance(rows, torch.Tensor):
        return rows, torch.ones_like(rows)
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    return ids, (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()


def cut(row: list[int], ends: Sequence[int]) -> list[int]:
    """The row up to the first of the end tokens, that included."""
    return row[: next((place for place, token in enumerate(row, 1) if token in ends), len(row))]


def has_ctranslate2() -> bool:
    """True where CTranslate2 is installed."""
    return find_spec("ctranslate2") is not None


def ctranslate2_beside(dtype: str, device: str = "cpu") -> str:
    """The name of CTranslate2 in the compute type that stands beside our ``dtype``: on a CPU int8 or float32."""
    on_device = {} if device == "cpu" else {"fp16": "float16", "bf16": "bfloat16"}
    return f"CTranslate2 {({'int8': 'int8'} | on_device).get(dtype, 'float32')}"


def out_of_reach(device: str) -> str:
    """Why other systems cannot run on a device of ours, "cpu" or "cuda:0"; "" where they can."""
    if device == "cpu" or torch.cuda.is_available():
        return ""
    return f"PyTorch {torch.__version__} has no CUDA here, and on the CPU they are no comparison with {device}"


def beside(model: Any, dtype: str, device: str) -> Any:
    """A Hugging Face ``model`` moved to a device of ours, there in 16 bits where our weights are."""
    if device == "cpu":
        return model
    return model.to(device, {"fp16": torch.float16, "bf16": torch.bfloat16}.get(dtype, torch.float32))


class CTranslate2:
    """A Hugging Face model converted to CTranslate2; the converted files are gone with the object.

    Attributes:
        pieces: the word of each token id.
        converted: the folder that CTranslate2 loads.
    """

    def __init__(self, model: Any):
        from ctranslate2.converters import TransformersConverter
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        # The converter wants a tokenizer; only its number of words and the special ones matter.
        config = model.config
        if config.model_type == "bart":  # its converter reads a field that transformers 5 has no more
            config.normalize_before = False
        self.pieces = [f"w{i}" for i in range(config.vocab_size)]
        special = {config.pad_token_id: "<pad>", config.eos_token_id: "</s>"}
        begin = getattr(config, "bos_token_id", None)
        if begin is not None:
            special.setdefault(begin, "<s>")
        special[next(i for i in range(config.vocab_size) if i not in special)] = "<unk>"
        for i, piece in special.items():
            self.pieces[i] = piece
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        words = Tokenizer(models.WordLevel(self._ids, unk_token="<unk>"))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            bos_token="<s>" if "<s>" in self._ids else None,
        )

        class InMemory(TransformersConverter):
            """Converts what is already loaded."""

            def load_model(self, *args: Any, **kwargs: Any) -> Any:
                return model

            def load_tokenizer(self, *args: Any, **kwargs: Any) -> PreTrainedTokenizerFast:
                return tokenizer

        self._folder = tempfile.TemporaryDirectory()
        model.config.save_pretrained(self._folder.name)
        self.converted = InMemory(self._folder.name).convert(str(Path(self._folder.name) / "converted"))

    def generate(
        self,
        new_tokens: int,
        threads: int,
        compute_type: str = "float32",
        workers: int = 1,
        min_new_tokens: int | None = None,
        suppressed: Sequence[int] = (),
        device: str = "cpu",
    ) -> Generate:
        """Greedy decoding in ``compute_type`` ("float32", "int8", …) on a device of ours; loads the model once more.

        A batch is cut into equal parts for ``workers`` that decode side by side, each with ``threads`` threads. Every
        row writes ``new_tokens``; with ``min_new_tokens`` it may end earlier. No row writes a ``suppressed`` token.
        """
        import ctranslate2

        kind, _, index = device.partition(":")
        translator = ctranslate2.Translator(
            self.converted,
            device=kind,
            device_index=int(index or 0),
            compute_type=compute_type,
            inter_threads=workers,
            intra_threads=threads,
        )

        def generate(ids: Rows) -> Decoded:
            rows = ids.tolist() if isinstance(ids, torch.Tensor) else ids
            results = translator.translate_batch(
                [[self.pieces[i] for i in row] for row in rows],
                beam_size=1,
                suppress_sequences=[[self.pieces[i]] for i in suppressed] or None,
                min_decoding_length=new_tokens if min_new_tokens is None else min_new_tokens,
                max_decoding_length=new_tokens,
                max_input_length=0,
                max_batch_size=-(-len(ids) // workers),
                return_end_token=True,
            )
            return Decoded([[self._ids[piece] for piece in result.hypotheses[0]] for result in results])

        return generate
