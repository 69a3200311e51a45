"""The report in a real browser: it renders, tells what it should on hover and by keyboard, and no text in it acts.

Needs playwright (the extra "browser") and an installed Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from results import small_records

pytest.importorskip("matplotlib")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra 'browser')")

from kdtw_fast.comparison import html, summary  # noqa: E402
from kdtw_fast.comparison.quality import resample  # noqa: E402
from kdtw_fast.visible import visible  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

ACTS = "document.title='HIT';alert(1)"
MARKUP = [
    f"<script>{ACTS}</script>",
    f"</script><script>{ACTS}</script>",
    f"<img src=x onerror={ACTS}>",
    f"<svg onload={ACTS}>",
    f"<iframe srcdoc='<script>parent.{ACTS}</script>'></iframe>",
    f'"><body onload="{ACTS}">',
    f"' onmouseover='{ACTS}",
    f'" onfocus="{ACTS}" autofocus tabindex="1',
    f"javascript:{ACTS}",
    f"<a href='javascript:{ACTS}'>x</a>",
    f"<details open ontoggle={ACTS}>",
    "<style>@import 'http://example.invalid/x.css';*{display:none}</style>",
    "<link rel=stylesheet href=http://example.invalid/y.css>",
    "<base href=http://example.invalid/>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid/'>",
    f"<math><mtext><script>{ACTS}</script></mtext></math>",
    f"<template><script>{ACTS}</script></template>",
    "</template></style></textarea></title></noscript>",
    f"<!--><script>{ACTS}</script>-->",
    "<!--",
    "-->",
    "<![CDATA[ x ]]>",
    "<?xml version='1.0'?>",
    "</bdi></span></div></article></main>",
    "<plaintext>",
    "<b>bold</b>",
    "&lt;b&gt; &amp;amp; &#60; &nbsp;",
    "&#x202e;rtl",
    "'\"`\\",
    "\\u003cscript\\u003e",
]
TEMPLATES = [
    "{{ 7*7 }}",
    "{% raw %}",
    "{# x",
    "${7*7}",
    "`${alert(1)}`",
    "{{constructor.constructor('alert(1)')()}}",
    "<%= 7 %>",
]
CONTROLS = [f"a{chr(code)}b" for code in [*range(0x20), 0x7F, 0x80, 0x85, 0x9B, 0x9F]]
BIDI = [f"abc{chr(code)}def" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C)]
INVISIBLE = [f"x{chr(code)}y" for code in (0x00AD, 0x180E, 0x200B, 0x2028, 0x2029, 0x2060, 0x2064, 0xFEFF, 0xE0041)]
SURROGATES = ["\ud800", "x\udfffy", "\udc00\ud800"]
SCRIPTS = [
    "שלום עולם (abc)",
    "مرحبا بالعالم [1]",
    "abc שלום def",
    "नमस्ते\u200d दुनिया",
    "می\u200cخواهم",
    "日本語のテキスト",
    "ไทย ไม่มีช่องว่าง",
    "👩\u200d👩\u200d👧\u200d👦 👩🏽\u200d🚀",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "❤️ ☕︎ 1️⃣",
    "e" + "\u0301" * 200,
    "Z͑ͫa̴l̷g̸o̵",
    "ﷺ﷽",
    "\ufffe\uffff",
]
LONG = [
    "W" * 3000,
    "-" * 2000,
    "a" * 500 + " " + "b" * 500,
    "一" * 2000,
    "​x" * 300,
    "https://example.invalid/" + "x" * 900,
]
TERMINAL = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x9b2J",
]
PROTOTYPES = ["__proto__", "constructor", "toString", "undefined", "null", "NaN", "[object Object]", "0", "-1", "true"]
BLANKS = [" x", "x ", "  two  blanks  ", "\u00a0", "\u3000全角", "tab\there", "line\nline", "cr\r\nlf"]
MORE = [f"<x{i} onclick=\"{ACTS}\" style='position:fixed;inset:0'>{chr(0x2066 + i % 4)}" for i in range(200)]
HOSTILE = [
    *MARKUP,
    *TEMPLATES,
    *CONTROLS,
    *BIDI,
    *INVISIBLE,
    *SURROGATES,
    *SCRIPTS,
    *LONG,
    *TERMINAL,
    *PROTOTYPES,
    *BLANKS,
]
HOSTILE += MORE[: 200 - len(HOSTILE)]


def test_there_are_200_different_hostile_strings() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) == 200


class Visit:
    """A page and all that it did: errors, dialogs, requests."""

    def __init__(self, browser: Any, path: Path, **options: Any):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.page.on("console", lambda message: self.errors.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._request(request.url, path))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("article")

    def _request(self, url: str, path: Path) -> None:
        if url != path.as_uri() and not url.startswith("data:"):
            self.errors.append(f"request {url}")

    def close(self) -> None:
        self.context.close()
        assert self.errors == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory):
    """Writes a report of these texts."""

    def written(texts: list[str]) -> Path:
        path = tmp_path_factory.mktemp("report") / "report.html"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(summary, "resample", partial(resample, resamples=10))  # tested elsewhere
            html.write_report(small_records(texts), path)
        return path

    return written


@pytest.fixture(scope="module")
def plain(write) -> Path:
    return write(["this is it", "that is all", *(f"sentence number {i}" for i in range(23))])


def test_it_renders_in_light_and_dark_and_on_a_phone(browser, plain: Path) -> None:
    for width, scheme in ((1200, "light"), (1200, "dark"), (360, "light")):
        visit = Visit(browser, plain, viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = visit.page
        assert page.locator("article").count() == 10 and page.locator("figure svg").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = "getComputedStyle(document.body).backgroundColor === 'rgb(22, 23, 26)'"
        assert page.evaluate(dark) == (scheme == "dark")
        page.click("#theme")
        assert not page.evaluate(dark)  # light
        page.click("#theme")
        assert page.evaluate(dark)
        visit.close()


# Every text against what is behind it: WCAG's ratio; 4.5 is what it asks of text that is not large.
CONTRAST = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgba(getComputedStyle(node).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const found = new Map();
  const told = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (told.nextNode()) {
    const node = told.currentNode.parentElement, words = told.currentNode.textContent.trim();
    const off = ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(node.tagName) || node.closest(":disabled, [hidden]");
    if (!words || off || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), color = rgba(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(color), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const name = node.className.baseVal ?? node.className;
    if (ratio < 4.5) found.set(style.color + " " + name, words.slice(0, 40) + " " + ratio.toFixed(2));
  }
  return [...found];
}"""
# The widest row of a real comparison, in place of the table's first.
WIDEST = """() => {
  const row = document.querySelector("tbody tr");
  row.querySelector("th").textContent = "random calls, as KDTW, moderate-light";
  const wide = { "asked": "100 %", "used": "100.0 %", "ROUGE-2": "38.4 ± 7.2", "gap": "-142 %", "tokens/s": "44506" };
  wide["ms/token"] = "27.89 (25.31–31.06)";
  for (const cell of row.querySelectorAll("td")) cell.textContent = wide[cell.dataset.column] ?? cell.textContent;
}"""
# Cells of tables that are cut where nothing can be scrolled, and anything that is wider than the page.
CUT = """() => [...document.querySelectorAll("main *")]
  .filter((e) => e.getClientRects().length && !e.closest(".scroll, svg, #tip"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1
    || (e.matches(".gauge") && e.scrollWidth > e.clientWidth + 1))
  .map((e) => e.tagName + "." + e.className)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 880, 390])
def test_everything_can_be_read(browser, plain: Path, width: int, scheme: str) -> None:
    visit = Visit(browser, plain, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = visit.page
    page.evaluate(WIDEST)
    page.evaluate("() => { for (const d of document.querySelectorAll('details')) d.open = true; }")
    page.click("button[data-methods=all]")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    if width != 880:  # the table of points is there as a whole, on a phone as cards
        assert page.evaluate("(([e]) => e.scrollWidth <= e.clientWidth + 1)(document.querySelectorAll('.scroll'))")
    if width == 1200:
        wide = (
            "[...document.querySelectorAll('.scroll')].map((e) => e.scrollWidth - e.clientWidth).filter((w) => w > 1)"
        )
        assert page.evaluate(wide) == []
    assert page.evaluate("document.querySelector('figure svg').getBoundingClientRect().width") > min(width, 600) * 0.8
    visit.close()


def test_the_selects_say_what_they_compare(browser, plain: Path) -> None:
    visit = Visit(browser, plain)
    page = visit.page
    better, worse = (page.locator("label", has=page.locator(f"#{name}")) for name in ("better", "worse"))
    assert better.is_hidden() and worse.is_hidden()  # the order is the data's
    page.select_option("#order", "gain")
    assert better.inner_text().startswith("Gain: the score of") and worse.inner_text().startswith("minus the score of")
    page.select_option("#order", "use")
    assert better.inner_text().startswith("Teacher use of") and worse.is_hidden()
    assert "made up" in page.locator("header").inner_text()  # the machine
    visit.close()


def test_tokens_tell_on_hover_and_by_keyboard(browser, plain: Path) -> None:
    visit = Visit(browser, plain)
    page = visit.page
    row = page.locator("article").first.locator(".row", has_text="KDTW, light")
    assert row.locator(".run.o2").get_attribute("data-open") == "["
    tip = page.locator("#tip")
    assert tip.is_hidden()
    row.locator(".run.o2 .token").first.hover()
    words = tip.inner_text().split()
    assert {"teacher", "asking", "78", "22", "%"} <= {word.strip(",") for word in words}
    page.mouse.move(1, 1)
    assert tip.is_hidden()
    assert row.locator(".bar").get_attribute("aria-label").endswith("33 % used, 10 % asked")
    page.locator("#search").focus()
    line = row.locator(".text")
    for _ in range(60):
        page.keyboard.press("Tab")
        if line.evaluate("node => node === document.activeElement"):
            break
    assert tip.is_visible() and "this" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert row.locator(".token.current").inner_text() == row.locator(".token").nth(1).inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    visit.close()


def test_search_order_methods_and_pages(browser, plain: Path) -> None:
    visit = Visit(browser, plain)
    page, found = visit.page, visit.page.locator("#found")
    assert found.inner_text() == "25 of 25 sentences, 3 of 4 methods; page 1 of 3"
    page.locator("button[data-step='1']").first.click()
    assert page.locator("article h3").first.inner_text() == "Sentence 11"
    page.fill("#search", "NUMBER 7")
    sync_api.expect(found).to_have_text("1 of 25 sentences, 3 of 4 methods; page 1 of 1")
    page.fill("#search", "")
    sync_api.expect(found).to_have_text("25 of 25 sentences, 3 of 4 methods; page 1 of 3")
    page.locator("summary", has_text="Methods shown").click()
    page.click("button[data-methods=all]")
    assert page.locator("article").first.locator(".row").count() == 2 + 4
    page.get_by_role("checkbox", name="speculative, lossless").uncheck()
    assert page.locator("article").first.locator(".row").count() == 2 + 3
    page.check("#differ")
    assert found.inner_text().startswith("0 of 25")  # all methods wrote the same texts here
    page.uncheck("#differ")
    page.select_option("#order", "use")
    assert page.locator("article").count() == 10
    page.select_option("#size", "50")
    assert page.locator("article").count() == 25
    visit.close()


def test_200_hostile_strings_do_nothing(browser, write) -> None:
    visit = Visit(browser, write(HOSTILE), viewport={"width": 1000, "height": 800})
    page = visit.page
    page.select_option("#size", "50")
    page.evaluate("() => { for (const d of document.querySelectorAll('details')) d.open = true; }")
    seen: list[list[str]] = []
    read = "articles => articles.map(a => [...a.querySelectorAll('.text')].map(t => t.textContent))"
    for _ in range(4):
        seen += page.locator("article").evaluate_all(read)
        tags = page.evaluate("[...new Set([...document.querySelectorAll('#list *')].map(e => e.tagName))].sort()")
        assert tags == ["ARTICLE", "BDI", "DIV", "H3", "SPAN"]
        wide = "t => t.scrollWidth > t.clientWidth + 1 || t.getBoundingClientRect().right > innerWidth"
        assert not page.evaluate(f"[...document.querySelectorAll('#list .text')].some({wide})")
        page.locator("#list .token").first.hover()
        page.locator("button[data-step='1']").first.click(force=True) if len(seen) < 200 else None
    for number, (text, texts) in enumerate(zip(HOSTILE, seen, strict=True)):
        shown = visible(text)
        expected = [f"quelle {number}: {shown}", f"reference {number}: {shown}"]
        assert texts[:2] == expected and texts[2:] == [shown] * 3, (number, text)
    assert page.title() == "de-en – comparison"
    visit.close()
