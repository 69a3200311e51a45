"""A stage of a Ray Data pipeline: rows with texts in, the same rows with their outputs out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data.block import BlockAccessor

from kdtw_fast.generation import options_of
from kdtw_fast.gguf_file import is_gguf
from kdtw_fast.inputs import Item, item_of_row
from kdtw_fast.keywords import takes
from kdtw_fast.messages import Message
from kdtw_fast.methods import find_method, make_decoder
from kdtw_fast.options import GenerateKeywords, GenerateOptions, check_int, nearest
from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.pair_folders import load_models

# What a row has afterwards; a row that could not be decoded has its error and null in the others.
OUTPUTS: dict[str, pa.DataType] = {
    "output": pa.string(),
    "output_ids": pa.list_(pa.int32()),
    "owners": pa.list_(pa.int8()),
    "teacher_calls": pa.int64(),
    "teacher_fraction": pa.float32(),
    "finish_reason": pa.string(),
    "error": pa.string(),
}
_LACKS_ID = "the row has no row_id, and its tokens are drawn at random; give it a number of its own"
_SOURCES = ("text", "messages", "input_ids")
_OPTIONS = {field.name for field in fields(Item)} - {"text"}


class Decode:
    """Decodes batches of rows: what ``dataset.map_batches`` is given, or :func:`decode` gives it.

    An actor loads the pair once. Of models in folders the packed weights are written once for all actors of a machine,
    into a file beside the models, which all of them map. What comes out for a row is what ``decoder.stream`` gives for
    it, bit for bit, whatever batch it comes in.

    A column with the name of a field of :class:`kdtw_fast.inputs.Item` ("budget", "max_new_tokens", "seed", …) is the
    row's own option; null (or NaN) = as for all. Others stay as they are. Added are "output" (the text), "output_ids",
    "owners" (codes of :class:`kdtw_fast.Owner`), "teacher_calls", "teacher_fraction", "finish_reason" and "error": a
    row that cannot be decoded has its error there and null in the others, and the rest go on.

    Args:
        pair: a shipped pair's name; None = the default one, where no folder is given.
        student, teacher, tokenizer: folders instead, at the same place on every machine (relative ones are of the
            process that calls :func:`decode`); several teachers as a list.
        method: a name in :data:`kdtw_fast.methods.METHODS`.
        settings: of the method, by name.
        text: the column with the texts; rows may have "messages" or "input_ids" instead.
        slots: rows decoded together, 1 to 2^16.
        budget: as for ``decoder.stream``.
        dtype, teacher_dtype, device: as decoders take them.
        cache: whether packed weights are kept in a file beside the models and shared; None = where they can be (folders
            of safetensors, device "cpu").
        generation_config: as decoders take it.
        **options: the fields of :class:`kdtw_fast.GenerateOptions`, for all rows; ``num_threads`` is by default as many
            as the actor has CPUs of Ray's.

    Raises:
        TypeError, ValueError: a wrong argument, or models that cannot be loaded.
        OSError: a file is missing, or packed weights cannot be written.
    """

    @takes(GenerateOptions)
    def __init__(
        self,
        pair: str | None = None,
        *,
        student: str | Path | None = None,
        teacher: str | Path | list[str | Path] | None = None,
        tokenizer: str | Path | None = None,
        method: str = "training-wheels",
        settings: Mapping[str, Any] | None = None,
        text: str = "text",
        slots: int = 16,
        budget: Any = None,
        dtype: str = "auto",
        teacher_dtype: str | None = None,
        device: str = "cpu",
        cache: bool | None = None,
        generation_config: Mapping[str, Any] | str | None = None,
        **options: Unpack[GenerateKeywords],
    ):
        chosen = find_method(method)
        models, words = load_pair_or_folders(
            chosen.models, pair, student, teacher, tokenizer, dtype, teacher_dtype, device, cache
        )
        self.decoder = make_decoder(method, models, words, assigned_cpus(), generation_config, **(settings or {}))
        self._text, self._draws = text, method == "random"
        self._asked: dict[str, Any] = {"batch_size": slots, "budget": budget, **options}
        self.decoder.stream([], **self._asked).close()  # a wrong option is told before there are rows
        parsed = options_of(self.decoder.defaults, options)
        self._draws |= parsed.temperature > 0 or bool(parsed.teacher_temperature)

    def __call__(self, batch: Any) -> pa.Table:
        """The rows of a batch (a table of Arrow's, or what else Ray Data gives) with their outputs, in order.

        Raises:
            ValueError: there is no column of texts, one has the name of an output, or tokens are drawn at random and no
                column "row_id" says by which numbers (where the column is null, the row has the error).
        """
        table = batch
        if not isinstance(table, pa.Table):
            table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
        items = self._items(table)
        named = [item for item in items if not self._lacks_id(item)]
        decoded = iter(
            [_row(out) for out in self.decoder.stream(named, in_order=True, on_error="return", **self._asked)]
        )
        rows = [{"error": _LACKS_ID} if self._lacks_id(item) else next(decoded) for item in items]
        for name, kind in OUTPUTS.items():
            table = table.append_column(name, pa.array([row.get(name) for row in rows], kind))
        return table

    def _lacks_id(self, item: dict[str, Any]) -> bool:
        drawn = self._draws or item.get("temperature") or item.get("teacher_temperature")
        return bool(drawn) and "row_id" not in item

    def _items(self, table: pa.Table) -> list[dict[str, Any]]:
        names: list[str] = table.column_names
        if taken := [name for name in names if name in OUTPUTS]:
            raise ValueError(f"the rows have a column {taken[0]!r} already, which is an output's; rename it")
        if not {self._text, *_SOURCES[1:]} & {*names}:
            raise ValueError(
                f"the rows have no column {self._text!r}, only {', '.join(names)}; name theirs with text=…"
            )
        drawn = self._draws or {"temperature", "teacher_temperature"} & {*names}
        if drawn and "row_id" not in names:
            raise ValueError(
                "tokens drawn at random need a column 'row_id' with the row's number, which names its random numbers; "
                "otherwise rows of different batches would share them"
            )
        own = {name: name for name in names if name in _OPTIONS} | ({self._text: "text"} if self._text in names else {})
        rows: list[dict[str, Any]] = table.select(list(own)).to_pylist()
        return [item_of_row({own[name]: value for name, value in row.items()}) for row in rows]


def decode(
    dataset: Dataset,
    pair: str | None = None,
    *,
    actors: int | tuple[int, int] = 1,
    batch_size: int = 256,
    num_cpus: int = 1,
    num_gpus: float | None = None,
    **how: Any,
) -> Dataset:
    """The dataset with its rows decoded, by a pool of actors; lazy, as Ray Data is.

    An actor that dies is started again, and the batches that it had are decoded again: no row is lost, none is there
    twice.

    Args:
        dataset: rows as :class:`Decode` takes them.
        pair: the same.
        actors: how many, or the fewest and the most.
        batch_size: rows that an actor takes at once; its slots run empty at the end of each, so several times as many
            as it has slots.
        num_cpus: of each actor, which are its threads.
        num_gpus: of each actor; None = 1 where ``device`` is a CUDA device, otherwise none.
        **how: the other arguments of :class:`Decode`.

    Raises:
        TypeError, ValueError: a wrong argument; what only the models know is told by the actors.
    """
    for one in actors if isinstance(actors, tuple) else (actors,):
        check_int("actors", one, 1)
    check_int("batch_size", batch_size, 1)
    check_int("num_cpus", num_cpus, 1)
    pool = ActorPoolStrategy(min_size=actors[0], max_size=actors[1]) if isinstance(actors, tuple) else None
    find_method(how.get("method", "training-wheels"))
    known = signature(Decode.__init__).parameters
    for name in how:
        if name not in known:
            raise TypeError(f"decode has no argument {name!r}{nearest(name, known)}")
    GenerateOptions(**{name: value for name, value in how.items() if name in GenerateOptions.__dataclass_fields__})
    how |= {name: placed(how[name]) for name in ("student", "teacher", "tokenizer") if name in how}
    if num_gpus is None and how.get("device", "cpu") != "cpu":
        num_gpus = 1
    return dataset.map_batches(
        Decode,
        fn_constructor_args=(pair,),
        fn_constructor_kwargs=how,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=pool or ActorPoolStrategy(size=actors),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def placed(folder: Any) -> Any:
    """A folder, or a list of them, as processes that run elsewhere find it: absolute. None stays."""
    if folder is None:
        return None
    return [placed(one) for one in folder] if isinstance(folder, list) else str(Path(folder).absolute())


def load_pair_or_folders(
    roles: tuple[str, ...],
    pair: str | None,
    student: str | Path | None,
    teacher: str | Path | list[str | Path] | None,
    tokenizer: str | Path | None,
    dtype: str,
    teacher_dtype: str | None,
    device: str,
    cache: bool | None,
) -> tuple[dict[str, Any], Any]:
    """Models and tokenizer as `Decode` names them."""
    several = teacher if isinstance(teacher, list) else [] if teacher is None else [teacher]
    teachers = [Path(one) for one in several]
    folders = [*([Path(student)] if student is not None else []), *teachers]
    if cache is None:
        cache = device == "cpu" and not any(map(is_gguf, folders))
    dtypes = {"student": dtype, "teacher": teacher_dtype or dtype}
    words = None if tokenizer is None else Path(tokenizer)
    own = None if student is None else Path(student)
    return load_models(roles, pair, own, teachers, words, dtypes, cache, device)


def assigned_cpus() -> int | None:
    """How many CPUs Ray has given to the actor that asks, at least 1; None outside of one."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def _row(out: GenerationOutput) -> dict[str, Any]:
    if out.error is not None:
        return {"error": str(Message.of(out.error).reworded(f"item {out.index}", "the row"))}
    assert out.sequences is not None and out.owners is not None and out.finish_reasons is not None
    assert out.teacher_calls is not None
    here = out.spans[0]
    return {
        "output": None if out.texts is None else out.texts[0],
        "output_ids": out.sequences[0, here].tolist(),
        "owners": out.owners[0, here].tolist(),
        "teacher_calls": int(out.teacher_calls[0]),
        "teacher_fraction": float(out["teacher_fraction"][0]),
        "finish_reason": out.finish_reasons[0],
    }
