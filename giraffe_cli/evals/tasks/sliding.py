"""Sliding-window perplexity, the protocol of the literature's tables, weighted by tokens.

A window of `length` tokens slides over the first `tokens` tokens of a document. The first window
scores all its tokens but the first, every later one the `stride` tokens that are new in it:

    tokens=10, length=4, stride=2, no BOS:   t0 [t1 t2 t3]   t2 t3 [t4 t5]   t4 t5 [t6 t7]  ...

So under every length the same tokens are scored, all but the first of each document, with at most
`length` and (after the first window) at least `length - stride` tokens of context. They are
weighted by tokens: the mean over windows that some tables report counts the first window, 16,383
tokens at 16k, no more than one of 256. Where `tokens - length` is no multiple of the stride, the
second window is the odd one, so that later ones are the same at all lengths; differences between
lengths are paired over the windows that end beyond the longest length.

It costs `length * (1 + (tokens - length) / stride)` tokens a document, and windows share no prefix:
70,000 tokens at 1k and 150,000 at 16k with the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import (
    AbstractTask,
    Example,
    Material,
    Outcome,
    Reference,
    TokenDocument,
)
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.evals.windows import bits_per_byte, long_enough, longest_length, window


@dataclass(frozen=True)
class Sliding(AbstractTask):
    """Mean loss of each token of the documents' beginning, read through a sliding window."""

    summary: ClassVar[str] = "sliding-window perplexity, every token of the documents' beginning"
    source: ClassVar[str] = (
        "Press et al. 2022; stride 256 as in position interpolation, YaRN and LongLoRA"
    )
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure("loss of each token in a sliding window", False, "mean", 0, "nats"),
        "bits-per-byte": Measure(
            "the same in bits for each byte of text, comparable between tokenizers",
            False,
            "mean",
            0,
            "bits",
        ),
    }
    needs: ClassVar[tuple[str, ...]] = ("documents",)
    least: ClassVar[Mapping[str, int]] = {"tokens": 0}

    stride: int = 256
    """Tokens by which the window moves; those new in it are scored."""
    tokens: int = 0
    """Tokens of each document that are read at the most, from its beginning; 0: eight strides more
    than the longest length."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """Every window of each document at least a stride longer than the longest length.

        Raises:
            InvalidInput: there is no such document, `tokens` is too few for that, or the window is
                no longer than the stride.
        """
        least = longest_length(length, material) + self.stride
        most = self.tokens or least + 7 * self.stride
        if most < least:
            raise InvalidInput(
                f"task `sliding`: tokens is {most}, a window of {least - self.stride} and one "
                f"stride take {least}",
                f"--set sliding.tokens={least + 7 * self.stride}",
            )
        if length < self.stride + len(material.bos_token_ids) + 1:
            raise InvalidInput(
                f"task `sliding`: length {length} leaves no context before a stride of "
                f"{self.stride}",
                f"--set sliding.stride={max(1, length // 4)}",
            )
        return [
            example
            for document in long_enough("sliding", material.documents, least)
            for example in self._windows(document, most, length, material)
        ]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Mean over the targets, weighted by their number; bits weighted by bytes."""
        nats = outcome.target_nll
        return {
            "": Value(float(np.mean(nats)), len(nats)),
            "bits-per-byte": Value(
                bits_per_byte(example, float(np.sum(nats))), example.details["bytes"]
            ),
        }

    def _windows(
        self, document: TokenDocument, most: int, length: int, material: Material
    ) -> list[Example]:
        tokens = min(most, len(document.token_ids))
        # backwards from the end, so that windows of all lengths end at the same places
        later = range(tokens, length, -self.stride)
        ends = [length, *reversed(later)]
        scored = [length - 1, *(int(step) for step in np.diff(ends))]
        return [
            replace(found, key=f"{document.id}[{end - targets}:{end}]")
            for end, targets in zip(ends, scored, strict=True)
            for found in [window(document, end, length, targets, material)]
        ]
