"""What libraries raise where the system gives no memory, as the MemoryError that it is. Depends on nothing here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Of torch's allocator; of the system's own words for ENOMEM, which torch, safetensors and Python hand on; of Rust's.
_SAID = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "(os error 12)",
    "memory allocation of",
)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises MemoryError in the place of any other error inside that says that memory was refused; as a decorator, too.

    torch's is a RuntimeError, safetensors' an error of its own; both say it in words.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        said = str(error)
        if not any(words in said for words in _SAID):
            raise
        raise MemoryError(f"the system gives no more memory ({' '.join(said.split())[:200]})") from error
