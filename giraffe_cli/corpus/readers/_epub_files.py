"""What an EPUB archive holds: its chapters in the order of the spine, by name.

    META-INF/container.xml → OEBPS/content.opf → spine → [`OEBPS/one.xhtml`, `OEBPS/two.xhtml`]

The archive is read within a budget of bytes, so that one of a few kilobytes that unpacks to
gigabytes costs no more than the longest document that is taken.
"""

from __future__ import annotations

import lzma
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from giraffe_cli.corpus.readers._markup import parse, read_as_text
from giraffe_cli.corpus.readers._records import Defect, too_long
from giraffe_cli.errors import first_line

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
PACKAGE_TYPE = "application/oebps-package+xml"
NO_PAGES = ("image/", "audio/", "video/", "font/", "text/css", "application/x-dtbncx+xml")
"""How the types of what has no text of the book begin: pictures, the NCX."""
FONT_OBFUSCATION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""Algorithms that hide fonts from being copied, and no text."""
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
    struct.error,
)
"""What `zipfile` raises for archives that are broken or packed in a way it does not know."""


class Archive:
    """A zip file of which at most `limit` unpacked bytes are read."""

    def __init__(self, archive: zipfile.ZipFile, limit: int) -> None:
        self._zip, self._limit, self._left = archive, limit, limit

    def read(self, name: str) -> str | None:
        """A file as text; None where there is none of that name.

        Raises:
            Defect: it is encrypted, damaged, in another encoding than it says, or too long.
        """
        try:
            entry = self._zip.getinfo(name)
        except KeyError:
            return None
        if entry.flag_bits & 1:
            raise Defect("encrypted (the zip archive has a password)")
        with damage_told(), self._zip.open(entry) as file:
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise too_long(self._limit)
        try:
            return read_as_text(data)
        except Defect as defect:
            raise Defect(defect.reason, f"{defect.detail}, in {name}") from defect


@contextmanager
def opened(path: Path, limit: int) -> Iterator[Archive]:
    """The archive at `path`.

    Raises:
        Defect: it is no zip file, or a damaged one.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise Defect("not a zip archive, as an EPUB is")
        with damage_told():
            archive = zipfile.ZipFile(file)
        with archive:
            yield Archive(archive, limit)


@contextmanager
def damage_told() -> Iterator[None]:
    """What is wrong with an archive as a `Defect`."""
    try:
        yield
    except DAMAGE as error:
        raise Defect("the zip archive is damaged", f" ({first_line(error)})") from error


def chapters(archive: Archive) -> list[str]:
    """Names of the pages in the order in which they are read.

    Raises:
        Defect: there is no package document, a chapter that is not listed, or one under DRM.
    """
    package, encrypted = _package(archive), _encrypted(archive)
    _check_free(encrypted, {package})
    text = archive.read(package)
    if text is None:
        raise Defect("no package document (OPF)", f": {package}")
    elements = parse(text, _Elements).found
    items = {item.get("id", ""): item for tag, item in elements if tag == "item"}
    names: list[str] = []
    for tag, reference in elements:
        if tag != "itemref" or reference.get("linear", "").strip().lower() == "no":
            continue
        item = items.get(reference.get("idref", ""))
        if item is None:
            raise missing_chapter(reference.get("idref", ""))
        if _is_page(item):
            names.append(_below(posixpath.dirname(package), item.get("href", "")))
    _check_free(encrypted, set(names))
    return names


def missing_chapter(name: str) -> Defect:
    """What is wrong with a book whose spine names what is not there."""
    return Defect("a chapter of the spine is missing", f": {name}")


def _package(archive: Archive) -> str:
    text = archive.read(CONTAINER)
    if text is None:
        raise Defect("no package document (OPF)", f": there is no {CONTAINER}")
    roots = [root for tag, root in parse(text, _Elements).found if tag == "rootfile"]
    of_type = [root for root in roots if root.get("media-type") == PACKAGE_TYPE]
    for root in of_type or roots:
        return _below("", root.get("full-path", ""))
    raise Defect("no package document (OPF)", f": {CONTAINER} names none")


def _is_page(item: dict[str, str]) -> bool:
    kind = item.get("media-type", "").strip().lower()
    return not kind.startswith(NO_PAGES) and "nav" not in item.get("properties", "").split()


def _encrypted(archive: Archive) -> set[str]:
    """Names of files that are encrypted otherwise than fonts are hidden."""
    names, algorithm = set[str](), ""
    for tag, attributes in parse(archive.read(ENCRYPTION) or "<none/>", _Elements).found:
        if tag == "encrypteddata":
            algorithm = ""
        elif tag == "encryptionmethod":
            algorithm = algorithm or attributes.get("algorithm", "")
        elif tag == "cipherreference" and algorithm not in FONT_OBFUSCATION:
            names.add(_below("", attributes.get("uri", "")))
    return names


def _check_free(encrypted: set[str], needed: set[str]) -> None:
    if hidden := encrypted & needed:
        raise Defect("encrypted (DRM)", f": {min(hidden)}")


def _below(folder: str, address: str) -> str:
    """`OEBPS`, `text/one%20a.xhtml#top` → `OEBPS/text/one a.xhtml`."""
    path = unquote(address.partition("#")[0]).lstrip("/")
    return posixpath.normpath(posixpath.join(folder, path))


class _Elements:
    """Every element with its attributes, without the tree that they form."""

    def __init__(self) -> None:
        self.found: list[tuple[str, dict[str, str]]] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.found.append((tag, attributes))

    def end(self, tag: str) -> None:
        pass

    def data(self, text: str) -> None:
        pass
