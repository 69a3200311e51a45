"""HTML, DocBook and Mallard pages as blocks of text: by id where the format has ids, else by structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lxml.etree
import lxml.html

from .alignment import Block, plain


@dataclass(frozen=True)
class Dialect:
    """How to read one kind of page: which elements are blocks, which are left out, and whether ids align them."""

    blocks: frozenset[str]
    left_out: frozenset[str]
    html: bool = True
    ids: bool = False


PICTURE = "\ufffc"  # stands for a picture in a text; a sentence that has one is not understood without it
_PICTURES = frozenset({"img", "media", "inlinemediaobject", "inlinegraphic"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "title"})
_KEYS = {"key": "+", "keycap": "+", "gui": " → "}  # what stands between two that follow each other

HTML = Dialect(
    _HEADINGS | {"p", "li", "dt", "dd", "td", "th", "caption"},
    frozenset({"script", "style", "head", "pre", "svg", "math", "textarea", "select", "form"}),
)
HTML_BY_ID = Dialect(HTML.blocks, HTML.left_out, ids=True)
MALLARD = Dialect(
    frozenset({"p", "title", "desc", "cite"}), frozenset({"screen", "credit", "license", "revision"}), html=False
)
# HTML that DocBook's style sheets and others wrote: paragraphs that are no <p>, and what is no text of the page.
_PARAGRAPH_CLASSES = frozenset({"para", "simpara", "title"})
_LEFT_OUT_CLASSES = frozenset(
    {
        *("toc", "navheader", "navfooter", "docnav", "navCenter", "navigation", "sphinxsidebar", "related", "footer"),
        *("screen", "programlisting", "synopsis", "literallayout", "footnotes", "revhistory", "headerlink"),
    }
)


def read_blocks(path: Path, dialect: Dialect) -> list[Block]:
    """The blocks of a page, in their order; with ids only those that have one."""
    data = path.read_bytes()
    if dialect.html:
        return html_blocks(data, dialect)
    parser = lxml.etree.XMLParser(recover=True, no_network=True, resolve_entities=False, remove_comments=True)
    root = lxml.etree.fromstring(data, parser=parser)
    return [] if root is None else list(_blocks(root, dialect))


def html_blocks(data: bytes, dialect: Dialect = HTML) -> list[Block]:
    """The blocks of an HTML page in UTF-8."""
    return list(_blocks(lxml.html.document_fromstring(data, parser=lxml.html.HTMLParser(encoding="utf-8")), dialect))


def _blocks(element: Any, dialect: Dialect) -> Iterator[Block]:
    if not isinstance(element.tag, str) or _left_out(element, dialect):
        return
    if _is_block(element, dialect):
        text = plain("".join(_inline(element, dialect)))
        name = element.get("id", "") if dialect.ids else ""
        if text and (name or not dialect.ids):
            tag = _local(element)
            parent = element.getparent()
            outer = _local(parent) if parent is not None else ""
            yield Block(f"#{tag}" if tag in _HEADINGS else f"{outer}/{tag}", text, name)
    for child in element:
        yield from _blocks(child, dialect)


def _inline(element: Any, dialect: Dialect) -> Iterator[str]:
    """The text of a block without the blocks inside it; keys pressed together and menu paths as users read them."""
    yield element.text or ""
    before = None
    for child in element:
        inside = isinstance(child.tag, str) and not _left_out(child, dialect) and not _is_block(child, dialect)
        if inside:
            tag = _local(child)
            if before is not None and not (before.tail or "").strip() and tag == _local(before):
                yield _KEYS.get(tag, "")
            if tag == "br":
                yield " "
            elif tag in _PICTURES:
                yield PICTURE
            yield from _inline(child, dialect)
            before = child
        elif isinstance(child.tag, str):
            yield " "
        elif child.tag is lxml.etree.Entity:
            yield child.text
        tail = child.tail or ""
        joined = _local(element) in ("keyseq", "keycombo", "guiseq", "menuchoice") and not tail.strip()
        yield "" if joined else tail


def _local(element: Any) -> str:
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _classes(element: Any) -> set[str]:
    return set(element.get("class", "").split())


def _is_block(element: Any, dialect: Dialect) -> bool:
    if _local(element) in dialect.blocks:
        return True
    return dialect.html and _local(element) == "div" and not _PARAGRAPH_CLASSES.isdisjoint(_classes(element))


def _left_out(element: Any, dialect: Dialect) -> bool:
    if _local(element) == "code" and not dialect.html:  # Mallard's is a listing or a part of a sentence
        return element.getparent() is None or not _is_block(element.getparent(), dialect)
    return _local(element) in dialect.left_out or not _LEFT_OUT_CLASSES.isdisjoint(_classes(element))
