"""Phase 2: Path Consistency Learning with a Lagrangian, on-policy, oracle and replayed episodes mixed (paper, 2.4.2).

Holds the algorithm and all of its state; who calls `train_batch`, validates and saves is another matter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.decoders import GreedyDecoder, TrainingWheelsDecoder
from kdtw_fast.model import NativeT5
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.options import check_int, check_real

from . import mixes, processes
from .batches import Encoded, encode, instruction_prompts, keyed_generator, teacher_prompts
from .behaviour_cloning import measure_budgets
from .debian import Example
from .episodes import Episode, EpisodeBatch, collate_episodes, decoder_states, logits_at, special_tokens
from .evaluate import shown
from .lagrangian import Lagrangian
from .losses import path_consistency, training_wheels_reward
from .models import load_student, load_teachers, load_tokenizer, save_pair_member, settle_teacher, to_device
from .optimisation import NonFiniteLossError, make_optimiser, quicken, rate_at, set_rate
from .replay import ReplayBuffer
from .rewards import RewardStatistics
from .rollouts import ask_where_divergent, rollout, rollout_seed, score_unread, teacher_rollout, without_tokens
from .selection import rank
from .settings import Optimiser, Pairing
from .tasks import Task
from .trainer import Table
from .value import ValueNetwork

_TASKS, _BUDGETS, _MIX, _HELD_OUT, _WORDINGS = 104, 105, 106, 107, 108  # what the random numbers are for
_STATE = ("student", "value", "optimiser", "value_optimiser", "statistics", "lagrangian", "replay")


@dataclass(frozen=True)
class Settings(Pairing):
    """Phase 2.

    The defaults are for a small pair trained from scratch, as docs/phase2.md found them; the recipes of FLAN-T5 have
    the paper's.
    """

    steps: int = 5000
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=2e-3, warmup=10))  # of the policy
    value_optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=1e-2))
    bf16: bool = False
    # Episodes
    tasks: int = 24  # sources of a batch; the budgets are spread evenly over them
    # One on-policy trajectory of each task per temperature of the student, 0 = greedy. Greedy ones alone flatten the
    # student's distribution. Use, which drives lambda, is measured on those of the lowest temperature: greedy decoding
    # asks where <tau> beats the best single token, and that is elsewhere than where it is likely.
    temperatures: tuple[float, ...] = (1.0, 0.0)
    teacher_temperature: float = 0.0  # of the teacher's answers and trajectories
    rounding: str = "nearest"  # of l x b, the number of positions where the oracle asks
    # Updates
    updates_per_batch: int = 4
    on_policy_rows: int = 24  # episodes of this batch's rollouts in an update
    oracle_rows: int = 12  # episodes of this batch's oracle in an update
    replay_rows: int = 12  # episodes of earlier batches in an update, of both kinds
    replay_capacity: int = 4096  # episodes
    # Path consistency
    entropy_weight: float = 0.15  # the paper's tau in Eq. 2; larger makes outputs longer, smaller shorter
    window: int | None = 5  # d, steps of a path; None = all that remains
    discount: float = 1.0  # gamma
    normalise: bool = True  # rewards by running mean and deviation (Eq. 17); False = the log-likelihoods as they are
    reward_clip: float = 2.0
    statistics_decay: float = 0.99  # of mu_r and sigma_r, per batch
    value_batches: int = 25  # first batches in which only the value network learns
    # Lagrangian, see lagrangian.py
    multiplier_rate: float = 0.05
    multiplier_cap: float = 2.0
    # One number for all budgets, or one for each of the six, those that are not trained too (of each teacher, or the
    # same for all of them). At 0 asking is free, and use rises first.
    multiplier_initial: tuple[float, ...] = (2.0, 0.55, 0.65, 0.7, 0.6, 0.55)
    multiplier_proportional: float = 0.5
    multiplier_derivative: float = 0.0
    multiplier_fixed: float | None = None
    trailing_batches: int = 6
    pooled_use: bool = True
    # Of a batch: validation examples decoded greedily for their use alone, which then drives lambda in place of the
    # training rollouts'. A student asks more about sources that it was not fitted on, and budgets are kept there.
    # Drawn from all of them, those that select the checkpoint too: the fewer there are, the farther their use is from
    # that of other sentences. 0 = the training rollouts' use.
    held_out_rows: int = 0
    tolerance: float = 0.03  # how far use may be from a budget for a checkpoint to count as holding it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperatures or min(self.temperatures) < 0:
            raise ValueError(f"temperatures must hold at least one number >= 0, got {self.temperatures}")
        check_int("tasks", self.tasks, 1)
        check_int("updates_per_batch", self.updates_per_batch, 1)
        check_int("value_batches", self.value_batches, 0)
        check_int("held_out_rows", self.held_out_rows, 0)
        check_real("tolerance", self.tolerance, 0.0, 1.0)
        rows = (self.on_policy_rows, self.oracle_rows, self.replay_rows)
        if min(rows) < 0 or self.on_policy_rows + self.oracle_rows == 0:
            raise ValueError(f"an update needs on-policy or oracle rows, and none negative, got {rows}")
        check_real("entropy_weight", self.entropy_weight, 0.0)


class PathConsistency:
    """Phase 2 of one student and one teacher, or several: see mixes.py for who judges.

    Args:
        settings: see `Settings`.
        student: the policy, from phase 1; trained in place.
        teacher: only read; one, or a list with one for each <tau> of the student. All models get faster CPU operators
            of the same maths (`optimisation.quicken`).
        tokenizer: the pair's.
        train_rows: sources without prompt; their targets are used for the length ratio only.
        validation_examples: for `validate`.
    """

    def __init__(
        self,
        settings: Settings,
        student: TrainingWheelsT5,
        teacher: T5ForConditionalGeneration | Sequence[T5ForConditionalGeneration],
        tokenizer: Any,
        train_rows: Sequence[Encoded],
        validation_examples: Sequence[Example],
    ):
        if not train_rows:
            raise ValueError("phase 2 needs at least one training row, got none")
        self.settings, self.tokenizer = settings, tokenizer
        self.rows, self.examples = train_rows, validation_examples
        watched = validation_examples if settings.held_out_rows else []
        self.held_out = encode(watched, tokenizer, settings.data.max_source, settings.data.max_target)
        if len(self.held_out) < settings.held_out_rows:
            raise ValueError(
                f"held_out_rows={settings.held_out_rows} of a batch, but only {len(self.held_out)} validation examples "
                "are within data.max_source and data.max_target; lower it"
            )
        threads = settings.threads or None
        teachers = [teacher] if isinstance(teacher, T5ForConditionalGeneration) else list(teacher)
        self.experts = n = len(teachers)
        self.costs = tuple(settings.costs) or (1.0,) * n
        names = ["teacher"] if n == 1 else [f"teacher {k}" for k in range(1, 1 + n)]
        self.answering = [NativeT5.from_model(one, name) for one, name in zip(teachers, names, strict=True)]
        self.teacher_decoder = GreedyDecoder(self.answering[-1], num_threads=threads)
        self.decoder = TrainingWheelsDecoder(student, self.answering, num_threads=threads)
        self.instructions = mixes.Instructions(student.config.student_prompt, n, settings.paraphrases, settings.budgets)
        self.prompts = instruction_prompts(tokenizer, self.instructions)
        self.told_prompt = teacher_prompts(tokenizer, student.config.teacher_prompt)[0]
        self.special, self.tau = special_tokens(student), student.tau_token_ids
        quicken(student, 0.0)
        to_device(student, settings.device).eval()
        for teacher in teachers:
            settle_teacher(teacher, settings)
        self.student, self.teachers, self.teacher = student, teachers, teachers[-1]
        self.value = ValueNetwork(student).to(settings.device)
        self.optimiser = make_optimiser(student, settings.optimiser)
        self.value_optimiser = make_optimiser(self.value, settings.value_optimiser)
        self._epoch, self._order = -1, np.zeros(0, np.int64)
        self.statistics = RewardStatistics(settings.statistics_decay)
        self.replay = ReplayBuffer(settings.replay_capacity)
        self.lagrangian = Lagrangian(
            [budget.fraction for budget in BUDGETS] * n,  # the first teacher's, the second's, ...
            rate=settings.multiplier_rate,
            cap=settings.multiplier_cap,
            initial=settings.multiplier_initial * (n if len(settings.multiplier_initial) == len(BUDGETS) else 1),
            trailing=settings.trailing_batches,
            proportional=settings.multiplier_proportional,
            derivative=settings.multiplier_derivative,
            pooled=settings.pooled_use,
            fixed=settings.multiplier_fixed,
        )

    # ------------------------------------------------------------ one batch

    def train_batch(self, index: int) -> dict[str, float]:
        """Batch number `index` (from 0): rollouts, scoring, the updates, lambda. A function of (state, index) alone.

        Returns what is worth logging, all numbers; names with a slash are per budget.
        """
        settings = self.settings
        began = time.perf_counter()
        rows, budgets = self._tasks(index)
        places = processes.mine(range(len(rows)))  # each process rolls out and scores its share
        self.decoder.student.update_weights(self.student)
        rolled = [
            self._rollout(rows, budgets, places, temperature, rollout_seed(settings.seed, index, i))
            for i, temperature in enumerate(settings.temperatures)
        ]
        trajectories: list[Episode] = []
        if settings.oracle_rows:
            trajectories = teacher_rollout(
                self.teacher_decoder,
                [rows[i] for i in places],
                [budgets[i] for i in places],
                self.told_prompt,
                settings.max_new_tokens,
                settings.teacher_temperature,
                rollout_seed(settings.seed, index, len(rolled)),
                places,
            )
        watched = self._held_out_episodes(index) if settings.held_out_rows else None
        rolled_out = time.perf_counter()
        acted = [e for part in rolled for e in part]
        unread = sum(int(np.isnan(e.teacher_logprobs).sum()) for e in acted) / sum(map(len, acted))
        with self._autocast():
            acted = score_unread(self.teacher, acted, self.told_prompt)
            asked, divergence = ask_where_divergent(
                self.student,
                self.teachers,
                trajectories,
                self.prompts,
                self.told_prompt,
                settings.rounding,
                self.costs,
                self.instructions.fractions,
            )
        # Every process goes on with all episodes: replay, statistics and lambda are the same in each.
        size = len(places)
        on_policy = [e for i in range(0, len(acted), size) for e in processes.gathered(acted[i : i + size])]
        oracle = without_tokens(processes.gathered(asked), self.tau)
        self._count_rewards(on_policy, oracle)
        scored = time.perf_counter()
        metrics = self._update(index, on_policy, oracle)
        self.replay.add([*on_policy, *oracle])
        lowest = settings.temperatures.index(min(settings.temperatures))
        judged = on_policy[lowest * len(rows) : (lowest + 1) * len(rows)]
        self._count_use(judged if watched is None else watched)
        updated = time.perf_counter()

        metrics |= {
            "length_ratio": sum(map(len, judged)) / sum(len(row.target) for row in rows),
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
        for number, value in enumerate(self.lagrangian.values):
            teacher, budget = divmod(number, len(BUDGETS))
            if BUDGETS[budget] not in self.instructions.budgets:
                continue
            name = BUDGETS[budget].phrase if self.experts == 1 else f"teacher {teacher + 1}, {BUDGETS[budget].phrase}"
            use = self.lagrangian.use(number)
            if use is not None:
                metrics[f"use/{name}"] = use
            metrics[f"lambda/{name}"] = value
        return metrics

    def _count_use(self, judged: Sequence[Episode]) -> None:
        """Let each teacher's multipliers follow what the episodes asked of it."""
        pairs = [(e, k) for k in range(self.experts) for e in judged]
        self.lagrangian.update(
            [k * len(BUDGETS) + int(self.instructions.budget_numbers[e.budget, k]) for e, k in pairs],
            [e.calls_of(k + 1) for e, k in pairs],
            [len(e) for e, _ in pairs],
        )

    def _tasks(self, index: int) -> tuple[list[Encoded], list[int]]:
        """The batch's rows (every row once an epoch, in an order of the epoch's own) and their instructions.

        Each teacher's budgets are spread evenly over the rows by themselves; a mix of more than 1 becomes the smallest
        there is, of all budgets "no" of all teachers.
        """
        seed, count = self.settings.seed, self.settings.tasks
        chosen = []
        for place in range(index * count, (index + 1) * count):
            epoch, offset = divmod(place, len(self.rows))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, keyed_generator(seed, epoch, _TASKS).permutation(len(self.rows))
            chosen.append(self.rows[self._order[offset]])
        return chosen, self._spread(count, index, _BUDGETS)

    def _spread(self, count: int, *key: int) -> list[int]:
        """Numbers of `count` instructions: each teacher's budgets evenly in an order by the key, and drawn wordings."""
        seed, given, spread = self.settings.seed, self.instructions, []
        for k in range(self.experts):
            generator = keyed_generator(seed, *key, *([k] if k else []))
            spread.append([given.budgets[b] for b in generator.permutation(np.arange(count) % len(given.budgets))])
        wordings = keyed_generator(seed, *key, _WORDINGS).integers(len(given.wordings), size=count).tolist()
        return [given.number(mix, wording) for mix, wording in zip(zip(*spread), wordings, strict=True)]

    def _held_out_episodes(self, index: int) -> list[Episode]:
        """Greedy rollouts of some held-out sources, of all processes; nothing but their use is learnt from."""
        settings = self.settings
        chosen = keyed_generator(settings.seed, index, _HELD_OUT).permutation(len(self.held_out))
        rows = [self.held_out[i] for i in chosen[: settings.held_out_rows]]
        budgets = self._spread(len(rows), index, _HELD_OUT, len(BUDGETS))
        places = processes.mine(range(len(rows)))
        return processes.gathered(self._rollout(rows, budgets, places, 0.0, 0))

    def _rollout(
        self, rows: list[Encoded], budgets: list[int], places: Sequence[int], temperature: float, seed: int
    ) -> list[Episode]:
        settings = self.settings
        return rollout(
            self.decoder,
            [rows[i] for i in places],
            [budgets[i] for i in places],
            self.prompts,
            self.told_prompt,
            settings.max_new_tokens,
            temperature,
            settings.teacher_temperature,
            seed,
            places,
        )

    def _count_rewards(self, on_policy: Sequence[Episode], oracle: Sequence[Episode]) -> None:
        """Teacher tokens are the judge's answers and its own trajectories, student tokens those of the rollouts."""
        none = np.zeros(0, np.float32)
        answers = [e.teacher_logprobs[e.from_teacher == self.experts] for e in on_policy]
        answers += [e.teacher_logprobs for e in oracle]
        written = [e.teacher_logprobs[e.from_teacher == 0] for e in on_policy]
        self.statistics.update(np.concatenate([none, *answers]), np.concatenate([none, *written]))

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
            batch = collate_episodes(own, self.prompts, self.tau, *self.special).to(settings.device)
            parts = self._loss(batch)
            parts["loss"] = parts["loss"] * processes.share(sum(map(len, own)))
            parts["loss"].backward()
            for model in (self.student, self.value):
                processes.average_gradients(model)
            parts["grad_norm"] = nn.utils.clip_grad_norm_(self.student.parameters(), settings.optimiser.clip)
            parts["value_grad_norm"] = nn.utils.clip_grad_norm_(self.value.parameters(), settings.value_optimiser.clip)
            for name in ("loss", "grad_norm", "value_grad_norm"):
                if processes.total(float(not torch.isfinite(parts[name].detach()))):
                    self.optimiser.zero_grad()
                    self.value_optimiser.zero_grad()
                    raise NonFiniteLossError(f"{name} is {float(parts[name].detach())}", vars(batch))
            if policy_learns:
                self.optimiser.step()
            self.value_optimiser.step()
            self.optimiser.zero_grad()
            self.value_optimiser.zero_grad()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
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
        with self._autocast():
            states = decoder_states(
                self.student, batch.source_ids, batch.source_mask, batch.inputs[:, :-1], batch.marks[:, :-1]
            )
            log_pi = torch.log_softmax(logits_at(self.student, states, batch.kept), -1)
            values = self.value(batch.source_ids, batch.source_mask, batch.inputs, batch.marks)
        chosen = log_pi.gather(1, batch.actions[batch.kept][:, None]).squeeze(1)
        action_logprobs = torch.zeros_like(batch.teacher_logprobs).masked_scatter(batch.kept, chosen)
        reward = training_wheels_reward(
            batch.teacher_logprobs,
            batch.asked,
            batch.kept,
            torch.tensor(self.lagrangian.values)
            .view(self.experts, -1)
            .T.gather(0, self.instructions.budget_numbers[batch.budgets.cpu()])
            .to(settings.device),
            self.instructions.fractions[batch.budgets.cpu()].to(settings.device),
            self.statistics.mean if settings.normalise else 0.0,
            self.statistics.deviation if settings.normalise else 1.0,
            settings.reward_clip,
            self.costs,
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
            surprise = action_logprobs[written] - batch.teacher_logprobs[written]
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
                "student_minus_teacher": surprise.mean() if len(surprise) else torch.zeros(()),
            }

    def _autocast(self) -> torch.autocast:
        device = torch.device(self.settings.device).type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.settings.bf16)

    # ------------------------------------------------------------ measuring and saving

    def validate(self, index: int, rows: int | None) -> Table:
        """Use and quality at the budgets on the first `rows` validation examples (None = all), greedy.

        `index` is the number of batches trained; the result does not depend on it.
        """
        examples, limit = self.examples[:rows], self.settings.max_new_tokens
        return measure_budgets(
            self.student,
            self.answering,
            self.tokenizer,
            examples,
            limit,
            budgets=self.instructions.budgets,
            num_threads=self.settings.threads or None,
        )

    def samples(self, index: int, count: int) -> list[dict[str, str]]:
        """Decoded validation examples at a moderate budget, the teacher's tokens in brackets."""
        decoder = TrainingWheelsDecoder(self.student, self.answering, tokenizer=self.tokenizer)
        budget = mixes.told(mixes.moderate(self.experts, self.instructions.budgets))
        return shown(decoder, self.examples[:count], self.settings.max_new_tokens, budget=budget)

    def rank(self, table: Table) -> tuple[float, ...]:
        """How good a table of `validate` is, larger is better; see selection.py."""
        return rank(table, self.settings.tolerance)

    def state_dict(self) -> dict[str, Any]:
        """All that `train_batch` depends on: tensors, numbers, lists and dicts of them."""
        return {name: getattr(self, name).state_dict() for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of the same settings; what follows is the same to the bit as without the interruption."""
        for name in _STATE:
            getattr(self, name).load_state_dict(state[name])

    def save_model(self, folder: Path) -> None:
        """The student, a plain T5 checkpoint with beta, and its tokenizer."""
        save_pair_member(self.student, self.tokenizer, folder)


def build(settings: Settings) -> PathConsistency:
    """Phase 2 of the pair that `settings` name; the student is one from phase 1."""
    fewest = min(settings.tasks, settings.on_policy_rows + settings.oracle_rows)
    if fewest < processes.number():
        raise ValueError(
            f"a batch of {settings.tasks} tasks and updates of {settings.on_policy_rows} + {settings.oracle_rows} "
            f"episodes cannot be shared by {processes.number()} processes; start fewer"
        )
    tokenizer = load_tokenizer(settings)
    task = Task(settings, tokenizer)
    teachers = load_teachers(settings)
    student = load_student(settings.student.path, len(tokenizer), settings, len(teachers))
    return PathConsistency(settings, student, teachers, tokenizer, task.train, task.held_out(len(task.validation)))
