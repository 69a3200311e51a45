"""What CUDA kernels are held to on a simulated device: the self-test's checks, drafts, and sizes of real models.

A case runs in any schedule, checked or not. It raises AssertionError where a result is wrong, and RuntimeError where
the device objects.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from gpu_proof.simulated import SimulatedDevice
from kdtw_fast import _core, decoders
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.selftest.agreement import as_array
from kdtw_fast.selftest.checks import Check, Trial
from kdtw_fast.selftest.decodes import same_outputs
from kdtw_fast.selftest.numpy_twins import NOTHING, normal, product, rms
from kdtw_fast.selftest.operations import OPERATIONS
from kdtw_fast.selftest.tiny import random_batch, random_t5
from kdtw_fast.shapes import T5Shape


def run(name: str, device: SimulatedDevice, trial: type[Trial] = Trial) -> None:
    """Runs one case."""
    with device.engine() as where:
        CASES[name].run(trial(where))


def empty_places(trial: Trial) -> None:
    """A token of length 0 attends to nothing."""
    ones = np.ones((1, 8), np.float32)
    asked = [(0, 0, 1), (0, 0, 0)]
    out = trial.operations.attend(1, 2, 2, "fp32", [(0, 0)], ones, ones, asked, np.ones((2, 8), np.float32), NOTHING, 0)
    trial.same(out, np.array([[1.0], [0.0]]) * ones, "attention at a place and at an empty one")


DRAFTER, IDS = T5Shape("one small head", 8, 8, 1, 16, 1, activation="relu"), 24
WAYS = (("host", 1), ("loop", 1), ("ahead", 3))  # of use_cuda_drafting; the host's is what the others are held to


@contextlib.contextmanager
def drafting(how: str, steps: int) -> Iterator[None]:
    """Lets sessions that begin inside draft so."""
    _core.use_cuda_drafting(how, steps)
    try:
        yield
    finally:
        _core.use_cuda_drafting("auto", 4)


def draft_rules(trial: Trial) -> None:
    """Where a draft on the device stops each row, and when it pauses: as the host by the same rules."""
    head, hidden = np.zeros((IDS, 4), np.float32), np.ones((16, 4), np.float32)
    stops, outputs = [(1, 0), (6, 1), (7, 2)], 9  # an end, and each teacher's <tau>
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(1, 9))
        first_allowed = rng.integers(0, 6, (rows, len(stops))).tolist()
        positions, first_calls = rng.integers(0, 4, rows).tolist(), rng.integers(0, outputs, rows).tolist()
        head[[1, 6, 7], 0] = rng.uniform(0, 2)
        waiting, batch, max_uniform = rng.integers(0, 3, 2).tolist(), seed % 4, 1.0 if seed % 2 else 0.8
        settings = (stops, first_allowed, positions, first_calls, waiting, batch, outputs, max_uniform, seed)
        found = []
        for way in WAYS:
            with drafting(*way):
                found.append(trial.operations.draft(head, hidden, *settings))
        for way, draft in zip(WAYS[1:], found[1:]):
            assert draft == found[0], f"{way}: {draft} differs from the host's, {found[0]}"


def drafts(trial: Trial) -> None:
    """Whole decodes whose drafts the device takes by itself have the bits of those that the host takes."""
    student, *teachers = (random_t5(DRAFTER, IDS, seed) for seed in range(3))
    asks = TrainingWheelsT5.from_t5(student, tau_token_id=IDS - 2, teachers=2).eval()
    with torch.no_grad():
        asks.lm_head.weight[asks.tau_token_ids] = 1.5 * torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    decoder = decoders.TrainingWheelsDecoder(asks, teachers, device=trial.device)
    ids, mask = random_batch(np.random.default_rng(3), 6, IDS, longest=3)
    outputs = []
    for way in WAYS:
        with drafting(*way):
            outputs.append(decoder.generate(ids, mask, max_new_tokens=6, teacher_batch=9, output_logprobs=True))
    assert as_array(outputs[0].teacher_calls).sum() > 0, "no row asked a teacher"
    for output in outputs[1:]:
        same_outputs(trial, output, outputs[0])


OTHERS = [
    Check("empty places", "", empty_places),
    Check("draft rules", "", draft_rules),
    Check("drafts", "", drafts),
]
CASES = {check.name: check for check in [*OPERATIONS, *OTHERS]}


# ---------------------------------------------------------------- sizes of real models, for counting traffic
# FLAN-T5-small's products: outputs, inputs; after a norm, added to what was there, or gated.
SIZE, VOCABULARY = 512, 4096
NORMED, ADDED, GATED = (3 * 384, SIZE), (SIZE, 384), (2 * 1024, SIZE)
TOKENS = (1, 8)
SOURCE = 64  # tokens of an encoder's pass
KEYS = 200  # of a token's attention: more than few chunks


def real_sizes(trial: Trial) -> None:
    """One layer's kernels in fp16: a token, eight tokens and a source; and a token's attention, head and pick."""
    operations, rng = trial.operations, np.random.default_rng(0)
    weights = [normal(rng, *shape) * np.float32(shape[1] ** -0.5) for shape in (NORMED, ADDED, GATED)]
    scale = np.ones(SIZE, np.float32)
    for tokens, encoder in [*((tokens, False) for tokens in TOKENS), (SOURCE, True)]:
        x, inner = normal(rng, tokens, SIZE), normal(rng, tokens, ADDED[1])
        out = operations.norm_linear(weights[0], x, scale, 1e-6, "fp16", encoder)
        trial.close(out, product(rms(x, scale, 1e-6), weights[0], "fp16"), 1e-2, "after a norm")
        out = operations.linear(weights[1], inner, "fp16", np.ones((tokens, SIZE), np.float32), encoder)
        trial.close(out, product(inner, weights[1], "fp16") + 1, 1e-2, "added")
        operations.norm_linear_activate(weights[2], x, scale, 1e-6, True, "fp16", encoder)
        if not encoder:
            operations.norm(x, scale, 1e-6)
    length, width = KEYS, 6 * 64
    stored = [(0, position) for position in range(length)]
    keys, values, query = normal(rng, length, width), normal(rng, length, width), normal(rng, 1, width)
    operations.attend(1, length + 3, 6, "fp16", stored, keys, values, [(0, length - 1, length)], query, NOTHING, 0)
    head, hidden = normal(rng, VOCABULARY, SIZE), normal(rng, 1, SIZE)
    (answer,), logits = operations.pick(head, hidden, [{"want_log_prob": True}], "fp16")
    assert answer[0] == logits[0].argmax()
    for sampling in ({}, {"top_k": 50, "top_p": 0.9}):
        operations.pick(head, hidden, [{"temperature": 1.0, "uniform": 0.5} | sampling], "fp16")
