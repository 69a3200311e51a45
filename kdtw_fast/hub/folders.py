"""A pair as a folder that the hub takes: models in safetensors, their tokenizer, custom_generate, a model card."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from string import Template
from typing import Any

from safetensors import safe_open

from kdtw_fast.hub import write_custom_generate
from kdtw_fast.loaders import read_json

_COPIED = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
_UNMEASURED = """## Measured

Nothing was, when this folder was written. `kdtw compare` measures quality and speed on your own data."""


def write_folder(out: Path, name: str, student: Path, teacher: Path, *, tokenizer: Any, own_card: str = "") -> None:
    """Writes the folder.

    Args:
        out: a folder that is new or empty.
        name: of the repository, as the card's examples call it.
        student, teacher: folders of save_pretrained.
        tokenizer: of both.
        own_card: goes behind what every card says.

    Raises:
        ValueError: ``out`` has something in it; a model's weights are not in safetensors.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; name a new folder")
    folders = {"student": student, "teacher": teacher}
    for role, folder in folders.items():
        check_weights(folder, role)
    for role, folder in folders.items():
        (out / role).mkdir(parents=True)
        for file in sorted({file for pattern in _COPIED for file in folder.glob(pattern)}):
            shutil.copyfile(file, out / role / file.name)
    tokenizer.save_pretrained(out / "tokenizer")
    write_custom_generate(out)
    encodes = bool(read_json(teacher / "config.json", "teacher").get("is_encoder_decoder"))
    card = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8")).substitute(
        {role: f"{parameters(folder):,}" for role, folder in folders.items()},
        name=name,
        task="text2text-generation" if encodes else "text-generation",
        loader="AutoModelForSeq2SeqLM" if encodes else "AutoModelForCausalLM",
        more=own_card.strip() or _UNMEASURED,
    )
    (out / "README.md").write_text(card.strip() + "\n", encoding="utf-8")


def check_weights(folder: Path, role: str) -> None:
    """Raises ValueError where a folder's weights are not in safetensors."""
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{role}: {folder} has no weights in safetensors; save it with save_pretrained again")


def parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count
