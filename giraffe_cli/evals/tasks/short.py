"""What an extension costs within the native window: loss, and how far the predictions moved.

Windows of held-out documents at every evaluated length up to the native one, the same targets
under each, are read by every model; the same of text from another domain (`other`), where a
fine-tune on one domain shows first. Beside a base the next-token distributions at the targets are
compared as well:

    kl   KL(base || model) = Σ_v p_base(v) log(p_base(v) / p_model(v))    nats, whole vocabulary

A loss may stay while predictions move, since gains in the domain of the training text hide
losses: the divergence does not cancel. Text of another domain is that of `--other-data`, else the
help topics inside the running Python: prose that no source file of the standard library holds
(`other_text.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.evals.windows import (
    anchors,
    check_targets,
    long_enough,
    longest_within_native,
    window,
)


@dataclass(frozen=True)
class Short(AbstractTask):
    """Mean loss within the native window, and divergence from the base there."""

    summary: ClassVar[str] = "loss within the native window, and divergence from the base"
    source: ClassVar[str] = "paired NLL and KL of next-token distributions at native length"
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure("loss of held-out text within the native window", False, "mean", 0, "nats"),
        "other": Measure(
            "loss of text of another domain within the native window", False, "mean", 0, "nats"
        ),
        "kl": Measure(
            "divergence of the predictions from the base's on held-out text",
            False,
            "mean",
            0,
            "nats",
            against_base=True,
        ),
    }
    needs: ClassVar[tuple[str, ...]] = ("documents", "other_text")

    anchors: int = 4
    """Blocks of targets in a document, evenly spaced; fewer where they would overlap."""
    targets: int = 256
    """Tokens in a block."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """One window for each document and anchor, each exactly `length` tokens; none beyond the
        native window.

        Raises:
            InvalidInput: no evaluated length lies within the native window, no document of either
                domain is as long as the longest that does, or `length` leaves no context.
        """
        longest = longest_within_native("short", length, material)
        if length > longest:
            return []
        check_targets("short", length, self.targets, material)
        found = []
        for domain, documents in (("", material.documents), ("other", material.other_text)):
            for document in long_enough("short", documents, longest):
                size = len(document.token_ids)
                for end in anchors(size, longest, self.anchors, self.targets):
                    example = window(document, end, length, self.targets, material)
                    found.append(
                        replace(
                            example,
                            key=f"{domain} {example.key}".strip(),
                            cluster=f"{domain} {example.cluster}".strip(),
                            compared=not domain,
                            details={**example.details, "domain": domain or "held-out"},
                        )
                    )
        return found

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Mean over the targets, nats."""
        nats = Value(float(np.mean(outcome.target_nll)))
        if not example.compared:
            return {"other": nats}
        if outcome.divergence is None:
            return {"": nats}
        return {"": nats, "kl": Value(float(np.mean(outcome.divergence)))}

    def bears_on(self, example: Example) -> tuple[str, ...]:
        """Text of another domain has a measure of its own."""
        return ("", "kl") if example.compared else ("other",)
