"""The student model: <tau>'s row, beta, saving and loading, and what it refuses."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from kdtw_fast import loaders
from kdtw_fast.modeling import TrainingWheels, TrainingWheelsT5

KINDS = {
    "v1.0": {"feed_forward_proj": "relu"},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "tied-gated": {"feed_forward_proj": "gated-gelu"},
}


def tiny(kind: str = "tied-gated", rows: int = 40) -> T5ForConditionalGeneration:
    """A random T5 with odd sizes; v1.1 has a head of its own, as FLAN-T5 has."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=rows, d_model=20, d_kv=6, d_ff=31, num_heads=3, num_layers=2, num_decoder_layers=1,
        decoder_start_token_id=0, dropout_rate=0.0, **KINDS[kind],
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    if kind == "v1.1":
        model.lm_head.weight = torch.nn.Parameter(torch.randn(rows, 20))
    return model


def inputs(rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 30, (rows, 9), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": torch.randint(3, 30, (rows, 7), generator=generator)}


@torch.no_grad()
def logits(model, **more):
    return model(**inputs(), **more).logits


@pytest.mark.parametrize("kind", KINDS)
def test_from_t5_keeps_every_logit(kind):
    model = tiny(kind)
    student = TrainingWheelsT5.from_t5(model, tokenizer_size=33)
    assert student.config.tau_token_id == 33
    assert student.config.vocab_size == 40
    assert torch.equal(logits(student), logits(model))
    assert not student.teacher_token_embedding.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_round_trip(kind, dtype, tmp_path):
    student = TrainingWheelsT5.from_t5(tiny(kind), tokenizer_size=33, student_prompt="{budget}: ", teacher_prompt="x: ")
    torch.nn.init.normal_(student.teacher_token_embedding)
    student = student.to(dtype)
    marks = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) < 0.5
    student.save_pretrained(tmp_path)
    again = TrainingWheelsT5.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(again.teacher_token_embedding, student.teacher_token_embedding)
    assert torch.equal(logits(again, decoder_from_teacher=marks), logits(student, decoder_from_teacher=marks))
    assert (again.config.tau_token_id, again.config.student_prompt, again.config.teacher_prompt) == (
        33,
        "{budget}: ",
        "x: ",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_loads_a_student_as_plain_t5(kind, tmp_path):
    student = TrainingWheelsT5.from_t5(tiny(kind), tokenizer_size=33)
    torch.nn.init.normal_(student.teacher_token_embedding)
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "t5"
    assert config["architectures"] == ["T5ForConditionalGeneration"]
    for loader in (T5ForConditionalGeneration, AutoModelForSeq2SeqLM):
        plain = loader.from_pretrained(tmp_path).eval()
        assert type(plain) is T5ForConditionalGeneration
        assert torch.equal(logits(plain), logits(student))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_spare_row_the_vocabulary_grows_by_one(kind, tmp_path):
    model = tiny(kind, rows=40)
    student = TrainingWheelsT5.from_t5(model, tokenizer_size=40)
    assert (student.config.tau_token_id, student.config.vocab_size) == (40, 41)
    assert torch.equal(logits(student)[..., :40], logits(model))
    assert torch.allclose(student.shared.weight[40], model.shared.weight.mean(0))
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(TrainingWheelsT5.from_pretrained(tmp_path).eval()), logits(student))


def test_without_a_tokenizer_size_no_row_is_taken_for_spare():
    assert TrainingWheelsT5.from_t5(tiny(rows=40)).config.tau_token_id == 40
    assert TrainingWheelsT5.from_t5(tiny(rows=32128)).config.tau_token_id == 32100
    assert TrainingWheelsT5.from_t5(tiny(rows=40), tau_token_id=37).config.tau_token_id == 37


def test_from_t5_copies_weights_and_leaves_the_model_alone():
    model = tiny()
    before = logits(model)
    student = TrainingWheelsT5.from_t5(model, tokenizer_size=33)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits(model), before)
    assert not hasattr(model.config, "tau_token_id")


def test_from_t5_of_a_student_keeps_beta_and_prompts():
    student = TrainingWheelsT5.from_t5(tiny(), tokenizer_size=33, student_prompt="{budget}> ")
    torch.nn.init.normal_(student.teacher_token_embedding)
    again = TrainingWheelsT5.from_t5(student, tau_token_id=35)
    assert torch.equal(again.teacher_token_embedding, student.teacher_token_embedding)
    assert (again.config.tau_token_id, again.config.student_prompt) == (35, "{budget}> ")


def test_beta_is_added_where_the_teacher_wrote():
    student = TrainingWheelsT5.from_t5(tiny(), tokenizer_size=33)
    torch.nn.init.normal_(student.teacher_token_embedding)
    ids = inputs()["decoder_input_ids"]
    marks = torch.zeros_like(ids, dtype=torch.bool)
    marks[1, 3] = True
    expected = student.shared(ids)
    expected[1, 3] += student.teacher_token_embedding
    assert torch.equal(student.embed_decoder_inputs(ids, marks), expected)
    marked, unmarked = logits(student, decoder_from_teacher=marks), logits(student)
    assert torch.equal(marked[1, :3], unmarked[1, :3])  # causal: nothing before the mark changes
    assert not torch.allclose(marked[1, 3:], unmarked[1, 3:])
    assert torch.allclose(marked[[0, 2]], unmarked[[0, 2]], atol=1e-6)


def test_beta_gets_a_gradient():
    student = TrainingWheelsT5.from_t5(tiny(), tokenizer_size=33)
    marks = torch.ones(3, 7, dtype=torch.bool)
    student(**inputs(), decoder_from_teacher=marks).logits.pow(2).mean().backward()
    assert student.teacher_token_embedding.grad.abs().sum() > 0


def test_loading_a_plain_t5_as_a_student_says_what_to_do(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.tau_token_id is None.*from_t5"):
        TrainingWheelsT5.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", [TrainingWheels, TrainingWheelsT5])
def test_a_place_that_is_not_there_is_said_at_once(cls, tmp_path, monkeypatch):
    """No path is asked of the hub, and the hub once for a name; what the cache has is loaded without it."""
    asked = []

    def repo_info(self, name, repo_type, timeout):
        asked.append((name, self.token))
        raise ConnectionError

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    for place in ("./nope", tmp_path / "nope", "models/mine/best"):
        with pytest.raises(FileNotFoundError, match=f"^{cls.__name__}: {place} is not a folder.*; check the path$"):
            cls.from_pretrained(place)
    assert asked == []
    with pytest.raises(FileNotFoundError, match="nope/x is not a folder or in a cache, and the hub"):
        cls.from_pretrained("nope/x", token="secret")
    assert asked == [("nope/x", "secret")]
    snapshot = tmp_path / "models--nope--x/snapshots/1"
    TrainingWheelsT5.from_t5(tiny()).save_pretrained(snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("1")
    assert cls.from_pretrained("nope/x", cache_dir=tmp_path, local_files_only=True).config.tau_token_id == 40
    loaders.check_place("nope/x", "", cache_dir=tmp_path)


@pytest.mark.parametrize("tau", [-1, 40, True, "33", 3.0])
def test_bad_tau_in_config(tau):
    config = tiny().config
    config.tau_token_id = tau
    with pytest.raises(ValueError, match=r"needs a row of its vocabulary \(0 to 39\)"):
        TrainingWheelsT5(config)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"tokenizer_size": 41}, "41 tokens, but the model has 40 rows"),
        ({"tokenizer_size": 33, "tau_token_id": 32}, "uses rows 0 to 32.*choose one of 33 to 40"),
        ({"tau_token_id": 41}, "41 tokens, but the model has 40 rows"),
        ({"tokenizer_size": 33, "tau_token_id": 41}, "41 is not a spare row"),
    ],
)
def test_from_t5_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        TrainingWheelsT5.from_t5(tiny(), **arguments)


def test_from_t5_wants_a_t5():
    with pytest.raises(TypeError, match="got Linear"):
        TrainingWheelsT5.from_t5(torch.nn.Linear(2, 2))


def test_marks_are_checked():
    student = TrainingWheelsT5.from_t5(tiny(), tokenizer_size=33)
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(3, 7\)"):
        logits(student, decoder_from_teacher=torch.zeros(3, 6, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"must be bool, got torch.int64"):
        logits(student, decoder_from_teacher=torch.zeros(3, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="none were given"):
        student(input_ids=inputs()["input_ids"], decoder_from_teacher=torch.zeros(3, 7, dtype=torch.bool))


def test_experts_is_the_old_name_of_teachers() -> None:
    with pytest.warns(DeprecationWarning, match="use teachers"):
        student = TrainingWheelsT5.from_t5(tiny(), experts=2)
    assert len(student.marks) == 2
