"""Docstrings as the site shows them: Sphinx's roles (:class:`x`) become code, and <tau> is no HTML tag."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod|exc):`~?([^`]+)`")
_CODE = re.compile(r"(`+[^`]+`+)")


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with every module, class, function and attribute."""
        if obj.docstring is not None:
            parts = _CODE.split(_ROLE.sub(r"`\1`", obj.docstring.value))
            obj.docstring.value = "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)
