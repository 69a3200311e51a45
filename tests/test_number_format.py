"""bf16=auto: the faster format is measured, written down, and kept by the run's continuation."""

import json

import pytest
import torch
from kdtw_fast.training import number_format, recipes
from kdtw_fast.training.models import autocast
from kdtw_fast.training.settings import RunSettings
from kdtw_fast.training.trainer import _Records
from toy_training import toy_recipe


def measured(monkeypatch, float32, bf16):
    monkeypatch.setattr(number_format, "seconds_of_a_pass", lambda device, sizes, chosen: bf16 if chosen else float32)


@pytest.mark.parametrize("float32, bf16, chosen", [(1.0, 3.3, False), (1.0, 0.5, True), (1.0, 0.99, False)])
def test_the_faster_format_is_chosen_and_logged(float32, bf16, chosen, monkeypatch, caplog):
    measured(monkeypatch, float32, bf16)
    with caplog.at_level("INFO"):
        settings = number_format.decided(RunSettings())
    assert settings.bf16 is chosen and f"bf16=auto: {str(chosen).lower()}; a pass took 1.0000 s" in caplog.text
    given = RunSettings(bf16=not chosen)
    assert number_format.decided(given) is given


def test_a_run_keeps_the_format_it_began_with(toy, tmp_path, monkeypatch):
    def run(steps, **changes):
        recipes.train(
            toy_recipe(toy, "debian-de-en/gkd", out=tmp_path, steps=steps, bf16="auto", **changes), quiet=True
        )

    measured(monkeypatch, 1.0, 0.5)
    run(1)
    assert recipes.resolve(tmp_path / "recipe.yaml").settings.bf16 is True
    measured(monkeypatch, 0.5, 1.0)
    run(2)  # would be refused as a run of other settings
    assert recipes.resolve(tmp_path / "recipe.yaml").settings.bf16 is True
    start = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert start["event"] == "start" and start["bf16"] is True


def test_a_run_killed_as_it_writes_its_recipe_leaves_the_one_that_is_there(tmp_path, monkeypatch):
    settings = RunSettings(out=str(tmp_path), bf16=True)
    _Records(tmp_path, {"bf16": True}, settings, 0, 0).__exit__()

    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)  # all is written, beside it
    with pytest.raises(KeyboardInterrupt):
        _Records(tmp_path, {"bf16": True}, settings, 0, 0)
    assert number_format.decided(RunSettings(out=str(tmp_path), bf16="auto")).bf16 is True


def test_a_pass_is_measured_without_touching_torchs_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for bf16 in (False, True):
        assert number_format.seconds_of_a_pass("cpu", (16, 8, 2, 24), bf16) > 0
    assert torch.equal(before, torch.get_rng_state())


def test_settings_take_three_values():
    with autocast(RunSettings(bf16="auto")):
        assert not torch.is_autocast_enabled("cpu")  # undecided is float32
    with pytest.raises(ValueError, match="bf16 must be true, false or auto, got 'fp8'"):
        RunSettings(bf16="fp8")
