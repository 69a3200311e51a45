"""Turn a trained student and teacher into a pair that ships: bf16 weights, tokenizer, held-out sample, model card.

Every number in the card is measured here, on the weights that ship, through the native decoders.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, PreTrainedModel, T5ForConditionalGeneration

from kdtw_fast.budgets import student_prompt
from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.pairs import DATA

from .batches import prompt_ids
from .debian import Example, read_jsonl
from .evaluate import greedy_scores, measure_budgets

DRAFTER = "`gkd` is a student of the same size, distilled on its own outputs, which drafts for DistillSpec."
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
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)


def choose_sample(examples: Sequence[Example], count: int, key: str = "kdtw") -> list[Example]:
    """`count` examples with different sources (0 = all), chosen and ordered by a keyed hash of the text."""

    def rank(example: Example) -> bytes:
        return hashlib.blake2b(example.source.encode(), key=key.encode(), digest_size=8).digest()

    unique = {example.source: example for example in examples}
    if len(unique) < count:
        raise ValueError(f"asked for {count} sample sentences, but there are only {len(unique)} different ones")
    return sorted(unique.values(), key=rank)[: count or None]


def measure(
    models: dict[str, T5ForConditionalGeneration], tokenizer: Any, examples: Sequence[Example]
) -> dict[str, dict[str, float | str]]:
    """BLEU and ROUGE-2 of each model alone, greedy, behind the teacher's prompt or the student's with "no"."""
    texts = models["teacher"].config.teacher_prompt, student_prompt("no", models["student"].config.student_prompt)
    teachers, students = prompt_ids(tokenizer, texts)
    return {
        role: greedy_scores(model, tokenizer, examples, teachers if role == "teacher" else students)
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


def prose(text: str) -> str:
    """A paragraph, its lines filled anew."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def card(name: str, numbers: dict, runs: Sequence[str], note: str = "") -> str:
    """The pair's README.md; `runs` are the names of the recipes beside it."""
    titles = {"teacher": "Teacher alone", "student": "Student alone", "gkd": "GKD's student alone"}
    measured = {role: title for role, title in titles.items() if role in numbers}
    alone = "\n".join(
        f"| {title} | {numbers[role]['bleu']:.2f} | {numbers[role]['rouge2']:.2f} |" for role, title in measured.items()
    )
    budgets = "\n".join(
        f"| {row['budget']} | {row['asked']:.0%} | {row['achieved']:.1%} | {row['row_mean']:.1%} | {row['bleu']:.2f} | "
        f"{row['rouge2']:.2f} |"
        for row in numbers["budgets"]
    )
    oracle = "\n".join(
        f"| {row['fraction']:.0%} | {row['achieved']:.1%} | {row['bleu']:.2f} |" for row in numbers.get("oracle", [])
    )
    sizes = {role: f"{numbers['parameters'][role] / 1e6:.2f} M" for role in ("teacher", "student")}
    rounding = " and ".join(
        f"{numbers[role]['bleu'] - numbers['float32'][role]['bleu']:+.2f} ({role})" for role in measured
    )
    parts = [
        f"# {name}",
        prose(
            f"""A student of {sizes["student"]} parameters and a teacher of {sizes["teacher"]}, both T5 with a joint
            vocabulary, trained from scratch on a CPU {DOES.get(name, "for the task of its name")}. The student has
            learnt (arXiv 2502.17717: behaviour cloning, then path consistency learning) to say `<tau>` where it wants
            the teacher to write a token. {DRAFTER if "gkd" in numbers else ""} The pair is real and small: it knows
            Debian's domain only, and even there its texts are rough."""
        ),
        "## Measured",
        prose(
            f"""On {numbers["sentences"]} held-out test sentences (no source package and no identical text shared with
            training), greedy, with the bf16 weights that ship, through kdtw_fast's native decoders. sacreBLEU signature
            `{numbers["teacher"]["signature"]}`; ROUGE-2 is rouge-score's mean F-measure."""
        ),
        f"| | BLEU | ROUGE-2 |\n|---|---|---|\n{alone}",
        prose(
            """Training Wheels; the prompt alone steers, except that "no" is kept to the token. Use is the teacher's
            share of all tokens, mean use the mean of its shares of single outputs:"""
        ),
        f"| budget | asked | use | mean use | BLEU | ROUGE-2 |\n|---|---|---|---|---|---|\n{budgets}",
        f"Rounding the weights to bf16 moved BLEU by {rounding}.",
    ]
    if oracle:
        parts.append(
            f"""An oracle that sees both distributions and lets the teacher write where they diverge most
({numbers["oracle_rows"]} validation sentences, the fitted student before phase 1; thresholds are quantiles along the
references, so the use achieved differs from the budget):

| budget | achieved | BLEU |
|---|---|---|
{oracle}"""
        )
    commands = "\n".join(f"kdtw train recipes/{run}.yaml" for run in runs)
    parts += [
        "## How it was made",
        "`recipes/` has the settings of every run, resolved; each is run by `kdtw train FILE`, in this order:",
        f"```bash\n{commands}\n```",
        prose(
            f"""{note} Data and tokenizer come from `python -m kdtw_fast.training.debian` and
            `python -m kdtw_fast.training.tokenizer`. The numbers are in `metrics.json`. Data and terms:
            `../../samples/LICENCE.md`."""
        ),
    ]
    return "\n\n".join(parts) + "\n"


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
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder, trust_remote_code=False)
    teacher = T5ForConditionalGeneration.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    student = TrainingWheelsT5.from_pretrained(student_folder, dtype=torch.float32).eval()
    models = {"teacher": teacher, "student": student}
    if draft_student is not None:
        models["gkd"] = T5ForConditionalGeneration.from_pretrained(draft_student, dtype=torch.float32).eval()
    test = read_jsonl(data / "test.jsonl")
    numbers: dict = {"sentences": len(test), "float32": measure(models, tokenizer, test)}
    for model in models.values():
        round_to_bf16(model)
    numbers |= measure(models, tokenizer, test)
    decoder = TrainingWheelsDecoder(student, teacher, tokenizer=tokenizer)
    numbers["budgets"] = measure_budgets(decoder, test)
    numbers["parameters"] = {role: model.num_parameters() for role, model in models.items()}
    if oracle is not None:
        numbers["oracle"], numbers["oracle_rows"] = json.loads(oracle.read_text()), oracle_rows
    folder = out / "pairs" / name
    shutil.rmtree(folder, ignore_errors=True)
    for role, model in models.items():
        save_bf16(model, folder / role)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    runs = runs_behind(student_folder, teacher_folder)
    if draft_student is not None:
        runs |= runs_behind(draft_student, teacher_folder)
    (folder / "recipes").mkdir()
    for run, recipe in runs.items():
        shutil.copy(recipe, folder / "recipes" / f"{run}.yaml")
    (folder / "README.md").write_text(card(name, numbers, list(runs), note))
    samples = out / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    chosen = choose_sample(test, sample)
    lines = "".join(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in chosen)
    (samples / f"{name}.jsonl").write_text(lines, encoding="utf-8")
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
