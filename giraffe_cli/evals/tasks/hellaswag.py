"""HellaSwag: which of four endings goes on, by log-probability for each of its characters.

    Personal Care and Style: How to paint jeans. Cover your work area. ...
    + " Cover the top areas of your work area with paper towels ..."     -1.9 a character → chosen

An ending's log-probability is divided by its characters, the usual `acc_norm`; without it short
endings win. Chance is one in four. A test of short context: some 100 tokens, asked once, at the
longest evaluated length within the native window. The text is read bare, also under `--chat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import (
    AbstractTask,
    Example,
    Material,
    Measure,
    Outcome,
    Reference,
    Value,
)
from giraffe_cli.evals.data_files import check_room, choose, read_rows
from giraffe_cli.evals.prompt import continuation
from giraffe_cli.evals.windows import longest_within_native

ENDINGS = 4


@dataclass(frozen=True)
class Hellaswag(AbstractTask):
    """Share of items whose true ending is the most probable by character."""

    summary: ClassVar[str] = "which of four endings goes on"
    source: ClassVar[str] = "Zellers et al. 2019; acc_norm of lm-evaluation-harness"
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure(
            "the true ending is the most probable of four, by character",
            True,
            "proportion",
            1 / ENDINGS,
        )
    }
    needs: ClassVar[tuple[str, ...]] = ("hellaswag",)

    samples: int = 1000
    """Items, the first of a shuffle; all where the file holds fewer."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """One prompt an item, as short as it is; none at other lengths than the one asked at.

        Raises:
            InvalidInput: no file or another form, an item longer than `length`, or no evaluated
                length within the native window.
        """
        if length != longest_within_native("hellaswag", length, material):
            return []
        fields = {"ctx": str, "label": int, "endings": list}
        rows = read_rows(material, "hellaswag", fields)
        return [
            self._example(place, row, length, material)
            for place, row in choose(rows, self.samples, seed)
        ]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """1 where the first candidate, the true one, loses least for each character."""
        sizes = example.details["characters"]
        losses = [nats / size for nats, size in zip(outcome.candidate_nll, sizes, strict=True)]
        return {"": Value(float(losses[0] < min(losses[1:])))}

    def _example(self, place: int, row: dict[str, Any], length: int, material: Material) -> Example:
        endings = [ending for ending in row["endings"] if isinstance(ending, str) and ending]
        if len(endings) != ENDINGS or row["label"] not in range(ENDINGS):
            raise InvalidInput(
                f"task `hellaswag`: row {place} has not {ENDINGS} endings and the place of one",
                "--file hellaswag=PATH of another file",
            )
        true_first = [endings.pop(row["label"]), *endings]
        ids = [*material.bos_token_ids, *material.encode(row["ctx"])]
        candidates = tuple(
            continuation(material, row["ctx"], f" {ending}") for ending in true_first
        )
        check_room("hellaswag", place, len(ids) + max(map(len, candidates)), length)
        return Example(
            key=f"row {place}",
            cluster=f"row {place}",
            length=length,
            token_ids=np.asarray(ids, np.int32),
            answers=(true_first[0],),
            candidates=candidates,
            details={"row": place, "characters": [len(ending) for ending in true_first]},
        )
