"""The text of a PDF's pages without what only its paper needed: ligatures, hyphens at the ends of
lines, titles and numbers of pages.

    joined_words("an exam-\\nple of") → "an example of"
"""

from __future__ import annotations

import re
from collections import Counter

FEWEST_PAGES = 4
"""From which on a repeated line is a running one."""
RUNNING_LINES = 2
LETTERS = str.maketrans(
    {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
    | {chr(code): None for code in range(32) if chr(code) not in "\t\n"}
)
"""Ligatures to letters; control characters, which fonts without a table of letters yield, go."""
HYPHENATED = re.compile(r"(?<![^\W\d_])([^\W\d_]+)[-\xad\u2010]\n[ \t]*([^\W\d_]+)")
"""Words begin where no letter stands before them, which keeps the search linear in long runs."""
COMPOUND = re.compile(r"(?<![^\W\d_])[^\W\d_]+-[^\W\d_]+")


def legible(text: str) -> str:
    """Letters for ligatures; halves of surrogate pairs joined, or replaced where they are alone."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\r\n", "\n").replace("\f", "\n").translate(LETTERS)


def without_running_lines(pages: list[list[str]]) -> list[list[str]]:
    """`pages` without titles and page numbers that stand at the edge of most of them.

    [["Emma", "a", "1"], ["Emma", "b", "2"], ["Emma", "c", "3"], ["d"]] → [["a"], ["b"], ["c"], …
    """
    if len(pages) < FEWEST_PAGES:
        return pages
    for edge in [0, -1] * RUNNING_LINES:
        marks = Counter(_mark(page[edge]) for page in pages if page)
        for mark, count in marks.most_common(1):
            if count > len(pages) / 2:
                pages = [_without(page, edge, mark) for page in pages]
    return pages


def _without(page: list[str], edge: int, mark: str) -> list[str]:
    if not page or _mark(page[edge]) != mark:
        return page
    return page[1:] if edge == 0 else page[:-1]


def _mark(line: str) -> str:
    """A line, whatever page it numbers."""
    return re.sub(r"\d+", "#", " ".join(line.split()))


def joined_words(text: str) -> str:
    """`text` with the words whole that are cut at the ends of lines.

    an exam-   →  an example of
    ple of
    """
    compounds = set(COMPOUND.findall(text))

    def join(match: re.Match[str]) -> str:
        left, right = match.groups()
        if not (left.islower() and right.islower()):
            return match[0]
        return f"{left}-{right}" if f"{left}-{right}" in compounds else left + right

    return HYPHENATED.sub(join, text)
