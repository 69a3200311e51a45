"""Training decodes as its settings say, whatever checkpoints say of generating; what they say is saved with models."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kdtw_fast.training import evaluate
from kdtw_fast.training.batches import Encoded
from kdtw_fast.training.distillation import load_plain_student
from kdtw_fast.training.evaluate import greedy
from kdtw_fast.training.export import save_bf16
from kdtw_fast.training.grow import deepened
from kdtw_fast.training.models import end_tokens, load_plain, pack_teachers, save_pair_member
from kdtw_fast.training.rollouts import Rollouts
from kdtw_fast.training.settings import Model, PhaseSettings, RunSettings
from test_families import random_model
from toy_training import toy_recipe
from transformers import GenerationConfig

from kdtw_fast import NativeModel, TrainingWheels, TrainingWheelsDecoder

TRAINING = Path(__file__).parent.parent / "training"
END = {"t5": 1, "bart": 2, "llama": 1}
SAMPLES = {"do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.9, "repetition_penalty": 1.7}


class NoTokenizer:
    """Saves nothing."""

    def save_pretrained(self, folder: Path) -> None:
        """Nothing."""


def telling(kind: str, seed: int, **fields: Any) -> Any:
    """A model whose generation config is its own, as that of a published checkpoint."""
    model = random_model(kind, seed)
    start = {"decoder_start_token_id": model.config.decoder_start_token_id} if model.config.is_encoder_decoder else {}
    tokens = {"eos_token_id": model.config.eos_token_id, "pad_token_id": model.config.pad_token_id}
    model.generation_config = GenerationConfig(**(tokens | start | fields))
    return model


def test_one_place_of_training_makes_decoders() -> None:
    made = [
        f"{path.name}:{node.lineno}"
        for path in TRAINING.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Decoder")
    ]
    assert made == [], "decoder_of makes the decoders of training"


@pytest.mark.parametrize("kind", ["t5", "bart", "llama"])
def test_greedy_is_greedy_whatever_a_checkpoint_says(kind: str) -> None:
    rows = [Encoded((7, 8, 9), ()), Encoded((12, 5), ())]
    plain = greedy(telling(kind, 3), rows, [6], 1, 12)
    assert greedy(telling(kind, 3, **SAMPLES), rows, [6], 1, 12) == plain
    assert greedy(telling(kind, 3, num_beams=4, no_repeat_ngram_size=1), rows, [6], 1, 12) == plain
    # Its special tokens hold: a second end, and where an encoder reads the source the first token.
    again = plain[0][3]
    ends = greedy(telling(kind, 3, **SAMPLES, eos_token_id=[END[kind], again]), rows[:1], [6], 1, 12)
    assert ends[0] == plain[0][: plain[0].index(again) + 1]
    if kind != "llama":
        assert greedy(telling(kind, 3, **SAMPLES, forced_bos_token_id=33), rows, [6], 1, 12)[1][0] == 33


def test_rollouts_obey_no_generation_config() -> None:
    student = TrainingWheels.from_model(telling("t5", 1, **SAMPLES))
    teacher = telling("t5", 2, num_beams=4)
    settings = PhaseSettings(student=Model(), teacher=Model(), threads=1)
    rollouts = Rollouts(student, [teacher], [[5]], [6], torch.zeros(1, 1), settings)
    assert rollouts.decoder.defaults == rollouts.teacher_decoder.defaults == {}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_saved_student_decodes_with_its_own_teacher(kind: str, tmp_path: Path) -> None:
    ends = [1, 17, 23]  # in the generation config only; and one that transformers refuses to save once it is changed
    fields = {"eos_token_id": ends, "max_new_tokens": 9, "temperature": 0.6}
    telling(kind, 2, **fields).generation_config.to_json_file(tmp_path / "told.json")
    paths = {}
    for role, seed in (("teacher", 2), ("student", 1)):
        random_model(kind, seed).save_pretrained(tmp_path / role)
        (tmp_path / role / "generation_config.json").write_bytes((tmp_path / "told.json").read_bytes())
        paths[role] = tmp_path / role
    student = TrainingWheels.from_model(load_plain(str(paths["student"]), "student.path"))
    assert end_tokens(student) == end_tokens(load_plain(str(paths["teacher"]), "teacher.path")) == ends
    save_pair_member(student, NoTokenizer(), tmp_path / "best")
    for told in (tmp_path / "best", TrainingWheels.from_pretrained(tmp_path / "best")):
        decoder = TrainingWheelsDecoder(told, paths["teacher"])
        assert decoder.model.eos_token_ids == ends and decoder.defaults["max_new_tokens"] == 9
        assert decoder.generate([[5, 6, 7]], logit_bias={17: 99.0}).output_ids == [[17]]
    kept = TrainingWheels.from_pretrained(tmp_path / "best").generation_config
    assert kept.suppress_tokens == [student.config.tau_token_id] and kept.temperature == 0.6
    # What is shipped, and what is grown, keeps it too.
    save_bf16(load_plain(str(paths["teacher"]), "teacher"), tmp_path / "shipped")
    assert NativeModel.from_pretrained(tmp_path / "shipped").eos_token_ids == ends
    if kind == "t5":
        deeper = deepened(load_plain(str(paths["teacher"]), "model"), 4, 4)
        assert NativeModel.from_model(deeper).eos_token_ids == ends


def test_ends_are_those_of_decoders_the_configs_first() -> None:
    for config, said, found in ((1, [17, 1], [1, 17]), (1, 17, [17]), ([1, 2], None, [1, 2]), (None, [7, 8], [7, 8])):
        model = telling("t5", 1, eos_token_id=said)
        model.config.eos_token_id = config
        assert end_tokens(model) == found
        assert sorted(pack_teachers([model])[0].eos_token_ids) == sorted(found)


def test_a_plain_student_may_write_what_was_tau(tmp_path: Path) -> None:
    student = TrainingWheels.from_model(telling("t5", 1, suppress_tokens=[9]))
    tau = student.config.tau_token_id
    assert student.generation_config.suppress_tokens == sorted([9, tau])
    save_pair_member(student, NoTokenizer(), tmp_path / "student")
    plain = load_plain_student(RunSettings(student=Model(path=str(tmp_path / "student"))))
    assert plain.generation_config.suppress_tokens == [9]
    save_pair_member(plain, NoTokenizer(), tmp_path / "plain")
    assert NativeModel.from_pretrained(tmp_path / "plain").generation["suppress_tokens"] == [9]


def test_validations_and_trajectories_are_decoded_where_the_run_says(toy: Path, tmp_path: Path, monkeypatch) -> None:
    class MadeError(Exception):
        """In place of a decoder."""

    def make(kind: Any, model: Any, *, device: str = "cpu", **options: Any) -> Any:
        raise MadeError(device)

    place = {"rollout_device": "cuda:1", "out": tmp_path}
    fitting = toy_recipe(toy, "debian-de-en/teacher", **place).build()
    distilling = toy_recipe(toy, "debian-de-en/minillm", out=tmp_path).build()
    distilling.settings = replace(distilling.settings, rollout_device="cuda:1")
    monkeypatch.setattr(evaluate, "decoder_of", make)
    for run in (
        lambda: fitting.validate(0, 2),
        lambda: distilling.validate(0, 2),
        lambda: toy_recipe(toy, "debian-de-en/gkd", **place).build(),  # along the teacher's trajectories
    ):
        with pytest.raises(MadeError, match="cuda:1"):
            run()
