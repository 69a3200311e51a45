"""An episode, and a batch of episodes as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from kdtw_fast.modeling import TrainingWheelsT5

from .batches import ceil_to
from .losses import Taus, tau_list
from .models import end_tokens


@dataclass(frozen=True, eq=False)
class Episode:
    """One output of T >= 1 tokens and how it came about.

    Args:
        source: int32 [S], the source's tokens without prompt and without EOS.
        budget: number of the instruction that the student was given (allocations.Instructions): with one teacher, one
            wording and all budgets, the budget's in BUDGETS.
        tokens: int32 [T], the output (with EOS if it was reached).
        from_teacher: bool [T], true where the student's action was <tau> and the teacher wrote the token. Of several
            teachers uint8 [T], the number of the one that did, 1 to n, or 0.
        teacher_logprobs: float32 [T], log-likelihood of each token under the teacher (of several the judge); NaN where
            no pass of it has read the token yet.
        ended: the last token is EOS; otherwise the output was cut off at the length limit.
    """

    source: np.ndarray
    budget: int
    tokens: np.ndarray
    from_teacher: np.ndarray
    teacher_logprobs: np.ndarray
    ended: bool

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def calls(self) -> int:
        """How many tokens teachers wrote."""
        return int((self.from_teacher != 0).sum())

    def calls_of(self, teacher: int) -> int:
        """How many tokens the teacher of this number wrote."""
        return int((self.from_teacher == teacher).sum())

    def actions(self, tau: Taus) -> np.ndarray:
        """What the student chose at each step: its token, or the <tau> of the teacher that it asked; int32 [T]."""
        chosen = np.array([0, *tau_list(tau)], np.int32)[self.from_teacher.astype(np.int64)]
        return np.where(self.from_teacher != 0, chosen, self.tokens)


def special_tokens(model: T5ForConditionalGeneration) -> tuple[int, int, int]:
    """The ids of start, EOS (the first, where there are several) and padding; TypeError if the model lacks one."""
    start, ends, pad = model.config.decoder_start_token_id, end_tokens(model), model.config.pad_token_id
    if not (isinstance(start, int) and ends and isinstance(pad, int)):
        raise TypeError(f"training needs a start, an EOS and a padding token, the config has {start}, {ends} and {pad}")
    return start, ends[0], pad


@dataclass
class EpisodeBatch:
    """R episodes, padded to multiples of 8.

    Args:
        source_ids, source_mask: [R, S], prompt, source and EOS.
        inputs: [R, T + 1], what the decoder reads: start token and output.
        marks: [R, T + 1], the inputs that the teacher wrote (Eq. 13): bool, of several teachers uint8, their numbers.
        actions: [R, T], the student's action, <tau> where it asked; 0 in padding.
        asked: [R, T], like marks.
        kept: bool [R, T], false in padding.
        teacher_logprobs: float32 [R, T], 0 in padding.
        ended: bool [R].
        budgets: [R], numbers of the instructions.
    """

    source_ids: torch.Tensor
    source_mask: torch.Tensor
    inputs: torch.Tensor
    marks: torch.Tensor
    actions: torch.Tensor
    asked: torch.Tensor
    kept: torch.Tensor
    teacher_logprobs: torch.Tensor
    ended: torch.Tensor
    budgets: torch.Tensor

    def to(self, device: str | torch.device) -> EpisodeBatch:
        """The same batch on another device."""
        return EpisodeBatch(**{name: value.to(device) for name, value in vars(self).items()})


def collate_episodes(
    episodes: Sequence[Episode], prompts: Sequence[Sequence[int]], tau: Taus, start: int, eos: int, pad: int
) -> EpisodeBatch:
    """Episodes as one batch; prompts[b] stands before the source of an episode with budget b. `tau`: see Taus.

    Raises ValueError without episodes.
    """
    if not episodes:
        raise ValueError("a batch needs at least one episode")
    sources = [[*prompts[e.budget], *e.source.tolist(), eos] for e in episodes]
    rows, width = len(episodes), ceil_to(max(map(len, sources)), 8)
    steps = ceil_to(max(map(len, episodes)), 8)
    source_ids = torch.full((rows, width), pad)
    source_mask = torch.zeros(rows, width, dtype=torch.long)
    inputs = torch.full((rows, steps + 1), pad)
    inputs[:, 0] = start
    marks = torch.zeros(rows, steps + 1, dtype=torch.bool if len(tau_list(tau)) == 1 else torch.uint8)
    actions = torch.zeros(rows, steps, dtype=torch.long)
    kept = torch.zeros(rows, steps, dtype=torch.bool)
    teacher_logprobs = torch.zeros(rows, steps)
    for r, (source, episode) in enumerate(zip(sources, episodes, strict=True)):
        length = len(episode)
        source_ids[r, : len(source)] = torch.tensor(source)
        source_mask[r, : len(source)] = 1
        inputs[r, 1 : 1 + length] = torch.from_numpy(episode.tokens.astype(np.int64))
        marks[r, 1 : 1 + length] = torch.from_numpy(episode.from_teacher)
        actions[r, :length] = torch.from_numpy(episode.actions(tau).astype(np.int64))
        kept[r, :length] = True
        teacher_logprobs[r, :length] = torch.from_numpy(episode.teacher_logprobs)
    return EpisodeBatch(
        source_ids,
        source_mask,
        inputs,
        marks,
        actions,
        marks[:, 1:].clone(),
        kept,
        teacher_logprobs,
        torch.tensor([e.ended for e in episodes]),
        torch.tensor([e.budget for e in episodes]),
    )


def decoder_states(
    model: T5ForConditionalGeneration,
    source_ids: torch.Tensor,
    source_mask: torch.Tensor,
    inputs: torch.Tensor,
    marks: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the vocabulary head would read at each input: [R, T, M]. Marks need a TrainingWheelsT5.

    The head is left to the caller, who seldom needs it everywhere: with a small model it costs more than all the rest.
    """
    encoded: BaseModelOutput = model.get_encoder()(input_ids=source_ids, attention_mask=source_mask)
    if marks is None:
        embedded = model.get_input_embeddings()(inputs)
    else:
        assert isinstance(model, TrainingWheelsT5)
        embedded = model.embed_decoder_inputs(inputs, marks)
    decoded = model.get_decoder()(
        inputs_embeds=embedded,
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=source_mask,
        use_cache=False,
    ).last_hidden_state
    return decoded * model.config.d_model**-0.5 if model.config.scale_decoder_outputs else decoded


def logits_at(model: T5ForConditionalGeneration, states: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """float32 logits [N, V] at the N true places of `where` (bool [R, T]), of states [R, T, M]."""
    return model.lm_head(states[where]).float()
