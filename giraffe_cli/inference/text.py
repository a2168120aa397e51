"""Tokens to text while they come, and where a stop string ends it.

text = AnswerText(tokenizer, ["\\n\\n", "<|im_end|>"], prompt_ids)
text.add(token)       what may be shown now; nothing while it may still become a stop string
text.rest()           what was held back, once there are no more tokens
text.stopped          a stop string has come; it is not part of the text

The text is what the answer adds to the prompt's: a decoder that takes the space from the beginning
of a text (Llama 2's) would take it from the beginning of every answer, decoded by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

HALF = "\ufffd"
"""What stands for bytes that are no character, or none yet."""
_CONTEXT = 8
"""Tokens of the prompt that are decoded with the answer's first; more where these are not enough:
the whole of a book would take a second."""


class AnswerText:
    """The text of one answer, in whole characters: half of one at the end is not shown."""

    def __init__(
        self, tokenizer: Any, stop_strings: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        """`prompt` are the token ids that the answer follows."""
        self.backend = tokenizer.backend_tokenizer
        self.stop_strings = tuple(stop_strings)
        self.stop_tokens = _added_tokens(self.backend, self.stop_strings)
        self.tokens, self.before = _end_of(self.backend, prompt)
        self.unshown = 0  # of `tokens`, those at the end whose text has not been given
        self.shown = ""
        self.held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; what of the text is certain and has not been shown."""
        if token in self.stop_tokens:
            self.stopped = True
            return self._show(0)
        self.held += self._decoded(token)
        found = [at for stop in self.stop_strings if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, self.held[: min(found)]
        return self._show(0 if self.stopped else self._undecided())

    def _decoded(self, token: int) -> str:
        """What the token makes certain. Decoded with the tokens that gave the last piece of text,
        whose own text `before` is known, so that nothing at its beginning is the decoder's doing.
        """
        self.tokens.append(token)
        self.unshown += 1
        text = _decode(self.backend, self.tokens)
        if text.endswith(HALF) or self.before.startswith(text):
            return ""
        certain = self._behind(text)
        self.tokens, self.unshown = self.tokens[-self.unshown :], 0
        self.before = _decode(self.backend, self.tokens)
        return certain

    def _behind(self, text: str) -> str:
        """`text` without what has been shown. Tokens of single bytes (Llama 2's) are read as one
        run: one that is no character changes what stands before it, which has been shown; U+FFFD
        takes its place then."""
        alike = commonprefix([self.before, text])
        if not self.before[len(alike) :].strip(HALF):  # or half a character has become a whole one
            return text[len(alike) :]
        broken = _decode(self.backend, self.tokens[:-1])
        return HALF + text[len(commonprefix([broken, text])) :]

    def rest(self) -> str:
        """What was held back in case a stop string came."""
        return self._show(0)

    def _undecided(self) -> int:
        """Characters at the end with which a stop string may begin."""
        longest = max((len(stop) - 1 for stop in self.stop_strings), default=0)
        return next(
            (
                count
                for count in range(min(longest, len(self.held)), 0, -1)
                if any(stop.startswith(self.held[-count:]) for stop in self.stop_strings)
            ),
            0,
        )

    def _show(self, held: int) -> str:
        cut = len(self.held) - held
        certain, self.held = self.held[:cut], self.held[cut:]
        self.shown += certain
        return certain


def _decode(backend: Any, tokens: Sequence[int]) -> str:
    return str(backend.decode(list(tokens), skip_special_tokens=True))


def _added_tokens(backend: Any, texts: Sequence[str]) -> set[int]:
    """The ids of those of `texts` that are one added token each: special ones give no text that
    could be searched."""
    added = backend.get_added_tokens_decoder().items()
    return {token for token, entry in added if entry.content in texts}


def _end_of(backend: Any, prompt: Sequence[int]) -> tuple[list[int], str]:
    """The last tokens of `prompt` and their text: so many that they have one, and do not begin or
    end within a character unless the prompt does."""
    count = _CONTEXT
    while True:
        tokens = list(prompt[-count:])
        text = _decode(backend, tokens)
        if len(tokens) < count or (text and HALF not in text):
            return tokens, text
        count *= 2
