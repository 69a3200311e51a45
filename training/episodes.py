"""Episodes: one, the buffer of the last ones, a batch of them as tensors, and the value network."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kdtw_fast.modeling import TrainingWheels, decoder_embedding

from .batches import IGNORED, Batch, Encoded, collate, keyed_generator, padded
from .losses import Taus, tau_list
from .models import decoder_states, scales_states

_REPLAY = 103  # what the random numbers are for
_DTYPES = {"source": np.int32, "tokens": np.int32, "from_teacher": np.bool_, "teacher_logprobs": np.float32}


@dataclass(frozen=True, eq=False)
class Episode:
    """One output of T >= 1 tokens and how it came about.

    Args:
        source: int32 [S], as in Encoded.
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


class ReplayBuffer:
    """Holds the last `capacity` episodes; ValueError for a negative capacity, 0 keeps none."""

    def __init__(self, capacity: int):
        if capacity < 0:
            raise ValueError(f"the replay buffer's capacity must not be negative, got {capacity}")
        self.capacity = capacity
        self.episodes: deque[Episode] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self.episodes)

    def add(self, episodes: Iterable[Episode]) -> None:
        """Append episodes; the oldest leave."""
        self.episodes.extend(episodes)

    def sample(self, count: int, seed: int, step: int) -> list[Episode]:
        """`count` different episodes (all, if there are fewer), a function of contents, seed and step alone."""
        drawn = keyed_generator(seed, step, _REPLAY).permutation(len(self.episodes))[:count]
        return [self.episodes[i] for i in drawn]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The episodes as a few flat tensors: everything ragged behind one another, and lengths."""
        state = {
            name: torch.from_numpy(np.concatenate([np.zeros(0, dtype), *(getattr(e, name) for e in self.episodes)]))
            for name, dtype in _DTYPES.items()
        }
        state["lengths"] = torch.tensor([[len(e.source), len(e)] for e in self.episodes]).reshape(-1, 2)
        state["budget"] = torch.tensor([e.budget for e in self.episodes], dtype=torch.int64)
        state["ended"] = torch.tensor([e.ended for e in self.episodes], dtype=torch.bool)
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over saved episodes; ValueError if there are more than the capacity."""
        lengths = state["lengths"].numpy()
        if len(lengths) > self.capacity:
            raise ValueError(f"the state holds {len(lengths)} episodes, more than the capacity of {self.capacity}")
        cuts = {name: np.cumsum(lengths[:, 0 if name == "source" else 1])[:-1] for name in _DTYPES}
        parts = {name: np.split(state[name].numpy(), cuts[name]) for name in _DTYPES} if len(lengths) else {}
        self.episodes = deque(maxlen=self.capacity)
        for i in range(len(lengths)):
            own = {name: values[i].copy() for name, values in parts.items()}
            self.episodes.append(Episode(budget=int(state["budget"][i]), ended=bool(state["ended"][i]), **own))


@dataclass
class EpisodeBatch(Batch):
    """A batch of R episodes; its labels are their tokens.

    Args:
        inputs: [R, T + 1], what the decoder reads: start token and output.
        marks: [R, T + 1], the inputs that the teacher wrote (Eq. 13): bool, of several teachers uint8, their numbers.
        actions: [R, T], the student's action, <tau> where it asked; 0 in padding.
        asked: [R, T], like marks.
        teacher_logprobs: float32 [R, T], 0 in padding.
        ended: bool [R].
        budgets: [R], numbers of the instructions.
    """

    inputs: torch.Tensor
    marks: torch.Tensor
    actions: torch.Tensor
    asked: torch.Tensor
    teacher_logprobs: torch.Tensor
    ended: torch.Tensor
    budgets: torch.Tensor

    @property
    def kept(self) -> torch.Tensor:
        """bool [R, T], false in padding."""
        return self.labels != IGNORED


def collate_episodes(
    episodes: Sequence[Episode], prompts: Sequence[Sequence[int]], tau: Taus, start: int, eos: int, pad: int
) -> EpisodeBatch:
    """Episodes as one batch; prompts[b] stands before the source of an episode with budget b. `tau`: see Taus.

    Raises ValueError without episodes.
    """
    if not episodes:
        raise ValueError("a batch needs at least one episode")
    rows = [Encoded(tuple(e.source.tolist()), tuple(e.tokens.tolist())) for e in episodes]
    batch = collate(rows, [prompts[e.budget] for e in episodes], eos, pad)
    mark_type = torch.bool if len(tau_list(tau)) == 1 else torch.uint8
    tokens = batch.labels.masked_fill(batch.labels == IGNORED, pad)
    asked = padded([e.from_teacher for e in episodes], 0, dtype=mark_type)
    first = torch.full_like(tokens[:, :1], start)
    return EpisodeBatch(
        **vars(batch),
        inputs=torch.cat((first, tokens), 1),
        marks=torch.cat((torch.zeros_like(asked[:, :1]), asked), 1),
        actions=padded([e.actions(tau) for e in episodes], 0),
        asked=asked,
        teacher_logprobs=padded([e.teacher_logprobs for e in episodes], 0, dtype=torch.float32),
        ended=torch.tensor([e.ended for e in episodes]),
        budgets=torch.tensor([e.budget for e in episodes]),
    )


class ValueNetwork(nn.Module):
    """V(s_i) of the student's states, marks included. The body starts as a copy of `student`, the head at zero.

    Dropout is off whatever the mode, as the paper has it.
    """

    def __init__(self, student: TrainingWheels):
        super().__init__()
        self.body = copy.deepcopy(student)
        unread = self.body.get_output_embeddings().weight
        if unread is not decoder_embedding(self.body).weight:
            unread.requires_grad_(False)  # nothing here reads it
        self.head = nn.Linear(student.marks.shape[-1], 1)
        # The states carry the scale of the vocabulary head's input; the head takes it off again.
        self.scale = student.config.d_model**0.5 if scales_states(student) else 1.0
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    def train(self, mode: bool = True) -> ValueNetwork:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(
        self, source_ids: torch.Tensor, source_mask: torch.Tensor, inputs: torch.Tensor, marks: torch.Tensor
    ) -> torch.Tensor:
        """source_ids, source_mask [R, S], inputs and bool marks [R, T] -> float32 [R, T], V once input i is read."""
        states = decoder_states(self.body, source_ids, source_mask, inputs, marks)
        return self.head(states.float() * self.scale).squeeze(-1)
