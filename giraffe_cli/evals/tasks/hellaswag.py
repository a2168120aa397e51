"""HellaSwag: which of four endings goes on, by log-probability for each of its characters.

    Personal Care and Style: How to paint jeans. Cover your work area. ...
    + " Cover the top areas of your work area with paper towels ..."     -1.9 a character → chosen

Rows as they were published (`activity_label`, `ctx_a`, `ctx_b`) are rendered as lm-eval renders
them; of rows with `ctx` alone that is the prompt as it stands.

An ending's log-probability is divided by its characters, the usual `acc_norm`; without it short
endings win. Chance is one in four. A test of short context: some 100 tokens, asked once, at the
longest evaluated length within the native window. The text is read bare, also under `--chat`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.data_files import Kinds, check_room, choose, read_rows, row_cluster
from giraffe_cli.evals.measures import Measure, Value
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
            reaches=False,
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
        # the hub's rows have the label as text
        fields: dict[str, Kinds] = {"ctx": str, "label": (int, str), "endings": list}
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
        before, endings = rendered(row)
        true = place_of(row["label"])
        if len(endings) != ENDINGS or true is None:
            raise InvalidInput(
                f"task `hellaswag`: row {place} has not {ENDINGS} endings and the place of one",
                "--file hellaswag=PATH of another file",
            )
        true_first = [endings.pop(true), *endings]
        # a prompt never ends in a space: it belongs to the first token of what follows
        text = before.rstrip()
        gap = f"{before[len(text) :]} "
        ids = [*material.bos_token_ids, *material.encode(text)]
        candidates = tuple(continuation(material, text, gap + ending) for ending in true_first)
        check_room("hellaswag", place, len(ids) + max(map(len, candidates)), length)
        return Example(
            key=f"row {place}",
            cluster=row_cluster(ids, candidates),
            length=length,
            token_ids=np.asarray(ids, np.int32),
            answers=(true_first[0],),
            candidates=candidates,
            details={"row": place, "characters": [len(ending) for ending in true_first]},
        )


def rendered(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Prompt and those endings that are text, as lm-eval's `process_docs` makes them."""
    endings = [ending for ending in row["endings"] if isinstance(ending, str)]
    before, label, first = row["ctx"], row.get("activity_label"), row.get("ctx_a")
    if isinstance(label, str) and isinstance(first, str):
        second = str(row.get("ctx_b") or "").capitalize()
        before = without_markup(f"{label}: {first} {second}")
        endings = [without_markup(ending) for ending in endings]
    return before, [ending for ending in endings if ending]


def without_markup(text: str) -> str:
    """`Paint jeans [title] Cover it. [step] Mind  it.` → `Paint jeans. Cover it. Mind it.`: marks
    that WikiHow's layout left in the rows go by lm-eval's rule."""
    plain = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", plain).replace("  ", " ")


def place_of(label: int | str) -> int | None:
    """Which of the endings it tells; None if none, as true and false, which are numbers too."""
    places = [str(place) for place in range(ENDINGS)]
    return places.index(str(label)) if str(label) in places else None
