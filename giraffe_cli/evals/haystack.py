"""Text that needles are hidden in: the user's, else the documentation inside the running Python.

    Haystack(["It was dark. She ran."]).cut(start, 3)   → ["It", "was", "dark."]

    noise_lines(7)   → [five sentences, two sentences]

Slices begin at a sentence, wrap around at the end, and are cut at words, so that any length can be
filled to the token. Text that has no blanks between words, as Chinese, Japanese or Thai, or code
that was minified, is cut every few characters and put together again without a trace.
"""

from __future__ import annotations

import ast
import importlib
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.units import format_length

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
"""Filler that says nothing, of the passkey task and of RULER."""
_ENDS = re.compile(r"[.!?…。！？．।॥؟۔։።][\"'”’)»」』]*$")
LONGEST_WORD, PIECE = 60, 8
"""Characters: what is longer is no word but text without blanks, and how long its pieces are, so
that one of them is at most 24 tokens even where every byte is one."""
_GLUE = "\0"
"""Begins a piece that no blank stands before; no corpus holds one."""
_PIECES = re.compile(rf".{{0,{PIECE - 1}}}?[…。！？．।॥؟۔։][\"'”’)»」』]*|.{{1,{PIECE}}}")
_FARTHEST = 20
"""A needle is moved by at most one in so many of the words, or 8: in text without sentence ends,
such as a transcript, every depth but the last was the beginning."""
MOST_PER_TOKEN = 20
"""Characters: text of more than so many for every token that is wanted is long enough unread."""
SHORTEST_DOCSTRING = 400
"""Characters: shorter docstrings are no running text."""


class Haystack:
    """The words of some texts, one after the other.

    Raises:
        InvalidInput: there are none.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.words = [piece for text in texts for word in text.split() for piece in pieces(word)]
        if not self.words:
            raise InvalidInput(
                f"the haystack holds no words in {len(texts)} texts",
                "name a corpus that holds text with --haystack",
            )
        ends = [place for place, word in enumerate(self.words) if _ENDS.search(word)]
        self.starts = [0, *(place + 1 for place in ends if place + 1 < len(self.words))]

    def start(self, generator: np.random.Generator) -> int:
        """A sentence to begin with."""
        return self.starts[int(generator.integers(len(self.starts)))]

    def cut(self, start: int, count: int) -> list[str]:
        """`count` words from `start` on, from the beginning again after the last."""
        words = self.words[start : start + count]
        while len(words) < count:
            words += self.words[: count - len(words)]
        return words


def pieces(word: str) -> list[str]:
    """The word; or, of text without blanks, what it is cut into, a sentence's end always last."""
    if len(word) <= LONGEST_WORD:
        return [word]
    first, *others = _PIECES.findall(word)
    return [first, *(_GLUE + piece for piece in others)]


def joined(words: Sequence[str]) -> str:
    """Words with a blank between them, pieces of one as they stood."""
    return " ".join(words).replace(" " + _GLUE, "").replace(_GLUE, "")


def too_short(texts: Sequence[str], encode: Callable[[str], list[int]], longest: int) -> str:
    """What to say where a prompt of `longest` tokens holds `texts` more than once; "" where they
    are long enough, or there are none."""
    if not texts or sum(map(len, texts)) > MOST_PER_TOKEN * longest:
        return ""
    tokens = len(encode(" ".join(texts)))
    if tokens >= longest:
        return ""
    return (
        f"the haystack holds {tokens:,} tokens, and a prompt of {format_length(longest)} repeats "
        f"it {longest / max(1, tokens):,.1f} times: a needle in such text is easier to find; name "
        "more text with --haystack"
    )


def sentence_border(words: Sequence[str], depth: float) -> int:
    """Words before a needle at `depth` (0 first, 1 last): the end of the sentence before, if one is
    near, else between two words."""
    wanted = round(depth * len(words))
    if wanted == len(words):
        return wanted
    nearest = max(0, wanted - max(8, len(words) // _FARTHEST))
    for place in range(wanted, nearest - 1, -1):
        if place == 0 or _ENDS.search(words[place - 1]):
            return place
    return wanted


def noise(start: int, stop: int) -> str:
    """Sentences of `NOISE` from number `start` to before number `stop`."""
    return " ".join(NOISE[place % len(NOISE)] for place in range(start, stop))


def noise_lines(sentences: int) -> list[str]:
    """So many sentences, all of `NOISE` to a line; the last line may be shorter."""
    step = len(NOISE)
    return [noise(first, min(first + step, sentences)) for first in range(0, sentences, step)]


def python_documentation() -> list[str]:
    """Docstrings of the standard library and the help topics of the running Python."""
    return [*python_topics(), *_docstrings()]


def python_topics() -> list[str]:
    """The help topics of the running Python."""
    topics = importlib.import_module("pydoc_data.topics").topics
    return [str(topics[name]) for name in sorted(topics)]


def _docstrings() -> Iterator[str]:
    """Read, not imported: a module may do anything when it is imported."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes))
        yield from (text for text in found if text and len(text) >= SHORTEST_DOCSTRING)
