"""Turn a trained student and teacher into a pair that ships: bf16 weights, tokenizer, held-out sample, model card.

Every number in the card is measured here, on the weights that ship, through the native decoders.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml
from transformers import PreTrainedModel

from kdtw_fast.budgets import student_prompt
from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.files import replacing_folder
from kdtw_fast.hub import write_custom_generate
from kdtw_fast.loaders import load_tokenizer
from kdtw_fast.modeling import TrainingWheels
from kdtw_fast.pairs import DATA

from . import recipes
from .debian import Example, keyed_hash, read_jsonl, write_jsonl
from .decoders import decoder_of
from .evaluate import greedy_scores, measure_budgets
from .frames import Frame
from .models import fit_together, load_plain

DOES = {
    "debian-de-en": "to translate German package descriptions of Debian into English",
    "debian-synopsis": "to write the one-line synopsis of a Debian package from its description",
}


def round_to_bf16(model: PreTrainedModel) -> None:
    """Round the weights to bf16 in place, keeping float32 as their type: what a loaded shipped model computes with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def save_bf16(model: PreTrainedModel, folder: Path) -> None:
    """Write config and safetensors with bf16 weights; the model itself stays in float32."""
    shipped = copy.deepcopy(model)
    shipped.bfloat16().save_pretrained(folder)
    told = model.generation_config  # a student's keeps Hugging Face's generate from <tau>
    if not isinstance(model, TrainingWheels) and (told is None or told._from_model_config):
        (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)


def choose_sample(examples: Sequence[Example], count: int, key: str = "kdtw") -> list[Example]:
    """`count` examples with different sources (0 = all), chosen and ordered by a keyed hash of the text."""
    unique = {example.source: example for example in examples}
    if len(unique) < count:
        raise ValueError(f"asked for {count} sample sentences, but there are only {len(unique)} different ones")
    return sorted(unique.values(), key=lambda example: keyed_hash(example.source, key))[: count or None]


def measure(
    models: dict[str, PreTrainedModel], tokenizer: Any, examples: Sequence[Example]
) -> dict[str, dict[str, float | str]]:
    """BLEU and ROUGE-2 of each model alone, greedy, behind the teacher's prompt or the student's with "no"."""
    texts = models["teacher"].config.teacher_prompt, student_prompt("no", models["student"].config.student_prompt)
    frame = Frame(tokenizer, models["student"].config.is_encoder_decoder, texts)
    teachers, students = frame.prompts(texts)
    return {
        role: greedy_scores(model, frame, examples, teachers if role == "teacher" else students)
        for role, model in models.items()
    }


def runs_behind(student: Path, teacher: Path) -> dict[str, Path]:
    """The recipe.yaml of each run that made the two models, by the run's name, in the order they were run.

    A run's models lie in its folder; the student that it started from is its recipe's `student.path`, and so on.
    """
    found: dict[str, Path] = {}
    folder: Path | None = student
    while folder is not None and (recipe := folder.parent / "recipe.yaml").is_file():
        found[folder.parent.name] = recipe
        before = yaml.safe_load(recipe.read_text(encoding="utf-8"))["student"]["path"]
        folder = Path(before) if before else None
    if (recipe := teacher.parent / "recipe.yaml").is_file():
        found[teacher.parent.name] = recipe
    return dict(reversed(found.items()))


def card(name: str, numbers: dict, runs: Sequence[str], note: str = "") -> str:
    """The pair's README.md, card.md filled in; `runs` are the names of the recipes beside it."""
    titles = {"teacher": "Teacher alone", "student": "Student alone", "gkd": "GKD's student alone"}
    measured = [role for role in titles if role in numbers]
    moved = {role: numbers[role]["bleu"] - numbers["float32"][role]["bleu"] for role in measured}
    template = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    text = jinja2.Template(template, trim_blocks=True).render(
        numbers,
        name=name,
        does=DOES.get(name, "for the task of its name"),
        alone=[(titles[role], numbers[role]) for role in measured],
        rounding=" and ".join(f"{bleu:+.2f} ({role})" for role, bleu in moved.items()),
        runs=runs,
        note=note,
    )
    parts = [part.strip() for part in text.split("\n\n")]
    return "\n\n".join(part if part.startswith(("#", "|", "```")) else _filled(part) for part in parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def export(
    student_folder: Path,
    teacher_folder: Path,
    data: Path,
    out: Path,
    name: str = "debian-de-en",
    sample: int = 0,
    oracle: Path | None = None,
    oracle_rows: int = 0,
    draft_student: Path | None = None,
    note: str = "",
) -> dict:
    """Write OUT/pairs/NAME and OUT/samples; returns the numbers of the card.

    `sample`: test sentences that ship, 0 = all; `draft_student`: GKD's student, to ship as "gkd".
    """
    tokenizer = load_tokenizer(teacher_folder)
    teacher = load_plain(str(teacher_folder), "--teacher").eval()
    student = TrainingWheels.from_pretrained(student_folder, dtype=torch.float32).eval()
    models = {"teacher": teacher, "student": student}
    if draft_student is not None:
        models["gkd"] = load_plain(str(draft_student), "--draft-student").eval()
        fit_together(tokenizer, models["gkd"], teacher, names=["draft student", "teacher"])
    others = (model for role, model in models.items() if role != "student")
    fit_together(tokenizer, student, *others, names=["student", "teacher", "draft student"])
    test = read_jsonl(data / "test.jsonl")
    numbers: dict = {"sentences": len(test), "float32": measure(models, tokenizer, test)}
    for model in models.values():
        round_to_bf16(model)
    numbers |= measure(models, tokenizer, test)
    decoder = decoder_of(TrainingWheelsDecoder, student, teacher, tokenizer=tokenizer)
    frame = Frame(
        tokenizer, decoder.model.has_encoder, [decoder.model.student_prompt or "", teacher.config.teacher_prompt]
    )
    numbers["budgets"] = measure_budgets(decoder, test, frame=frame)
    numbers["parameters"] = {role: model.num_parameters() for role, model in models.items()}
    if oracle is not None:
        numbers["oracle"], numbers["oracle_rows"] = json.loads(oracle.read_text()), oracle_rows
    runs = runs_behind(student_folder, teacher_folder)
    if draft_student is not None:
        runs |= runs_behind(draft_student, teacher_folder)
    with replacing_folder(out / "pairs" / name) as folder:  # the pair there may be the one that is read
        for role, model in models.items():
            save_bf16(model, folder / role)
        tokenizer.save_pretrained(folder / "tokenizer")
        (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
        (folder / "recipes").mkdir()
        for run, recipe in runs.items():
            base = f"{name}/{run}" if f"{name}/{run}" in recipes.recipe_names() else None
            text = recipes.to_yaml(recipes.resolve(recipe), base)
            (folder / "recipes" / f"{run}.yaml").write_text(text, encoding="utf-8")
        write_custom_generate(folder)
        (folder / "README.md").write_text(card(name, numbers, list(runs), note))
    samples = out / "samples"
    write_jsonl(samples / f"{name}.jsonl", choose_sample(test, sample))
    if samples.resolve() != (DATA / "samples").resolve():
        shutil.copy(DATA / "samples/LICENCE.md", samples)
    return numbers


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("runs/debian/translation"))
    parser.add_argument("--out", type=Path, default=Path("kdtw_fast/data"))
    parser.add_argument("--name", default="debian-de-en")
    parser.add_argument("--draft-student", type=Path, default=None, help="GKD's student, to ship beside the other")
    parser.add_argument("--sample", type=int, default=0, help="test sentences that ship, 0 = all")
    parser.add_argument("--oracle", type=Path, default=None, help="JSON written by kdtw_fast.training.oracle --out")
    parser.add_argument("--oracle-rows", type=int, default=200, help="validation sentences behind --oracle")
    parser.add_argument("--note", default="", help="what the card must say about the runs beside their recipes")
    args = vars(parser.parse_args())
    numbers = export(args.pop("student"), args.pop("teacher"), **args)
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
