"""Whole decodes of tiny random models: against the oracle (kdtw_fast.reference), and what holds bit for bit there.

The margin rule is the oracle's (agreement.compare): a row may differ from it only where it saw a near tie.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from kdtw_fast import decoders, reference
from kdtw_fast.decoders import SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.model import NativeT5
from kdtw_fast.selftest.agreement import as_array, check_padding, compare
from kdtw_fast.selftest.checks import DTYPES, Check, Checks, Trial
from kdtw_fast.selftest.tiny import SHAPES, START, random_batch, random_pair, random_t5, with_tau

VOCABULARY = 43
DECODES = Checks()

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("SingleModelDecoder", {}),
    ("TrainingWheelsDecoder", {}),
    ("TrainingWheelsDecoder", {"verify_lenience": 0.4}),
    ("RandomCallDecoder", {"threshold": 0.6}),
    ("EntropyCallDecoder", {"threshold": 2.0}),
    ("SpeculativeDecoder", {"draft_length": 3}),
    ("SpeculativeDecoder", {"draft_length": 3, "lenience": 0.3}),
    ("SpeculativeCascadeDecoder", {"draft_length": 3, "deferral": 0.5}),
    ("BigLittleDecoder", {"fallback_threshold": 0.4, "rollback_threshold": 3.0}),
    ("InterleavedDecoder", {"draft_length": 3, "accept_top_k": 5}),
]
WARPS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8},
    "cut": {"temperature": 1.2, "top_k": 7, "top_p": 0.8},
}
FIELDS = ("sequences", "owners", "lengths", "teacher_calls", "drafted", "accepted", "rolled_back")
LOGPROBS = ("student_logprobs", "teacher_logprobs")
TOLERANCE = 1e-4  # of a log-probability


def same_outputs(trial: Trial, left: Any, right: Any, rows: slice = slice(None)) -> None:
    """Equal in everything, bit for bit; `rows` of the left are the right's, whose padding may be shorter."""
    for name in FIELDS + LOGPROBS:
        mine, other = as_array(getattr(left, name))[rows], as_array(getattr(right, name))
        trial.same(mine[:, : other.shape[1]] if mine.ndim == 2 else mine, other, name)


# --- Against the oracle ----------------------------------------------------------------------------------


def oracle(trial: Trial, name: str, options: dict[str, Any], warp: dict[str, Any]) -> None:
    """Two ragged rows of a pair, decoded by a method, against the oracle's; fp32."""
    models = random_pair("noisy", seed=3)
    chosen = models[:1] if name == "SingleModelDecoder" else models
    ids, mask = random_batch(np.random.default_rng(7), 2, VOCABULARY, longest=8)
    settings = warp | {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 6, "seed": 11}
    fast = getattr(decoders, name)(*chosen, device=trial.device, **options)
    output = fast.generate(output_logprobs=True, **settings)
    check_padding(output, START, START)
    tally = compare(output, getattr(reference, name)(*chosen, **options).generate(**settings), name, TOLERANCE)
    trial.measured(tally.largest_logprob_difference, TOLERANCE)
    trial.tally.add(tally)


for _name, _options in METHODS:
    for _way, _warp in WARPS.items():
        _told = ", ".join([_name, *(f"{key}={value}" for key, value in _options.items()), _way])
        DECODES.append(Check(_told, "", partial(oracle, name=_name, options=_options, warp=_warp)))


# --- Exact on one device ---------------------------------------------------------------------------------

# What a logit may differ from that of fp32 activations. On a CUDA device the encoder's products round tokens to 11
# digits where weights have 16 bits.
LOGITS, LOGITS_TENSOR = 1e-4, 1e-2


@DECODES.add(*DTYPES)
def catch_up(trial: Trial, dtype: str) -> None:
    """k tokens in one pass give the bits of k steps, and the logits of PyTorch with the weights that are kept."""
    for shape in SHAPES[:3]:
        what = f"model of size {shape.d_model}"
        rng = np.random.default_rng(shape.d_model)
        model = random_t5(shape, VOCABULARY, seed=1)
        source, tokens = rng.integers(0, VOCABULARY, 9).tolist(), rng.integers(0, VOCABULARY, 9).tolist()
        native = NativeT5.from_model(model, dtype=dtype, cache_dtype="fp32", device=trial.device)
        whole = native.decode_logits(source, tokens)
        for chunks in ([1] * 9, [4, 5], [2, 6, 1]):
            trial.same(native.decode_logits(source, tokens, chunks=chunks), whole, f"{what}, in passes of {chunks}")
        if dtype == "int8":  # its tokens have 8 digits: the CPU's are the ones to compare with
            if trial.device != "cpu":
                there = NativeT5.from_model(model, dtype=dtype, cache_dtype="fp32").decode_logits(source, tokens)
                trial.close(whole, there, LOGITS, what)
            continue
        with torch.inference_mode():
            for parameter in model.parameters():
                if parameter.ndim == 2 and parameter.shape[1] != shape.heads and dtype != "fp32":
                    parameter.copy_(parameter.half().float() if dtype == "fp16" else parameter.bfloat16().float())
            given = torch.tensor([source]), torch.tensor([tokens])
            expected = model(input_ids=given[0], decoder_input_ids=given[1]).logits[0].numpy()
        tensor = trial.device != "cpu" and dtype in ("fp16", "bf16")
        trial.close(whole, expected, LOGITS_TENSOR if tensor else LOGITS, what)


@DECODES.add()
def marked_tokens(trial: Trial) -> None:
    """beta (Eq. 15) enters where the teacher wrote."""
    student = with_tau(random_t5(SHAPES[0], VOCABULARY, seed=2), VOCABULARY, beta_scale=1.0, seed=4)
    source, tokens, marks = [5, 9, 1], [0, 7, 3, 8], [False, True, False, True]
    native = NativeT5.from_model(student, device=trial.device)
    with torch.inference_mode():
        expected = student(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([tokens]),
            decoder_from_teacher=torch.tensor([marks]),
        ).logits[0]
    trial.close(native.decode_logits(source, tokens, from_teacher=marks), expected.numpy(), LOGITS)


@DECODES.add(*DTYPES)
def rows_of_a_batch(trial: Trial, dtype: str) -> None:
    """Four ragged rows together have the bits of each alone; caches in 16 bits where weights have few."""
    student, teacher = random_pair("noisy", seed=2)
    ids, mask = random_batch(np.random.default_rng(3), 4, VOCABULARY, longest=9)
    cache = "bf16" if dtype == "int8" else dtype
    models = [NativeT5.from_model(m, dtype=dtype, cache_dtype=cache, device=trial.device) for m in (student, teacher)]
    decoder = TrainingWheelsDecoder(*models)
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.7, "output_logprobs": True, "seed": 2}
    together = decoder.generate(ids, mask, **settings)
    assert as_array(together.teacher_calls).sum() > 0, "no row asked the teacher"
    for row in range(4):
        length = int(mask[row].sum())
        alone = decoder.generate(ids[row : row + 1, :length], row_ids=[row], **settings)
        same_outputs(trial, together, alone, slice(row, row + 1))


@DECODES.add(*DTYPES)
def speculative_decoding_is_the_teacher(trial: Trial, dtype: str) -> None:
    """Greedy with lenience 1: bit for bit the teacher alone."""
    student, teacher = (
        NativeT5.from_model(model, dtype=dtype, device=trial.device) for model in random_pair("noisy", seed=9)
    )
    ids, mask = random_batch(np.random.default_rng(1), 2, VOCABULARY, longest=8)
    alone = SingleModelDecoder(teacher, role="teacher").generate(ids, mask, max_new_tokens=8)
    drafted = SpeculativeDecoder(student, teacher, draft_length=4).generate(ids, mask, max_new_tokens=8)
    trial.same(as_array(alone.sequences), as_array(drafted.sequences), "sequences")
