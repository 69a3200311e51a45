"""Where the text comes from: for each source the packages that carry it and how they are read."""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from . import manpages
from .alignment import Pair, align
from .catalogues import find_catalogues, read_catalogue
from .markup import HTML, HTML_BY_ID, MALLARD, Dialect, html_blocks, read_blocks

Reader = Callable[[Sequence[Path]], Iterator[tuple[str, Pair]]]  # folders of packages -> (page or catalogue, blocks)


@dataclass(frozen=True)
class Source:
    """One kind of text; with `trained` false it is a test set only, which training never sees."""

    name: str
    what: str
    packages: tuple[str, ...]
    read: Reader
    trained: bool = True


def read_manpages(folders: Sequence[Path]) -> Iterator[tuple[str, Pair]]:
    """Manual pages that there are in both languages, a page a unit."""
    for name, german, english in manpages.page_pairs(list(folders)):
        for pair in align(manpages.read_page(german), manpages.read_page(english)):
            yield name, pair


def read_catalogues(folders: Sequence[Path]) -> Iterator[tuple[str, Pair]]:
    """Messages of programs, a catalogue (mostly: a program) a unit."""
    for folder in folders:
        for path in find_catalogues(folder):
            unit = re.sub(r"-\d[\d.]*$", "", path.stem)
            for pair in read_catalogue(path):
                yield unit, pair


def pages(*places: tuple[str, str, str], dialect: Dialect = HTML, leave_out: str = "index") -> Reader:
    """A reader of pages. A place is a pattern, and what the English page has where the German one has another thing.

    Files with `leave_out` in their name (indices by alphabet) are passed over.
    """

    def read(folders: Sequence[Path]) -> Iterator[tuple[str, Pair]]:
        for (pattern, german, english), folder in product(places, folders):
            for path in sorted(folder.glob(pattern)):
                name = str(path.relative_to(folder))
                original_name = name.replace(german, english)
                if german.endswith("/") and ".de.html" in name:
                    original_name = original_name.replace(".de.html", ".en.html")
                originals = [f / original_name for f in folders]
                original = next((found for found in originals if found.is_file() and found != path), None)
                if original is None or leave_out in path.name:
                    continue
                unit = "/".join(Path(name).parts[-3:])
                for pair in align(read_blocks(path, dialect), read_blocks(original, dialect)):
                    yield unit, pair

    return read


def read_kde(folders: Sequence[Path]) -> Iterator[tuple[str, Pair]]:
    """KDE's handbooks, packed as one file of HTML pages for each program; a program a unit."""
    for folder in folders:
        for path in sorted(folder.glob("usr/share/doc/HTML/de/**/index.cache.bz2")):
            original = Path(str(path).replace("/HTML/de/", "/HTML/en/"))
            if not original.is_file():
                continue
            german, english = _cached(path), _cached(original)
            for name in sorted(german.keys() & english.keys() - {"index.html"}):
                for pair in align(html_blocks(german[name]), html_blocks(english[name])):
                    yield path.parent.name, pair


def _cached(path: Path) -> dict[str, bytes]:
    names_and_pages = re.split(rb'<FILENAME filename="([^"]+)">', bz2.decompress(path.read_bytes()))[1:]
    return {name.decode(): page for name, page in zip(names_and_pages[::2], names_and_pages[1::2], strict=True)}


_MANUALS = """
adduser anacron apt apt-listbugs apt-listchanges apt-show-versions apt-utils aptitude at autopoint bash bc binkd
bsdextrautils bsdgames bsdmainutils bsdutils btrfs-progs bzip2 cifs-utils coreutils cpio cron debconf debconf-doc
debhelper debianutils deborphan debsums devscripts diffutils dosfstools dpkg dpkg-dev e2fsprogs ed eject exif fakeroot
fdisk findutils genisoimage gettext gettext-base grep groff groff-base grub-common grub-pc grub2-common gzip hostname
icedax info init init-system-helpers initscripts install-info kbd less libc-bin libnss-myhostname libnss-mymachines
libnss-resolve libnss-systemd libpam-systemd libsane-common libsane1 libsystemd-dev locales login make man-db manpages
manpages-de manpages-de-dev manpages-dev menu mount mtools mutt nano ncal net-tools nfs-common nfs-kernel-server
parted passwd po-debconf po4a procps psmisc psutils recode recutils sane-utils scanbd schroot sed sensible-utils
sharutils sysstat systemd systemd-boot systemd-container systemd-coredump systemd-homed systemd-journal-remote
systemd-oomd systemd-resolved systemd-timesyncd systemd-userdbd sysv-rc sysvinit-core sysvinit-utils talk talkd tar
texinfo thinkfan udev usbutils util-linux util-linux-extra uuid-runtime vlock vorbis-tools wodim x11-apps
x11-xserver-utils xz-utils zstd
"""
_CONSOLE = """
adduser apt apt-listbugs apt-listchanges apt-utils bash coreutils cpio cryptsetup-bin deborphan diffutils dpkg
findutils gdebi-core git gnupg-l10n grep grub-common kbd libc-l10n libpq5 libsane-common libvirt-l10n login
lynx-common man-db menu mercurial-common mutt nano net-tools network-manager packagekit po4a procps psmisc quilt
recode recutils sed sharutils subversion sysstat systemd tar texinfo tin wget xz-utils
"""
_DESKTOP = """
akregator anjuta-common ardour-data ark audacity-data blender-data bluefish-data cantor claws-mail-i18n darktable
deluge-common digikam-data dolphin epiphany-browser-data evince-common evolution-common filezilla-common gajim
geany-common gedit-common gimp-data gnome-control-center-data gnome-disk-utility gnome-shell-common
gnome-software-common gnucash-common gnumeric-common gramps hexchat-common inkscape k3b-i18n kate5-data kdeconnect
kdenlive-data kdepim-addons kdepim-runtime kdevelop-l10n kile-l10n kmail kmplot kmymoney-common konsole korganizer
ktorrent-data kwin-data libgimp2.0 libglib2.0-data libgtk-3-common libgtk-4-common liferea-data lyx-common
minetest-data nautilus-data phpmyadmin pidgin-data planner-data plasma-desktop-data plasma-discover-common
plasma-workspace-data rhythmbox-data shared-mime-info shotwell-common skrooge-common step sylpheed-i18n synaptic
tuxpaint-data viking vlc-l10n wxmaxima
"""
_KDE = """
akregator ark cantor dolphin k3b-i18n kate5-data kdeconnect kdenlive-data kdepim-runtime khelpcenter kmail kmplot
kmymoney-common konsole korganizer kpat ktorrent-data kwin-data plasma-desktop-data plasma-workspace-data
skrooge-common step systemsettings
"""
_WESNOTH = "data did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"


SOURCES: tuple[Source, ...] = (
    Source("manpages", "manual pages", tuple(_MANUALS.split()), read_manpages),
    Source(
        "libreoffice-help",
        "help of LibreOffice",
        ("libreoffice-help-de", "libreoffice-help-en-us"),
        pages(("usr/share/libreoffice/help/de/text/**/*.html", "help/de/", "help/en-US/"), dialect=HTML_BY_ID),
    ),
    Source(
        "gimp-help",
        "GIMP's handbook",
        ("gimp-help-de", "gimp-help-en"),
        pages(("usr/share/gimp/2.0/help/de/*.html", "help/de/", "help/en/"), leave_out="gimp-help-index"),
    ),
    Source(
        "gnome-help",
        "help of GNOME and of its programs",
        (
            *("gnome-user-docs", "evolution-common", "anjuta-common", "gedit-common", "evince-common"),
            *("shotwell-common", "epiphany-browser-data", "rhythmbox-data"),
        ),
        pages(("usr/share/help/de/**/*.page", "help/de/", "help/C/"), dialect=MALLARD, leave_out="legal"),
    ),
    Source("kde-help", "handbooks of KDE's programs", tuple(_KDE.split()), read_kde),
    Source(
        "debian-handbook",
        "The Debian Administrator's Handbook",
        ("debian-handbook",),
        pages(("usr/share/doc/debian-handbook/html/de-DE/*.html", "/de-DE/", "/en-US/"), leave_out="ix01"),
    ),
    Source(
        "debian-reference",
        "Debian Reference",
        ("debian-reference-de", "debian-reference-en"),
        pages(("usr/share/debian-reference/*.de.html", ".de.html", ".en.html")),
    ),
    Source(
        "installation-guide",
        "Debian's installation guide",
        ("installation-guide-amd64",),
        pages(("usr/share/doc/installation-guide-amd64/de/*.html", "/de/", "/en/")),
    ),
    Source(
        "debian-guides",
        "Debian FAQ, New Maintainers' Guide, Debian Edu manual",
        ("debian-faq", "debian-faq-de", "maint-guide", "maint-guide-de", "debian-edu-doc-de", "debian-edu-doc-en"),
        pages(
            ("usr/share/doc/debian/FAQ/de/*.de.html", "FAQ/de/", "FAQ/"),
            ("usr/share/doc/maint-guide-de/html/*.de.html", "maint-guide-de/html/", "maint-guide/html/"),
            ("usr/share/doc/debian-edu-doc-de/*.html", "debian-edu-doc-de/", "debian-edu-doc-en/"),
        ),
    ),
    Source(
        "toolchain",
        "messages of compilers and build tools",
        ("gcc-12-locales", "binutils-common", "gettext", "make"),
        read_catalogues,
    ),
    Source("database", "messages of PostgreSQL", ("postgresql-15", "postgresql-client-15"), read_catalogues),
    Source("console", "messages of programs for the console", tuple(_CONSOLE.split()), read_catalogues),
    Source("libreoffice", "LibreOffice's interface", ("libreoffice-l10n-de",), read_catalogues),
    Source("desktop", "interfaces of desktop programs", tuple(_DESKTOP.split()), read_catalogues),
    Source("freeciv", "messages and help of Freeciv", ("freeciv-data",), read_catalogues),
    Source(
        "wesnoth",
        "dialogues and help of Wesnoth",
        tuple(f"wesnoth-1.16-{n}" for n in _WESNOTH.split()),
        read_catalogues,
    ),
    Source(
        "developers-reference",
        "Debian Developer's Reference, which training never sees",
        ("developers-reference", "developers-reference-de"),
        pages(("usr/share/developers-reference/de/*.html", "developers-reference/de/", "developers-reference/")),
        trained=False,
    ),
)
