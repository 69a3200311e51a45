"""Every loss against a NumPy twin written from its formula, and its gradient against differences, in float64."""

import numpy as np
import pytest
import torch
from kdtw_fast.training import losses
from kdtw_fast.training.batches import IGNORED

R, T, V, TAU = 2, 4, 6, 4
KEPT = torch.tensor([[True, True, True, True], [True, True, False, False]])
LABELS = torch.tensor([[1, 5, 0, 2], [3, 1, IGNORED, IGNORED]])


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = drawn(R, T, V, seed=1), drawn(R, T, V, seed=2)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def mean_kept(values):
    return float(np.mean([values[r, t] for r in range(R) for t in range(T) if KEPT[r, t]]))


def without_tau(x):
    return np.delete(x, TAU, axis=-1)


P, Q = softmax(TEACHER.numpy()), softmax(STUDENT.numpy())
ASKED = torch.tensor([[True, False, False, True], [False, True, True, False]])  # one of them in padding


def test_cross_entropy():
    expected = mean_kept(np.array([[-np.log(Q[r, t, max(LABELS[r, t], 0)]) for t in range(T)] for r in range(R)]))
    assert float(losses.cross_entropy(STUDENT, LABELS)) == pytest.approx(expected, rel=1e-12)


def test_distillation():
    assert float(losses.distillation(STUDENT, TEACHER, LABELS)) == pytest.approx(mean_kept(kl(P, Q)), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_divergences(beta):
    m = beta * P + (1 - beta) * Q
    expected = {"forward": kl(P, Q), "reverse": kl(Q, P), "jsd": beta * kl(P, m) + (1 - beta) * kl(Q, m)}
    assert set(expected) == set(losses.DIVERGENCES)
    for kind, values in expected.items():
        np.testing.assert_allclose(losses.token_divergence(STUDENT, TEACHER, kind, beta).numpy(), values, rtol=1e-10)
    with pytest.raises(ValueError, match="forward or reverse or jsd, got 'tv'"):
        losses.token_divergence(STUDENT, TEACHER, "tv")


def test_position_divergence():
    p, q = softmax(without_tau(TEACHER.numpy())), softmax(without_tau(STUDENT.numpy()))
    np.testing.assert_allclose(losses.position_divergence(STUDENT, TEACHER, TAU).numpy(), kl(p, q), rtol=1e-10)


@pytest.mark.parametrize("abstain", [0.0, 1.0, 3.0])
def test_behaviour_cloning(abstain):
    p, q = softmax(without_tau(TEACHER.numpy())), softmax(without_tau(STUDENT.numpy()))
    other = kl(p, q) - abstain * np.log(1 - Q[..., TAU])
    expected = mean_kept(np.where(ASKED.numpy(), -np.log(Q[..., TAU]), other))
    found = losses.behaviour_cloning(STUDENT, TEACHER, ASKED, KEPT, TAU, abstain)["loss"]
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_token_log_probs_and_kept_mean():
    found = losses.token_log_probs(STUDENT, LABELS)
    for r in range(R):
        for t in range(T):
            expected = np.log(Q[r, t, LABELS[r, t]]) if KEPT[r, t] else 0.0
            assert float(found[r, t]) == pytest.approx(expected, rel=1e-12)
    assert float(losses.kept_mean(found, KEPT)) == pytest.approx(mean_kept(found.numpy()), rel=1e-12)
    assert float(losses.kept_mean(found, torch.zeros_like(KEPT))) == 0.0


def test_rewards_to_come():
    ratio = drawn(R, T, seed=3)
    expected = np.zeros((R, T))
    for r in range(R):
        length = int(KEPT[r].sum())
        for t in range(length - 1):
            expected[r, t] = ratio[r, t + 1 : length].mean()
    np.testing.assert_allclose(losses.rewards_to_come(ratio, KEPT).numpy(), expected, atol=1e-12)


def test_clipped_policy_gradient():
    log_q, sampled, rewards = (drawn(R, T, seed=seed) for seed in (4, 5, 6))
    weight = np.exp((log_q - sampled).numpy())
    clipped = np.clip(weight, 0.8, 1.2) * rewards.numpy()
    expected = -mean_kept(np.minimum(weight * rewards.numpy(), clipped))
    found = losses.clipped_policy_gradient(log_q, sampled, rewards, KEPT, 0.2)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert (weight > 1.2).any() and (weight < 0.8).any()  # both sides are reached


def test_first_policy_update_is_reinforce():
    logits = STUDENT.clone().requires_grad_()
    log_q, rewards = losses.token_log_probs(logits, LABELS), drawn(R, T, seed=7)
    (found,) = torch.autograd.grad(losses.clipped_policy_gradient(log_q, log_q, rewards, KEPT, 0.2), logits)
    again = losses.token_log_probs(logits, LABELS)
    (expected,) = torch.autograd.grad(-losses.kept_mean(again * rewards, KEPT), logits)
    assert torch.allclose(found, expected, atol=1e-12)


def test_minillm_is_the_gradient_of_the_reverse_kl_of_sequences():
    """Over all outputs of two tokens (where normalising the return changes nothing), weighted by the policy."""
    first, second = drawn(3, seed=8).requires_grad_(), drawn(3, 3, seed=9).requires_grad_()
    p_first, p_second = drawn(3, seed=10).log_softmax(-1), drawn(3, 3, seed=11).log_softmax(-1)
    expected_loss, surrogate = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    kept = torch.ones(1, 2, dtype=torch.bool)
    for a in range(3):
        for b in range(3):
            log_q = first.log_softmax(-1)[a] + second.log_softmax(-1)[a, b]
            expected_loss = expected_loss + log_q.exp() * (log_q - p_first[a] - p_second[a, b])
            student, teacher = torch.stack((first, second[a]))[None], torch.stack((p_first, p_second[a]))[None]
            labels = torch.tensor([[a, b]])
            mine, theirs = (losses.token_log_probs(logits, labels) for logits in (student, teacher))
            rewards = losses.rewards_to_come((theirs - mine).detach(), kept)
            single = losses.kept_mean(losses.token_divergence(student, teacher, "reverse"), kept)
            policy = losses.clipped_policy_gradient(mine, mine, rewards, kept, 0.2)
            surrogate = surrogate + log_q.detach().exp() * 2 * (single + policy)
    found = torch.autograd.grad(surrogate, (first, second))
    for one, other in zip(found, torch.autograd.grad(expected_loss, (first, second)), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


LOSSES = {
    "cross_entropy": lambda x: losses.cross_entropy(x, LABELS),
    "distillation": lambda x: losses.distillation(x, TEACHER, LABELS),
    "forward": lambda x: losses.token_divergence(x, TEACHER, "forward"),
    "reverse": lambda x: losses.token_divergence(x, TEACHER, "reverse"),
    "jsd": lambda x: losses.token_divergence(x, TEACHER, "jsd", 0.3),
    "position_divergence": lambda x: losses.position_divergence(x, TEACHER, TAU),
    "behaviour_cloning": lambda x: losses.behaviour_cloning(x, TEACHER, ASKED, KEPT, TAU, 3.0)["loss"],
    "token_log_probs": lambda x: losses.token_log_probs(x, LABELS),
    "rewards_to_come": lambda x: losses.rewards_to_come(x[..., 0], KEPT),
    "clipped_policy_gradient": lambda x: losses.clipped_policy_gradient(
        losses.token_log_probs(x, LABELS), drawn(R, T, seed=5) - 1.8, drawn(R, T, seed=6), KEPT, 0.2
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    values = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (values,))
    (gradient,) = torch.autograd.grad(LOSSES[name](values).sum(), values)
    assert float(gradient.abs().max()) > 1e-3  # and there is one


@pytest.mark.parametrize("kind", losses.DIVERGENCES)
def test_float32_and_bf16_are_summed_in_float32(kind):
    exact = losses.token_divergence(STUDENT, TEACHER, kind)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        found = losses.token_divergence(STUDENT.to(dtype), TEACHER.to(dtype), kind)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), exact, atol=tolerance)
