"""Options that several commands share, declared once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kdtw_fast.generation import IGNORE
from kdtw_fast.options import DTYPES
from kdtw_fast.pairs import DEFAULT_PAIR

MODELS = "Models"  # the panel of `--help` that they stand in

PairName = Annotated[
    str | None,
    typer.Option(
        help=f"A shipped pair (kdtw info lists them). Default: {DEFAULT_PAIR}.",
        show_default=False,
        rich_help_panel=MODELS,
    ),
]
Student = Annotated[
    Path | None, typer.Option(help="Folder of a student, instead of a shipped pair.", rich_help_panel=MODELS)
]
Teachers = Annotated[
    list[Path] | None,
    typer.Option(help="Folder of its teacher; once for each teacher of a student of several.", rich_help_panel=MODELS),
]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the tokenizer. Default: the model's folder, or 'tokenizer' beside it.",
        rich_help_panel=MODELS,
    ),
]
CacheWeights = Annotated[
    bool,
    typer.Option(
        "--cache-weights",
        help="Keep the packed weights in files beside the models: other processes and the next start map them into "
        "memory.",
        rich_help_panel=MODELS,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Threads; the results do not depend on it. Default: all.", show_default=False),
]
Dtype = Annotated[
    str,
    typer.Option(
        help=f"Number format of the weights: {', '.join(DTYPES)}; auto is the smallest that holds the files exactly.",
        rich_help_panel=MODELS,
    ),
]
TeacherDtype = Annotated[
    str | None,
    typer.Option(
        help="The teacher's, when it differs. Default: as --dtype.", show_default=False, rich_help_panel=MODELS
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Where to decode: cpu, cuda, cuda:<index>, or auto, the first CUDA device where there is one.",
        rich_help_panel=MODELS,
    ),
]
GenerationConfig = Annotated[
    str | None,
    typer.Option(
        help="What of a model's generation_config.json holds where no option says otherwise. Default: all of it; "
        "ignore: nothing but its special tokens; or a JSON object of fields that come before it, null for one that is "
        "not to hold.",
        show_default=False,
        rich_help_panel=MODELS,
    ),
]


def read_generation_config(text: str | None) -> Any:
    """The value of --generation-config as decoders take it."""
    if text is None or text == IGNORE:
        return text
    try:
        told = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--generation-config is neither {IGNORE} nor a JSON object ({error})") from None
    if not isinstance(told, dict):
        raise ValueError(f"--generation-config is neither {IGNORE} nor a JSON object, got {text}")
    return told
