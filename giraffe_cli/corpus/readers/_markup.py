"""XML of people: read as such where it is well-formed, by `html.parser` where it is not.

    parse(read_as_text(data), Tags)     a target that both parsers tell the same things

Tags and attributes come in lower case without their name space.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Callable
from html.entities import html5
from html.parser import HTMLParser
from typing import Protocol, TypeVar
from xml.etree.ElementTree import ParseError, XMLParser

from giraffe_cli.corpus.readers._records import Defect

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""How a file may begin → its encoding, whatever it declares."""
OF_XML = re.compile(rb"""^\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""")
OF_HTML = re.compile(rb"""<meta[^>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
HEAD_BYTES = 2048
"""Searched for a declared encoding."""
NAMED = re.compile(r"&(\w+;)")
VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
"""Elements without an end tag in HTML."""


class Target(Protocol):
    """What is told in the order of the file; of XML every start has its end."""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""

    def end(self, tag: str) -> None:
        """One ends."""

    def data(self, text: str) -> None:
        """A piece of the text between them."""


Some = TypeVar("Some", bound=Target)


def read_as_text(data: bytes) -> str:
    """By byte order mark, else as the XML declaration says, else as UTF-8 or as a `<meta>` says.

    Line breaks are `\\n` afterwards.

    Raises:
        Defect: it is not in that encoding, or there is none of that name.
    """
    names = _encodings(data)
    for name in names:
        with contextlib.suppress(UnicodeError, LookupError):
            return data.decode(name).replace("\r\n", "\n").replace("\r", "\n")
    raise Defect("not in the encoding that it declares", f": {' or '.join(names)}")


def _encodings(data: bytes) -> list[str]:
    if marked := [name for mark, name in MARKS.items() if data.startswith(mark)]:
        return marked
    if match := OF_XML.search(data[:HEAD_BYTES]):
        return [match[1].decode()]
    return ["utf-8", *(match[1].decode() for match in OF_HTML.finditer(data[:HEAD_BYTES]))]


def parse(text: str, new: Callable[[], Some]) -> Some:
    """A `new()` target that was told all of `text`.

    Raises:
        Defect: neither parser can read it.
    """
    target = new()
    parser = XMLParser(target=_Plain(target))
    try:
        # Entities of HTML are not XML's own, and the DTDs that declare them are not read.
        parser.feed(NAMED.sub(_character, text))
        parser.close()
    except (ParseError, ValueError):
        target = new()
        _read_leniently(text, target)
    return target


def _read_leniently(text: str, target: Target) -> None:
    parser = _Lenient(target)
    try:
        parser.feed(text)
        parser.close()
    except AssertionError as error:  # of Python before 3.13: `<![` and no known word
        raise Defect("broken markup", f" ({error})") from error


def _character(match: re.Match[str]) -> str:
    found = html5.get(match[1], match[0])
    return match[0] if found in "<>&" else found


def _local(name: str) -> str:
    return name.rpartition("}")[2].rpartition(":")[2].lower()


class _Plain:
    """Takes the names of XML apart."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.data = target.data

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._target.start(_local(tag), {_local(key): value for key, value in attributes.items()})

    def end(self, tag: str) -> None:
        self._target.end(_local(tag))


class _Lenient(HTMLParser):
    """Tells a target what HTML holds, be it ever so broken."""

    RCDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]  # final, but the class's own switch
    """A `<title>` without its end is no title of all that follows (it is from Python 3.14 on)."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._target.start(_local(tag), {_local(key): value or "" for key, value in attrs})
        if tag in VOID:
            self._target.end(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            self._target.end(_local(tag))

    def handle_data(self, data: str) -> None:
        self._target.data(data)
