"""What fuzzing found (tests/fuzz), each by name; and the inputs that the fuzzer of Python's side keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import EOS, SHAPES, random_t5
from fuzz import boundary
from test_outliers import tensors_of
from toy_decoders import random_pair_member

import kdtw_fast
from bench import reliability
from kdtw_fast import NativeT5, SingleModelDecoder, SpeculativeDecoder, _core

CORPUS = sorted((Path(__file__).parent / "fuzz" / "corpus" / "boundary").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_kept_inputs_are_refused_in_a_sentence_or_obeyed(path: Path) -> None:
    boundary.try_one(path.read_bytes())


def test_what_no_user_should_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(data: boundary.Bytes) -> None:
        raise KeyError("a field")

    monkeypatch.setattr(boundary, "WAYS", [breaks])
    with pytest.raises(KeyError):
        boundary.try_one(b"\0\0")


# --- What the core's fuzzers found ------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2**28 - 1, 2**28, 2**30, 2**31 - 2, 2**31 - 1])
def test_a_window_near_the_largest_number_is_no_window(window: int) -> None:
    """Twice the window, and a position with it, overflowed."""
    model = random_pair_member("mistral", 43, 16, 1).eval()
    outputs = []
    for model.config.sliding_window in (None, window):
        out = SingleModelDecoder(NativeT5.from_model(model)).generate([[5, 6, 7, 8]], max_new_tokens=12)
        outputs.append(out.sequences.tolist())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("check", [_core.Check.REJECTION, _core.Check.LENIENCE, _core.Check.CASCADE])
def test_drafts_of_no_length_that_are_all_checked_are_refused(check: _core.Check) -> None:
    """The core wrote behind what drafts were drawn from, or never came to an end."""
    pair = [NativeT5.from_model(random_t5(SHAPES[i], 43, seed=i)) for i in (0, 1)]
    decoder = SpeculativeDecoder(*pair)
    rules = _core.MethodRules(two_models=True, draft_length=0, check=check, threshold=1.0, checks_all=True)
    special = _core.SpecialTokens(0, [EOS])
    decoder._core = _core.Decoder("cpu", pair[0].core, [pair[1].core], rules, special)
    with pytest.raises(ValueError, match="needs a draft_length above 0, got 0"):
        decoder.generate([[5, 6, EOS]], max_new_tokens=4)


def test_an_encoder_without_layers_has_no_other_numbers() -> None:
    """They were multiplied for a workspace, and overflowed."""
    spec, arrays = tensors_of(random_pair_member("llama", 43, 16, 1))
    odd = {"layers": 0, "model_size": 2**31 - 1, "heads": 2**31 - 1, "head_size": 2**31 - 1}
    plain, other = (
        _core.Transformer(spec | {"name": "model", "encoder": encoder}, "cpu", lambda key, *_: arrays.get(key))
        for encoder in ({"layers": 0}, odd)
    )
    logits = [core.decode_logits("cpu", [5, 6], [6, 7, 8], [], [3], 1) for core in (plain, other)]
    assert (logits[0] == logits[1]).all()


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"heads": 2**31 - 1, "key_heads": 1, "head_size": 2**31 - 1}, "heads and head_size"),
        ({"feed_forward": 2**31 - 1}, "feed_forward"),
        ({"bias_buckets": 4, "bias_max_distance": 2**31 - 1, "heads": 2}, "bias_max_distance and heads"),
    ],
)
def test_sizes_whose_product_has_no_64_bits_are_refused(sizes: dict[str, int], named: str) -> None:
    """They were multiplied before they were compared, and overflowed."""
    spec, arrays = tensors_of(random_pair_member("llama", 43, 16, 1))
    decoder = spec["decoder"] | sizes
    with pytest.raises(ValueError, match=f"model: decoder.{named}"):
        _core.Transformer(spec | {"name": "model", "decoder": decoder}, "cpu", lambda key, *_: arrays.get(key))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 65.0])
def test_frequencies_that_turn_too_far_are_refused(value: float) -> None:
    """Their angles were cast to an integer that cannot hold them."""
    spec, arrays = tensors_of(random_pair_member("llama", 43, 16, 1))
    (name,) = (key for key in arrays if key.startswith("decoder.rotary."))
    wrong = arrays | {name: arrays[name] * 0 + value}
    with pytest.raises(ValueError, match=f"tensor '{name}' must have frequencies of at most 64"):
        _core.Transformer(spec | {"name": "model"}, "cpu", lambda key, *_: wrong.get(key))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_exponents_of_what_is_not_finite(value: float) -> None:
    """The generic kernels cast an infinite power of two to an integer."""
    model = random_t5(SHAPES[0], 43, seed=3)
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.q.weight[0, 0] = value
    decoder, before = SingleModelDecoder(NativeT5.from_model(model)), kdtw_fast.build_info()["simd"]
    try:
        for level in kdtw_fast.build_info()["simd_levels"]:
            _core.set_simd(level)
            try:
                assert len(decoder.generate([[5, 6, EOS]], max_new_tokens=4).sequences) == 1
            except FloatingPointError as error:
                assert "not finite" in str(error) or "NaN" in str(error)
    finally:
        _core.set_simd(before)


def test_a_number_too_large_for_a_float_is_a_sentence() -> None:
    decoder = SingleModelDecoder(NativeT5.from_model(random_t5(SHAPES[0], 43, seed=3)))
    with pytest.raises(ValueError, match=r"temperature must be in .*, got a number too large for a float"):
        decoder.generate([[5, EOS]], temperature=10**400)


# --- docs/reliability.md ----------------------------------------------------------------------------------


def test_the_table_is_made_of_tests_that_are_there() -> None:
    root = reliability.ROOT
    for row in reliability.read_rows():
        assert row["tests"] or row["commands"], row["tried"]
        for place in row["tests"]:
            file, _, name = place.partition("::")
            assert f"def {name}(" in (root / file).read_text(encoding="utf-8") if name else (root / file).is_file(), (
                place
            )
        assert f"| {row['kind']} | {row['tried']} |" in reliability.PAGE.read_text(encoding="utf-8")


def test_records_are_summed_by_what_was_tried() -> None:
    lines = [
        f'{{"campaign": "fuzz", "of": "{of}", "count": {n}, "wrong": 0}}' for of, n in (("a", 2), ("b", 3), ("a", 4))
    ]
    campaigns = reliability.summed(lines)
    assert campaigns == {"fuzz": {"a": {"count": 6, "wrong": 0}, "b": {"count": 3, "wrong": 0}}}
    row = {"kind": "1", "tried": "x", "tests": ["t.py"], "commands": ["y"], "campaigns": ["fuzz"], "holds": "z"}
    made = reliability.table([row], {"t.py::one": 2, "t.py::two": 1, "tt.py::one": 7}, campaigns)
    assert made.splitlines()[-1] == "| 1 | x | `t.py`, `y` | 3 cases; 9 (a 6, b 3), 0 wrong | z |"
