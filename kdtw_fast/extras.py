"""Packages that decoding does without: what needs them, and one sentence where one of them is missing."""

from __future__ import annotations

from importlib.util import find_spec

# task -> module that it imports -> package that brings it (in the extras of pyproject.toml)
NEEDED = {
    "comparing": {"matplotlib": "matplotlib", "rouge_score": "rouge-score", "sacrebleu": "sacrebleu"},
    "training": {"rouge_score": "rouge-score", "sacrebleu": "sacrebleu"},
    "reading data sets": {"datasets": "datasets"},
    "reading GGUF files": {"gguf": "gguf", "accelerate": "accelerate"},
    "serving": {"starlette": "starlette", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"},
    "decoding on Ray": {"ray": "ray[data,serve]", "pyarrow": "pyarrow"},
    "reading Parquet": {"pyarrow": "pyarrow"},
}


def require(task: str, what: str) -> None:
    """Raises ImportError where packages of ``task`` are missing; ``what`` needs them. The message brings them.

    It names packages, not an extra: that works beside a checkout and beside an installed wheel alike.
    """
    missing = [package for module, package in NEEDED[task].items() if find_spec(module) is None]
    if missing:
        *some, last = missing
        listed = f"{', '.join(some)} and {last}" if some else last
        raise ImportError(f"{what} needs {listed}; install with: pip install {' '.join(missing)}")
