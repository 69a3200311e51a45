"""Students of every family: tau and beta natively as in PyTorch, saved and loaded, and under transformers."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import mostly_long
from safetensors.torch import load_file, save_file
from test_families import FAMILIES, V, random_model, rows_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

import kdtw_fast
from kdtw_fast import NativeModel, Owner, TrainingWheelsDecoder, reference
from kdtw_fast.decoders import SingleModelDecoder
from kdtw_fast.modeling import TrainingWheels, TrainingWheelsT5, student_class

KINDS = ("t5", "bart", "pegasus", "llama", "gemma2", "t5gemma")  # one of each way to embed


def random_student(kind: str, seed: int = 1, teachers: int = 1, asks: list[int] | None = None) -> Any:
    """A random student with tau behind the vocabulary, which it picks first of all for the source `asks`."""
    student = TrainingWheels.from_model(random_model(kind, seed), teachers=teachers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        beta = student.teacher_token_embedding
        beta.copy_(torch.randn(beta.shape, generator=generator))
        head = student.get_output_embeddings()
        for tau in student.tau_token_ids:
            head.weight[tau] = torch.randn(head.weight.shape[1], generator=generator) * head.weight[:V].std()
        if asks is not None:
            states: list[torch.Tensor] = []
            hook = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
            start = getattr(student.config, "decoder_start_token_id", None)
            logits(student.eval(), asks, [0 if start is None else start])
            hook.remove()
            state = states[0][0, -1]
            most = 5 + 2 * (head.weight[:V] @ state).abs().max()
            head.weight[student.tau_token_ids] = most * state / state.square().sum()
    return student.eval()


def logits(model: Any, source: list[int], tokens: list[int], marks: list[int] | None = None) -> torch.Tensor:
    """Raw logits of one row; `tokens` begin with the start token, or what stands for it."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            more = {} if marks is None else {"decoder_from_teacher": model.as_marks(torch.tensor([marks]))}
            ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([tokens])}
            return model(**ids, **more, use_cache=False).logits[0]
        before = len(source) - 1
        more = {}
        if marks is not None:
            more = {"decoder_from_teacher": model.as_marks(torch.tensor([[0] * before + marks]))}
        return model(input_ids=torch.tensor([source + tokens[1:]]), **more, use_cache=False).logits[0, before:]


def same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the last bits: PyTorch's products depend on where a weight lies in memory, and files are mapped."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("teachers", mostly_long([2, 1]))
def test_marks_are_read_natively_as_in_pytorch_and_from_a_folder(kind: str, teachers: int, tmp_path: Path) -> None:
    student = random_student(kind, teachers=teachers)
    native = NativeModel.from_model(student, "student")
    assert native.num_teachers == teachers and native.tau_token_ids == list(range(V, V + teachers))
    (source,) = rows_of(kind, 2, 1)
    tokens = [native.decoder_start_token_id, *random.Random(3).choices(range(3, V - 1), k=9)]
    marks = [0, *random.Random(4).choices(range(teachers + 1), k=8), teachers]
    expected = logits(student, source, tokens, marks)
    found = native.decode_logits(source, tokens, from_teacher=marks)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(expected, logits(student, source, tokens), atol=1e-3)
    student.save_pretrained(tmp_path)
    again = TrainingWheels.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(again) is type(student) is student_class(student.base)
    same_logits(logits(again, source, tokens, marks), expected)
    folder = NativeModel.from_pretrained(tmp_path)
    assert (folder.decode_logits(source, tokens, from_teacher=marks) == found).all()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_student_is_the_model_it_was_made_of_and_loads_as_one(kind: str, tmp_path: Path) -> None:
    model = random_model(kind, 1)
    student = TrainingWheels.from_model(model, student_prompt="{budget}: ", teacher_prompt="t: ")
    assert student.config.tau_token_id == V and not student.teacher_token_embedding.any()
    assert getattr(model.config, "tau_token_id", None) is None
    (source,) = rows_of(kind, 2, 1)
    tokens = [getattr(model.config, "decoder_start_token_id", None) or source[-1], 5, 6, 7]
    same_logits(logits(student, source, tokens)[:, :V], logits(model, source, tokens))
    student.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [type(model).__name__] and saved["model_type"] == kind
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(plain) is type(model)
    same_logits(logits(plain, source, tokens), logits(student, source, tokens))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "settings", [pytest.param({}, marks=pytest.mark.long), {"verify_lenience": 0.5}], ids=["plain", "verified"]
)
def test_kdtw_is_the_reference_for_every_family(kind: str, settings: dict[str, float]) -> None:
    seen: set[int] = set()
    compared = 0
    for seed in (1, 2, 3):
        rows, theirs = rows_of(kind, seed, 3), rows_of(kind, seed + 1, 3)
        teacher, student = random_model(kind, seed + 10), random_student(kind, seed, asks=rows[0])
        options: dict[str, Any] = {
            "max_new_tokens": 9,
            "min_new_tokens": 4,
            "max_teacher_fraction": [1.0, 0.7, 0.4][seed - 1],
        }
        native = TrainingWheelsDecoder(student, teacher, **settings)
        out = native.generate(rows, teacher_inputs={"input_ids": theirs}, **options)
        oracle = reference.TrainingWheelsDecoder(student, teacher, **settings)
        for r, (own, its) in enumerate(zip(rows, theirs)):
            alone = {"input_ids": torch.tensor([its])}
            (found,) = oracle.generate(torch.tensor([own]), teacher_inputs=alone, row_ids=[r], **options)
            if found.near_ties:
                continue
            assert (out.output_ids[r], out.owners[r, out.spans[r]].tolist()) == (found.tokens, found.owners)
            assert out.teacher_calls[r] == found.teacher_calls
            seen |= set(found.owners)
            compared += 1
    assert compared >= 6
    assert int(Owner.TEACHER) in seen and seen & {int(Owner.STUDENT), int(Owner.ACCEPTED), int(Owner.CORRECTED)}


def test_the_teacher_writes_where_a_student_without_an_encoder_asks() -> None:
    rows = rows_of("llama", 1, 4)
    teacher, student = random_model("llama", 11), random_student("llama", 1, asks=rows[1])
    decoder = TrainingWheelsDecoder(student, teacher)
    out = decoder.generate(rows, max_new_tokens=12, min_new_tokens=12)
    assert int(out.owners[1, len(rows[1])]) == Owner.TEACHER
    assert {int(owner) for r, span in enumerate(out.spans) for owner in out.owners[r, span]} >= {1, 2}
    assert V not in {token for ids in out.output_ids for token in ids}
    assert out.sequences[1, : len(rows[1])].tolist() == rows[1]
    none = decoder.generate(rows, max_new_tokens=12, max_teacher_fraction=0.0)
    assert not none.teacher_calls.any() and V not in {token for ids in none.output_ids for token in ids}


def test_students_may_be_saved_with_two_teachers_and_keep_betas() -> None:
    student = random_student("qwen3")
    both = TrainingWheels.from_model(student, tau_token_id=V, teachers=2)
    assert both.config.tau_token_ids == [V, V + 1] and both.marks.shape[0] == 2
    assert torch.equal(both.marks[0], student.teacher_token_embedding) and not both.marks[1].any()


def test_classes_are_named_after_hugging_faces_and_pickle() -> None:
    student = random_student("llama")
    assert isinstance(student, TrainingWheels) and isinstance(student, LlamaForCausalLM)
    assert type(pickle.loads(pickle.dumps(student))) is type(student)
    assert type(copy.deepcopy(student)) is type(student)
    assert kdtw_fast.modeling.TrainingWheelsQwen3ForCausalLM.base.__name__ == "Qwen3ForCausalLM"
    assert student_class(T5ForConditionalGeneration) is TrainingWheelsT5
    with pytest.raises(AttributeError, match="TrainingWheelsNothing"):
        kdtw_fast.modeling.TrainingWheelsNothing  # noqa: B018


def test_models_of_unknown_families_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="model_type is 'gpt2'; the core decodes 't5'"):
        TrainingWheels.from_model(model)
    with pytest.raises(TypeError, match="got Linear"):
        TrainingWheels.from_model(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="TrainingWheelsT5 is made of a T5ForConditionalGeneration, got LlamaFor"):
        TrainingWheelsT5.from_model(random_model("llama", 1))


# --- under transformers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "kind"),
    mostly_long(itertools.product(("memory", "folder", "plain"), KINDS), keep=(0, 3, 5, 7, 10, 12, 15)),
)
def test_hugging_face_never_writes_tau(kind: str, where: str, tmp_path: Path) -> None:
    rows = rows_of(kind, 5, 3)
    student = random_student(kind, asks=rows[0])
    student.save_pretrained(tmp_path)
    if where != "memory":
        auto = AutoModelForSeq2SeqLM if student.config.is_encoder_decoder else AutoModelForCausalLM
        student = (TrainingWheels if where == "folder" else auto).from_pretrained(tmp_path)
    for seed, row in enumerate(rows):
        torch.manual_seed(seed)
        for how in ({"do_sample": False}, {"do_sample": True, "temperature": 2.0}):
            out = student.generate(torch.tensor([row]), max_new_tokens=24, min_new_tokens=24, **how)
            assert V not in out[0].tolist()
    # What a call suppresses comes to it; a plain model, which knows nothing of <tau>, does what it is told.
    ids, told = torch.tensor(rows[:1]), {"max_new_tokens": 2, "do_sample": False}
    own = GenerationConfig(**told, suppress_tokens=[2])
    for free in (student.generate(ids, suppress_tokens=[2], **told), student.generate(ids, generation_config=own)):
        assert (V in free[0].tolist()) is (where == "plain")
    assert own.suppress_tokens == [2]
    assert V not in student.generate(ids, generation_config=GenerationConfig(**told))[0].tolist()
    asked = TrainingWheelsDecoder(tmp_path, random_model(kind, 11)).generate(rows, max_new_tokens=24)
    assert asked.teacher_calls[0] > 0


@pytest.mark.parametrize("kind", ["t5", "bart", "pegasus", "llama", "gemma2"])
def test_positional_arguments_are_the_base_class_own(kind: str) -> None:
    student = random_student(kind)
    ids = torch.tensor(rows_of(kind, 6, 1))
    mask = torch.ones_like(ids)
    if student.config.is_encoder_decoder:
        own, theirs = torch.tensor([[0, 5, 6, 7]]), torch.tensor([[1, 1, 1, 1]])
        assert torch.equal(
            student(ids, mask, own, theirs).logits,
            student(input_ids=ids, attention_mask=mask, decoder_input_ids=own, decoder_attention_mask=theirs).logits,
        )
        marks = torch.tensor([[False, True, False, True]])
        positional = student(ids, mask, own, decoder_from_teacher=marks).logits
    else:
        marks = torch.ones_like(ids).bool()
        positional = student(ids, mask, decoder_from_teacher=marks).logits
        own = ids
    named = {"input_ids": ids, "attention_mask": mask, "decoder_from_teacher": marks}
    if student.config.is_encoder_decoder:
        named["decoder_input_ids"] = own
    assert torch.equal(positional, student(**named).logits)
    with pytest.raises(ValueError, match=r"marks .*input_ids, but none were given"):
        student(inputs_embeds=torch.zeros(1, 3, 8), decoder_from_teacher=marks)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_outputs_may_be_given_to_generate(kind: str) -> None:
    student = random_student(kind)
    ids = torch.tensor(rows_of(kind, 6, 1))
    encoded = student.get_encoder()(input_ids=ids)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
    mask = {"attention_mask": torch.ones_like(ids)}
    assert torch.equal(
        student.generate(encoder_outputs=encoded, **mask, **options), student.generate(ids, **mask, **options)
    )


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_student_assists_its_teacher(kind: str) -> None:
    teacher, student = random_model(kind, 11), random_student(kind)
    teacher = TrainingWheels.from_model(teacher)  # as many rows of vocabulary, and tau suppressed
    ids = torch.tensor(rows_of(kind, 6, 1))
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1, "attention_mask": torch.ones_like(ids)}
    assisted = teacher.generate(ids, assistant_model=student, **options)
    assert assisted.tolist() == teacher.generate(ids, **options).tolist()


@pytest.mark.parametrize("kind", FAMILIES)
def test_resizing_below_tau_is_refused(kind: str) -> None:
    student = random_student(kind)
    with pytest.raises(ValueError, match=f"cut off <tau>, which is row {V}; keep at least {V + 1} rows"):
        student.resize_token_embeddings(V)


@pytest.mark.parametrize(
    ("kind", "name"), [("t5", "shared.weight"), ("bart", "model.shared.weight"), ("llama", "model.embed_tokens.weight")]
)
def test_a_checkpoint_without_its_embedding_says_so(kind: str, name: str, tmp_path: Path) -> None:
    random_student(kind).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    left = {key: value for key, value in tensors.items() if key not in (name, "lm_head.weight")}
    save_file(left, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks .* of the tensors of a .*, the first of them"):
        TrainingWheels.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["t5", "bart", "gemma2"])
def test_a_tied_student_may_be_stored_by_its_head(kind: str, tmp_path: Path) -> None:
    student = random_student(kind)
    student.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (name,) = (key for key in tensors if key.endswith(("shared.weight", "embed_tokens.weight")))
    tensors["lm_head.weight"] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = TrainingWheels.from_pretrained(tmp_path)
    for one, other in zip(student.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_a_plain_model_in_a_folder_says_what_to_do(tmp_path: Path) -> None:
    random_model("llama", 1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.tau_token_id is None.*from_model"):
        TrainingWheels.from_pretrained(tmp_path)


def test_a_student_alone_decodes_without_tau() -> None:
    rows = rows_of("llama", 5, 3)
    student = random_student("llama", asks=rows[0])
    out = SingleModelDecoder(student).generate(rows, max_new_tokens=24)
    assert V not in {token for ids in out.output_ids for token in ids}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_quantised_module_gets_a_sentence(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this way of quantising is deprecated
        quantised = torch.ao.quantization.quantize_dynamic(random_model(kind, 1), {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"student is quantised: '.*' holds codes .* load the model without"):
        NativeModel.from_model(quantised, "student")


@pytest.mark.parametrize(("kind", "adapted"), [("t5", "q"), ("llama", "q_proj")])
@pytest.mark.parametrize("way", ["add_adapter", "get_peft_model"])
def test_beta_is_trained_beside_an_adapter(kind: str, adapted: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    # Transformers asks for a version for what is not tried here, newer than the index has.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.17")
    student = random_student(kind)
    config = peft.LoraConfig(target_modules=[adapted], r=2)
    model = student
    if way == "add_adapter":
        student.add_adapter(config)
    else:
        model = peft.get_peft_model(student, config)
    trained = {name.split(".")[-1] for name, p in student.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"teacher_token_embedding"}
    ids = torch.tensor([[5, 6, 7, 8]])
    given = {"decoder_input_ids": ids} if student.config.is_encoder_decoder else {}
    model(input_ids=ids, decoder_from_teacher=ids > 6, **given).logits.square().mean().backward()
    assert student.teacher_token_embedding.grad.abs().sum() > 0
    with pytest.raises((TypeError, ValueError), match="merge_and_unload"):
        NativeModel.from_model(model, "student")
    if way == "get_peft_model":
        with torch.no_grad():
            student.teacher_token_embedding += 1.0
        back = model.merge_and_unload()
        assert type(back) is type(random_student(kind))
        assert torch.equal(back.teacher_token_embedding, student.teacher_token_embedding)
        NativeModel.from_model(back, "student")
