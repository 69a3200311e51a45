"""Docstrings as the site shows them: Sphinx's roles (:class:`x`) become links or code, and <tau> is no HTML tag."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod|exc):`~?([^`]+)`")
_CODE = re.compile(r"(`+[^`]+`+|\0[^\0]+\0)")


def _link(role: re.Match[str]) -> str:
    """A link where the site has the object, and its short name as code."""
    name = role[1]
    if not name.startswith("kdtw_fast."):
        return f"`{name}`"
    return f'\0<autoref identifier="{name}" optional><code>{name.rpartition(".")[2]}</code></autoref>\0'


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with every module, class, function and attribute."""
        if obj.docstring is not None:
            parts = _CODE.split(_ROLE.sub(_link, obj.docstring.value))
            obj.docstring.value = "".join(
                part.strip("\0") if part[:1] in ("`", "\0") else part.replace("<", "&lt;") for part in parts
            )
