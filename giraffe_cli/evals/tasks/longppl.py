"""LongPPL: loss on the tokens that need far context, as a reference model tells them.

A reference model reads each block of targets twice: with its far context and with its near one
only. Key tokens are those it gains on, and which it then predicts well:

    loss_near - loss_far > alpha   and   loss_far < beta          nats; 2 and 2 in the paper

The models under test are scored on the key tokens alone, under each length. Most tokens of a text
need no far context, so their mean loss hides whether a model uses any.

The reference is the evaluator where one is given, else the base, else the checkpoint. It never
reads beyond its own window (`Material.reference_length`), where its loss would mean nothing, nor
more than the longest evaluated length. Key tokens of different references are different tokens:
such scores are not comparable, and the settings of a result name the reference and its digest. A
small reference gains on few tokens: their share is always reported; lower `alpha` when there are
too few.
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
from giraffe_cli.evals.windows import (
    anchors,
    check_targets,
    long_enough,
    longest_length,
    window,
)


@dataclass(frozen=True)
class Longppl(AbstractTask):
    """Mean loss of the key tokens, each token counting once."""

    summary: ClassVar[str] = "NLL of the tokens that a reference model needs far context for"
    source: ClassVar[str] = "LongPPL, Fang et al. 2024"
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure("loss of the tokens that need far context", False, "mean", 0, "nats"),
        "key-tokens": Measure(
            "share of all target tokens that need far context, by the reference model",
            True,  # of the reference; of the models under test it is the same, whatever they do
            "share",
            reaches=False,
        ),
    }
    when_empty: ClassVar[str] = (
        "the reference model gains on no token; lower the bar with --set longppl.alpha=1, read "
        "more with --set longppl.anchors=16, or name a stronger --evaluator"
    )
    needs: ClassVar[tuple[str, ...]] = ("documents",)
    least: ClassVar[Mapping[str, int]] = {"near": 0}

    alpha: float = 2.0
    """Nats that far context must gain."""
    beta: float = 2.0
    """Nats that the loss with far context must stay below."""
    near: int = 0
    """Tokens of the near context; 0: a quarter of what the reference model reads."""
    anchors: int = 4
    """Blocks of targets in a document, those of `nll`."""
    targets: int = 256
    """Tokens in a block."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """The windows of `nll` at `length`, and under each length the same two readings of the
        reference model; its windows may be longer than `length`.

        Raises:
            InvalidInput: no document reaches the longest length, or a window holds no context.
        """
        check_targets("longppl", length, self.targets, material)
        longest = longest_length(length, material)
        far = min(material.reference_length or longest, longest)
        near = (self.near or far // 4) + self.targets
        if not self.targets + len(material.bos_token_ids) < near < far:
            raise InvalidInput(
                f"task `longppl`: a near context of {near - self.targets} tokens before "
                f"{self.targets} targets is not shorter than the {far} tokens that the reference "
                "model reads",
                "--set longppl.near=TOKENS, or lower longppl.targets",
            )
        return [
            example
            for document in long_enough("longppl", material.documents, longest)
            for end in anchors(len(document.token_ids), longest, self.anchors, self.targets)
            for example in self._block(document, end, length, far, near, material)
        ]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Mean over the key tokens, weighted by their number, where there are any."""
        far, near = (reference[f"{example.key} {context}"] for context in ("far", "near"))
        gained = near.target_nll - far.target_nll > self.alpha
        key = gained & (far.target_nll < self.beta)
        share = {"key-tokens": Value(float(np.mean(key)), len(key))}
        if not key.any():
            return share
        return {"": Value(float(np.mean(outcome.target_nll[key])), int(key.sum())), **share}

    def _block(
        self,
        document: TokenDocument,
        end: int,
        length: int,
        far: int,
        near: int,
        material: Material,
    ) -> list[Example]:
        scored = window(document, end, length, self.targets, material)
        readings = [
            replace(
                window(document, end, tokens, self.targets, material),
                key=f"{scored.key} {context}",
                length=length,
                for_reference=True,
            )
            for context, tokens in (("far", far), ("near", near))
        ]
        return [scored, *readings]
