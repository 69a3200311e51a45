"""What a family tells the core of a model: the values of its spec, and which tensor is which."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = Mapping[str, Callable[[], torch.Tensor]]

FUNCTIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}  # Hugging Face's names of activation functions, and the core's

# Fields of every config that say nothing about the maths of a decode, or that the loader reads itself.
# fmt: off
_GENERAL = frozenset({
    "_attn_implementation", "_model_name_or_path", "_name_or_path", "add_bos_token", "add_cross_attention",
    "add_eos_token", "add_final_layer_norm", "architectures", "attention_dropout", "activation_dropout", "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward", "classif_dropout", "classifier_dropout", "decoder_layerdrop",
    "decoder_start_token_id", "dropout", "dropout_rate", "dtype", "encoder_layerdrop", "eos_token_id",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label",
    "init_std", "initializer_factor", "initializer_range", "is_decoder", "is_encoder_decoder",
    "keys_to_ignore_at_inference", "label2id", "model_type", "num_labels", "output_attentions",
    "output_hidden_states", "output_past", "pad_token_id", "prefix", "problem_type", "return_dict", "sep_token_id",
    "student_prompt", "task_specific_params", "tau_token_id", "tau_token_ids", "teacher_prompt",
    "teacher_token_embedding", "tie_encoder_decoder", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "unk_token_id", "cls_token_id", "mask_token_id", "use_cache",
})
_LABELS = frozenset({"num_labels", "id2label", "label2id"})  # of classifiers: transformers makes a name for each
# How to decode, where old configs keep it: `kdtw_fast.generation` reads it.
_GENERATION = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_scores", "penalty_alpha", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "sequence_bias", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
    "extra_pos_embeddings", "force_bos_token_to_be_generated",
})
# fmt: on


class Fields:
    """A model's config. What a family reads is known; what is left and not known to be without effect is refused.

    Args:
        config: the fields that were given.
        name: what messages call the model.
        tensors: the checkpoint's: sizes are held against them before anything is made of such a size.
        ignored: fields that the user says to ignore.
        prefix: of a config inside of another, in messages.
        values: where values are read from, with defaults for what was not given; None = ``config``.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        name: str,
        tensors: Tensors,
        ignored: Iterable[str] = (),
        prefix: str = "",
        values: Mapping[str, Any] | None = None,
    ):
        self._config, self.name, self._ignored, self._prefix = config, name, frozenset(ignored), prefix
        self._values = config if values is None else values
        self._tensors = tensors
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The field's value, or ``default`` where it is absent or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = 2**31 - 1) -> int:
        """An integer from ``least`` to ``most``; without a default it must be there."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{self.name}: config field {self._prefix}{key} must be a number, got {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{self.name}: config field {self._prefix}{key} must be {least} to {most}, got {value}")
        return value

    def layers(self, key: str, default: int | None = None) -> int:
        """A number of layers, at most that of the tensors: nothing is made for layers that cannot be there."""
        return self.integer(key, default, 1, len(self._tensors))

    def size(self, key: str, default: int | None = None) -> int:
        """A number of rows or columns, or a part of one: at most the largest that a tensor has."""
        shapes = (read().shape for read in self._tensors.values())
        return self.integer(key, default, 1, max((side for shape in shapes for side in shape), default=1))

    def check_made(self, key: str, rows: int, columns: int) -> None:
        """ValueError for field ``key``, a table's rows, where that is more numbers than a million and all tensors."""
        if rows * columns > max(2**20, sum(read().numel() for read in self._tensors.values())):
            raise ValueError(
                f"{self.name}: config field {self._prefix}{key} is {rows}, a table of {rows * columns} numbers, "
                f"which is more than all tensors of the checkpoint have"
            )

    def number(self, key: str, default: float | None = None, above: float = 0.0) -> float:
        """A finite number greater than ``above``; without a default it must be there."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{self.name}: config field {self._prefix}{key} must be a number, got {value!r}")
        if value <= above:
            raise ValueError(f"{self.name}: config field {self._prefix}{key} must be above {above:g}, got {value}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """True or false, or ``default``."""
        value = self.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{self.name}: config field {self._prefix}{key} must be true or false, got {value!r}")
        return value

    def function(self, key: str, default: str | None = None) -> str:
        """The core's name of an activation function."""
        value = self._required(key, default)
        if not isinstance(value, str) or value not in FUNCTIONS:
            known = ", ".join(f"'{each}'" for each in FUNCTIONS)
            raise ValueError(
                f"{self.name}: config field {self._prefix}{key} is {value!r}; the core knows the functions {known}"
            )
        return FUNCTIONS[value]

    def only(self, key: str, *values: Any) -> None:
        """Refuses the field where it was given and is none of ``values``."""
        value = self._config.get(key)
        self._read.add(key)
        if key in self._config and value not in values and key not in self._ignored:
            known = " or ".join(repr(each) for each in values)
            raise ValueError(f"{self.name}: config field {self._prefix}{key} is {value!r}; the core knows {known}")

    def inner(self, key: str) -> Fields:
        """The fields of a config in this one."""
        value = self._required(key, None)
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.name}: config field {key} must be a config of its own, got {value!r}")
        given = self._config.get(key)
        return Fields(
            given if isinstance(given, Mapping) else {}, self.name, self._tensors, self._ignored, f"{key}.", value
        )

    def completed(self, *layers: str) -> Fields:
        """The same fields with transformers' defaults for those that were not given, and what it makes of old ones.

        Published configs leave out much, and what that means is transformers' to say: which layers of Gemma 2 slide,
        how many heads of keys Mistral has. The fields ``layers`` are checked before: it makes lists of that length.
        """
        for key in layers:
            self.layers(key, 1)
        values = self.as_transformers().to_dict()
        return Fields(self._config, self.name, self._tensors, self._ignored, self._prefix, values)

    def as_transformers(self) -> Any:
        """transformers' config of these fields."""
        from transformers import AutoConfig

        fields = _without(self._values, _LABELS | {"transformers_version"})
        kind = fields.pop("model_type")
        try:
            return AutoConfig.for_model(kind, **fields)
        except Exception as error:  # whatever its checks raise
            said = " ".join(str(error).split())  # it is told in several lines
            raise ValueError(f"{self.name}: transformers does not take this config: {said}") from None

    def refuse_others(self, without_effect: Iterable[str] = ()) -> None:
        """ValueError naming a field that nobody has read and that may change the maths."""
        known = self._read | _GENERAL | _GENERATION | self._ignored | set(without_effect)
        for key, value in self._config.items():
            if key not in known and value is not None:
                raise ValueError(
                    f"{self.name}: config field {self._prefix}{key!r} (= {value!r}) is unknown and may change the "
                    f"maths; if it does not, pass ignore_config_fields=({key!r},) to NativeModel.from_pretrained"
                )

    def _required(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None:
            raise ValueError(f"{self.name}: config field {self._prefix}{key} is missing")
        return value


def _without(fields: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The fields, and those of configs among them, without these."""
    return {
        key: _without(value, names) if isinstance(value, Mapping) else value
        for key, value in fields.items()
        if key not in names
    }


@dataclass(frozen=True)
class Part:
    """Where a tensor of the core comes from: its name in the checkpoint, and what is made of it in fp32."""

    stored: str
    make: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass
class Description:
    """A model as the core is told of it.

    Args:
        spec: ``_core.Transformer``'s spec, but for name and number formats.
        parts: the core's tensors (csrc/model/loading.cpp has their names) by where they come from, or their values
            where no checkpoint stores them.
        unused: names in the checkpoint that say nothing.
        mark_scale: what Hugging Face multiplies an embedding by after a student's beta is added to it.
    """

    spec: dict[str, Any]
    parts: dict[str, Part | torch.Tensor] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)
    mark_scale: float = 1.0

    def weight(self, name: str, stored: str, make: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        """Tensor ``name`` is the checkpoint's ``stored``.weight."""
        self.parts[name] = Part(f"{stored}.weight", make)

    def linear(self, name: str, stored: str, bias: bool = False) -> None:
        """Matrix ``name`` is the checkpoint's ``stored``.weight, perhaps with a ``stored``.bias."""
        self.weight(name, stored)
        if bias:
            self.parts[f"{name}.bias"] = Part(f"{stored}.bias")

    def embeddings(
        self, tensors: Tensors, fields: Fields, embedding: Iterable[str], head: str, tied_default: bool
    ) -> None:
        """Names the embedding, stored under one or several of the names ``embedding``, and the head if it is another.

        A tied head that was written out is no head of its own: one copy is enough, under either name.

        Raises:
            ValueError: copies of the embedding differ, or the config speaks of a head that is not there.
        """
        names = [f"{each}.weight" for each in embedding]
        tied, stored = fields.flag("tie_word_embeddings", tied_default), f"{head}.weight"
        kept = [stored] if tied and stored in tensors else names[:1]  # where no embedding is
        found = [each for each in names if each in tensors] or kept
        for copy in found[1:]:
            if not same_bytes(tensors[copy](), tensors[found[0]]()):
                raise ValueError(
                    f"{fields.name}: tensor '{copy}' differs from '{found[0]}'; such a model shares one embedding"
                )
        self.parts["embedding"] = Part(found[0])
        self.unused |= set(found[1:])
        own = stored in tensors and not (found[0] in tensors and same_bytes(tensors[stored](), tensors[found[0]]()))
        if not tied and stored not in tensors:
            raise ValueError(
                f"{fields.name}: config says tie_word_embeddings=false, but tensor '{stored}' is missing from the "
                "checkpoint"
            )
        self.spec["has_head"] = own
        if own:
            self.parts["head"] = Part(stored)
        else:
            self.unused.add(stored)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, formats included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )
