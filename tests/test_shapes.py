"""Random models of named shapes: the same weights natively and in Hugging Face, made tensor by tensor."""

from __future__ import annotations

import pytest
import torch

from kdtw_fast import NativeT5, SingleModelDecoder
from kdtw_fast.peers import HUGGING_FACE, CTranslate2, ctranslate2_beside, has_ctranslate2, hugging_face, native
from kdtw_fast.shapes import EOS, SHAPES, T5Shape, find_shape, random_native, random_t5, random_tensors

SHAPE = T5Shape("test", 48, 8, 5, 72, 3, 120)
IDS = torch.tensor([[5, 17, 90, 33, 21, EOS], [99, 4, 4, 50, 61, EOS]])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("flan-t5-small", 76_961_152),
        ("flan-t5-base", 247_577_856),
        ("flan-t5-large", 783_150_080),
        ("flan-t5-xl", 2_849_757_184),
    ],
)
def test_named_shapes_have_the_published_sizes(name: str, parameters: int) -> None:
    assert find_shape(name).parameters == parameters
    assert set(SHAPES) == {"flan-t5-small", "flan-t5-base", "flan-t5-large", "flan-t5-xl"}


def test_an_unknown_shape_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown shape 'flan-t5-smal'; did you mean 'flan-t5-small'"):
        find_shape("flan-t5-smal")


def test_native_and_hugging_face_are_one_model() -> None:
    made, theirs = random_native(SHAPE), random_t5(SHAPE)
    tokens = [0, 7, 30, 30, 119]
    expected = theirs(input_ids=IDS[:1], decoder_input_ids=torch.tensor([tokens])).logits[0]
    assert torch.allclose(torch.from_numpy(made.decode_logits(IDS[0].tolist(), tokens)), expected, atol=1e-4)
    assert expected.std() == pytest.approx(1.0, abs=0.3)
    packed = NativeT5.from_model(theirs)
    assert packed.num_bytes == made.num_bytes
    assert sum(p.numel() for p in {p.data_ptr(): p for p in theirs.parameters()}.values()) == SHAPE.parameters


def test_a_tensor_is_a_function_of_seed_and_name() -> None:
    one, again, other = random_tensors(SHAPE, 1), random_tensors(SHAPE, 1), random_tensors(SHAPE, 2)
    assert {name: tuple(make().shape) for name, make in one.items()} == SHAPE.tensors
    for name in ("shared.weight", "decoder.block.2.layer.1.EncDecAttention.o.weight"):
        assert torch.equal(one[name](), again[name]()) and not torch.equal(one[name](), other[name]())
    rows = one["shared.weight"]()
    assert len({tuple(row) for row in rows.tolist()}) == SHAPE.vocab_size
    assert not torch.equal(rows, one["lm_head.weight"]() * SHAPE.d_model**0.5)


def test_given_tensors_and_config_fields_take_the_place_of_random_ones() -> None:
    tau = SHAPE.vocab_size - 1
    own = {"teacher_token_embedding": lambda: torch.zeros(SHAPE.d_model), "lm_head.weight": lambda: head}
    head = torch.zeros(SHAPE.vocab_size, SHAPE.d_model)
    made = random_native(SHAPE, tensors=own, config={"tau_token_id": tau})
    assert made.tau_token_id == tau
    assert not made.decode_logits([5, EOS], [0, 3]).any()


def test_the_systems_that_are_compared_do_the_same_work() -> None:
    theirs, n = random_t5(SHAPE), 12
    systems = {"ours": native(random_native(SHAPE), n, 1), HUGGING_FACE: hugging_face(theirs, n, 1)}
    if has_ctranslate2():
        converted = CTranslate2(theirs)
        systems |= {f"CTranslate2, {w} workers": converted.generate(n, 1, workers=w) for w in (1, 2)}
    expected = SingleModelDecoder(theirs).generate(IDS, max_new_tokens=n, min_new_tokens=n).sequences[:, 1:].tolist()
    before = torch.get_num_threads()
    for name, generate in systems.items():
        assert generate(IDS).ids == expected, name
    assert torch.get_num_threads() == before
    assert (ctranslate2_beside("int8"), ctranslate2_beside("bf16")) == ("CTranslate2 int8", "CTranslate2 float32")
