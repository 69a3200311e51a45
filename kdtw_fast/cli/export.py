"""`kdtw export`: a pair as a folder for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdtw_fast.cli.options import Student, Teachers, TokenizerFolder
from kdtw_fast.generation import IGNORE
from kdtw_fast.pair_folders import load_models
from kdtw_fast.pairs import DEFAULT_PAIR, pair_folder

EXAMPLES = """[bold]Examples[/bold]

    kdtw export out/pair --name me/debian-de-en                   (the shipped pair)

    kdtw export out/pair --name me/pair --student runs/student --teacher runs/teacher

    hf upload me/pair out/pair"""


def export(
    out: Annotated[Path, typer.Argument(help="The folder to write; new or empty.")],
    pair: Annotated[str | None, typer.Argument(help=f"A shipped pair. Default: {DEFAULT_PAIR}.")] = None,
    student: Student = None,
    teacher: Teachers = None,
    tokenizer: TokenizerFolder = None,
    name: Annotated[
        str | None, typer.Option(help="Of the repository, as the card calls it. Default: the folder's.")
    ] = None,
) -> None:
    """Write a pair as a folder for the Hugging Face hub: models, tokenizer, custom_generate and a model card."""
    if (student is None) != (not teacher) or len(teacher or []) > 1:
        raise ValueError("give --student and one --teacher, or a shipped pair")
    roles = ("student", "teacher")
    if student is None or not teacher:
        home = pair_folder(pair or DEFAULT_PAIR)
        folders, card = [home / role for role in roles], (home / "README.md").read_text(encoding="utf-8")
        card = "\n".join(f"#{line}" if line.startswith("#") else line for line in card.splitlines())
    else:
        folders, card = [student, teacher[0]], ""
    from kdtw_fast.decoders import SpeculativeDecoder
    from kdtw_fast.hub.folders import check_weights, write_folder

    for role, folder in zip(roles, folders):
        check_weights(folder, role)
    models, words = load_models(roles, pair, student, teacher, tokenizer, dict.fromkeys(roles, "auto"))
    # Says where the two are no pair; how they want to be decoded is for those who decode.
    SpeculativeDecoder(models["student"], models["teacher"], tokenizer=words, generation_config=IGNORE)
    write_folder(out, name or out.resolve().name, folders[0], folders[1], tokenizer=words, own_card=card)
    print(out)
