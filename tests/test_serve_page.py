"""The service's page in a real browser: tokens come coloured, two methods stand side by side, and no text acts.

Needs playwright (the extra "browser") and an installed Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra 'browser')")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from serving import NAME, serving, shipped  # noqa: E402

from kdtw_fast.methods import make_decoder  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

TEXT = "Sie stellt Funktionen für alle wichtigen Operationen auf diesen Strukturen bereit."
ACTS = "<img src=x onerror=\"document.title='HIT'\"><script>document.title='HIT'</script>"


class Visit:
    """The page and all that it did: errors, requests to elsewhere."""

    def __init__(self, browser: Any, url: str, quiet: bool = True, **options: Any):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        if quiet:
            self.page.on("console", lambda message: self.errors.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url, url))
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]")

    def _request(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:")):
            self.errors.append(f"request {asked}")

    def close(self) -> None:
        self.context.close()
        assert self.errors == []

    def write(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Control+Enter")
        sync_api.expect(self.page.locator("#status")).to_have_text("done", timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(max_new_tokens=20_000) as (url, _):
        yield url


def alone(text: str, method: str, budget: str | None = None) -> Any:
    models, words = shipped()
    return make_decoder(method, models, words, 2)(text, budget)


def test_two_methods_side_by_side_with_owners_and_numbers(browser: Any, url: str) -> None:
    for width, scheme in ((1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")):
        visit = Visit(browser, url, viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = visit.page
        assert page.title() == f"kdtw {NAME}" and page.locator("#model").inner_text() == NAME
        page.select_option("#left [name=budget]", "very high")
        visit.write(TEXT)
        cards = page.locator("article")
        expected = [alone(TEXT, "training-wheels", "very high"), alone(TEXT, "greedy-teacher")]
        assert cards.count() == 2
        for card, out in zip(cards.all(), expected):
            assert card.locator(".said").text_content() == out.texts[0]
            percent = round(100 * float(out.teacher_fraction[0]))
            assert f"{percent} %" in card.locator("dd").first.inner_text()
        assert cards.first.locator(".said .teacher").count() >= 1 and cards.first.locator(".said .student").count() >= 1
        assert "times as" in cards.first.inner_text() and "of 50 %" in cards.first.inner_text()
        assert page.locator("#history li").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(21, 23, 27)" if scheme == "dark" else "rgb(251, 250, 248)")
        visit.close()


def test_the_keyboard_is_enough(browser: Any, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("Ein Spiel.")
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.name || document.activeElement.id"))
    assert seen[:5] == ["method", "budget", "most", "method", "go"]
    page.focus("#go")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#status")).to_have_text("done", timeout=20_000)
    for element in page.locator("select, input, textarea, button").all():
        assert element.evaluate("e => e.labels?.length > 0 || e.textContent.trim() !== ''")
    page.focus("#history button")
    page.fill("#text", "")
    page.locator("#history button").press("Enter")
    assert page.input_value("#text") == "Ein Spiel."
    page.click("#forget")
    assert page.locator("#past").is_hidden()
    visit.close()


def test_a_limit_is_obeyed_and_a_method_that_asks_nobody_has_none(browser: Any, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    page.select_option("#right [name=method]", "")
    page.fill("#left [name=most]", "0")
    visit.write(TEXT)
    assert page.locator("article").count() == 1
    assert "0 % of 0 %" in page.locator("article dd").first.inner_text()
    page.select_option("#left [name=method]", "speculative")
    assert page.locator("#left [name=budget]").is_hidden() and page.locator("#left [name=most]").is_hidden()
    visit.write(TEXT)
    assert page.locator(".said").text_content() == alone(TEXT, "speculative").texts[0]
    assert page.locator(".said .accepted").count() >= 1
    visit.close()


def test_no_text_acts(browser: Any, url: str) -> None:
    visit = Visit(browser, url)
    for text in (ACTS, f"Das Paket {ACTS} ist hier.", "\u202eabc\u2066 {{7*7}}"):
        visit.write(text)
    assert visit.page.title() == f"kdtw {NAME}"
    assert visit.page.locator("#history img, #history script, article img").count() == 0
    visit.close()


def test_what_goes_wrong_is_said(browser: Any, url: str) -> None:
    visit = Visit(browser, url, quiet=False)  # a browser reports a 400 on its console
    page = visit.page
    page.press("#text", "Control+Enter")
    assert page.locator("#status").inner_text() == "Write a text first."
    page.fill("#text", "wort " * 3000)
    page.click("#go")
    page.wait_for_selector("article [role=alert]")
    assert "more than max_source_length" in page.locator("article [role=alert]").first.inner_text()
    visit.close()


def test_a_key_is_asked_for(browser: Any) -> None:
    with serving(api_key="sesame") as (url, _):
        visit = Visit(browser, url, quiet=False)
        visit.page.fill("#text", "Ein Spiel.")
        visit.page.click("#go")
        visit.page.wait_for_selector("article [role=alert]")
        assert "API key" in visit.page.locator("article [role=alert]").first.inner_text()
        visit.page.fill("#key", "sesame")
        visit.write("Ein Spiel.")
        visit.close()
