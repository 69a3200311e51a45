"""What is read from folders that others have made: JSON files, tokenizers. Nothing in a folder is run."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kdtw_fast.extras import require
from kdtw_fast.gguf_file import is_gguf
from kdtw_fast.messages import Message, OptionName


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file; ValueError, which begins with `name` and says what is wrong, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{name}: {path} nests its values too deeply to be read") from None
    except ValueError as error:  # no JSON, no UTF-8, or an integer of thousands of digits
        raise ValueError(f"{name}: {path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {path} must hold a JSON object, got {type(value).__name__}")
    return value


def jsonl_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL file that are not blank, and their numbers, from 1.

    Only line feeds end them: the strings of JSON may hold U+2028, U+0085 and whatever else ``str.splitlines`` cuts at.
    NotUtf8Error names file and line.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = read_utf8(raw, f"{path} line {number}")
            if line.strip():
                yield number, line.rstrip("\r\n")


class NotUtf8Error(ValueError):
    """Bytes of a text that are no UTF-8."""


def read_utf8(raw: bytes, name: str, encoding: str = "utf-8") -> str:
    """The text that bytes are; NotUtf8Error, which begins with `name` and says where, for those that are none."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at place {error.start}"
        raise NotUtf8Error(f"{name} is not UTF-8 text ({byte}); convert the input to UTF-8") from None


HUB_SECONDS = 20  # that the hub may take to answer whether it has something


def is_path(place: str) -> bool:
    """Whether a model's place can be no name on the hub, which has one slash at most."""
    return place.count("/") > 1 or place.startswith((".", "/", "~"))


def check_place(
    place: str,
    name: str,
    kind: str = "model",
    *,
    kept: Callable[[], bool] | None = None,
    token: Any = None,
    **cached: Any,
) -> None:
    """Raises FileNotFoundError, at once, where there is neither a folder nor what the hub or its cache here has.

    Args:
        place: the folder, or a name on the hub.
        name: what the message calls it, "teacher.path=".
        kind: "model", "dataset", or "folder", which a hub has none of.
        kept: whether an earlier run has left a copy; None = a model's config is in the hub's cache.
        token: for the hub.
        **cached: where in the cache that config is: cache_dir, revision, and the repository's subfolder.
    """
    if Path(place).is_dir():
        return
    here = f"{name}{place} is not a folder"
    if kind == "folder" or is_path(place):
        beneath = "" if Path(place).is_absolute() else f" beneath {Path.cwd()}"
        raise FileNotFoundError(f"{here}{beneath}; check the path")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi(token=token).repo_info(place, repo_type=kind, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError(f"{here}, and the hub has no {kind} of that name that it would give you") from None
    except Exception as error:  # whatever the library for its requests raises without a network
        config = "/".join(filter(None, (cached.pop("subfolder", None), "config.json")))
        if not (isinstance(try_to_load_from_cache(place, config, **cached), str) if kept is None else kept()):
            reason = type(error).__name__
            raise FileNotFoundError(f"{here} or in a cache, and the hub cannot be asked for it ({reason})") from error


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model")
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARIES = (
    *dict.fromkeys((*_TOKENIZER_FILES, *_JSON_FILES)),
    *("vocab.json", "merges.txt", "vocab.txt", "sentencepiece.bpe.model", "source.spm", "target.spm", "tekken.json"),
)


def find_tokenizer(folder: Path, beside: bool = True) -> Path | None:
    """The folder with the tokenizer of a model's folder: itself, or "tokenizer" beside it; None where neither is.

    A GGUF file holds its own.
    """
    if is_gguf(folder):
        return folder if folder.is_file() else None
    places = [folder, *([folder.absolute().parent / "tokenizer"] if beside else [])]
    return next((place for place in places if any((place / name).is_file() for name in _TOKENIZER_FILES)), None)


def load_tokenizer(place: str | Path) -> Any:
    """The tokenizer saved in a folder or in a GGUF file; a name on the hub, where it is neither.

    Raises:
        ImportError: packages that read a GGUF file are missing.
        ValueError: its files ask for Python code of their own (`auto_map`) to be run, or are damaged.
        OSError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    folder, options = Path(place), {}
    if is_gguf(folder):
        require("reading GGUF files", f"tokenizer: {folder}")
        folder, options = folder.parent, {"gguf_file": folder.name}
    for file in (folder / "tokenizer_config.json", folder / "config.json"):
        if file.is_file() and "auto_map" in read_json(file, "tokenizer"):
            raise ValueError(
                f"tokenizer: {file} has an auto_map, which names Python code in the folder to be run, and none is; "
                f"remove auto_map, or save a tokenizer of a class that transformers has"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if options else place, trust_remote_code=False, **options)
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # of any type: its readers believe what they read
        if not folder.is_dir():  # on the hub
            raise
        raise _damaged(folder, Path(place), error) from error
    if folder.is_dir() and not options:
        _check_vocabulary(tokenizer, folder)
    return tokenizer


def given_tokenizer(given: Any) -> Any:
    """What a caller passed as ``tokenizer``: itself, or the one in the folder or GGUF file that it names.

    Raises:
        FileNotFoundError: the folder holds none, or is not there.
        TypeError: it is neither a tokenizer nor a place.
        ImportError, OSError, ValueError: as :func:`load_tokenizer`.
    """
    passed = OptionName("tokenizer")
    if isinstance(given, (str, Path)):
        place = find_tokenizer(Path(given), beside=False)
        if place is None:
            lacks = "is a folder without one" if Path(given).is_dir() else "is not a folder"
            said = f" {given} {lacks}; give one that a tokenizer's save_pretrained wrote, or a loaded tokenizer"
            raise FileNotFoundError(Message(passed, said))
        return load_tokenizer(place)
    if given is not None and not callable(given) and not hasattr(given, "decode"):
        said = f" must be a tokenizer, or the folder of one, got {type(given).__name__}"
        raise TypeError(Message(passed, said))
    return given


def _damaged(folder: Path, place: Path, error: Exception) -> ValueError:
    """What is said of a tokenizer's folder, or of a GGUF file, that could not be read for this reason."""
    try:
        for file in [folder / name for name in _JSON_FILES] if folder == place else []:
            if file.is_file():
                read_json(file, "tokenizer")
    except ValueError as found:
        return found
    files = [folder / name for name in _TOKENIZER_FILES] if folder == place else [place]
    at_fault = next((file for file in files if file.is_file()), place)
    reason = " ".join(str(error).split())[:400]
    return ValueError(
        f"tokenizer: {at_fault} cannot be read ({type(error).__name__}: {reason}); save the tokenizer again, or "
        f"install what it needs"
    )


def _check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """OSError where a folder has no file with the tokenizer's vocabulary: transformers makes up one of a few pieces."""
    names = {
        file
        for kind, file in getattr(type(tokenizer), "vocab_files_names", {}).items()
        if kind != "tokenizer_config_file"
    }
    if names and not any((folder / name).is_file() for name in names | {"tokenizer.json", "tekken.json"}):
        raise OSError(
            f"{folder} holds no tokenizer: none of {', '.join(sorted(names))} is there; save the model's there "
            f"(tokenizer.save_pretrained), or name the folder that has it"
        )


def has_vocabulary(name: str) -> bool:
    """Whether a repository of the hub whose tokenizer was loaded has one: transformers makes one up where none is."""
    from huggingface_hub import try_to_load_from_cache

    settings = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in _VOCABULARIES if file not in settings)


def local_folder(model: Any) -> Path | None:
    """The folder on this machine that a Hugging Face model in memory came from, or None."""
    place = getattr(model, "name_or_path", None)
    return Path(place) if isinstance(place, str) and place and Path(place).is_dir() else None


def check_alike(
    mine: Path, others: Iterable[tuple[str, Path]], ours: str = "student", remedy: Message | None = None
) -> Any:
    """`check_same` of the tokenizers in these places (of `find_tokenizer`), the others with the names of their models.

    Files that are the same are not read, nor are those that were compared before. Returns the tokenizer in ``mine``
    where it had to be read, otherwise None.
    """
    words: Any = None
    for name, other in others:
        compared = _state(mine), _state(other)
        if compared in _compared or _same_files(mine, other):
            continue
        words = load_tokenizer(mine) if words is None else words
        check_same(words, load_tokenizer(other), name, ours, remedy)
        if len(_compared) >= _MOST_COMPARED:
            _compared.clear()
        _compared.add(compared)
    return words


_State = tuple[tuple[str, int, int], ...]
_compared: set[tuple[_State, _State]] = set()  # pairs of places that mean the same
_MOST_COMPARED = 256


def _parts(place: Path) -> list[Path]:
    """The files of a tokenizer's place that say what it means."""
    return [place / name for name in _VOCABULARIES] if place.is_dir() else [place]


def _state(place: Path) -> _State:
    """What changes when they do."""
    found = [(file, file.stat()) for file in _parts(place.resolve()) if file.is_file()]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in found)


def _same_files(mine: Path, other: Path) -> bool:
    """Whether two places are one, or have the same files."""
    if mine.resolve() == other.resolve():
        return True
    if not (mine.is_dir() and other.is_dir()):
        return False
    for one, another in zip(_parts(mine), _parts(other)):
        if one.is_file() != another.is_file() or (one.is_file() and not filecmp.cmp(one, another, shallow=False)):
            return False
    return True


def check_same(mine: Any, other: Any, name: str, ours: str = "student", remedy: Message | None = None) -> None:
    """Raises ValueError where the tokenizer of ``name``'s folder means another token by an id than that of ``ours``."""
    own, its = ({token_id: token for token, token_id in one.get_vocab().items()} for one in (mine, other))
    differing = sorted(token_id for token_id in own.keys() | its.keys() if own.get(token_id) != its.get(token_id))
    if differing:
        first = differing[0]
        said, theirs = (repr(one[first]) if first in one else "nothing" for one in (own, its))
        raise ValueError(
            _differing(
                ours, name, f"token id {first} is {said} in the {ours}'s tokenizer, {theirs} in the {name}'s", remedy
            )
        )
    for role in ("eos_token_id", "pad_token_id"):
        one, another = getattr(mine, role, None), getattr(other, role, None)
        if one != another:
            said = f"{role} is {one} in the {ours}'s tokenizer, {another} in the {name}'s"
            raise ValueError(_differing(ours, name, said, remedy))


def _differing(ours: str, name: str, what: str, remedy: Message | None) -> Message:
    usual = "pass ", OptionName("tokenizer", "…"), " if only the files differ"
    return Message(f"{ours} and {name} must share a vocabulary: {what}; ", *(usual if remedy is None else [remedy]))
