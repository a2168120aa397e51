"""Tokens to text while they come, and where a stop string ends it.

text = AnswerText(tokenizer, ["\\n\\n"])
text.add(token)       what may be shown now; nothing while it may still become a stop string
text.rest()           what was held back, once there are no more tokens
text.stopped          a stop string has come; it is not part of the text
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class AnswerText:
    """The text of one answer, in whole characters: half of one at the end is not shown."""

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.stop_strings = tuple(stop_strings)
        self.stream = DecodeStream(skip_special_tokens=True)
        self.shown = ""
        self.held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; what of the text is certain and has not been shown."""
        self.held += self._decoded(token)
        found = [at for stop in self.stop_strings if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, self.held[: min(found)]
        return self._show(0 if self.stopped else self._undecided())

    def _decoded(self, token: int) -> str:
        """What the token makes certain. Tokens of single bytes (Llama 2's) are read as one run: one
        that is no character changes what stands before it, which has been shown, and the stream
        refuses to go on; U+FFFD takes its place and a new stream the rest."""
        try:
            return self.stream.step(self.backend, token) or ""
        except Exception as error:  # tokenizers raises this very class
            if "Invalid prefix" not in str(error):
                raise
            self.stream = DecodeStream(skip_special_tokens=True)
            return "\ufffd" + (self.stream.step(self.backend, token) or "")

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
