"""Tiny random T5s of odd sizes whose argmax keeps changing, and pairs and batches of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from kdtw_fast.modeling import TrainingWheelsT5

START, EOS = 0, 1


@dataclass(frozen=True)
class Shape:
    """The sizes of a random T5; d_kv * heads differs from d_model, and the depths from each other."""

    d_model: int
    d_kv: int
    heads: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    activation: str = "relu"
    tied: bool = True
    scaled: bool = True
    buckets: int = 32
    max_distance: int = 128


SHAPES = [
    Shape(24, 5, 3, 31, 1, 1),
    Shape(40, 8, 4, 64, 1, 2, "gated-gelu", tied=False, scaled=False),
    Shape(33, 7, 3, 65, 2, 1, "gated-gelu", tied=True, scaled=True, buckets=8, max_distance=12),
    Shape(16, 16, 2, 33, 1, 2, "relu", tied=False, scaled=True),
    Shape(31, 1, 5, 17, 1, 1, "relu", tied=True, scaled=False, buckets=4, max_distance=5),
    Shape(48, 32, 1, 127, 2, 1, "gated-gelu", tied=False, scaled=True),
]


def random_t5(shape: Shape, vocab_size: int, seed: int, *, logit_scale: float = 3.0) -> T5ForConditionalGeneration:
    """A random fp32 T5 in eval mode whose logits have a standard deviation of about `logit_scale`.

    Hugging Face's initial weights make a tied model repeat its last token; random signs before the head do not.
    """
    config = T5Config(
        vocab_size=vocab_size,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        num_heads=shape.heads,
        d_ff=shape.d_ff,
        num_layers=shape.encoder_layers,
        num_decoder_layers=shape.decoder_layers,
        feed_forward_proj=shape.activation,
        relative_attention_num_buckets=shape.buckets,
        relative_attention_max_distance=shape.max_distance,
        dropout_rate=0.0,
        pad_token_id=START,
        eos_token_id=EOS,
    )
    config.decoder_start_token_id = START
    config.scale_decoder_outputs = shape.scaled
    model = T5ForConditionalGeneration(config)
    model.config.tie_word_embeddings = shape.tied
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: nn.Parameter, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    with torch.no_grad():
        if not shape.tied:
            model.lm_head.weight = nn.Parameter(torch.empty(vocab_size, shape.d_model))
        for name, parameter in model.named_parameters():
            if name.endswith("layer_norm.weight"):
                parameter.copy_(1.0 + 0.2 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith("relative_attention_bias.weight"):
                normal(parameter, 1.5)
            elif name == "shared.weight" or name == "lm_head.weight":
                normal(parameter, 1.0)
            else:
                gains = {"SelfAttention.o.weight": 2.0, "EncDecAttention.o.weight": 0.7, "wo.weight": 2.0}
                gains["q.weight"] = 2.0 * shape.d_kv**-0.5  # T5 does not scale its attention scores
                gains["wo.weight"] /= shape.decoder_layers  # deep stacks amplify rounding
                gain = next((g for ending, g in gains.items() if name.endswith(ending)), 1.0)
                normal(parameter, gain * parameter.shape[1] ** -0.5)
        signs = torch.randint(0, 2, (shape.d_model,), generator=generator) * 2.0 - 1.0
        scale = logit_scale if shape.scaled else logit_scale * shape.d_model**-0.5
        model.decoder.final_layer_norm.weight.mul_(signs * scale)
    return model.eval()


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
        base = _copy_with_rows(teacher, vocab_size + extra_row, seed=int(rng.integers(1 << 31)))
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


def _copy_with_rows(model: T5ForConditionalGeneration, vocab_size: int, seed: int) -> T5ForConditionalGeneration:
    copied = copy.deepcopy(model)
    added = vocab_size - model.config.vocab_size
    if added:
        generator = torch.Generator().manual_seed(seed)
        tied = copied.lm_head.weight is copied.shared.weight

        def grown(weight: torch.Tensor) -> nn.Parameter:
            rows = torch.randn(added, weight.shape[1], generator=generator) * weight.std()
            return nn.Parameter(torch.cat([weight.detach(), rows]))

        embedding = nn.Embedding(vocab_size, model.config.d_model)
        embedding.weight = grown(model.shared.weight)
        copied.set_input_embeddings(embedding)
        copied.lm_head = nn.Linear(model.config.d_model, vocab_size, bias=False)
        copied.lm_head.weight = embedding.weight if tied else grown(model.lm_head.weight)
        copied.config.vocab_size = vocab_size
    return copied.eval()


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
