"""The two models of a run: built from a shape, or loaded from a folder or the hub; what they compute; their copies."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from kdtw_fast import loaders
from kdtw_fast.extras import require
from kdtw_fast.loaders import check_alike, find_tokenizer, local_folder
from kdtw_fast.memory import memory_errors
from kdtw_fast.messages import Message
from kdtw_fast.model import NativeModel
from kdtw_fast.modeling import TrainingWheels, cut_vocabulary, decoder_embedding, model_class, vocabulary_rows
from kdtw_fast.special_tokens import FIELDS, with_tokens
from kdtw_fast.weights import own_files

from . import processes
from .batches import IGNORED, Batch
from .optimisation import use_fast_operators
from .settings import Model, PhaseSettings, RunSettings
from .tokenizer import padded_vocabulary

log = logging.getLogger(__name__)


def check_place(path: str, setting: str) -> None:
    """FileNotFoundError, at once, where `path` is neither a folder nor what the hub or this machine's copy of it has.

    `setting` names it, and says whether it must be a folder (data.folder), a data set (data.hub) or a model.
    """
    if Path(path).is_dir():
        return
    if path.startswith("runs/") and not Path(path).is_dir():  # what another recipe writes, mostly
        raise FileNotFoundError(
            f"{setting}={path} is not a folder; make it first (training/README.md has the order of the recipes)"
        )
    kind = {"data.folder": "folder", "data.hub": "dataset"}.get(setting, "model")
    loaders.check_place(path, f"{setting}=", kind, kept=(lambda: _kept_data(path)) if kind == "dataset" else None)


def _kept_data(name: str) -> bool:
    """Whether an earlier run has left a copy of a data set of the hub."""
    require("reading data sets", f"data.hub={name}")
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___").lower()).is_dir()


def located(path: str, name: str) -> str:
    """`path`, which the setting `name` must not leave empty; ValueError."""
    if not path:
        raise ValueError(f"{name} is empty; give a folder or a name on the hub")
    return path


def load_tokenizer(settings: RunSettings) -> Any:
    """The tokenizer that `settings` names, else the teacher's."""
    if settings.tokenizer:
        return loaders.load_tokenizer(located(settings.tokenizer, "tokenizer"))
    return loaders.load_tokenizer(located(settings.teacher.path, "teacher.path"))


def new_t5(shape: Model, tokenizer_size: int, seed: int) -> T5ForConditionalGeneration:
    """A fresh T5 (gated-gelu, tied and scaled head) with spare vocabulary rows above the tokenizer's size."""
    torch.manual_seed(seed)
    sizes = {name: getattr(shape, name) for name in ("d_model", "d_ff", "d_kv", "num_heads")}
    config = T5Config(
        vocab_size=padded_vocabulary(tokenizer_size),
        **sizes,
        num_layers=shape.encoder_layers,
        num_decoder_layers=shape.decoder_layers,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The ids that end an output, as decoders have them of both configs; those that the config has stand first."""
    own, told = (
        {field: getattr(config, field, None) for field in (*FIELDS, "_from_model_config")}
        for config in (model.config, model.generation_config)
    )
    found, first = (
        [ends] if isinstance(ends, int) else list(ends or [])
        for ends in (with_tokens(own, told)["eos_token_id"], own["eos_token_id"])
    )
    return sorted(found, key=lambda token: token not in first)


def special_tokens(model: PreTrainedModel) -> tuple[int, int, int]:
    """The ids of start, EOS (the first, where there are several) and padding; TypeError if the model lacks one.

    A model without an encoder has no start token and need not have padding: what is masked is then EOS.
    """
    start, ends, pad = (
        getattr(model.config, "decoder_start_token_id", None),
        end_tokens(model),
        model.config.pad_token_id,
    )
    if not model.config.is_encoder_decoder and ends:
        pad = ends[0] if pad is None else pad
        start = pad
    if not (isinstance(start, int) and ends and isinstance(pad, int)):
        raise TypeError(f"training needs a start, an EOS and a padding token, the config has {start}, {ends} and {pad}")
    return start, ends[0], pad


def fit_together(
    tokenizer: Any, *models: PreTrainedModel, told: bool = False, names: Sequence[str] | None = None
) -> None:
    """Make models of one tokenizer a pair: rows that pad the vocabularies of some, but not of all, are cut off.

    The student comes first. Its <tau>s may stand in the rows behind those that are left. Raises ValueError where they
    stand farther off, where a vocabulary is smaller than the tokenizer's, where the tokenizer's EOS does not end a
    model's outputs, and where the tokenizers in the models' folders differ; not so where the user has `told` which
    tokenizer is that of all of them. `names` are what errors call the models.
    """
    if not told:
        own, *others = [None if (place := local_folder(model)) is None else find_tokenizer(place) for model in models]
        if names is None:
            names = ["student", *([f"teacher {k}" for k in range(1, len(models))] if len(others) > 1 else ["teacher"])]
        if own is not None:
            remedy = Message("set tokenizer to that of both, if only the files differ")
            theirs = [(name, place) for name, place in zip(names[1:], others) if place is not None]
            check_alike(own, theirs, names[0], remedy)
    kinds = {bool(model.config.is_encoder_decoder) for model in models}
    if len(kinds) > 1:
        raise ValueError("a pair is trained whose models both have an encoder, or both none; choose such a pair")
    common = min(vocabulary_rows(model.config) for model in models)
    for model in models:
        name, ends = model.name_or_path or "a model", end_tokens(model)
        if common < len(tokenizer):
            raise ValueError(
                f"the models share {common} rows of vocabulary, but the tokenizer has {len(tokenizer)} tokens; set "
                f"tokenizer to the one that both were trained with"
            )
        if tokenizer.eos_token_id not in ends:
            raise ValueError(
                f"the tokenizer ends texts with token {tokenizer.eos_token_id}, but {name} ends outputs with {ends}; "
                f"add it to eos_token_id in its generation_config.json (config.json where there is none), or set "
                f"tokenizer"
            )
        taus = model.tau_token_ids if isinstance(model, TrainingWheels) else []
        if taus and taus[0] > common:
            raise ValueError(
                f"{name} has <tau> in row {taus[0]} of its vocabulary, but its teacher has {common} rows; begin "
                f"phase 1 with this teacher, from a student without <tau>"
            )
        rows = max([common, *(tau + 1 for tau in taus)])
        if rows < (found := vocabulary_rows(model.config)):
            log.info("%s: of %d rows of vocabulary the %d that all have are kept", name, found, rows)
            cut_vocabulary(model, rows)


@memory_errors()
def load_plain(path: str, name: str) -> PreTrainedModel:
    """A plain model in float32 (of a Training Wheels student, without beta); `name` is the setting that names it."""
    config = AutoConfig.from_pretrained(located(path, name), trust_remote_code=False)
    return model_class(config).from_pretrained(own_files(path, name), dtype=torch.float32)


def continues_prompts(settings: RunSettings) -> bool:
    """Whether the models of a run have no encoder, so that a source is a prompt which the output continues."""
    path = settings.student.path or settings.teacher.path
    return bool(path) and not AutoConfig.from_pretrained(path, trust_remote_code=False).is_encoder_decoder


def load_teachers(settings: PhaseSettings) -> list[PreTrainedModel]:
    """All teachers of a run, the judge last; each as `load_teacher` loads it."""
    others = [load_teacher(settings, model.path, f"teachers[{k}].path") for k, model in enumerate(settings.teachers)]
    return [*others, load_teacher(settings)]


def load_teacher(settings: RunSettings, path: str | None = None, setting: str = "teacher.path") -> PreTrainedModel:
    """The teacher in float32 and eval mode, with `settings.teacher_prompt` if its config names no prompt.

    `path` and the setting that names it: of another teacher.
    """
    teacher = load_plain(settings.teacher.path if path is None else path, setting).eval()
    if getattr(teacher.config, "teacher_prompt", None) is None:
        teacher.config.teacher_prompt = settings.teacher_prompt
    return teacher.requires_grad_(False)


def pack_teachers(teachers: Sequence[PreTrainedModel], device: str = "cpu") -> list[NativeModel]:
    """The teachers for the native decoders on a device, named as errors name them."""
    names = ["teacher"] if len(teachers) == 1 else [f"teacher {k}" for k in range(1, 1 + len(teachers))]
    return [NativeModel.from_model(teacher, name, device=device) for teacher, name in zip(teachers, names, strict=True)]


def prepare_teacher(teacher: PreTrainedModel, settings: RunSettings) -> None:
    """Make a loaded teacher ready for the training passes: fast operators, its device, its shards.

    What packs its weights for the native decoders comes before.
    """
    use_fast_operators(teacher)
    to_device(teacher, settings.device).eval()
    if settings.shard_teacher:
        processes.shard(teacher)


def load_pair(settings: PhaseSettings, tokenizer: Any) -> tuple[TrainingWheels, list[PreTrainedModel]]:
    """The student of a phase and its teachers, fitted together."""
    teachers = load_teachers(settings)
    student = load_student(settings.student.path, len(tokenizer), settings, len(teachers))
    fit_together(tokenizer, student, *teachers, told=bool(settings.tokenizer))
    return student, teachers


def load_student(
    path: str | Path, tokenizer_size: int, settings: RunSettings | None = None, teachers: int = 1
) -> TrainingWheels:
    """A student with <tau> and beta in float32; a plain model is given them (and the prompts of `settings`) first.

    So is a student of fewer teachers than `teachers`; ValueError for one of more.
    """
    path = located(str(path), "student.path")
    if getattr(AutoConfig.from_pretrained(path, trust_remote_code=False), "tau_token_id", None) is not None:
        student = TrainingWheels.from_pretrained(path, dtype=torch.float32)
        found = student.tau_token_ids
        if len(found) > teachers:
            raise ValueError(f"student.path={path} asks {len(found)} teachers, but this run has {teachers}")
        if len(found) == teachers:
            return student
        return TrainingWheels.from_model(student, tau_token_id=found[0], teachers=teachers)
    plain = load_plain(path, "student.path")
    prompts: dict[str, Any] = {}
    if settings is not None and getattr(plain.config, "student_prompt", None) is None:
        prompts = {"student_prompt": settings.student_prompt, "teacher_prompt": settings.teacher_prompt}
    return TrainingWheels.from_model(plain, tokenizer_size=tokenizer_size, teachers=teachers, **prompts)


def to_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """The model, moved: what transformers declares of its own `to` takes no device."""
    return nn.Module.to(model, device)


def autocast(settings: RunSettings) -> torch.autocast:
    """The number format of a run's training passes."""
    return torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16, enabled=settings.bf16 is True)


# ---------------------------------------------------------------- the only door to what a model computes


def shifted(labels: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """What a decoder reads to write labels [R, T]: start token, then all but the last of them, padding as `pad`."""
    inputs = torch.full_like(labels, start)
    inputs[:, 1:] = labels[:, :-1]
    return inputs.masked_fill(inputs == IGNORED, pad)


def encoded(model: PreTrainedModel, source_ids: torch.Tensor, source_mask: torch.Tensor) -> torch.Tensor | None:
    """What the encoder makes of sources, [R, S, M]; None of a model without one, whose decoder reads them."""
    if not model.config.is_encoder_decoder:
        return None
    found: torch.Tensor = model.get_encoder()(input_ids=source_ids, attention_mask=source_mask).last_hidden_state
    return found


def decoder_states(
    model: PreTrainedModel,
    source_ids: torch.Tensor,
    source_mask: torch.Tensor,
    inputs: torch.Tensor,
    marks: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the vocabulary head would read at each input: [R, T, M]. Marks need a student.

    Without an encoder the source's last token stands in the place of the start token, inputs [R, 0]. `hidden`: of
    `encoded`, where it is known. The head is left to the caller, who seldom needs it everywhere: with a small model it
    costs more than all the rest.
    """
    return Reading(model, source_ids, source_mask, hidden).states(inputs, marks)


class Reading:
    """Sources that a model has before it, whose outputs it then reads: at once, or on and on where `keeps` is true.

    source_ids, source_mask [R, S]: padded at their ends. `hidden`: as in `decoder_states`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        source_ids: torch.Tensor,
        source_mask: torch.Tensor,
        hidden: torch.Tensor | None = None,
        keeps: bool = False,
    ):
        self.model, self.mask = model, source_mask
        self.hidden = encoded(model, source_ids, source_mask) if hidden is None else hidden
        self.prompt: torch.Tensor | None = None
        if self.hidden is None:  # a decoder reads on behind its prompt: padding stands in front
            places = torch.arange(source_ids.shape[1], device=source_ids.device) + source_mask.sum(1, keepdim=True)
            self.prompt = source_ids.gather(1, places % source_ids.shape[1])
            self.mask = source_mask.gather(1, places % source_ids.shape[1])
        self.cache: Any = None
        if keeps:
            self.cache = DynamicCache() if self.hidden is None else EncoderDecoderCache(DynamicCache(), DynamicCache())

    def states(self, inputs: torch.Tensor, marks: torch.Tensor | None = None) -> torch.Tensor:
        """What the head would read at each of the next inputs [R, T], which begin with the start token: [R, T, M]."""
        model, given, count = self.model, dict[str, Any](use_cache=self.cache is not None), inputs.shape[1]
        decoder = model.get_decoder()
        if self.cache is not None:
            named = inspect.signature(decoder.forward).parameters
            given["cache" if "cache" in named else "past_key_values"] = self.cache
        if self.hidden is not None:
            given |= {"encoder_hidden_states": self.hidden, "encoder_attention_mask": self.mask}
        else:
            before = inputs[:, :0]
            if self.prompt is not None:
                before, inputs = self.prompt, inputs[:, 1:]
            self.mask = torch.cat((self.mask, torch.ones_like(inputs)), 1)
            inputs = torch.cat((before, inputs), 1)
            if marks is not None and before.shape[1]:
                marks = torch.cat((torch.zeros_like(before).to(marks.dtype), marks[:, 1:]), 1)
            positions = (self.mask.cumsum(1) - 1).clamp(min=0)
            given |= {"attention_mask": self.mask, "position_ids": positions[:, -inputs.shape[1] :]}
        self.prompt = None
        if marks is None:
            embedded = decoder_embedding(model)(inputs)
        else:
            assert isinstance(model, TrainingWheels)
            embedded = model.embed_decoder_inputs(inputs, marks)
        states: torch.Tensor = decoder(inputs_embeds=embedded, **given).last_hidden_state[:, -count:]
        return states * model.config.d_model**-0.5 if scales_states(model) else states


def scales_states(model: PreTrainedModel) -> bool:
    """Whether what the head reads is scaled, as T5 v1.0 and umT5 have it."""
    return bool(getattr(model.config, "scale_decoder_outputs", False)) and model.config.model_type != "mt5"


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The model's logits [..., V] of states [..., M]."""
    logits: torch.Tensor = model.get_output_embeddings()(states)
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        logits = logits + bias[0]
    cap = getattr(getattr(model.config, "decoder", model.config), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def logits_at(model: PreTrainedModel, states: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """float32 logits [N, V] at the N true places of `where` (bool [R, T]), of states [R, T, M]."""
    return logits_of(model, states[where]).float()


def forced_logits(
    model: PreTrainedModel,
    batch: Batch,
    settings: RunSettings,
    marks: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    where: torch.Tensor | None = None,
) -> torch.Tensor:
    """A model's logits [R, T, V] along a batch's labels, in the run's number format.

    `marks` [R, T] of what is read there, and `hidden`, as in `decoder_states`. With `where` (bool [R, T]) they are
    [N, V], of its N true places alone, row after row.
    """
    start, _, pad = special_tokens(model)
    with autocast(settings):
        inputs = shifted(batch.labels, start, pad)
        states = decoder_states(model, batch.source_ids, batch.source_mask, inputs, marks, hidden)
        return logits_of(model, states if where is None else states[where])


def save_pair_member(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a model with its tokenizer to `folder`, with Hugging Face's own modules, as every loader takes it.

    Its generation config is what it began with: a pair's models go on to share their ends and how they generate.
    """
    copied = type(model)(model.config)
    copied.load_state_dict(model.state_dict())
    copied.eval().save_pretrained(folder)
    if model.generation_config is not None:  # not by save_pretrained, which refuses some that are published
        model.generation_config.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)
