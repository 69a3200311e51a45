"""Tiny random T5s of odd sizes whose argmax keeps changing, and pairs and batches of them."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.shapes import EOS, PAD, T5Shape, t5_of

START = PAD
RELU = "relu"

# d_kv * heads differs from d_model, and the depths from each other.
SHAPES = [
    T5Shape("relu", 24, 5, 3, 31, 1, activation=RELU, tied=True, scaled=True),
    T5Shape("untied", 40, 8, 4, 64, 2, encoder_layers=1),
    T5Shape("few buckets", 33, 7, 3, 65, 1, encoder_layers=2, tied=True, scaled=True, buckets=8, max_distance=12),
    T5Shape("relu, untied", 16, 16, 2, 33, 2, encoder_layers=1, activation=RELU, scaled=True),
    T5Shape("narrow heads", 31, 1, 5, 17, 1, activation=RELU, tied=True, buckets=4, max_distance=5),
    T5Shape("one head", 48, 32, 1, 127, 1, encoder_layers=2, scaled=True),
]


def random_t5(shape: T5Shape, vocab_size: int, seed: int, *, logit_scale: float = 3.0) -> T5ForConditionalGeneration:
    """A random fp32 T5 in eval mode whose logits have a standard deviation of about `logit_scale`.

    Hugging Face's initial weights make a tied model repeat its last token; random signs before the head do not.
    """
    shape = replace(shape, vocab_size=vocab_size)
    generator = torch.Generator().manual_seed(seed)
    gains = {"SelfAttention.o.weight": 2.0, "EncDecAttention.o.weight": 0.7}
    gains["q.weight"] = 2.0 * shape.d_kv**-0.5  # T5 does not scale its attention scores
    gains["wo.weight"] = 2.0 / shape.layers  # deep stacks amplify rounding

    def values(name: str, size: tuple[int, ...]) -> torch.Tensor:
        normal = torch.randn(size, generator=generator)
        if name.endswith("layer_norm.weight"):
            return 1.0 + 0.2 * normal
        if name.endswith("relative_attention_bias.weight"):
            return normal * 1.5
        if name in ("shared.weight", "lm_head.weight"):
            return normal
        gain = next((g for ending, g in gains.items() if name.endswith(ending)), 1.0)
        return normal * (gain * size[1] ** -0.5)

    tensors = {name: values(name, size) for name, size in shape.tensors.items()}
    signs = torch.randint(0, 2, (shape.d_model,), generator=generator) * 2.0 - 1.0
    scale = logit_scale if shape.scaled else logit_scale * shape.d_model**-0.5
    tensors["decoder.final_layer_norm.weight"].mul_(signs * scale)
    return t5_of(shape, tensors)


def scale_row(model: T5ForConditionalGeneration, token: int, factor: float) -> None:
    """Make `token` win more often (factor > 1) or less often: scales its row of the head."""
    with torch.no_grad():
        model.lm_head.weight[token] *= factor


def with_tau(model: T5ForConditionalGeneration, tau: int, *, beta_scale: float, seed: int) -> TrainingWheelsT5:
    """`model` as a student that asks with `tau`, its teacher token embedding (beta) random."""
    student = TrainingWheelsT5.from_t5(copy.deepcopy(model), tau_token_id=tau).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        beta = student.teacher_token_embedding
        beta.copy_(beta_scale * torch.randn(beta.shape, generator=generator))
    return student


RELATIONS = ["same", "unrelated", "noisy", "swapped"]


def random_pair(relation: str, seed: int, vocab_size: int = 43) -> tuple[TrainingWheelsT5, T5ForConditionalGeneration]:
    """A student and a teacher over the same ids; tau is the last id, or one row beyond the teacher's vocabulary.

    `relation`: the student's weights are the teacher's ("same"), others ("unrelated"), the teacher's with noise
    on the head so that most drafts agree ("noisy"), or the teacher's with the head rows of a few tokens
    exchanged, so that drafts are wrong exactly where the teacher wants one of those ("swapped").
    EOS and tau win anywhere between never and often, by seed.
    """
    rng = np.random.default_rng([seed, RELATIONS.index(relation)])
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    teacher = random_t5(shape, vocab_size, seed=int(rng.integers(1 << 31)))
    scale_row(teacher, EOS, float(rng.choice([0.5, 1.5, 2.2])))
    extra_row = bool(rng.integers(2))
    if relation == "unrelated":
        other = SHAPES[int(rng.integers(len(SHAPES)))]
        base = random_t5(other, vocab_size + extra_row, seed=int(rng.integers(1 << 31)))
        scale_row(base, EOS, float(rng.choice([0.5, 1.5, 2.2])))
    else:
        base = grow_vocabulary(copy.deepcopy(teacher), vocab_size + extra_row, seed=int(rng.integers(1 << 31)))
        head = base.lm_head.weight
        with torch.no_grad():
            if relation == "noisy":
                generator = torch.Generator().manual_seed(seed)
                head += 0.25 * head.std() * torch.randn(head.shape, generator=generator)
            elif relation == "swapped":
                chosen = torch.from_numpy(rng.permutation(np.arange(1, vocab_size))[: vocab_size // 4])
                head[chosen] = head[chosen.roll(1)].clone()
    tau = vocab_size - 1 + extra_row
    scale_row(base, tau, float(rng.choice([1.5, 2.0, 2.5, 3.0])))
    return with_tau(base, tau, beta_scale=float(rng.choice([0.0, 1.0])), seed=seed), teacher


def grow_vocabulary(model: T5ForConditionalGeneration, vocab_size: int, seed: int = 0) -> T5ForConditionalGeneration:
    """The model with rows added to its vocabulary up to ``vocab_size``: random ones as large as the others."""
    rows = model.config.vocab_size
    if vocab_size > rows:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        generator = torch.Generator().manual_seed(seed)
        tied = model.lm_head.weight is model.shared.weight
        with torch.no_grad():
            for weight in [model.shared.weight] if tied else [model.shared.weight, model.lm_head.weight]:
                added = torch.randn(vocab_size - rows, weight.shape[1], generator=generator)
                weight[rows:] = added * weight[:rows].std()
    return model.eval()


def random_batch(
    rng: np.random.Generator, rows: int, vocab_size: int, longest: int = 12
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [R, S] and mask of ragged random sources, each ending in EOS; one row fills S."""
    lengths = rng.integers(2, longest + 1, size=rows)
    ids = torch.full((rows, int(lengths.max())), START)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.from_numpy(rng.integers(2, vocab_size - 1, size=length))
        ids[row, length - 1] = EOS
    mask = (torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]).long()
    return ids, mask
