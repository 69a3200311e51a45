"""The student: a T5 with the action <tau> ("let the teacher write this token") and the mark beta on teacher tokens.

Eq. 13-15 of the paper. A saved student is a plain T5 checkpoint with one more tensor, so Hugging Face loads it.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from kdtw_fast.budgets import STUDENT_PROMPT, TEACHER_PROMPT
from kdtw_fast.deprecation import warn_renamed
from kdtw_fast.options import check_int, tau_token_ids

T5_ROWS, T5_TOKENS = 32128, 32100  # rows and tokens of Google's T5 vocabularies (v1.0, v1.1, FLAN)
BETA = "teacher_token_embedding"
_VOCABULARY_TENSORS = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)


class TrainingWheelsT5(T5ForConditionalGeneration):
    """A T5 with <tau> in a row of its vocabulary, and beta, a vector added to what its teacher wrote (Eq. 15).

    Make one with `from_t5`, or load one with `from_pretrained`. Its config has

    - `tau_token_id`: <tau>'s row. A student of n > 1 teachers has one for each, `tau_token_ids`, and beta is [n, M]
      instead of [M];
    - `student_prompt` (with "{budget}" in it) and `teacher_prompt`: the instructions the pair was trained with.

    Raises ValueError if the config names no valid tau_token_id.
    """

    def __init__(self, config: T5Config):
        taus = tau_token_ids(lambda field: getattr(config, field, None), "student")
        named: list[int | None] = [*taus] or [None]
        for tau in named:
            if isinstance(tau, bool) or not isinstance(tau, int) or not 0 <= tau < config.vocab_size:
                raise ValueError(
                    f"config.tau_token_id is {tau!r}, but a Training Wheels student needs a row of its vocabulary "
                    f"(0 to {config.vocab_size - 1}); make a student from a plain T5 with "
                    f"TrainingWheelsT5.from_t5(model)"
                )
        super().__init__(config)
        # One embedding even where the config unties the head, which unties these too.
        self.set_input_embeddings(self.shared)
        shape = (config.d_model,) if len(taus) == 1 else (len(taus), config.d_model)
        self.teacher_token_embedding = nn.Parameter(torch.zeros(shape))

    @property
    def tau_token_ids(self) -> list[int]:
        """The rows of <tau>, one for each teacher."""
        return tau_token_ids(lambda field: getattr(self.config, field, None), "student")

    @property
    def marks(self) -> torch.Tensor:
        """Beta as [n, M], a vector for each teacher."""
        return self.teacher_token_embedding.view(-1, self.config.d_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TrainingWheelsT5) and hasattr(module, BETA):
            beta = module.teacher_token_embedding
            if not getattr(beta, "_is_hf_initialized", False):
                beta.zero_()

    @classmethod
    def from_t5(
        cls,
        model: T5ForConditionalGeneration,
        tau_token_id: int | None = None,
        tokenizer_size: int | None = None,
        student_prompt: str | None = None,
        teacher_prompt: str | None = None,
        teachers: int = 1,
        experts: int | None = None,
    ) -> TrainingWheelsT5:
        """A student with a copy of `model`'s weights, beta zero, and <tau> in a spare row of the vocabulary.

        Spare are the rows that the tokenizer does not use. Where none is, the vocabulary grows, by rows that are the
        mean of the others.

        Args:
            model: a T5; of a student that has betas already, they are kept.
            tau_token_id: <tau>'s row; None = the first spare one.
            tokenizer_size: rows that the tokenizer uses; None = 32,100 of a vocabulary of 32,128 rows (Google's T5s),
                all of another one.
            student_prompt: the student's instruction, with "{budget}" in it; None = the model's, or the paper's.
            teacher_prompt: the teacher's instruction; None = the model's, or the paper's.
            teachers: how many it may ask, 1 to 32, with a <tau> (in rows that follow one another) and a beta for each.
            experts: deprecated name of `teachers`.

        Raises:
            TypeError: `model` is no T5.
            ValueError: `tau_token_id` is a row that the tokenizer uses or that is not there.
        """
        if not isinstance(model, T5ForConditionalGeneration):
            raise TypeError(f"from_t5 expects a T5ForConditionalGeneration, got {type(model).__name__}")
        rows = model.config.vocab_size
        if tokenizer_size is None:
            tokenizer_size = T5_TOKENS if rows == T5_ROWS else rows if tau_token_id is None else tau_token_id
        if not 0 <= tokenizer_size <= rows:
            raise ValueError(f"the tokenizer has {tokenizer_size} tokens, but the model has {rows} rows")
        if experts is not None:
            warn_renamed("from_t5(experts=…)", "teachers=…")
            teachers = experts
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
        config.vocab_size = max(rows, tau + teachers)
        config.student_prompt = student_prompt or getattr(config, "student_prompt", None) or STUDENT_PROMPT
        config.teacher_prompt = teacher_prompt or getattr(config, "teacher_prompt", None) or TEACHER_PROMPT
        config.architectures = ["T5ForConditionalGeneration"]
        student = cls(config)
        if model.lm_head.weight is not model.shared.weight:
            student.lm_head.weight = nn.Parameter(torch.empty_like(student.shared.weight))
        state = {key: value for key, value in model.state_dict().items() if key != BETA}
        if config.vocab_size > rows:
            for key in _VOCABULARY_TENSORS:
                if key in state:
                    mean = state[key].mean(0, keepdim=True)
                    state[key] = torch.cat((state[key], mean.expand(config.vocab_size - rows, -1)))
        missing, unexpected = student.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {BETA}, (missing, unexpected)
        if isinstance(model, TrainingWheelsT5):
            with torch.no_grad():
                kept = min(len(student.marks), len(model.marks))
                student.marks[:kept].copy_(model.marks[:kept])
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
        embedded = self.shared(decoder_input_ids)
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

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_from_teacher: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """T5's forward; `decoder_from_teacher` [R, T] marks the decoder inputs that a teacher wrote (see above).

        Raises ValueError for marks without decoder_input_ids or of another shape.
        """
        if decoder_from_teacher is not None:
            if decoder_input_ids is None:
                raise ValueError("decoder_from_teacher marks decoder_input_ids, but none were given")
            kwargs["decoder_inputs_embeds"] = self.embed_decoder_inputs(decoder_input_ids, decoder_from_teacher)
            decoder_input_ids = None
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, **kwargs
        )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As Hugging Face's; the saved config names T5ForConditionalGeneration, so that every T5 loader takes it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.config.architectures = ["T5ForConditionalGeneration"]
            self.config.save_pretrained(save_directory)
