"""The command line's options are those that METHODS and GenerateOptions describe, also when they have new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import typer
from factories import random_pair
from test_cli import TinyPair, kdtw, pair  # noqa: F401 - fixtures
from typer.testing import CliRunner

import kdtw_fast
from kdtw_fast.cli.decoding_options import decoding_options, flag
from kdtw_fast.cli.errors import OneSentence
from kdtw_fast.cli.made_options import takes
from kdtw_fast.methods import METHODS, Method, Setting, make_decoder
from kdtw_fast.options import GenerateOptions, check_real


@dataclass(frozen=True)
class MoreOptions(GenerateOptions):
    """Options with new ones.

    Args:
        patience: how long to wait, >= 0; None = as ``temperature`` has
            it. This sentence is for Python.
        bold: say it [loud].
        weights: not for a command line.
        top_k: keep k.
    """

    patience: float | None = None
    bold: bool = False
    weights: Sequence[int] | Mapping[str, float] = ()


def app_of(got: dict[str, Any]) -> typer.Typer:
    methods = METHODS | {
        "zealous": Method(
            "a new one", "ZealousDecoder", settings={"zeal": Setting(int, "how much [1]", 3, keyword="zeal_in")}
        ),
        "calm": Method("another", "CalmDecoder", settings={"zeal": Setting(int, "how little", None)}),
        "patient": Method("a third", "PatientDecoder", call_options=("patience",)),
    }
    app = typer.Typer(cls=OneSentence)

    @app.command()
    @takes(decoding_options(methods, MoreOptions), after="text")
    def new(text: str, last: int = 0, **options: Any) -> None:
        got.update(options, text=text, last=last)
        check_real("patience", options["patience"], 0)

    app.command()(lambda: None)
    return app


def test_a_new_method_or_option_needs_no_word_in_the_cli() -> None:
    got: dict[str, Any] = {}
    run = CliRunner()
    told = run.invoke(app_of(got), ["new", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).stdout
    assert "zealous: how much [1] (default 3); calm: how little." in told
    assert "patient: how long to wait, >= 0; default: as --temperature has it." in told
    assert "Say it [loud]." in told and "for Python" not in told and "--weights" not in told
    done = run.invoke(app_of(got), ["new", "x", "--zeal", "7", "--patience", "0.5", "--bold", "--top-k", "4"])
    assert done.exit_code == 0, done.stderr
    assert got["zeal"] == 7 and got["patience"] == 0.5 and got["bold"] is True and got["top_k"] == 4
    assert got["text"] == "x" and got["lenience"] is None and got["temperature"] == 0.0
    done = run.invoke(app_of(got), ["new", "x", "--patience", "-1"])
    assert (done.exit_code, done.stderr) == (2, "kdtw: --patience must be in [0, inf), got -1.0\n")


def test_what_a_line_does_not_show_is_no_option() -> None:
    made = {option.name for option in decoding_options()}
    assert not made & {"output_logprobs", "top_logprobs", "output_reads", "num_return_sequences"}
    assert {"stop", "repetition_penalty"} < made


def test_options_of_a_call_have_pythons_names_and_defaults() -> None:
    command = typer.main.get_command(kdtw_fast.cli.app).commands["generate"]  # type: ignore[attr-defined]
    parameters = {p.name: p for p in command.params}
    shared = [field for field in fields(GenerateOptions) if field.name in parameters]
    assert len(shared) >= 15
    for field in shared:
        assert flag(field.name) in parameters[field.name].opts
        assert parameters[field.name].default == (128 if field.name == "max_new_tokens" else field.default), field.name


@pytest.mark.parametrize("name", METHODS)
def test_settings_tell_the_decoders_own_defaults(name: str, pair: TinyPair) -> None:  # noqa: F811
    models = {"student": pair.student, "teacher": pair.teacher}
    decoder = make_decoder(name, models, pair.tokenizer)
    for setting, told in METHODS[name].settings.items():
        assert getattr(decoder, told.keyword or setting) == told.default, setting


def test_the_new_options_reach_the_decoder(kdtw, pair: TinyPair) -> None:  # noqa: F811
    def run(*arguments: str) -> str:
        result = kdtw("generate", *pair.folders, "--max-new-tokens", "12", *arguments, "die doku", "paket")
        assert result.exit_code == 0, result.stderr
        return result.stdout

    speculative = ("--method", "speculative", "--temperature", "0.9")
    assert run(*speculative, "--teacher-temperature", "0") != run(*speculative)
    assert run("--min-new-tokens", "12") == run("--min-new-tokens", "12", "--teacher-batch", "1", "--max-time", "99")
    result = kdtw("generate", *pair.folders, "--min-new-tokens", "200", "x")
    assert result.stderr == "kdtw: --min-new-tokens must be in 0..128, got 200\n"


def test_the_ranges_of_settings_are_the_decoders_own() -> None:
    """The command line checks them before there is a decoder; both say the same of a value just outside."""
    student, teacher = random_pair("noisy", 0, 43)
    models = {"student": student, "teacher": teacher}
    for name, method in METHODS.items():
        for setting, kind in method.settings.items():
            outside = [kind.low - 1 if kind.low is not None else None, kind.high + 1 if kind.high < math.inf else None]
            for value in (kind.read(one) for one in outside if one is not None):
                with pytest.raises(ValueError, match="must be") as early:
                    kind.value(setting, value)
                with pytest.raises(ValueError, match="must be") as late:
                    make_decoder(name, models, None, **{setting: value})
                assert str(early.value) == str(late.value)
