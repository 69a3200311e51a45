"""The replay buffer: the last episodes, sampled by a key. Depends on numpy, torch and episodes only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
import torch

from .batches import keyed_generator
from .episodes import Episode

_REPLAY = 103  # what the random numbers are for
_DTYPES = {"source": np.int32, "tokens": np.int32, "from_teacher": np.bool_, "teacher_logprobs": np.float32}


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
