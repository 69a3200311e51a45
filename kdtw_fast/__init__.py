"""kdtw_fast: a small student writes and asks a large teacher for single tokens (arXiv 2502.17717), natively fast.

A name is imported where it is first asked for, so that what needs no PyTorch (`kdtw --help`) does not wait for it.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import getsource
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtw_fast._core import build_info
    from kdtw_fast.auto import AutoDecoder
    from kdtw_fast.budgets import BUDGETS, Budget, resolve_budget
    from kdtw_fast.decoders import (
        BigLittleDecoder,
        EntropyCallDecoder,
        GreedyDecoder,
        InterleavedDecoder,
        RandomCallDecoder,
        SingleModelDecoder,
        SpeculativeCascadeDecoder,
        SpeculativeDecoder,
        TrainingWheelsDecoder,
    )
    from kdtw_fast.model import NativeModel, NativeT5
    from kdtw_fast.modeling import TrainingWheels, TrainingWheelsT5
    from kdtw_fast.options import GenerateOptions
    from kdtw_fast.outputs import GenerationOutput, Timings
    from kdtw_fast.owner import Owner
    from kdtw_fast.pairs import Pair, load_pair

__version__ = "0.1.0"

__all__ = [
    "BUDGETS",
    "AutoDecoder",
    "BigLittleDecoder",
    "Budget",
    "EntropyCallDecoder",
    "GenerateOptions",
    "GenerationOutput",
    "GreedyDecoder",
    "InterleavedDecoder",
    "NativeModel",
    "NativeT5",
    "Owner",
    "Pair",
    "RandomCallDecoder",
    "SingleModelDecoder",
    "SpeculativeCascadeDecoder",
    "SpeculativeDecoder",
    "Timings",
    "TrainingWheels",
    "TrainingWheelsDecoder",
    "TrainingWheelsT5",
    "build_info",
    "load_pair",
    "resolve_budget",
]

if find_spec("torch") is None:
    raise ImportError(
        "kdtw_fast needs PyTorch; install the build for your machine (for a CPU: pip install torch==2.13.0)"
    )


@cache
def _homes() -> dict[str, str]:
    """The module of each public name, as the imports above say it: here they are made when they are asked for."""
    nodes = ast.walk(ast.parse(getsource(import_module(__name__))))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {one.name: str(node.module) for node in imports for one in node.names if one.name in __all__}


if not TYPE_CHECKING:  # for type checkers the names above are all there are

    def __getattr__(name: str) -> Any:
        if name in __all__:
            value = getattr(import_module(_homes()[name]), name)
        elif not name.startswith("__") and find_spec(f"{__name__}.{name}") is not None:
            value = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
