"""The two models of a run: built from a shape, or loaded from a folder or the hub; and copies that can be saved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from torch import nn
from transformers import AutoConfig, PreTrainedModel, T5Config, T5ForConditionalGeneration

from kdtw_fast import loaders
from kdtw_fast.model import NativeT5
from kdtw_fast.modeling import TrainingWheelsT5

from . import processes
from .batches import Batch
from .optimisation import use_fast_operators
from .settings import Model, PhaseSettings, RunSettings
from .tokenizer import padded_vocabulary

log = logging.getLogger(__name__)
HUB_SECONDS = 20  # that the hub may take to answer whether it has something


def check_place(path: str, setting: str) -> None:
    """FileNotFoundError, at once, where `path` is neither a folder nor what the hub or this machine's copy of it has.

    `setting` names it, and says whether it must be a folder (data.folder), a data set (data.hub) or a model.
    """
    if Path(path).is_dir():
        return
    here = f"{setting}={path} is not a folder"
    if setting == "data.folder" or path.count("/") > 1 or path.startswith((".", "/", "~", "runs/")):
        raise FileNotFoundError(f"{here}; make it first (training/README.md has the order)")
    kind = "dataset" if setting == "data.hub" else "model"
    try:
        HfApi().repo_info(path, repo_type=kind, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError(f"{here}, and the hub has no {kind} of that name that it would give you") from None
    except Exception as error:  # whatever the library for its requests raises without a network
        if not _kept(path, kind):
            reason = type(error).__name__
            raise FileNotFoundError(f"{here} or in a cache, and the hub cannot be asked for it ({reason})") from error


def _kept(name: str, kind: str) -> bool:
    """Whether an earlier run has left a copy of what is on the hub."""
    if kind == "model":
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
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
    """The ids that end an output; behind sources stands the tokenizer's, which is one of them."""
    found = model.config.eos_token_id
    return [found] if isinstance(found, int) else list(found or [])


def fit_together(tokenizer: Any, *models: T5ForConditionalGeneration) -> None:
    """Make models of one tokenizer a pair: rows that pad the vocabularies of some, but not of all, are cut off.

    A student's <tau>s may stand in the rows behind those that are left. Raises ValueError where they stand farther off,
    where a vocabulary is smaller than the tokenizer's, and where the tokenizer's EOS does not end a model's outputs.
    """
    common = min(model.config.vocab_size for model in models)
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
                f"add it to eos_token_id in its config.json, or set tokenizer"
            )
        taus = model.tau_token_ids if isinstance(model, TrainingWheelsT5) else []
        if taus and taus[0] > common:
            raise ValueError(
                f"{name} has <tau> in row {taus[0]} of its vocabulary, but its teacher has {common} rows; begin "
                f"phase 1 with this teacher, from a student without <tau>"
            )
        rows = max([common, *(tau + 1 for tau in taus)])
        if rows < model.config.vocab_size:
            log.info("%s: of %d rows of vocabulary the %d that all have are kept", name, model.config.vocab_size, rows)
            model.resize_token_embeddings(rows)


def load_t5(path: str, name: str) -> T5ForConditionalGeneration:
    """A plain T5 in float32 (of a Training Wheels student, without beta)."""
    return T5ForConditionalGeneration.from_pretrained(located(path, name), dtype=torch.float32)


def load_teachers(settings: PhaseSettings) -> list[T5ForConditionalGeneration]:
    """All teachers of a run, the judge last; each as `load_teacher` loads it."""
    others = [load_teacher(settings, model.path, f"teachers[{k}].path") for k, model in enumerate(settings.teachers)]
    return [*others, load_teacher(settings)]


def load_teacher(
    settings: RunSettings, path: str | None = None, setting: str = "teacher.path"
) -> T5ForConditionalGeneration:
    """The teacher in float32 and eval mode, with `settings.teacher_prompt` if its config names no prompt.

    `path` and the setting that names it: of another teacher.
    """
    teacher = load_t5(settings.teacher.path if path is None else path, setting).eval()
    if getattr(teacher.config, "teacher_prompt", None) is None:
        teacher.config.teacher_prompt = settings.teacher_prompt
    return teacher.requires_grad_(False)


def pack_teachers(teachers: Sequence[T5ForConditionalGeneration]) -> list[NativeT5]:
    """The teachers for the native decoders, named as errors name them."""
    names = ["teacher"] if len(teachers) == 1 else [f"teacher {k}" for k in range(1, 1 + len(teachers))]
    return [NativeT5.from_model(teacher, name) for teacher, name in zip(teachers, names, strict=True)]


def prepare_teacher(teacher: T5ForConditionalGeneration, settings: RunSettings) -> None:
    """Make a loaded teacher ready for the training passes: fast operators, its device, its shards.

    What packs its weights for the native decoders comes before.
    """
    use_fast_operators(teacher)
    to_device(teacher, settings.device).eval()
    if settings.shard_teacher:
        processes.shard(teacher)


def load_pair(settings: PhaseSettings, tokenizer: Any) -> tuple[TrainingWheelsT5, list[T5ForConditionalGeneration]]:
    """The student of a phase and its teachers, fitted together."""
    teachers = load_teachers(settings)
    student = load_student(settings.student.path, len(tokenizer), settings, len(teachers))
    fit_together(tokenizer, student, *teachers)
    return student, teachers


def load_student(
    path: str | Path, tokenizer_size: int, settings: RunSettings | None = None, teachers: int = 1
) -> TrainingWheelsT5:
    """A student with <tau> and beta in float32; a plain T5 is given them (and the prompts of `settings`) first.

    So is a student of fewer teachers than `teachers`; ValueError for one of more.
    """
    path = located(str(path), "student.path")
    if hasattr(AutoConfig.from_pretrained(path, trust_remote_code=False), "tau_token_id"):
        student = TrainingWheelsT5.from_pretrained(path, dtype=torch.float32)
        found = student.tau_token_ids
        if len(found) > teachers:
            raise ValueError(f"student.path={path} asks {len(found)} teachers, but this run has {teachers}")
        if len(found) == teachers:
            return student
        return TrainingWheelsT5.from_t5(student, tau_token_id=found[0], teachers=teachers)
    plain = T5ForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    prompts: dict[str, Any] = {}
    if settings is not None and getattr(plain.config, "student_prompt", None) is None:
        prompts = {"student_prompt": settings.student_prompt, "teacher_prompt": settings.teacher_prompt}
    return TrainingWheelsT5.from_t5(plain, tokenizer_size=tokenizer_size, teachers=teachers, **prompts)


def to_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """The model, moved: what transformers declares of its own `to` takes no device."""
    return nn.Module.to(model, device)


def autocast(settings: RunSettings) -> torch.autocast:
    """The number format of a run's training passes."""
    return torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16, enabled=settings.bf16 is True)


def forced_logits(model: T5ForConditionalGeneration, batch: Batch, settings: RunSettings) -> torch.Tensor:
    """A model's logits [R, T, V] along a batch's labels, in the run's number format."""
    with autocast(settings):
        return model(
            input_ids=batch.source_ids,
            attention_mask=batch.source_mask,
            decoder_input_ids=model._shift_right(batch.labels),
            use_cache=False,
        ).logits


def save_pair_member(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a model with its tokenizer to `folder`, as every T5 loader takes it: with Hugging Face's own modules."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
