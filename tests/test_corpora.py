import bz2
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

polib = pytest.importorskip("polib")
pytest.importorskip("lxml")

from kdtw_fast.training.corpora import build as building  # noqa: E402
from kdtw_fast.training.corpora import catalogues, manpages, markup, packages  # noqa: E402
from kdtw_fast.training.corpora.alignment import Block, acceptable, align, placeholders, sentence_pairs  # noqa: E402
from kdtw_fast.training.corpora.sources import SOURCES, Source, pages, read_catalogues, read_kde, read_manpages  # noqa: E402
from kdtw_fast.training.corpora.splits import assign, seen_before  # noqa: E402
from kdtw_fast.training.debian import Example, read_jsonl  # noqa: E402

ENGLISH_PAGE = r"""'\" t
.\" a comment
.TH TOOL 1 "2023"
.SH NAME
tool \- copy files
.SH DESCRIPTION
.B tool
copies
.IR files .
It keeps
.BR utime (2).
.PP
The second paragraph.
.TP
\fB\-a\fR, \fB\-\-all\fR
Copy everything.
.nf
tool a b
.fi
.if n \{\
not this
.\}
.SH "SEE ALSO"
.BR cp (1)
"""
GERMAN_PAGE = r""".TH TOOL 1 "2023"
.SH BEZEICHNUNG
tool \- Dateien kopieren
.SH BESCHREIBUNG
\fBtool\fP kopiert \fIDateien\fP. Es erhält \fButime\fP(2).
.PP
Der zweite Absatz.
.TP
\fB\-a\fP, \fB\-\-all\fP
kopiert alles.
.nf
tool a b
.fi
.SH "SIEHE AUCH"
\fBcp\fP(1)
.SH ÜBERSETZUNG
Die deutsche Übersetzung wurde von niemandem erstellt.
"""


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_manual_page_becomes_headings_tags_and_paragraphs():
    assert list(manpages.page_blocks(ENGLISH_PAGE)) == [
        Block("#SH", "NAME"),
        Block("text", "tool - copy files"),
        Block("#SH", "DESCRIPTION"),
        Block("text", "tool copies files. It keeps utime(2)."),
        Block("text", "The second paragraph."),
        Block("tag", "-a, --all"),
        Block("text", "Copy everything."),
        Block("#SH", "SEE ALSO"),
        Block("text", "cp(1)"),
    ]


def test_manual_pages_align_without_the_translators_section(tmp_path):
    write(tmp_path / "tool/usr/share/man/man1/tool.1.gz", gzip.compress(ENGLISH_PAGE.encode()))
    write(tmp_path / "de/usr/share/man/de/man1/tool.1.gz", gzip.compress(GERMAN_PAGE.encode()))
    write(tmp_path / "de/usr/share/man/de/man1/other.1.gz", gzip.compress(GERMAN_PAGE.encode()))
    found = list(read_manpages([tmp_path / "tool", tmp_path / "de"]))
    assert {unit for unit, _ in found} == {"tool.1"}
    assert ("kopiert alles.", "Copy everything.") in [pair for _, pair in found]
    assert not any("Übersetzung" in german for _, (german, _) in found)


@pytest.mark.parametrize(
    ("troff", "text"),
    [
        (r"\fBbold\fP \f(CWcode\fR \f[I]it\f[]", "bold code it"),
        (r"a\-b \(em c \(aqd\(aq \[u2026] \e\& \s-1X\s0", "a-b — c 'd' … \\ X"),
        (r"\(Foja\(Fc \*(lqyes\*(rq", "«ja» “yes”"),
    ],
)
def test_troff_escapes(troff, text):
    assert manpages.unescape(troff) == text


def test_aliases_and_mdoc_pages_have_no_blocks():
    assert not list(manpages.page_blocks(".so man1/tool.1\n"))
    assert not list(manpages.page_blocks(".Dd May 1, 2023\n.Sh NAME\n.Nm tool\n"))


def catalogue(path: Path, *entries: dict) -> Path:
    made = polib.POFile()
    made.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    for entry in entries:
        made.append(polib.POEntry(**entry))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as_mofile(str(path))
    return path


def test_a_catalogue_gives_both_forms_without_marks_and_tags(tmp_path):
    path = catalogue(
        tmp_path / "tool.mo",
        {"msgid": "_Open File", "msgstr": "Datei ö_ffnen"},
        {"msgid": "Keep the <b>file_name</b> of %s", "msgstr": "Den <b>file_name</b> von %s behalten"},
        {"msgid": "noun^point of view", "msgstr": "Blickpunkt des Betrachters"},
        {
            "msgid": "%d file",
            "msgid_plural": "%d files in the folder",
            "msgstr_plural": {0: "%d Datei", 1: "%d Dateien im Ordner"},
        },
        {"msgid": "One.\n\nTwo.", "msgstr": "Eins.\n\nZwei."},
    )
    assert set(catalogues.read_catalogue(path)) == {
        ("Datei öffnen", "Open File"),
        ("Den file_name von %s behalten", "Keep the file_name of %s"),
        ("Blickpunkt des Betrachters", "point of view"),
        ("%d Datei", "%d file"),
        ("%d Dateien im Ordner", "%d files in the folder"),
        ("Eins.", "One."),
        ("Zwei.", "Two."),
    }


def test_a_catalogue_unit_has_no_version(tmp_path):
    catalogue(tmp_path / "p/usr/share/locale/de/LC_MESSAGES/gcc-12.mo", {"msgid": "a b", "msgstr": "c d"})
    catalogue(tmp_path / "p/usr/share/locale/fr/LC_MESSAGES/gcc-12.mo", {"msgid": "a b", "msgstr": "e f"})
    assert list(read_catalogues([tmp_path / "p"])) == [("gcc", ("c d", "a b"))]


def test_html_by_id_needs_no_order(tmp_path):
    german = write(tmp_path / "de.html", '<p id="b">Zweitens.</p><p>Ohne Namen.</p><p id="a">Erstens.</p>')
    english = write(tmp_path / "en.html", '<h1>Title</h1><p id="a">First.</p><div><p id="b">Second.</p></div>')
    blocks = [markup.read_blocks(path, markup.HTML_BY_ID) for path in (german, english)]
    assert list(align(*blocks)) == [("Zweitens.", "Second."), ("Erstens.", "First.")]


def test_docbook_html_by_structure(tmp_path):
    page = """<html><body><div class="navheader">%s</div><h2 class="title">%s</h2><div class="para">%s<code>a.txt</code>
    .<ul><li><div class="para">%s</div></li></ul></div><pre class="screen">%s</pre><p>%s<img src="x.png"/>.</p>"""
    german = write(tmp_path / "de.html", page % ("Weiter", "Ein Titel", "Die Datei ", "Ein Punkt", "ls", "Klick auf "))
    english = write(tmp_path / "en.html", page % ("Next", "A title", "The file ", "An item", "ls", "Click on "))
    found = list(align(*(markup.read_blocks(path, markup.HTML) for path in (german, english))))
    assert found[:3] == [("Ein Titel", "A title"), ("Die Datei a.txt .", "The file a.txt ."), ("Ein Punkt", "An item")]
    assert not acceptable(*found[3])  # nobody understands it without the picture


def test_mallard_pages_show_keys_and_menus_as_users_see_them(tmp_path):
    page = """<page xmlns="http://projectmallard.org/1.0/"><info><desc>%s</desc><credit><name>N</name></credit></info>
    <p>%s <keyseq><key>Ctrl</key><key>C</key></keyseq> <guiseq><gui>A</gui> <gui>B</gui></guiseq> <code>x</code></p>
    <code>a listing</code></page>"""
    path = write(tmp_path / "usr/share/help/de/app/a.page", page % ("Ein Satz.", "Drücken"))
    write(tmp_path / "usr/share/help/C/app/a.page", page % ("A sentence.", "Press"))
    assert [block.text for block in markup.read_blocks(path, markup.MALLARD)] == [
        "Ein Satz.",
        "Drücken Ctrl+C A → B x",
    ]
    read = pages(("usr/share/help/de/**/*.page", "help/de/", "help/C/"), dialect=markup.MALLARD)
    assert next(read([tmp_path])) == ("de/app/a.page", ("Ein Satz.", "A sentence."))


def test_kde_handbooks_are_pages_in_one_file(tmp_path):
    for language, text in (("de", "Ein Absatz."), ("en", "A paragraph.")):
        packed = f'<FILENAME filename="index.html"><p>x</p><FILENAME filename="a.html"><p>{text}</p>'
        path = tmp_path / f"usr/share/doc/HTML/{language}/kate/index.cache.bz2"
        write(path, bz2.compress(packed.encode()))
    assert list(read_kde([tmp_path])) == [("kate", ("Ein Absatz.", "A paragraph."))]


def test_a_page_with_one_more_paragraph_still_aligns():
    german = [Block("#h1", "Dateien"), *(Block("p", f"Der Absatz Nummer {n} steht hier.") for n in (1, 2, 3))]
    english = [Block("#h1", "Files"), *(Block("p", f"Paragraph number {n} stands here.") for n in (1, 3))]
    assert list(align(german, english)) == [
        ("Dateien", "Files"),
        ("Der Absatz Nummer 1 steht hier.", "Paragraph number 1 stands here."),
        ("Der Absatz Nummer 3 steht hier.", "Paragraph number 3 stands here."),
    ]


def test_sections_that_do_not_match_give_nothing():
    german = [Block("#h1", "Eins"), *(Block("p", "Das ist ein sehr langer Absatz " * 9) for _ in range(3))]
    english = [Block("#h1", "One"), *(Block("p", "Short.") for _ in range(4))]
    assert list(align(german, english)) == []


def test_sentences_go_one_to_one_only_where_both_are_cut_alike():
    assert list(sentence_pairs("1.2. Eins ist da. Zwei auch.", "1.2. One is here. Two as well.")) == [
        ("Eins ist da.", "One is here."),
        ("Zwei auch.", "Two as well."),
    ]
    assert list(sentence_pairs("Eins ist da. Zwei auch.", "One and two are here.")) == [
        ("Eins ist da. Zwei auch.", "One and two are here.")
    ]


@pytest.mark.parametrize(
    ("german", "english", "wanted"),
    [
        ("Die Datei %s wurde gelöscht.", "The file %s was deleted.", True),
        ("Die Datei %1$s ist größer als %2$s.", "The file %s is larger than %s.", True),
        ("Die Datei wurde gelöscht.", "The file %s was deleted.", False),
        ("The file that was deleted is gone.", "The file that was deleted is gone now.", False),
        ("Die Datei <b>wurde gelöscht.", "The file <b>was deleted.", False),
        ("# Der Filter # wird gebraucht", "# The filter # is needed", False),
    ],
)
def test_filters(german, english, wanted):
    assert acceptable(german, english) is wanted


def test_placeholders_are_a_multiset_without_positions():
    assert placeholders("%2$s: %s %(name)s {0} ${x} %d %%") == placeholders("%s, %s; {0} %(name)s ${x} %% %d")
    assert placeholders("100 % der") == placeholders("all")


def test_whole_units_are_held_out_and_large_ones_are_not():
    sizes = {f"page{n}": 10 for n in range(100)} | {"huge": 1000}
    found = assign(sizes, 100, 50)
    held = {split: sum(sizes[u] for u, s in found.items() if s == split) for split in ("test", "validation")}
    assert held == {"test": 100, "validation": 50}
    assert found["huge"] == "train"
    assert found == assign(dict(reversed(sizes.items())), 100, 50)


def test_near_duplicates_are_found():
    known = ["Dieses Paket enthält die Übersetzung für Französisch.", "Version 12", "Etwas ganz anderes als alles."]
    texts = [
        "Dieses Paket enthält die Übersetzung für Hebräisch.",  # one word differs
        "version 13",  # numbers and case do not count
        "Das hat noch niemand gesagt oder geschrieben.",
        "Version zwölf",
    ]
    assert seen_before(texts, known) == {0, 1}


def package(
    files: Path, name: str, licence: str = "Format: x\n\nFiles: a\nLicense: MIT\n\nFiles: *\nLicense: GPL-2+\n"
):
    write(files / name / "usr/share/doc" / name / "copyright", licence)


def test_licences_come_from_the_copyright_file_or_the_package_it_links_to(tmp_path):
    package(tmp_path, "base")
    documents = tmp_path / "tool/usr/share/doc/tool"
    documents.parent.mkdir(parents=True)
    documents.symlink_to("base")
    assert packages.licences(packages.copyright_file(tmp_path, "tool")) == ["GPL-2+", "MIT"]
    package(tmp_path, "old", "It is under the GNU General\nPublic License.")
    assert packages.licences(packages.copyright_file(tmp_path, "old")) == ["GPL"]
    with pytest.raises(ValueError, match="nothing says whether its text may be used"):
        packages.copyright_file(tmp_path, "none")


def test_a_package_that_apt_does_not_know_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "require_apt", lambda: None)
    monkeypatch.setattr(packages.shutil, "which", lambda name: name)

    def refuse(name, lists, folder):
        raise packages.PackageMissingError(name)

    monkeypatch.setattr(packages, "download", refuse)
    assert packages.fetch(["b", "a"], tmp_path, tmp_path / "cache", lambda text: None) == ["a", "b"]


def test_build_writes_splits_tests_and_counts(tmp_path, monkeypatch):
    files = tmp_path / "cache/files"
    rows = [(f"unit{n}", (f"Die Katze Nummer {n}{n} schläft.", f"The cat number {n}{n} sleeps.")) for n in range(3)]
    words = re.findall(r"\w+", "rot blau grün gelb lila braun grau weiß schwarz rosa türkis beige ocker golden hell")
    rows += [
        (f"page{n}", (f"{a} Farben mögen {b} Hunde.", f"{a} colours like {b} dogs."))
        for n, (a, b) in enumerate(zip(words, words[::-1], strict=True))
    ]
    for name in ("seen", "unseen"):
        package(files, name)
    monkeypatch.setattr(
        building,
        "SOURCES",
        (
            Source("one", "a source", ("seen", "absent"), lambda folders: iter(rows)),
            Source(
                "two",
                "never trained on",
                ("unseen",),
                lambda f: iter([("u", ("Ein neuer Satz.", "A new line."))]),
                False,
            ),
        ),
    )
    described = {"train": [Example("Ein Spiel hier.", "A game here.", "descriptions/g")], "validation": [], "test": []}
    monkeypatch.setattr(building, "_descriptions", lambda *_: described)
    reports = building.build(tmp_path, tmp_path / "cache", tmp_path / "out", 4, 2, "kdtw", lambda text: None)
    read = {split: read_jsonl(tmp_path / f"out/{split}.jsonl") for split in ("train", "validation", "test")}
    units = {split: {row.package for row in found} for split, found in read.items()}
    assert "descriptions/g" in units["train"] and "two/u" not in set().union(*units.values())
    assert units["train"].isdisjoint(units["test"] | units["validation"])
    assert [row.package for row in read_jsonl(tmp_path / "out/test/two.jsonl")] == ["two/u"]
    assert [report["name"] for report in json.loads((tmp_path / "out/sources.json").read_text())] == [
        "descriptions",
        "one",
        "two",
    ]
    assert reports[1]["licences"] == ["GPL-2+"] and reports[1]["train"] == len(read["train"]) - 1
    assert (tmp_path / "out/licences/seen").is_file()


def test_every_source_names_its_packages_once():
    for source in SOURCES:
        assert len(set(source.packages)) == len(source.packages) > 0
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    assert sum(not source.trained for source in SOURCES) == 1


@pytest.mark.parametrize("name", ["lxml", "polib"])
def test_a_library_that_is_missing_is_named(name):
    code = (
        f"import sys, runpy; sys.modules[{name!r}] = None; runpy.run_module('kdtw_fast.training.corpora', run_name='x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"needs {name}; install" in done.stderr and "Traceback" not in done.stderr
