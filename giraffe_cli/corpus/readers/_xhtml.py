"""A page of XHTML → its text: blocks become lines, what stands in a line is joined.

    <h1>Loomings</h1><p>Call me <i>Ishmael</i>.</p>  →  Loomings
                                                        (a blank line)
                                                        Call me Ishmael.

White space is folded but in `<pre>`; a row of a table is a line, tabs between its cells. Left out:
the reading aids of ruby, page numbers of the printed book, soft hyphens.
"""

from __future__ import annotations

import re
from collections import Counter

from giraffe_cli.corpus.readers._markup import parse
from giraffe_cli.corpus.readers._records import too_long

PARAGRAPHS = frozenset(
    "p h1 h2 h3 h4 h5 h6 blockquote ul ol dl table pre figure section article aside header footer"
    " main nav hr body address form fieldset details".split()
)
"""Elements with a blank line before and behind them."""
LINES = frozenset("div li dt dd tr caption figcaption legend summary center hgroup option".split())
"""Elements on lines of their own."""
LEFT_OUT = frozenset(
    "head script style svg rt rp rtc template audio video object iframe annotation".split()
    + ["annotation-xml"]
)
"""Elements whose text is no part of the page's."""
OF_HEAD = frozenset("title meta link base script style noscript template".split())
"""What a head holds; where anything else begins it has ended, with or without a tag."""
CELLS = frozenset({"td", "th"})
ENDS_ITSELF = frozenset("p li dt dd tr td th option".split())
"""Elements whose end tag HTML leaves away where the next one begins."""
SPACES = re.compile(r"[ \t\n\r\f\xa0]+")
SOFT_HYPHEN = "\xad"


def text_of_page(markup: str, room: int, limit: int) -> str:
    """The text, without line breaks around it.

    Raises:
        Defect: it is longer than `room` characters, what is left of the `limit` of a document;
            entities can make that of a short page.
    """
    page = parse(markup, lambda: _Page(room, limit))
    return "".join(page.pieces)


class _Page:
    """Gathers the text of a page from its tags."""

    def __init__(self, room: int, limit: int) -> None:
        self.pieces: list[str] = []
        self._room, self._limit = room, limit
        self._open: list[tuple[str, bool]] = []
        """Elements that are open, and whether they are left out."""
        self._count: Counter[str] = Counter()
        self._hidden = 0
        self._gap = ""
        """White space before what comes next: nothing, a space, a tab, one or two line breaks."""
        self._row_empty = self._cell_empty = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._close_unended(tag)
        hidden = tag in LEFT_OUT or _is_page_number(attributes)
        self._open.append((tag, hidden))
        self._count[tag] += 1
        self._hidden += hidden
        self._break(tag)
        if tag == "tr":
            self._row_empty = True
        if tag in CELLS:
            self._cell_empty = True

    def end(self, tag: str) -> None:
        if not self._count[tag]:
            return
        name = ""
        while name != tag:
            name, hidden = self._open.pop()
            self._count[name] -= 1
            self._hidden -= hidden
            if name in CELLS:
                self._cell_empty = False
                self._gap = self._gap if self._row_empty else "\t"
            if name != "br":  # broke its line where it began
                self._break(name)

    def data(self, text: str) -> None:
        if self._hidden:
            return
        text = text.replace(SOFT_HYPHEN, "")
        if self._count["pre"]:
            for number, line in enumerate(text.split("\n")):
                if number:
                    self._break("br")
                self._write(line)
            return
        text = SPACES.sub(" ", text)
        if text.startswith(" "):
            self._gap = self._gap or " "
        self._write(text.strip(" "))
        if text.strip(" ") and text.endswith(" "):
            self._gap = " "

    def _write(self, text: str) -> None:
        if not text:
            return
        if self.pieces:
            self.pieces.append(self._gap)
        self.pieces.append(text)
        self._gap = ""
        self._row_empty = self._cell_empty = False
        self._room -= len(text)
        if self._room < 0:
            raise too_long(self._limit)

    def _break(self, tag: str) -> None:
        """The line breaks before or behind an element; none where a cell begins."""
        lines = 2 if tag in PARAGRAPHS else 1 if tag in LINES or tag == "br" else 0
        if not lines or (self._cell_empty and tag not in ("tr", "table")):
            return
        before = self._gap.count("\n")
        self._gap = "\n" * (min(2, before + 1) if tag == "br" else max(lines, before))

    def _close_unended(self, tag: str) -> None:
        """What HTML ends without saying so: a paragraph where the next begins, the head."""
        if self._count["head"] and tag not in OF_HEAD:
            self.end("head")
        elif self._open and self._open[-1][0] in ENDS_ITSELF and tag in ENDS_ITSELF:
            last = self._open[-1][0]
            if last == tag or {last, tag} in ({"dt", "dd"}, CELLS):
                self.end(last)


def _is_page_number(attributes: dict[str, str]) -> bool:
    """Whether it marks where a page of the printed book begins."""
    kinds = attributes.get("type", "").split() + attributes.get("role", "").split()
    return "pagebreak" in kinds or "doc-pagebreak" in kinds
