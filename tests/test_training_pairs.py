"""Pairs whose models have one tokenizer and vocabularies padded to different sizes: every recipe takes them."""

import copy
import json
import shutil

import pytest
import torch
from factories import mostly_long
from kdtw_fast.training import recipes
from kdtw_fast.training.models import end_tokens, fit_together
from test_families import random_model, rows_of
from toy_training import toy_recipe
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kdtw_fast import NativeModel
from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.modeling import TrainingWheels, TrainingWheelsT5, vocabulary_rows

RECIPES = ["phase1", "phase2", "gkd", "skd", "minillm", "supervised-kd", "sequence-kd", "distillspec"]
RECIPES += ["on-policy-kd", "phase1-teachers", "phase2-teachers"]
ROLES = ("student", "teacher")


def copied(toy, root):
    for role in ROLES:
        shutil.copytree(toy / role / "model", root / role / "model")
    for name in ("data", "tokenizer"):
        (root / name).symlink_to(toy / name)
    return root


@pytest.fixture(params=ROLES)
def padded(request, toy, tmp_path):
    """The toy pair, one of whose models has 64 more rows, which would be picked if they could."""
    root = copied(toy, tmp_path)
    folder = root / request.param / "model"
    model = T5ForConditionalGeneration.from_pretrained(folder)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 64)
    with torch.no_grad():
        model.shared.weight[rows:] = 3 * model.shared.weight[1]
    model.save_pretrained(folder)
    return root


@pytest.mark.parametrize("name", mostly_long(RECIPES, (1, 2)))
def test_every_recipe_trains_on_the_common_rows(name, toy, padded):
    recipe = toy_recipe(padded, f"debian-de-en/{name}", out=padded / "out", steps=3)
    outcome = recipes.train(recipe, quiet=True)
    assert outcome.step == 3 and all(row["bleu"] >= 0 for row in outcome.table)
    common = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").config.vocab_size
    assert T5ForConditionalGeneration.from_pretrained(padded / "out/model").config.vocab_size == common


def grown(model, rows):
    model.resize_token_embeddings(model.config.vocab_size + rows)
    return model


def test_a_student_keeps_its_tau_behind_the_common_rows(toy):
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model")
    rows = teacher.config.vocab_size
    plain = T5ForConditionalGeneration.from_pretrained(toy / "student/model")
    asking = grown(TrainingWheelsT5.from_t5(plain, tau_token_id=rows, tokenizer_size=rows), 7)
    fit_together(tokenizer, asking, teacher)
    assert asking.config.vocab_size == rows + 1 and teacher.config.vocab_size == rows
    TrainingWheelsDecoder(asking, teacher)
    with pytest.raises(ValueError, match=f"<tau> in row {rows} .* {rows - 1} rows; begin phase 1"):
        fit_together(tokenizer, asking, grown(teacher, -1))


def test_models_of_another_tokenizer_are_called_by_the_names_given(toy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    models = [T5ForConditionalGeneration.from_pretrained(toy / f"{role}/model") for role in ROLES]
    tokenizer.save_pretrained(tmp_path / "mine")
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(tmp_path / "other")
    models[0].name_or_path, models[1].name_or_path = str(tmp_path / "mine"), str(tmp_path / "other")
    with pytest.raises(ValueError, match="draft student and teacher must share a vocabulary"):
        fit_together(tokenizer, *models, names=["draft student", "teacher"])


def test_models_of_another_tokenizer_are_refused(toy):
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model")
    teacher.config.eos_token_id = [7, 8]
    with pytest.raises(ValueError, match=r"ends texts with token 1, but .*/model ends outputs with \[7, 8\]"):
        fit_together(tokenizer, teacher)
    grown(teacher, len(tokenizer) - 1 - teacher.config.vocab_size)
    with pytest.raises(ValueError, match=f"share {len(tokenizer) - 1} rows .* has {len(tokenizer)} tokens"):
        fit_together(tokenizer, teacher)


@pytest.mark.parametrize("name", ["phase1", "phase2", "gkd", "sequence-kd"])
def test_a_student_of_another_tokenizer_is_refused(name, toy, tmp_path):
    """By the files in both folders, where the recipe does not say which tokenizer is that of both."""
    root = copied(toy, tmp_path)
    words = root / "student/model/tokenizer.json"
    told = json.loads(words.read_text())
    pieces = told["model"]["vocab"]
    pieces[5][0], pieces[6][0] = pieces[6][0], pieces[5][0]
    words.write_text(json.dumps(told))
    recipe = toy_recipe(root, f"debian-de-en/{name}", out=root / "out", steps=1, tokenizer="''")
    with pytest.raises(ValueError, match=r"token id 5 is .* in the teacher's; set tokenizer to that of both"):
        recipe.build()
    toy_recipe(root, f"debian-de-en/{name}", out=root / "out", steps=1).build()  # with tokenizer=…


class Words(list):
    """A tokenizer of so many pieces."""

    def __init__(self, count, end):
        super().__init__(range(count))
        self.eos_token_id = end


@pytest.mark.parametrize("who", ROLES)
def test_a_t5gemma_is_cut_in_its_encoder_too(who):
    models = {role: random_model("t5gemma", seed) for seed, role in enumerate(ROLES, 1)}
    rows = vocabulary_rows(models["student"].config)
    models["student"] = TrainingWheels.from_model(models["student"], tau_token_id=rows, tokenizer_size=rows)
    config = copy.deepcopy(models[who].config)
    for part in (config, config.encoder, config.decoder):
        if getattr(part, "vocab_size", None) is not None:
            part.vocab_size = rows + 24
    larger = type(models[who])(config)
    larger.generation_config, models[who] = models[who].generation_config, larger
    fit_together(Words(rows - 2, end_tokens(larger)[0]), *models.values())
    assert NativeModel.from_model(models["teacher"]).vocab_size == rows + (who == "teacher")  # the student's rows
    assert NativeModel.from_model(models["student"]).vocab_size == rows + 1
    TrainingWheelsDecoder(*models.values()).generate(rows_of("t5gemma", 3, 2), max_new_tokens=4)
