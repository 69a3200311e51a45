"""Random T5s whose greedy choices are as a benchmark needs them. Shapes and other systems are the package's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kdtw_fast.random_pairs import Made, asking_student, no_mark, plain, source, steered, teacher_without
from kdtw_fast.shapes import EOS, PAD, SHAPES, T5Shape, random_tensors

__all__ = ["Made", "asking_student", "plain", "source", "teacher_without"]

FLAN_T5_SMALL, FLAN_T5_BASE, FLAN_T5_LARGE = (SHAPES[f"flan-t5-{size}"] for size in ("small", "base", "large"))
T5_TINY = T5Shape("t5-efficient-tiny", 256, 64, 4, 1024, 4)
TINY_STUDENT = T5Shape("1M student", 96, 32, 3, 256, 2, 4096)
TINY_TEACHER = T5Shape("1M teacher", 96, 32, 3, 256, 3, 4096)
LARGER_TEACHER = T5Shape("27M teacher", 512, 64, 6, 1024, 8, 4096)
SMOKE = T5Shape("smoke", 64, 16, 4, 96, 2, 160)


def ragged_pair(student: T5Shape, teacher: T5Shape, teacher_share: float, length: int) -> tuple[Made, Made]:
    """A random pair for sampling at temperature 1, whose rows ask and end at random, each at its own times.

    At every token the student chooses <tau> (its last row) with about the probability ``teacher_share``, and both
    models the end token with about 1 / ``length``.
    """
    tau = student.vocab_size - 1
    end = {EOS: 1 / length}
    asking = _with_probabilities(student, 1, end | ({tau: teacher_share} if teacher_share else {}))
    asking = Made(student, 1, {**asking.tensors, "teacher_token_embedding": no_mark(student)}, {"tau_token_id": tau})
    return asking, _with_probabilities(teacher, 0, end)


def _with_probabilities(shape: T5Shape, seed: int, wanted: Mapping[int, float]) -> Made:
    """A random model whose tokens ``wanted`` come up with about these probabilities, whatever stands before them.

    Their weights give them the wanted odds against the other tokens, as those come out on random input.
    """

    def made(weights: Sequence[float]) -> Made:
        return Made(shape, seed, steered(shape, seed, dict(zip(wanted, weights))), {})

    tokens = list(wanted)
    first = made([1.0] * len(tokens)).native("model")
    ids = source(shape, 32, 4, seed=2).tolist()
    logits = torch.cat([torch.from_numpy(first.decode_logits(row, row)) for row in ids])
    unit = logits[:, tokens[0]].clone()
    logits[:, tokens] = -torch.inf
    others, none = logits.logsumexp(-1), 1 - sum(wanted.values())
    return made([float(((others + math.log(share / none)) / unit).mean()) for share in wanted.values()])


def path(vocab_size: int, seed: int = 0) -> torch.Tensor:
    """A random order of all ids but PAD, EOS and the last: the way that `walker` goes from the start token."""
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randperm(vocab_size - 3, generator=generator)


def walker(shape: T5Shape, way: torch.Tensor, seed: int, strays: torch.Tensor | None = None) -> Made:
    """A random model of full size whose greedy choice after a token is the next one on ``way``, whatever was before.

    A token's embedding is its code, 20 times a row of random signs; the head's row of a token is the code of the one
    before it on the way. The layers add their random outputs of size about one to the code, which the head still
    reads: all of the work is done, and none of it changes the choice.

    Args:
        shape: its sizes; the embedding must be wide enough to tell codes apart (64 is).
        way: as `path` gives it; the start token leads to its first.
        seed: of codes and layers.
        strays: places on the way whose tokens change places in the head: one step before each, the model goes
            elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (shape.vocab_size, shape.d_model), generator=generator) * 2.0 - 1.0
    wanted = way.clone()
    if strays is not None:
        wanted[strays] = way[strays.roll(1)]
    before = torch.cat((torch.tensor([PAD]), way[:-1]))

    def head() -> torch.Tensor:
        weight = torch.zeros_like(codes)
        weight[wanted] = codes[before] * shape.d_model**-0.5
        return weight

    return Made(shape, seed, {"shared.weight": lambda: 20.0 * codes, "lm_head.weight": head}, {})


def strays(length: int, steps: int, share: float, seed: int = 0) -> torch.Tensor:
    """Random places in a way of ``length``: ``share`` of its first ``steps`` places, exactly, and of the others."""
    generator = torch.Generator().manual_seed(seed)

    def some(first: int, count: int) -> torch.Tensor:
        return first + torch.randperm(count, generator=generator)[: round(share * count)]

    return torch.cat((some(0, steps), some(steps, length - steps)))


def save(made: Made, folder: Path) -> None:
    """Writes a model's folder as ``save_pretrained`` does, in bf16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = {name: make() for name, make in {**random_tensors(made.shape, made.seed), **made.tensors}.items()}
    save_file({name: one.bfloat16() for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    kind = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({**kind, **made.shape.config, **made.config}))
