"""Losses as pure functions, tensors in, tensors out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from .batches import IGNORED


def wide(values: torch.Tensor) -> torch.Tensor:
    """float32 at least: what bf16 passes give is summed in float32, and float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean -log p(label) over labels that are not ignored. logits [R, T, V], labels [R, T]."""
    total = functional.cross_entropy(
        wide(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (labels != IGNORED).sum().clamp(min=1)


def distillation(student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Word-level distillation: mean KL(teacher || student) over labels that are not ignored. logits [R, T, V]."""
    kept = labels != IGNORED
    log_q = functional.log_softmax(wide(student_logits[kept]), -1)
    log_p = functional.log_softmax(wide(teacher_logits[kept]), -1)
    return functional.kl_div(log_q, log_p, log_target=True, reduction="sum") / kept.sum().clamp(min=1)


DIVERGENCES = ("forward", "reverse", "jsd")


def token_divergence(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, kind: str, beta: float = 0.5
) -> torch.Tensor:
    """GKD's divergences of teacher p and student q at each position: logits [R, T, V] -> [R, T].

    "forward" is KL(p || q), "reverse" KL(q || p), and "jsd" is beta KL(p || m) + (1 - beta) KL(q || m) with
    m = beta p + (1 - beta) q, beta in (0, 1) (Agarwal et al. 2024). Raises ValueError for another kind.
    """
    log_q = functional.log_softmax(wide(student_logits), -1)
    log_p = functional.log_softmax(wide(teacher_logits), -1)
    if kind == "forward":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if kind == "reverse":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if kind != "jsd":
        raise ValueError(f"the divergence must be {' or '.join(DIVERGENCES)}, got {kind!r}")
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return (beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)).sum(-1)


def kept_mean(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mean of values [R, T] where kept (bool [R, T]); 0 where nothing is."""
    return values.masked_fill(~kept, 0.0).sum() / kept.sum().clamp(min=1)


def token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p(label) at each position: logits [R, T, V], labels [R, T] -> [R, T], 0 where labels are ignored."""
    kept = labels != IGNORED
    found = functional.log_softmax(wide(logits), -1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return found.masked_fill(~kept, 0.0)


def rewards_to_come(log_ratio: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """MiniLLM's length-normalised return: the mean of log p/q over the positions after each one, 0 at the last.

    log_ratio [R, T], kept bool [R, T] (a prefix of each row) -> [R, T] (Gu et al. 2024, section 2.2).
    """
    ratio, mask = log_ratio.masked_fill(~kept, 0.0), kept.to(log_ratio.dtype)
    after = ratio.flip(1).cumsum(1).flip(1) - ratio
    count = mask.flip(1).cumsum(1).flip(1) - mask
    return (after / count.clamp(min=1)).masked_fill(~kept, 0.0)


def clipped_policy_gradient(
    log_q: torch.Tensor, sampled_log_q: torch.Tensor, rewards: torch.Tensor, kept: torch.Tensor, clip: float
) -> torch.Tensor:
    """PPO's clipped surrogate, negated: -mean min(w R, clip(w, 1 - clip, 1 + clip) R), w = q / q when sampled.

    All [R, T]; the gradient goes through log_q alone (MiniLLM's long part).
    """
    weight = (log_q - sampled_log_q.detach()).exp()
    fixed = rewards.detach()
    return -kept_mean(torch.minimum(weight * fixed, weight.clamp(1 - clip, 1 + clip) * fixed), kept)


Taus = int | Sequence[int]  # <tau>, or those of several teachers


def tau_list(tau: Taus) -> list[int]:
    """The ids of <tau>, one for each teacher."""
    return [tau] if isinstance(tau, int) else list(tau)


def without_column(logits: torch.Tensor, column: Taus) -> torch.Tensor:
    """logits [..., V] -> [..., V - n] without n ids; those beyond the model's rows are not there anyway."""
    for one in sorted(tau_list(column), reverse=True):
        if one < logits.shape[-1]:
            logits = torch.cat((logits[..., :one], logits[..., one + 1 :]), -1)
    return logits


def position_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, tau: Taus) -> torch.Tensor:
    """KL_i = KL(p(.|C^(T)) || pi(.|C^(S))) at each position, both without <tau> (Eq. 16, as corrected).

    student_logits [R, T, V], teacher_logits [R, T, V or less] -> [R, T], float32 (float64 for float64).
    """
    log_pi = functional.log_softmax(wide(without_column(student_logits, tau)), -1)
    log_p = functional.log_softmax(wide(without_column(teacher_logits, tau)), -1)
    if log_pi.shape != log_p.shape:
        raise ValueError(f"student and teacher logits differ in shape without <tau>: {log_pi.shape} and {log_p.shape}")
    return (log_p.exp() * (log_p - log_pi)).sum(-1)


def behaviour_cloning(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    asked: torch.Tensor,
    kept: torch.Tensor,
    tau: Taus,
    abstain: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Eq. 16, as corrected: -log pi(<tau>) where the oracle asks, KL_i elsewhere; means over the kept positions.

    Of several teachers `asked` holds the number of the one that the oracle asks, 1 to n, or 0; the log-probability is
    that of its <tau>, and `teacher_logits` are the judge's.

    `abstain` weighs -log(1 - pi(<tau>)) at the other positions. With 1 the two terms there are together the KL to a
    teacher that never says <tau>; with 0 (the print) nothing keeps pi(<tau>) down. Logits [R, T, V]; asked and kept
    bool [R, T]. Returns the scalars loss, ask, divergence and abstain.
    """
    log_all = functional.log_softmax(wide(student_logits), -1)
    log_other = torch.logsumexp(without_column(log_all, tau), -1)
    low = (kept & (asked == 0)).to(log_all.dtype)
    count = kept.sum().clamp(min=1)
    ask = log_all.new_zeros(())
    for number, own in enumerate(tau_list(tau), 1):
        high = ((asked == number) & kept).to(log_all.dtype)
        ask = ask - (log_all[..., own] * high).sum() / count
    divergence = (position_divergence(student_logits, teacher_logits, tau) * low).sum() / count
    hush = -(log_other * low).sum() / count
    return {"loss": ask + divergence + abstain * hush, "ask": ask, "divergence": divergence, "abstain": hush}


def training_wheels_reward(
    teacher_logprobs: torch.Tensor,
    asked: torch.Tensor,
    kept: torch.Tensor,
    multipliers: torch.Tensor,
    budgets: torch.Tensor,
    mean: float,
    deviation: float,
    clip: float = 2.0,
    costs: Sequence[float] = (1.0,),
) -> dict[str, torch.Tensor]:
    """Reward of each step (Eq. 17, as corrected): normalised log p on the student's tokens, lambda (b - 1[tau]) on all.

    teacher_logprobs [R, T] of the tokens under the teacher, read only where the student wrote them; asked and kept bool
    [R, T]; multipliers lambda >= 0 and budgets b in [0, 1], both [R]; `mean` mu_r and `deviation` sigma_r > 0 normalise
    log p; the total is clipped to [-clip, clip].

    Of n teachers `asked` holds the number of the one that was asked, 1 to n, or 0; multipliers and budgets are [R, n],
    and the budget part is the sum over k of costs[k] lambda_k (b_k - 1[tau_k]). teacher_logprobs are the judge's, the
    last teacher's, and are read on all tokens but its own: what another teacher wrote is judged as the student's.

    Returns "total", "likelihood" and "budget", each [R, T] and 0 in padding; the two parts are not clipped. Raises
    ValueError for a deviation or clip that is not positive, and for another number of costs than of teachers.
    """
    if not deviation > 0 or not clip > 0:
        raise ValueError(f"deviation and clip must be positive, got deviation={deviation} and clip={clip}")
    multipliers, budgets = multipliers.view(len(asked), -1), budgets.view(len(asked), -1)
    count = multipliers.shape[1]
    if len(costs) != count:
        raise ValueError(f"costs has {len(costs)} values for {count} teachers; give one for each")
    written = kept & (asked != count)
    likelihood = torch.where(written, (teacher_logprobs - mean) / deviation, 0.0)
    budget = torch.zeros_like(likelihood)
    for k, cost in enumerate(costs):
        use = (asked == k + 1).to(likelihood.dtype)
        budget = budget + cost * multipliers[:, k, None] * (budgets[:, k, None] - use)
    budget = torch.where(kept, budget, 0.0)
    return {"total": (likelihood + budget).clamp(-clip, clip), "likelihood": likelihood, "budget": budget}


def path_consistency(
    action_logprobs: torch.Tensor,
    rewards: torch.Tensor,
    values: torch.Tensor,
    kept: torch.Tensor,
    ended: torch.Tensor,
    entropy_weight: float = 1.0,
    window: int | None = None,
    discount: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Path Consistency Learning's loss (Nachum et al. 2017, 1702.08892), half the mean of C^2 over all start positions.

        C_i = -V(s_i) + gamma^d V(s_{i+d}) + sum_{j<d} gamma^j [r_{i+j} - entropy_weight log pi(a_{i+j}|s_{i+j})]

    for windows that start at every position i and end after d steps or with the path, whichever comes first. Gradients
    reach `action_logprobs` and `values`.

    Args:
        action_logprobs: [R, T], log pi of the actions; log pi(<tau>) where the student asked.
        rewards: [R, T].
        values: [R, T + 1], V before each action and, at a row's length L, behind its last.
        kept: bool [R, T], true at the L >= 1 first steps of a row; what lies behind is padding and contributes nothing.
        ended: bool [R]. Of a row that ended with EOS, V behind it is 0; others were cut off and are bootstrapped with
            V(s_L).
        entropy_weight: the paper's tau of Eq. 2.
        window: d >= 1; None = all that remains.
        discount: gamma, in (0, 1].

    Returns:
        The scalar "loss", and "error", the mean of |C| without gradient.

    Raises:
        ValueError: shapes that do not agree, or a setting out of range.
    """
    rows, steps = action_logprobs.shape
    if rewards.shape != (rows, steps) or kept.shape != (rows, steps) or ended.shape != (rows,):
        raise ValueError(
            f"action_logprobs, rewards and kept must be [R, T] and ended [R], got {tuple(action_logprobs.shape)}, "
            f"{tuple(rewards.shape)}, {tuple(kept.shape)} and {tuple(ended.shape)}"
        )
    if values.shape != (rows, steps + 1):
        raise ValueError(f"values must be [R, T + 1] = [{rows}, {steps + 1}], got {tuple(values.shape)}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 or None, got {window}")
    if not 0 < discount <= 1:
        raise ValueError(f"discount must be in (0, 1], got {discount}")
    position = torch.arange(steps + 1, device=values.device)
    start = position[:-1]
    length = kept.sum(1, keepdim=True)
    state_value = torch.where((position < length) | ((position == length) & ~ended[:, None]), values, 0.0)
    soft_reward = torch.where(kept, rewards - entropy_weight * action_logprobs, 0.0)
    span = steps if window is None else min(window, steps)
    ahead = start[None, :] - start[:, None]  # how far column k lies ahead of row i
    weight = torch.where((ahead >= 0) & (ahead < span), discount ** ahead.clamp(min=0).to(values.dtype), 0.0)
    gathered = soft_reward @ weight.to(soft_reward.dtype).T
    end = torch.minimum(start + span, length)
    reached = discount ** (end - start).clamp(min=0).to(values.dtype) * state_value.gather(1, end)
    consistency = torch.where(kept, gathered + reached - state_value[:, :-1], 0.0)
    count = kept.sum().clamp(min=1)
    error = consistency.detach().abs().sum() / count
    return {"loss": 0.5 * consistency.square().sum() / count, "error": error}
