"""LAMBADA: the last word of a passage, which only the whole passage tells.

    ... As I stare at Harlin, his mouth curved in a confident grin, I don't care about   →   signs

The word is what follows the last space, as in the raw-text variant of the data; it counts when each
of its tokens is the most probable one after those before. A test of short context: passages of some
80 tokens, asked once, at the longest evaluated length within the native window. The text is read
bare, also under `--chat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.data_files import check_room, choose, read_rows, row_cluster
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.evals.prompt import continuation
from giraffe_cli.evals.windows import longest_within_native


@dataclass(frozen=True)
class Lambada(AbstractTask):
    """Share of last words that the model continues with, and their loss."""

    summary: ClassVar[str] = "the last word of a passage"
    source: ClassVar[str] = "Paperno et al. 2016; raw-text variant of Radford et al. 2019"
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure(
            "the last word of a passage is the most probable one", True, "proportion", reaches=False
        ),
        "nll": Measure(
            "loss of the last word, all its tokens", False, "mean", 0, "nats", reaches=False
        ),
    }
    needs: ClassVar[tuple[str, ...]] = ("lambada",)

    samples: int = 1000
    """Passages, the first of a shuffle; all where the file holds fewer."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """One prompt a passage, as short as it is; none at other lengths than the one asked at.

        Raises:
            InvalidInput: no file or another form, a passage longer than `length`, or no evaluated
                length within the native window.
        """
        if length != longest_within_native("lambada", length, material):
            return []
        rows = read_rows(material, "lambada", {"text": str})
        return [
            self._example(place, row, length, material)
            for place, row in choose(rows, self.samples, seed)
        ]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """1 where the word's every token is the most probable; nats of the whole word."""
        return {
            "": Value(float(outcome.candidate_greedy[0])),
            "nll": Value(outcome.candidate_nll[0]),
        }

    def _example(self, place: int, row: dict[str, Any], length: int, material: Material) -> Example:
        context, space, word = row["text"].rstrip().rpartition(" ")
        if not context or not word:
            raise InvalidInput(
                f"task `lambada`: row {place} has no last word after a space: {row['text']!r}",
                "--file lambada=PATH of another file",
            )
        ids = [*material.bos_token_ids, *material.encode(context)]
        answer = continuation(material, context, space + word)
        check_room("lambada", place, len(ids) + len(answer), length)
        return Example(
            key=f"row {place}",
            cluster=row_cluster(ids, [answer]),
            length=length,
            token_ids=np.asarray(ids, np.int32),
            answers=(word,),
            candidates=(answer,),
            details={"row": place},
        )
