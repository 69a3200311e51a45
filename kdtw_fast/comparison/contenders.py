"""What is compared on what: a pair's folders, packed models and tokenizer, and the sentences they are judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from kdtw_fast.inputs import check_characters
from kdtw_fast.loaders import check_alike, find_tokenizer, load_tokenizer
from kdtw_fast.messages import Message
from kdtw_fast.model import NativeT5
from kdtw_fast.pairs import Sample

from .named import PARTS, check_named, find_home, own_samples, read_samples
from .plan import DRAFT_STUDENT
from .provenance import digest, folder_digest

TASKS = {"translate": "translation", "summarize": "summarization"}  # by the word in the teacher's prompt


@dataclass(frozen=True)
class Contender:
    """A pair with its data.

    Args:
        name: the pair's, in ids and figures.
        folders: of the models by role: "student", "teacher", and "gkd" where a draft student was given.
        models: the same models, packed.
        tokenizer: the pair's.
        samples: at least one sentence, with what a person wrote.
    """

    name: str
    folders: dict[str, Path]
    models: dict[str, NativeT5]
    tokenizer: Any
    samples: list[Sample]

    @property
    def device(self) -> str:
        """Where its models decode."""
        return self.models["teacher"].device

    @property
    def has_draft_student(self) -> bool:
        """Whether DistillSpec has a student of its own."""
        return DRAFT_STUDENT in self.folders

    @property
    def task(self) -> str:
        """The task by the teacher's prompt: "translation", "summarization", or the prompt's own word."""
        word = (self.models["teacher"].teacher_prompt or "").strip().rstrip(":").split(" ")[-1]
        return TASKS.get(word, word or "task")

    def identity(self) -> dict[str, Any]:
        """What the outputs depend on: digests of weights and data, number formats."""
        parts: dict[str, Any] = {role: folder_digest(folder) for role, folder in self.folders.items()}
        parts["data"] = digest(part.encode() for s in self.samples for part in (s.source, s.target))
        parts["sentences"] = len(self.samples)
        parts |= {f"{role} dtype": model.dtype for role, model in self.models.items()}
        return parts if self.device == "cpu" else parts | {"device": self.device}


def load_contender(
    pair: str,
    *,
    data: Path | None = None,
    draft_student: Path | None = None,
    sentences: int = 0,
    dtype: str = "auto",
    teacher_dtype: str | None = None,
    device: str = "cpu",
) -> Contender:
    """Loads a pair and its data.

    Args:
        pair: the name of a pair that ships, a folder with ``student``, ``teacher`` and ``tokenizer`` in it, or a recipe
            (its name or YAML file): the best student that it trained, beside its teacher.
        data: JSONL with "source" and "target"; None = the sample that ships with the pair, or the recipe's test split.
        draft_student: folder of DistillSpec's student; None = the pair's folder "gkd"; where there is none, its own
            student drafts.
        sentences: how many, evenly spread; 0 = all.
        dtype, teacher_dtype: number formats, as decoders take them.
        device: where the models decode, as decoders take it.

    Raises:
        FileNotFoundError: a folder or file is not there.
        ValueError: an unknown pair, a folder that holds none, data that is none, models of different tokenizers.
    """
    check_named(pair, data, draft_student)
    name, folders, own, told = _find(pair)
    samples = own() if data is None else read_samples(data)
    for number, sample in enumerate(samples, 1):
        check_characters(sample.source + sample.target, f"{data or pair}: sentence {number}")
    words = folders.pop("tokenizer")
    if draft_student is not None:
        folders[DRAFT_STUDENT] = draft_student
    names = {role: "draft student" if role == DRAFT_STUDENT else role for role in folders}
    places = [
        (names[role], find_tokenizer(folder)) for role, folder in folders.items() if (role, told) != ("teacher", True)
    ]
    remedy = Message("compare models of one tokenizer")
    found = check_alike(words, [(role, place) for role, place in places if place is not None], "pair", remedy)
    tokenizer = load_tokenizer(words) if found is None else found
    dtypes = {"teacher": dtype if teacher_dtype is None else teacher_dtype}
    models = {
        role: NativeT5.from_pretrained(folder, role, dtypes.get(role, dtype), device=device)
        for role, folder in folders.items()
    }
    return Contender(name, folders, models, tokenizer, chosen(samples, sentences))


def _find(pair: str) -> tuple[str, dict[str, Path], Callable[[], list[Sample]], bool]:
    """A pair's name, its folders ("student", "teacher", "tokenizer", perhaps "gkd"), and what reads its sentences.

    Last, whether a recipe says that the tokenizer is the teacher's, too, whatever lies in the teacher's folder.
    """
    home = find_home(pair)
    if home is None:
        from kdtw_fast.training import recipes

        settings = recipes.resolve(pair).settings
        return *_trained(settings, Path(pair)), bool(settings.tokenizer)
    folders = {part: home / part for part in (*PARTS, DRAFT_STUDENT)}
    if not folders[DRAFT_STUDENT].is_dir():
        del folders[DRAFT_STUDENT]
    return home.resolve().name, folders, lambda: own_samples(pair), False


def _trained(settings: Any, recipe: Path) -> tuple[str, dict[str, Path], Callable[[], list[Sample]]]:
    """What a recipe trained: its best student, beside its teacher, on the test split of its data."""
    student = Path(settings.out) / "best"
    _check_trained(recipe, "student", student)
    teacher = _on_this_machine(settings.teacher.path)
    _check_trained(recipe, "teacher", teacher)
    saved = recipe.name == "recipe.yaml"  # by a run, in its folder
    name = recipe.resolve().parent.name if saved else "-".join(recipe.with_suffix("").parts[-2:])
    folders = {"student": student, "teacher": teacher, "tokenizer": student}
    return name, folders, lambda: _test_split(settings.data, recipe, student)


def _test_split(data: Any, recipe: Path, tokenizer: Path) -> list[Sample]:
    from kdtw_fast.training import frames, tasks

    samples = [] if data.chat else tasks.read_examples(data, "test", tokenizer=load_tokenizer(tokenizer))
    if data.chat or any(frames.HERE in sample.source for sample in samples):
        raise ValueError(
            f"recipe {recipe} was trained on conversations (data.chat), and texts are compared; name a JSONL file of "
            f"texts with --data"
        )
    return samples


def _check_trained(recipe: Path, what: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"recipe {recipe} has no {what} in {folder} yet; train it first (kdtw train)")


def _on_this_machine(place: str) -> Path:
    """A model's folder; of a name on the hub, that of the hub's files here, fetched where they are not there yet."""
    from kdtw_fast.training import models

    if not Path(place).is_dir() and place.count("/") <= 1 and not place.startswith((".", "/", "~", "runs/")):
        models.check_place(place, "teacher.path")  # a sentence where there is none
        return Path(snapshot_download(place, allow_patterns=["*.json", "*.safetensors"]))
    return Path(place)


def chosen(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of the items, evenly spread, in order; all of them where there are fewer, or with 0."""
    if not 0 < count < len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
