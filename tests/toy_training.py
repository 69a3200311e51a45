"""A toy translation task for the training tests: examples, tokenizer, settings small enough for seconds."""

from pathlib import Path

from kdtw_fast.training import recipes
from kdtw_fast.training.debian import Example, write_jsonl
from kdtw_fast.training.oracle import oracle_teachers
from kdtw_fast.training.tokenizer import train_tokenizer

from kdtw_fast.budgets import BUDGETS, TEACHER_PROMPT, student_prompt

GERMAN = ["das", "paket", "enthält", "dateien", "für", "die", "bibliothek", "und", "ein", "programm", "mit", "spielen"]
ENGLISH = ["the", "package", "contains", "files", "for", "the", "library", "and", "a", "program", "with", "games"]
SHAPE = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
QUICK = {
    "steps": 6,
    "target_tokens": 128,
    "checkpoint_every": 3,
    "log_every": 2,
    "validation_rows": 4,
    "sample_every": 4,
    "samples": 1,
    "threads": 1,
    "max_new_tokens": 24,
}


def toy_examples(count: int, offset: int = 0) -> list[Example]:
    rows = []
    for i in range(offset, offset + count):
        words = [(i * 7 + j * (1 + i % 3)) % len(GERMAN) for j in range(2 + i % 9)]
        rows.append(Example(" ".join(GERMAN[w] for w in words), " ".join(ENGLISH[w] for w in words), f"p{i}"))
    return rows


def make_toy(root: Path) -> Path:
    """Data, tokenizer, a fitted teacher that ends its sentences, and a hardly fitted student, under `root`."""
    write_jsonl(root / "data/train.jsonl", toy_examples(60))
    write_jsonl(root / "data/validation.jsonl", toy_examples(6, 60))
    texts = [text for row in toy_examples(60) for text in (row.source, row.target)]
    prompts = [TEACHER_PROMPT, *(student_prompt(budget) for budget in BUDGETS)]
    train_tokenizer(texts, 340, prompts).save_pretrained(root / "tokenizer")
    for role, steps in (("teacher", 150), ("student", 6)):
        fit(root, out=root / role, role=role, steps=steps, dropout=0.0, bf16="false")
    return root


def oracle_positions(divergence, kept, fractions, rounding="nearest"):
    """S_hi: where the oracle asks its one teacher, bool [R, T]; fractions [R]."""
    return oracle_teachers(divergence[:, None], kept, fractions[:, None], (1.0,), rounding) > 0


def overrides(**values: object) -> list[str]:
    """Keywords as command-line overrides: optimiser__rate=1 is "optimiser.rate=1"."""
    return [f"{name.replace('__', '.')}={value}" for name, value in values.items()]


def toy_recipe(toy: Path, name: str, **values: object) -> recipes.Recipe:
    """A shipped recipe brought down to the toy task."""
    models = {"student__path": toy / "student/model", "teacher__path": toy / "teacher/model"}
    places = {"data__folder": toy / "data", "tokenizer": toy / "tokenizer"}
    shipped = recipes.resolve(name).settings
    if shipped.bf16 == "auto":  # what is measured may differ between two runs that a test compares
        places["bf16"] = "true"
    if hasattr(shipped, "trajectories_file"):
        places["trajectories_file"] = "''"
    if getattr(shipped, "held_out_rows", 0):
        places["held_out_rows"] = 3
    if getattr(shipped, "teachers", None):  # each further teacher is the toy's one again
        places["teachers"] = f"[{', '.join([f'{{path: {toy}/teacher/model}}'] * len(shipped.teachers))}]"
    return recipes.resolve(name, overrides(**{**places, **models, **QUICK, "optimiser__warmup": 2, **values}))


def fit(toy: Path, **values: object):
    """Run the recipe of a teacher from scratch on the toy task."""
    shapes = {f"{role}__{name}": value for role in ("teacher", "student") for name, value in SHAPE.items()}
    recipe = toy_recipe(
        toy, "debian-de-en/teacher", **{**shapes, "student__path": "''", "teacher__path": "''", **values}
    )
    return recipes.train(recipe, quiet=True)
