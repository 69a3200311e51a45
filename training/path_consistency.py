"""Phase 2: Path Consistency Learning with a Lagrangian, on-policy, oracle and replayed episodes mixed (paper, 2.4.2).

`PathConsistency.train_batch` is the algorithm on one screen: tasks, rollouts, scoring, updates, multipliers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.options import check_int, check_real

from . import processes
from .algorithm import LearningToAsk
from .allocations import Instructions
from .batches import Encoded, keyed_generator
from .debian import Example
from .episodes import Episode, EpisodeBatch, ReplayBuffer, ValueNetwork
from .losses import path_consistency, training_wheels_reward
from .models import autocast, decoder_states, logits_at, prepare_teacher
from .optimisation import guarded_gradients, make_optimiser, rate_at, set_rate
from .rewards import Lagrangian, RewardStatistics
from .rollouts import Rollouts, Tasks, rollout_seed, without_tokens
from .settings import Optimiser, PhaseSettings

_GAINS = ("rate", "proportional", "derivative")
_MULTIPLIER = (*_GAINS, "cap", "fixed")  # settings that the Lagrangian has by these names
_TASKS, _BUDGETS, _MIX, _HELD_OUT, _WORDINGS = 104, 105, 106, 107, 108  # what the random numbers are for


@dataclass(frozen=True)
class Settings(PhaseSettings):
    """Phase 2.

    The defaults are for a small pair trained from scratch, as docs/phase2.md found them; the recipes of FLAN-T5 have
    the paper's.
    """

    steps: int = 5000
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=2e-3, warmup=10))  # of the policy
    value_optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=1e-2))  # of the value network
    bf16: bool | str = False
    # Episodes
    tasks: int = 24  # sources of a batch; the budgets are spread evenly over them
    # One on-policy trajectory of each task per temperature of the student, 0 = greedy. Greedy ones alone flatten the
    # student's distribution. Use, which drives lambda, is measured on those of the lowest temperature: greedy decoding
    # asks where <tau> beats the best single token, and that is elsewhere than where it is likely.
    temperatures: tuple[float, ...] = (1.0, 0.0)
    teacher_temperature: float = 0.0  # of the teachers' tokens, also along the oracle's trajectories
    # Updates
    updates_per_batch: int = 4  # of the policy and the value network, on episodes drawn anew
    on_policy_rows: int = 24  # episodes of this batch's rollouts in an update
    oracle_rows: int = 12  # episodes of this batch's oracle in an update
    replay_rows: int = 12  # episodes of earlier batches in an update, of both kinds
    replay_capacity: int = 4096  # episodes
    # Path consistency
    entropy_weight: float = 0.15  # the paper's tau in Eq. 2; larger makes outputs longer, smaller shorter
    window: int | None = 5  # d, steps of a path; None = all that remains
    discount: float = 1.0  # gamma
    normalise: bool = True  # rewards by running mean and deviation (Eq. 17); False = the log-likelihoods as they are
    reward_clip: float = 2.0  # largest absolute value of a token's reward, in deviations
    statistics_decay: float = 0.99  # of mu_r and sigma_r, per batch
    value_batches: int = 25  # first batches in which only the value network learns
    # Lagrangian, see rewards.py
    multiplier_rate: float = 0.05  # what a budget's lambda rises by for each unit of excess use
    multiplier_cap: float = 2.0  # largest lambda
    # One number for all budgets, or one for each of the six, those that are not trained too (of each teacher, or the
    # same for all of them). At 0 asking is free, and use rises first.
    multiplier_initial: tuple[float, ...] = (2.0, 0.55, 0.65, 0.7, 0.6, 0.55)
    multiplier_proportional: float = 0.5  # times how the excess changed, added to lambda: it does not overshoot
    multiplier_derivative: float = 0.0  # times how that change changed
    multiplier_fixed: float | None = None  # lambda of every budget, never changed; None = learn it
    trailing_batches: int = 6  # over which use is averaged
    pooled_use: bool = True  # use is calls over tokens of all episodes together; False = the mean of their fractions
    # Of a batch: validation examples decoded greedily for their use alone, which then drives lambda in place of the
    # training rollouts'. A student asks more about sources that it was not fitted on, and budgets are kept there.
    # Drawn from all of them, those that select the checkpoint too: the fewer there are, the farther their use is from
    # that of other sentences. 0 = the training rollouts' use.
    held_out_rows: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperatures:
            raise ValueError("temperatures must hold at least one number >= 0, got none")
        for temperature in self.temperatures:
            check_real("temperatures", temperature, 0.0)
        for name in ("tasks", "updates_per_batch", "trailing_batches"):
            check_int(name, getattr(self, name), 1)
        rows = ("on_policy_rows", "oracle_rows", "replay_rows")
        for name in (*rows, "replay_capacity", "value_batches", "held_out_rows"):
            check_int(name, getattr(self, name), 0)
        if self.on_policy_rows + self.oracle_rows == 0:
            raise ValueError(f"an update needs on-policy or oracle rows, got {tuple(getattr(self, n) for n in rows)}")
        for name in ("teacher_temperature", "entropy_weight", *(f"multiplier_{name}" for name in _GAINS)):
            check_real(name, getattr(self, name), 0.0)
        if self.window is not None:
            check_int("window", self.window, 1)
        check_real("discount", self.discount, 0.0, 1.0)
        check_real("reward_clip", self.reward_clip, 0.0, open_low=True)
        check_real("statistics_decay", self.statistics_decay, 0.0, 1.0, open_low=True)
        check_real("multiplier_cap", self.multiplier_cap, 0.0, open_low=True)
        for value in self.multiplier_initial:
            check_real("multiplier_initial", value, 0.0, self.multiplier_cap)
        counts = sorted({1, len(BUDGETS), len(BUDGETS) * (1 + len(self.teachers))})
        if len(self.multiplier_initial) not in counts:
            known = " or ".join(map(str, counts))
            raise ValueError(f"multiplier_initial has {len(self.multiplier_initial)} values; give {known}")
        if self.multiplier_fixed is not None:
            check_real("multiplier_fixed", self.multiplier_fixed, 0.0)


class PathConsistency(LearningToAsk):
    """Phase 2 of one student, from phase 1, and one teacher, or several: see allocations.py for who judges."""

    settings: Settings
    state_parts: ClassVar[tuple[str, ...]] = (
        *("student", "value", "optimiser", "value_optimiser", "statistics", "lagrangian", "replay"),
    )

    def __init__(self, settings: Settings):
        fewest = min(settings.tasks, settings.on_policy_rows + settings.oracle_rows)
        if fewest < processes.number():
            raise ValueError(
                f"a batch of {settings.tasks} tasks and updates of {settings.on_policy_rows} + {settings.oracle_rows} "
                f"episodes cannot be shared by {processes.number()} processes; start fewer"
            )
        super().__init__(settings)
        self.rows, self.examples = self.task.train, self.task.held_out(len(self.task.validation))
        if not self.rows:
            raise ValueError("phase 2 needs at least one training example within data.max_source and data.max_target")
        self.moves_use = (
            f"a larger number of its own in multiplier_initial ({list(settings.multiplier_initial)}) lowers a budget's "
            f"use, a smaller one raises it, and more steps let the multipliers settle"
            if settings.multiplier_fixed is None
            else f"a larger multiplier_fixed (it is {settings.multiplier_fixed:g}) lowers use, a smaller one raises it"
        )
        self.watched = self._rows_to_watch()
        student, self.teacher_count = self.student, len(self.teachers)
        n = self.teacher_count
        self.instructions = Instructions(student.config.student_prompt, n, settings.paraphrases, settings.budgets)
        self.rollouts = Rollouts(
            student,
            self.teachers,
            prompts=self.task.frame.prompts(self.instructions.texts),
            teacher_prompt=self.task.frame.prompts([student.config.teacher_prompt])[0],
            fractions=self.instructions.fractions,
            settings=settings,
            teacher_temperature=settings.teacher_temperature,
            eos=self.task.frame.eos,
            tokenizer=self.tokenizer,
        )
        self.native_teachers, self.tau = self.rollouts.native_teachers, self.rollouts.tau
        self.teach(student)
        student.eval()
        for one in self.teachers:
            prepare_teacher(one, settings)
        self.value = ValueNetwork(student).to(settings.device)
        self.value_optimiser = make_optimiser(self.value, settings.value_optimiser)
        self._epoch, self._order = -1, np.zeros(0, np.int64)
        self.statistics = RewardStatistics(settings.statistics_decay)
        self.replay = ReplayBuffer(settings.replay_capacity)
        self.lagrangian = Lagrangian(
            [budget.fraction for budget in BUDGETS] * n,  # the first teacher's, the second's, ...
            initial=settings.multiplier_initial * (n if len(settings.multiplier_initial) == len(BUDGETS) else 1),
            trailing=settings.trailing_batches,
            pooled=settings.pooled_use,
            **{name: getattr(settings, f"multiplier_{name}") for name in _MULTIPLIER},
        )

    def held_out(self, rows: int | None) -> Sequence[Example]:
        """The first `rows` validation examples, all with None."""
        return self.examples[:rows]

    # ------------------------------------------------------------ one batch

    def train_batch(self, index: int) -> dict[str, float]:
        """Batch number `index` (from 0): rollouts, scoring, the updates, lambda. A function of (state, index) alone.

        Returns what is worth logging, all numbers; names with a slash are per budget.
        """
        settings, began = self.settings, time.perf_counter()
        tasks = self._tasks(index)
        own = tasks.mine()  # each process rolls out and scores its share
        acted, trajectories = self._rolled_out(own, index)
        watched = self._use_of_held_out(index) if settings.held_out_rows else None
        rolled_out = time.perf_counter()
        unread = sum(int(np.isnan(e.teacher_logprobs).sum()) for e in acted) / sum(map(len, acted))
        unread *= processes.share(sum(map(len, acted)))
        with autocast(settings):
            acted = self.rollouts.scored(acted)
            asked, divergence = self.rollouts.asked_by_oracle(trajectories)
        divergence *= processes.share(sum(map(len, trajectories)))
        # Every process goes on with all episodes: replay, statistics and lambda are the same in each.
        size = len(own.rows)
        on_policy = [e for i in range(0, len(acted), size) for e in processes.gathered(acted[i : i + size])]
        oracle = without_tokens(processes.gathered(asked), self.tau)
        self._count_rewards(on_policy, oracle)
        scored = time.perf_counter()
        metrics = self._update(index, on_policy, oracle)
        self.replay.add([*on_policy, *oracle])
        lowest = settings.temperatures.index(min(settings.temperatures)) * settings.tasks
        judged = on_policy[lowest : lowest + settings.tasks]
        self._count_use(judged if watched is None else watched)
        updated = time.perf_counter()

        metrics |= {
            "length_ratio": sum(map(len, judged)) / sum(len(row.target) for row in tasks.rows),
            "cut_off": sum(not e.ended for e in on_policy) / len(on_policy),
            "unread": unread,  # share of the tokens that no catch-up pass had scored
            "reward_mean": self.statistics.mean,
            "reward_deviation": self.statistics.deviation,
            "replay": float(len(self.replay)),
            "seconds_rollout": rolled_out - began,
            "seconds_scoring": scored - rolled_out,
            "seconds_update": updated - scored,
        }
        if oracle:
            metrics["divergence"] = divergence
        return metrics | self._multipliers()

    # ------------------------------------------------------------ tasks and rollouts

    def _tasks(self, index: int) -> Tasks:
        """The batch's rows (every row once an epoch, in an order of the epoch's own) and their instructions."""
        seed, count = self.settings.seed, self.settings.tasks
        chosen = []
        for place in range(index * count, (index + 1) * count):
            epoch, offset = divmod(place, len(self.rows))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, keyed_generator(seed, epoch, _TASKS).permutation(len(self.rows))
            chosen.append(self.rows[self._order[offset]])
        return Tasks(chosen, self._spread(count, index, _BUDGETS))

    def _spread(self, count: int, *key: int) -> list[int]:
        """Numbers of `count` instructions: each teacher's budgets evenly in an order by the key, and drawn wordings.

        Each teacher's are spread by themselves; where they come to more than 1, Instructions.number takes the smallest.
        """
        seed, given, spread = self.settings.seed, self.instructions, []
        for k in range(self.teacher_count):
            generator = keyed_generator(seed, *key, *([k] if k else []))
            spread.append([given.budgets[b] for b in generator.permutation(np.arange(count) % len(given.budgets))])
        wordings = keyed_generator(seed, *key, _WORDINGS).integers(len(given.wordings), size=count).tolist()
        return [given.number(chosen, wording) for chosen, wording in zip(zip(*spread), wordings, strict=True)]

    def _rolled_out(self, tasks: Tasks, index: int) -> tuple[list[Episode], list[Episode]]:
        """On-policy episodes, for each temperature one of each task, and the judge's own where the oracle has rows."""
        self.rollouts.decoder.student.update_weights(self.student)
        seeds = [rollout_seed(self.settings.seed, index, i) for i in range(1 + len(self.settings.temperatures))]
        acted = [
            episode
            for temperature, seed in zip(self.settings.temperatures, seeds)
            for episode in self.rollouts.on_policy(tasks, temperature, seed)
        ]
        return acted, self.rollouts.of_judge(tasks, seeds[-1]) if self.settings.oracle_rows else []

    def _rows_to_watch(self) -> list[Encoded]:
        """The validation sources whose use drives lambda, with `held_out_rows`."""
        data, count = self.settings.data, self.settings.held_out_rows
        found = self.task.frame.encode(self.examples if count else [], data.max_source, data.max_target)
        if len(found) < count:
            raise ValueError(
                f"held_out_rows={count} of a batch, but only {len(found)} validation examples are within "
                f"data.max_source and data.max_target; lower it"
            )
        return found

    def _use_of_held_out(self, index: int) -> list[Episode]:
        """Greedy rollouts of some held-out sources, of all processes; nothing but their use is learnt from."""
        chosen = keyed_generator(self.settings.seed, index, _HELD_OUT).permutation(len(self.watched))
        rows = [self.watched[i] for i in chosen[: self.settings.held_out_rows]]
        tasks = Tasks(rows, self._spread(len(rows), index, _HELD_OUT, len(BUDGETS)))
        own = tasks.mine()
        return processes.gathered(self.rollouts.on_policy(own) if own.rows else [])

    # ------------------------------------------------------------ what is counted

    def _count_rewards(self, on_policy: Sequence[Episode], oracle: Sequence[Episode]) -> None:
        """Teacher tokens are the judge's, asked for or of its own trajectories; student tokens are the rollouts'."""
        none = np.zeros(0, np.float32)
        teachers = [e.teacher_logprobs[e.from_teacher == self.teacher_count] for e in on_policy]
        teachers += [e.teacher_logprobs for e in oracle]
        written = [e.teacher_logprobs[e.from_teacher == 0] for e in on_policy]
        self.statistics.update(np.concatenate([none, *teachers]), np.concatenate([none, *written]))

    def _count_use(self, judged: Sequence[Episode]) -> None:
        """Let each teacher's multipliers follow what the episodes asked of it."""
        pairs = [(e, k) for k in range(self.teacher_count) for e in judged]
        self.lagrangian.update(
            [k * len(BUDGETS) + int(self.instructions.budget_numbers[e.budget, k]) for e, k in pairs],
            [e.calls_of(k + 1) for e, k in pairs],
            [len(e) for e, _ in pairs],
        )

    def _multipliers(self) -> dict[str, float]:
        """Use and lambda of each budget that is trained, to log."""
        found: dict[str, float] = {}
        for number, value in enumerate(self.lagrangian.values):
            teacher, budget = divmod(number, len(BUDGETS))
            if BUDGETS[budget] in self.instructions.budgets:
                phrase = BUDGETS[budget].phrase
                name = phrase if self.teacher_count == 1 else f"teacher {teacher + 1}, {phrase}"
                use = self.lagrangian.use(number)
                found |= ({} if use is None else {f"use/{name}": use}) | {f"lambda/{name}": value}
        return found

    # ------------------------------------------------------------ the updates

    def _update(self, index: int, on_policy: list[Episode], oracle: list[Episode]) -> dict[str, float]:
        settings = self.settings
        policy_learns = index >= settings.value_batches
        later = settings.steps - settings.value_batches
        set_rate(self.optimiser, rate_at(max(0, index - settings.value_batches), later, settings.optimiser))
        set_rate(self.value_optimiser, rate_at(index, settings.steps, settings.value_optimiser))
        sums: dict[str, float] = {}
        for update in range(settings.updates_per_batch):
            episodes = [
                *self._drawn(on_policy, settings.on_policy_rows, index, update, 1),
                *self._drawn(oracle, settings.oracle_rows, index, update, 2),
                *self.replay.sample(settings.replay_rows, settings.seed, index * settings.updates_per_batch + update),
            ]
            own = processes.mine(episodes)
            batch = self.rollouts.collated(own)
            share, written = (processes.share(int(one.sum())) for one in (batch.kept, batch.kept & (batch.asked == 0)))
            parts = {
                name: value * (written if name == "student_minus_teacher" else share)
                for name, value in self._loss(batch).items()
            }
            clips: dict[torch.nn.Module, float] = {self.student: settings.optimiser.clip}
            clips[self.value] = settings.value_optimiser.clip
            norms = guarded_gradients(parts["loss"], clips, vars(batch))
            if policy_learns:
                self.optimiser.step()
            self.value_optimiser.step()
            self.optimiser.zero_grad()
            self.value_optimiser.zero_grad()
            values = {name: float(value.detach()) for name, value in parts.items()}
            for name, value in (values | dict(zip(("grad_norm", "value_grad_norm"), norms))).items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: total / settings.updates_per_batch for name, total in sums.items()}

    def _drawn(self, pool: list[Episode], count: int, index: int, update: int, kind: int) -> list[Episode]:
        """`count` of the pool's episodes; the updates of a batch go through one shuffled order, again and again."""
        if not pool:
            return []
        order = keyed_generator(self.settings.seed, index, _MIX, kind).permutation(len(pool))
        return [pool[order[(update * count + i) % len(pool)]] for i in range(min(count, len(pool)))]

    def _loss(self, batch: EpisodeBatch) -> dict[str, torch.Tensor]:
        """The loss of a batch, and means over its steps to log."""
        settings = self.settings
        with autocast(self.settings):
            states = decoder_states(
                self.student, batch.source_ids, batch.source_mask, batch.inputs[:, :-1], batch.marks[:, :-1]
            )
            log_pi = torch.log_softmax(logits_at(self.student, states, batch.kept), -1)
            values = self.value(batch.source_ids, batch.source_mask, batch.inputs, batch.marks)
        chosen = log_pi.gather(1, batch.actions[batch.kept][:, None]).squeeze(1)
        action_logprobs = torch.zeros_like(batch.teacher_logprobs).masked_scatter(batch.kept, chosen)
        numbers = batch.budgets.cpu()
        multipliers = torch.tensor(self.lagrangian.values).view(self.teacher_count, -1).T
        reward = training_wheels_reward(
            batch.teacher_logprobs,
            batch.asked,
            batch.kept,
            multipliers.gather(0, self.instructions.budget_numbers[numbers]).to(settings.device),
            self.instructions.fractions[numbers].to(settings.device),
            self.statistics.mean if settings.normalise else 0.0,
            self.statistics.deviation if settings.normalise else 1.0,
            settings.reward_clip,
            self.rollouts.costs,
        )
        parts = path_consistency(
            action_logprobs,
            reward["total"],
            values,
            batch.kept,
            batch.ended,
            settings.entropy_weight,
            settings.window,
            settings.discount,
        )
        with torch.no_grad():
            asks = log_pi[:, self.tau].exp().sum(-1)
            entropy = -(torch.xlogy(asks, asks) + torch.xlogy(1 - asks, 1 - asks))
            written = batch.kept & (batch.asked == 0)
            gap = action_logprobs[written] - batch.teacher_logprobs[written]
            return {
                "loss": parts["loss"],
                "consistency_error": parts["error"],
                "value": values[:, :-1][batch.kept].abs().mean(),
                "reward": reward["total"][batch.kept].mean(),
                "reward_likelihood": reward["likelihood"][batch.kept].mean(),
                "reward_budget": reward["budget"][batch.kept].mean(),
                "tau_probability": asks.mean(),
                "tau_entropy": entropy.mean(),
                "action_logprob": chosen.mean(),
                "student_minus_teacher": gap.mean() if len(gap) else torch.zeros(()),
            }


build = PathConsistency
