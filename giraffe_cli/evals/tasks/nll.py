"""Fixed-target, nested-context NLL: the same tokens scored with more and more text before them.

For a document and an anchor `a` the targets are the K tokens `[a-K, a)`, whatever the length L;
the context is the L-K tokens before them. So NLL(L) - NLL(native) is the gain from far context and
nothing else: scoring tokens `0..L` would change which tokens are scored as L grows.

    K=2, longest=6, document t0..t7, anchor 6, no BOS:   L=4 → t2 t3 [t4 t5]   L=6 → t0..t3 [t4 t5]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from giraffe_cli.errors import InvalidInput, raise_together
from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, TokenDocument


@dataclass(frozen=True)
class Nll(AbstractTask):
    """Mean negative log-likelihood of held-out text, nats per token."""

    summary: ClassVar[str] = "NLL of the same held-out tokens under each context length"
    source: ClassVar[str] = "fixed-target form of perplexity by length (YaRN, Peng et al. 2023)"
    higher_is_better: ClassVar[bool] = False
    proportion: ClassVar[bool] = False

    anchors: int = 4
    """Blocks of targets in a document, evenly spaced; fewer where they would overlap."""
    targets: int = 256
    """Tokens in a block, K."""
    longest: int = 0
    """Longest length evaluated, in tokens: anchors depend on it, so that they are the same at
    every length. 0: the length asked for."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be {least} or more"
            for name, value, least in (
                ("anchors", self.anchors, 1),
                ("targets", self.targets, 1),
                ("longest", self.longest, 0),
            )
            if not isinstance(value, int) or value < least
        ]
        raise_together(problems, "task `nll`")

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """One sample per document and anchor, each exactly `length` tokens; `seed` is not used.

        A tokenizer's BOS takes the place of the first context token.

        Raises:
            InvalidInput: no document reaches the longest length, or `length` leaves no context.
        """
        longest = max(self.longest, length)
        if length < self.targets + len(material.bos_token_ids) + 1:
            raise InvalidInput(
                f"task `nll`: length {length} leaves no context before {self.targets} targets",
                f"lower the targets, such as --set nll.targets={max(1, length // 4)}",
            )
        usable = [doc for doc in material.documents if len(doc.token_ids) >= longest]
        if not usable:
            raise InvalidInput(
                f"task `nll`: none of {len(material.documents)} documents has {longest} tokens; "
                f"the longest has {max((len(d.token_ids) for d in material.documents), default=0)}",
                "evaluate on longer documents, or at shorter lengths",
            )
        return [
            self._example(document, anchor, length, material.bos_token_ids)
            for document in usable
            for anchor in self._anchors(len(document.token_ids), longest)
        ]

    def score(self, example: Example, outcome: Outcome) -> float:
        """Mean over the targets, nats per token."""
        return float(np.mean(outcome.target_nll))

    def _anchors(self, size: int, longest: int) -> Iterator[int]:
        """Positions just after the last target, evenly over `[longest, size]`."""
        count = min(self.anchors, 1 + (size - longest) // self.targets)
        return (int(position) for position in np.linspace(longest, size, count))

    def _example(
        self, document: TokenDocument, anchor: int, length: int, bos: tuple[int, ...]
    ) -> Example:
        context = document.token_ids[anchor - length + len(bos) : anchor]
        return Example(
            key=f"{document.id}@{anchor}",
            cluster=document.id,
            length=length,
            token_ids=np.concatenate([np.asarray(bos, np.int32), context]).astype(np.int32),
            num_targets=self.targets,
            details={"document": document.id, "anchor": anchor},
        )
