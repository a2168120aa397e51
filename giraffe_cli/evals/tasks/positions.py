"""The position curve: loss by the place of a token, from one reading of the longest length.

    L=1024, bucket=256:   tokens 1..255 | 256..511 | 512..767 | 768..1023   → four means

Later tokens have more text before them, so the curve of a model that uses it falls. Unlike `nll`
it compares different tokens: early ones are harder whatever the model does with far text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.measures import Measure, Value


@dataclass(frozen=True)
class Positions(AbstractTask):
    """Mean loss over the whole of the longest window, and along it."""

    summary: ClassVar[str] = "loss by the position of the token in the longest window"
    source: ClassVar[str] = "YaRN, Peng et al. 2023 (loss along the window)"
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure("loss of all tokens of the longest window", False, "mean", 0, "nats")
    }
    needs: ClassVar[tuple[str, ...]] = ("documents",)

    bucket: int = 256
    """Tokens in one point of the curve."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """The first window of each document that fills the longest length; none at the others.

        Its prompt is that of the first anchor of `nll`, so that both are read at once.

        Raises:
            InvalidInput: no document reaches the longest length.
        """
        if length < max((length, *material.lengths)):
            return []
        bos = np.asarray(material.bos_token_ids, np.int32)
        usable = [doc for doc in material.documents if len(doc.token_ids) >= length]
        if not usable:
            raise InvalidInput(
                f"task `positions`: none of {len(material.documents)} documents has {length} "
                "tokens",
                "evaluate on longer documents, or at shorter lengths",
            )
        return [
            Example(
                key=document.id,
                cluster=document.id,
                length=length,
                token_ids=np.concatenate([bos, document.token_ids[len(bos) : length]]).astype(
                    np.int32
                ),
                num_targets=length - 1,
                details={"document": document.id},
            )
            for document in usable
        ]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Mean over all tokens, nats."""
        return {"": Value(float(np.mean(outcome.target_nll)), len(outcome.target_nll))}

    def curve(self, example: Example, outcome: Outcome) -> dict[str, Value]:
        """Mean loss of each bucket, under the position of its first token."""
        places = np.arange(1, example.length) // self.bucket
        return {
            str(int(place) * self.bucket): Value(
                float(outcome.target_nll[places == place].mean()), int((places == place).sum())
            )
            for place in np.unique(places)
        }
