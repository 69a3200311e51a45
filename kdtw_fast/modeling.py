"""The student: a model with the action <tau> ("let the teacher write this token") and the mark beta on teacher tokens.

Eq. 13-15 of the paper. A saved student is a plain checkpoint with one more tensor, so Hugging Face loads it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, T5ForConditionalGeneration
from transformers.models.auto import modeling_auto

from kdtw_fast.budgets import STUDENT_PROMPT, TEACHER_PROMPT, fill_prompt
from kdtw_fast.deprecation import warn_renamed
from kdtw_fast.families import FAMILIES, unknown_kind
from kdtw_fast.loaders import check_place, is_path
from kdtw_fast.memory import memory_errors
from kdtw_fast.options import check_int, tau_token_ids
from kdtw_fast.weights import own_files

T5_ROWS, T5_TOKENS = 32128, 32100  # rows and tokens of Google's T5 vocabularies (v1.0, v1.1, FLAN)
BETA = "teacher_token_embedding"
MARKS = "decoder_from_teacher"
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Hugging Face's class of the models with such a config that write text; ValueError for an unknown family."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise ValueError(unknown_kind(config.name_or_path or "a model", kind))
    names = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    if not config.is_encoder_decoder:
        names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    found: type[PreTrainedModel] = getattr(transformers, names[kind])
    return found


def student_class(base: type[PreTrainedModel]) -> type[TrainingWheels]:
    """The class of students that are such a Hugging Face model, of any family that the core decodes."""
    if base is T5ForConditionalGeneration:
        return TrainingWheelsT5
    name = f"TrainingWheels{base.__name__}"
    if name not in globals():  # where pickle finds it
        about = {"__module__": __name__, "__doc__": f"{base.__name__} as a student."}
        globals()[name] = type(name, (TrainingWheels, base), about)
    made: type[TrainingWheels] = globals()[name]
    return made


def __getattr__(name: str) -> Any:
    """The class of students of that name, TrainingWheelsLlamaForCausalLM and so on."""
    base = (
        getattr(transformers, name.removeprefix("TrainingWheels"), None) if name.startswith("TrainingWheels") else None
    )
    if isinstance(base, type) and issubclass(base, PreTrainedModel):
        return student_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def decoder_embedding(model: PreTrainedModel) -> nn.Embedding:
    """What embeds a model's outputs."""
    found: nn.Embedding = model.get_decoder().get_input_embeddings()
    return found


def vocabulary_rows(config: PreTrainedConfig) -> int:
    """Rows of the vocabulary that outputs are of."""
    rows: int = getattr(getattr(config, "decoder", None), "vocab_size", None) or config.vocab_size
    return rows


class TrainingWheels(_Model):
    """A model with <tau> in a row of its vocabulary, and beta, a vector added to what its teacher wrote (Eq. 15).

    Make one with `from_model`, or load one with `from_pretrained`: both choose the class by the model, which is a
    Hugging Face class with this mixed in (`TrainingWheelsT5`, `TrainingWheelsLlamaForCausalLM`, …). Its config has

    - `tau_token_id`: <tau>'s row. A student of n > 1 teachers has one for each, `tau_token_ids`, and beta is [n, M]
      instead of [M];
    - `student_prompt` (with "{budget}" in it) and `teacher_prompt`: the instructions the pair was trained with.

    Hugging Face's `generate` never writes <tau>: its generation config suppresses it. That is the student alone;
    `TrainingWheelsDecoder` asks a teacher. Beta is added to what the decoder's embedding gives; models that scale
    embeddings behind it (Pegasus, Marian, T5Gemma) scale beta too.

    Raises ValueError if the config names no valid tau_token_id.
    """

    base: ClassVar[type[PreTrainedModel]]  # Hugging Face's class

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if TrainingWheels in cls.__bases__:
            cls.base = next(base for base in cls.__bases__ if base is not TrainingWheels)
            cls.forward = _with_marks(cls.base.forward)

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        taus = tau_token_ids(lambda field: getattr(config, field, None), "student")
        named: list[int | None] = [*taus] or [None]
        rows = vocabulary_rows(config)
        for tau in named:
            if isinstance(tau, bool) or not isinstance(tau, int) or not 0 <= tau < rows:
                raise ValueError(
                    f"config.tau_token_id is {tau!r}, but a Training Wheels student needs a row of its vocabulary "
                    f"(0 to {rows - 1}); make a student from a plain model with TrainingWheels.from_model(model) "
                    f"(TrainingWheelsT5.from_t5(model))"
                )
        super().__init__(config, *args, **kwargs)
        if isinstance(shared := getattr(self, "shared", None), nn.Module) and not config.tie_word_embeddings:
            # One embedding even where a T5's config unties the head, which unties these too. Where it ties all, Hugging
            # Face does, under whatever name a checkpoint has it.
            self.set_input_embeddings(shared)
        size = decoder_embedding(self).weight.shape[1]
        shape = (size,) if len(taus) == 1 else (len(taus), size)
        self.teacher_token_embedding = nn.Parameter(torch.zeros(shape))
        self._suppress()

    def _suppress(self) -> None:
        """Let Hugging Face's `generate` write no <tau>."""
        if self.generation_config is not None:
            found = {*(self.generation_config.suppress_tokens or []), *self.tau_token_ids}
            self.generation_config.suppress_tokens = sorted(found)

    @property
    def tau_token_ids(self) -> list[int]:
        """The rows of <tau>, one for each teacher."""
        return tau_token_ids(lambda field: getattr(self.config, field, None), "student")

    @property
    def marks(self) -> torch.Tensor:
        """Beta as [n, M], a vector for each teacher."""
        return self.teacher_token_embedding.view(-1, self.teacher_token_embedding.shape[-1])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TrainingWheels) and hasattr(module, BETA):
            beta = module.teacher_token_embedding
            if not getattr(beta, "_is_hf_initialized", False):
                beta.zero_()

    @classmethod
    @memory_errors()
    def from_pretrained(cls, place: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        """As Hugging Face's; of this class itself, the student of the class that the config asks for.

        Raises:
            FileNotFoundError: there is no such folder, nor a model of that name on the hub; at once.
            MemoryError: the system gives no more memory.
            ValueError: a family that is not known, a config without <tau>, or a checkpoint without weights that have no
                default, naming them, or whose files lie outside of its folder.
        """
        asked = {key: kwargs[key] for key in _PLACE if key in kwargs}
        if isinstance(place, (str, os.PathLike)) and not (kwargs.get("local_files_only") and not is_path(str(place))):
            cached = {key: asked[key] for key in ("cache_dir", "revision", "subfolder", "token") if key in asked}
            check_place(os.fspath(place), f"{cls.__name__}: ", **cached)
        if cls is not TrainingWheels:
            return cls._loaded(place, *args, **kwargs)
        config = kwargs.get("config") or AutoConfig.from_pretrained(place, trust_remote_code=False, **asked)
        found: Self = student_class(model_class(config))._loaded(place, *args, **kwargs)
        return found

    @classmethod
    def _loaded(cls, place: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        """A student of this class from a place that was checked."""
        wants_info = kwargs.pop("output_loading_info", False)
        if place is not None:  # None: config and state_dict are given
            own_files(os.path.join(place, kwargs.get("subfolder") or ""), "student")
        loaded: Any = super().from_pretrained(place, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = {name for name in info["missing_keys"] if name != BETA}
        if kwargs.get("device_map") is None:  # which may leave weights on a disk
            missing |= {name for name, value in model.named_parameters() if value.is_meta}
        if missing:
            raise ValueError(
                f"{place} lacks {len(missing)} of the tensors of a {cls.base.__name__}, the first of them "
                f"{min(missing)!r}; save the whole model again"
            )
        model._suppress()
        result: Any = (model, info) if wants_info else model
        return result

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tau_token_id: int | None = None,
        tokenizer_size: int | None = None,
        student_prompt: str | None = None,
        teacher_prompt: str | None = None,
        teachers: int = 1,
    ) -> Self:
        """A student with a copy of `model`'s weights, beta zero, and <tau> in a spare row of the vocabulary.

        Spare are the rows that the tokenizer does not use. Where none is, the vocabulary grows, by rows that are the
        mean of the others.

        Args:
            model: of any family that the core decodes; of a student that has betas already, they are kept.
            tau_token_id: <tau>'s row; None = the first spare one.
            tokenizer_size: rows that the tokenizer uses; None = 32,100 of a T5's vocabulary of 32,128 rows (Google's),
                all of another one.
            student_prompt: the student's instruction, with "{budget}" in it; None = the model's, or the paper's.
            teacher_prompt: the teacher's instruction; None = the model's, or the paper's.
            teachers: how many it may ask, 1 to 32, with a <tau> (in rows that follow one another) and a beta for each.

        Raises:
            TypeError: `model` is no such model, or not of this class.
            ValueError: `tau_token_id` is a row that the tokenizer uses or that is not there; `student_prompt` has not
                one place for the budget.
        """
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"from_model expects a Hugging Face model, got {type(model).__name__}")
        made = cls if cls is not TrainingWheels else student_class(model_class(model.config))
        if not isinstance(model, made.base):
            raise TypeError(f"{made.__name__} is made of a {made.base.__name__}, got {type(model).__name__}")
        rows, kind = vocabulary_rows(model.config), model.config.model_type
        if tokenizer_size is None:
            google = kind == "t5" and rows == T5_ROWS
            tokenizer_size = T5_TOKENS if google else rows if tau_token_id is None else tau_token_id
        if not 0 <= tokenizer_size <= rows:
            raise ValueError(f"the tokenizer has {tokenizer_size} tokens, but the model has {rows} rows")
        check_int("teachers", teachers, 1, 32)
        tau = tokenizer_size if tau_token_id is None else tau_token_id
        if not tokenizer_size <= tau <= rows:
            raise ValueError(
                f"tau_token_id {tau} is not a spare row: the tokenizer uses rows 0 to {tokenizer_size - 1}, "
                f"the model has {rows} rows; choose one of {tokenizer_size} to {rows}"
            )
        config = copy.deepcopy(model.config)
        config.tau_token_id = tau
        if teachers > 1:
            config.tau_token_ids = list(range(tau, tau + teachers))
        elif hasattr(config, "tau_token_ids"):
            del config.tau_token_ids
        _set_rows(config, max(rows, tau + teachers))
        config.student_prompt = student_prompt or getattr(config, "student_prompt", None) or STUDENT_PROMPT
        config.teacher_prompt = teacher_prompt or getattr(config, "teacher_prompt", None) or TEACHER_PROMPT
        fill_prompt(config.student_prompt, "", needed=True)
        config.architectures = [made.base.__name__]
        student: Any = made(config)
        head = model.get_output_embeddings()
        if head.weight is not decoder_embedding(model).weight:
            student.get_output_embeddings().weight = nn.Parameter(torch.empty_like(decoder_embedding(student).weight))
        own = student.state_dict()
        state = {key: _grown(value, own[key].shape) for key, value in model.state_dict().items() if key != BETA}
        missing, unexpected = student.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {BETA}, (missing, unexpected)
        if isinstance(model, TrainingWheels):
            with torch.no_grad():
                kept = min(len(student.marks), len(model.marks))
                student.marks[:kept].copy_(model.marks[:kept])
        if model.generation_config is not None:
            student.generation_config = copy.deepcopy(model.generation_config)
            student._suppress()
        nn.Module.to(student, device=model.device, dtype=model.dtype)
        return student.train(model.training)

    def as_marks(self, teacher_index: torch.Tensor) -> torch.Tensor:
        """Teachers' numbers [R, T] (0 = none) as `decoder_from_teacher` takes them: bool where there is one teacher."""
        return teacher_index if len(self.marks) > 1 else teacher_index.bool()

    def embed_decoder_inputs(
        self, decoder_input_ids: torch.Tensor, decoder_from_teacher: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embed(id) + beta where the teacher wrote the token (Eq. 15): [R, T] ids, [R, T] marks -> [R, T, M].

        Marks are bool for one teacher; integers say which of several wrote the token, 1 to n, or 0.
        """
        embedded: torch.Tensor = decoder_embedding(self)(decoder_input_ids)
        if decoder_from_teacher is None:
            return embedded
        if decoder_from_teacher.shape != decoder_input_ids.shape:
            raise ValueError(
                f"decoder_from_teacher has shape {tuple(decoder_from_teacher.shape)}, but decoder_input_ids has "
                f"{tuple(decoder_input_ids.shape)}; give one mark for each input token"
            )
        kinds = (torch.bool,) if len(self.marks) == 1 else (torch.uint8, torch.int32, torch.int64)
        if decoder_from_teacher.dtype not in kinds:
            expected = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise TypeError(f"decoder_from_teacher must be {expected}, got {decoder_from_teacher.dtype}")
        for number, beta in enumerate(self.marks, 1):
            embedded = embedded + (decoder_from_teacher == number).unsqueeze(-1).to(embedded.dtype) * beta
        return embedded

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """As Hugging Face's; ValueError where <tau>'s row would be cut off."""
        last = max(self.tau_token_ids)
        if new_num_tokens is not None and new_num_tokens <= last:
            raise ValueError(
                f"resize_token_embeddings({new_num_tokens}) would cut off <tau>, which is row {last}; keep at least "
                f"{last + 1} rows, or make the student anew from a resized model (TrainingWheels.from_model)"
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # PEFT freezes what it does not adapt, and then leaves here what it has done: beta is to be trained beside it.
        if name == "peft_config" and not all(config.inference_mode for config in value.values()):
            self.teacher_token_embedding.requires_grad_(True)

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Hugging Face's; <tau> is suppressed beside whatever the call or its generation config suppresses."""
        if kwargs.get("suppress_tokens") is not None:
            kwargs["suppress_tokens"] = sorted({*kwargs["suppress_tokens"], *self.tau_token_ids})
        if generation_config is not None:
            generation_config = copy.deepcopy(generation_config)
            found = {*(generation_config.suppress_tokens or []), *self.tau_token_ids}
            generation_config.suppress_tokens = sorted(found)
        return super().generate(inputs, generation_config, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As Hugging Face's; the saved config names its class, so that every loader of such models takes it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.config.architectures = [self.base.__name__]
            self.config.save_pretrained(save_directory)


def _with_marks(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Hugging Face's forward, with its arguments in their order, and the keyword `decoder_from_teacher`."""
    known = inspect.signature(plain)
    names = list(known.parameters)[1:]
    ids, embedded = "input_ids", "inputs_embeds"
    if f"decoder_{ids}" in names:
        ids, embedded = f"decoder_{ids}", f"decoder_{embedded}"

    @functools.wraps(plain)
    def forward(
        self: TrainingWheels, *args: Any, decoder_from_teacher: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if decoder_from_teacher is not None:
            kwargs |= dict(zip(names, args))
            args = ()
            tokens = kwargs.pop(ids, None)
            if tokens is None:
                raise ValueError(f"decoder_from_teacher marks {ids}, but none were given")
            kwargs[embedded] = self.embed_decoder_inputs(tokens, decoder_from_teacher)
        return plain(self, *args, **kwargs)

    forward.__doc__ = (
        f"The model's own forward; the keyword `decoder_from_teacher` [R, T] marks the {ids} that a teacher wrote (see "
        f"`embed_decoder_inputs`). Raises ValueError for marks without {ids} or of another shape.\n\n{plain.__doc__}"
    )
    marks = inspect.Parameter(MARKS, inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = list(known.parameters.values())
    place = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = known.replace(parameters=[*parameters[:place], marks, *parameters[place:]])  # type: ignore
    return forward


def cut_vocabulary(model: PreTrainedModel, rows: int) -> None:
    """`resize_token_embeddings`, of an encoder with an embedding of its own too (T5Gemma), which that leaves alone."""
    model.resize_token_embeddings(rows)
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        if (own := encoder.get_input_embeddings()).weight.shape[0] > rows:
            own.weight = nn.Parameter(own.weight.detach()[:rows].clone(), own.weight.requires_grad)
            own.num_embeddings = rows
    _set_rows(model.config, rows)


def _set_rows(config: PreTrainedConfig, rows: int) -> None:
    """Give a config, and those in it, a vocabulary of so many rows."""
    for each in (config, getattr(config, "encoder", None), getattr(config, "decoder", None)):
        for field in ("vocab_size", "decoder_vocab_size"):
            if each is not None and getattr(each, field, None) is not None:
                setattr(each, field, rows)


def _grown(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A tensor of the vocabulary with more rows, the mean of the others; of the logits' bias, zeros."""
    more = shape[0] - tensor.shape[0]
    if more > 0:
        return torch.cat((tensor, tensor.mean(0, keepdim=True).expand(more, -1)))
    return nn.functional.pad(tensor, (0, shape[-1] - tensor.shape[-1])) if tensor.shape != shape else tensor


class TrainingWheelsT5(TrainingWheels, T5ForConditionalGeneration):
    """A T5 as a student: see `TrainingWheels`."""

    @classmethod
    def from_t5(
        cls, model: T5ForConditionalGeneration, *args: Any, experts: int | None = None, **options: Any
    ) -> TrainingWheelsT5:
        """`from_model` of a T5, with its arguments; TypeError for another model. `experts` is `teachers`' old name."""
        if not isinstance(model, T5ForConditionalGeneration):
            raise TypeError(f"from_t5 expects a T5ForConditionalGeneration, got {type(model).__name__}")
        if experts is not None:
            warn_renamed("from_t5(experts=…)", "teachers=…")
            options["teachers"] = experts
        return cls.from_model(model, *args, **options)
