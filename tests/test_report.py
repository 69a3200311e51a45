"""`kdtw report`: what the page holds, that nothing in it acts, that it is the same for the same results."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from results import outputs, sentence, small_records
from typer.testing import CliRunner

import kdtw_fast.cli as cli
from kdtw_fast.comparison import html, summary
from kdtw_fast.comparison.quality import resample
from kdtw_fast.comparison.records import Records, to_line
from kdtw_fast.owners_view import shown_pieces

pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """Elements with their attributes, and the text in each script."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._script: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts.append((self._script, data))
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    @property
    def data(self) -> Any:
        (packed,) = (text for attributes, text in self.scripts if attributes.get("id") == "data")
        return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap is tested elsewhere, and figures are drawn where a test is about them."""
    monkeypatch.setattr(summary, "resample", partial(resample, resamples=20))
    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr(html, "_figures", lambda points, metric: [])


@pytest.mark.figures
def test_the_page_is_whole_and_loads_nothing() -> None:
    text = html.render(small_records())
    page = Page(text)
    assert not [e for e in page.elements if e[0] in ("iframe", "object", "embed", "base", "form", "img", "audio")]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text and len(page.scripts) == 2
    assert sum(tag == "svg" for tag, _ in page.elements) == 3
    (script,) = (code for attributes, code in page.scripts if not attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert {a["for"] for _, a in page.elements if "for" in a} <= set(identifiers)


@pytest.mark.figures
def test_same_records_same_bytes() -> None:
    assert html.render(small_records()) == html.render(small_records())


def test_tables_hold_every_point_and_provenance_is_told() -> None:
    page = Page(html.render(small_records()))
    for words in ("student alone", "teacher alone", "KDTW, light", "speculative, lossless"):
        assert page.text.count(words) >= 2  # in the short and in the long table
    assert "made up" in page.text and "kdtw compare" in page.text


def test_the_script_gets_tokens_owners_probabilities_and_budgets() -> None:
    data = Page(html.render(small_records(["this is it", "that is all"]))).data
    (pair,) = data["pairs"]
    assert [point["label"] for point in pair["points"]][2] == "KDTW, light"
    assert [point["budget"] for point in pair["points"]] == [None, None, 0.1, None]
    assert [point["first"] for point in pair["points"]] == [True, True, True, False]
    index, source, reference, written = pair["sentences"][1]
    assert (index, source, reference) == (1, "quelle 1: that is all", "reference 1: that is all")
    score, text, numbers, owners, student, teacher = written[2]
    assert text == 0 and "".join(data["pieces"][n] for n in numbers) == " that is all</s>"
    assert numbers[-1] == data["end"] and owners == "121"
    assert student == [25, 25, 25] and teacher == [-1, 150, -1]
    assert 0 < score < 100 and written[3][3] == "343"


def test_systems_that_do_not_tell_owners_show_their_text() -> None:
    records = small_records(["a b"])
    told = next(iter(records.outputs.values()))
    untold = replace(told.sentences[0], owners=[], student_logprobs=None, teacher_logprobs=None, text="a <b>")
    records.add(replace(told, id="de-en/hugging-face/x", group="hugging-face", sentences=[untold]))
    data = Page(html.render(records)).data
    assert data["pairs"][0]["sentences"][0][3][-1][1:] == ["a <b>"]


def test_a_character_of_several_bytes_shows_where_it_is_complete() -> None:
    tokens = ["▁d", "<0xC3>", "<0xA4>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xC3>", "▁x", "</s>"]
    assert list(shown_pieces(tokens)) == [" d", "", "ä", "", "", "", "😀", "\ufffd", " x", "</s>"]


def test_the_data_can_not_end_its_element() -> None:
    hostile = ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028", "{{ 7*7 }}{% raw %}", "\ud800"]
    text = html.render(small_records(hostile))
    (packed,) = (code for attributes, code in Page(text).scripts if attributes)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
    assert text.count("<script") == 2 and "alert(1)" not in text and "49" not in Page(text).data["pieces"]
    sources = [one[1] for one in Page(text).data["pairs"][0]["sentences"]]
    assert sources[3] == "quelle 3: ⟨U+2028⟩" and sources[5] == "quelle 5: ⟨U+D800⟩"


def luminance(colour: str) -> float:
    """WCAG's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_has_contrast(scheme: int) -> None:
    style = Path(html.__file__).with_name("report.css").read_text(encoding="utf-8")
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: pair[scheme] for name, *pair in found}
    assert {"ink", "quiet", "o2", "o3", "o4", "o5", "page", "sheet"} <= colours.keys()
    for ink in ("ink", "quiet", "focus", "o2", "o3", "o4", "o5"):
        for ground in ("page", "sheet", "wash"):
            low, high = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


@pytest.mark.figures
def test_labels_pairs_and_provenance_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>$\\frac{$\u202e"
    records = Records()
    point = outputs("student", [sentence(0, ["▁a"], "s", "a", "a", "a")], pair=evil, label=evil)
    records.add(replace(point, provenance={evil: {evil: evil}}, signatures={evil: evil}))
    text = html.render(records)
    assert "<img" not in text and "\u202e" not in text
    assert "<img src=x onerror=alert(1)>$\\frac{$⟨U+202E⟩" in Page(text).text


def test_fewer_sentences_and_two_pairs() -> None:
    records = small_records([f"text {i}" for i in range(10)])
    other = small_records(["one more"], pair="other")
    for record in [*other.outputs.values(), *other.timings.values()]:
        records.add(record)
    data = Page(html.render(records, sentences=5)).data
    assert [pair["name"] for pair in data["pairs"]] == ["de-en", "other"]
    assert [one[0] for one in data["pairs"][0]["sentences"]] == [0, 2, 4, 6, 8]
    assert len(data["pairs"][1]["sentences"]) == 1


@pytest.fixture
def results(tmp_path: Path) -> Path:
    records = small_records()
    path = tmp_path / "results.jsonl"
    lines = [*records.outputs.values(), *records.timings.values(), *records.passes.values()]
    path.write_text("".join(map(to_line, lines)), encoding="utf-8")
    return path


def kdtw(*arguments: object):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_the_command_writes_beside_the_results_or_where_it_is_told(results: Path) -> None:
    first = kdtw("report", results.parent)
    assert first.exit_code == 0 and "report.html" in first.stdout, first.stderr
    second = kdtw("report", results, "-o", results.with_name("other.html"))
    assert second.exit_code == 0
    assert results.with_name("report.html").read_bytes() == results.with_name("other.html").read_bytes()
    assert not list(results.parent.glob("*.part"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.jsonl"], "nowhere.jsonl is not there"),
        (["{results}", "-o", "{folder}/no/report.html"], "lies in a folder that does not exist"),
        (["{results}", "-o", "{results}"], "is the file that is being read"),
        (["{results}", "-o", "{folder}"], "is a folder; name a file in it"),
        (["{results}", "--metric", "rouge3"], "unknown metric 'rouge3'"),
        (["{results}", "--sentences", "-1"], "--sentences must be at least 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(results: Path, arguments: list[str], words: str) -> None:
    result = kdtw("report", *(a.format(results=results, folder=results.parent) for a in arguments))
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
