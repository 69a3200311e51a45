"""Models in one GGUF file, llama.cpp's format: transformers reads them, the core packs what it read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdtw_fast.extras import require
from kdtw_fast.memory import memory_errors

SUFFIX = ".gguf"


def is_gguf(path: Path) -> bool:
    """Whether a path names such a file."""
    return path.suffix.lower() == SUFFIX


def read_gguf(path: Path, name: str) -> Any:
    """The Hugging Face model in a GGUF file, in float32 whatever it is stored in: 4 bytes a weight while it is packed.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: packages that read it are missing; the message brings them.
        ValueError: it is no whole GGUF file, or holds an architecture that transformers does not read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name}: {path} is not a file")
    require("reading GGUF files", f"{name}: {path}")
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with memory_errors():
            return AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
            )
    except MemoryError:
        raise
    except Exception as error:  # of any type: gguf's reader maps the file and believes it
        raise ValueError(f"{name}: transformers cannot read {path} ({type(error).__name__}: {error})") from error
