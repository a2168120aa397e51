"""Key-value retrieval: the value of a key in a JSON object of random UUIDs.

    Extract the value corresponding to the specified key in the JSON object below.

    JSON data:
    {"5ebed936-517e-4b17-82e1-d6effbf96321": "03dd5664-f32d-4000-909a-3119a9f64ef1",
     "f2c0f080-0502-46ce-868e-8eabacf5c102": "e967c4f6-69f6-42f5-9ded-84dce182cbde"}

    Key: "f2c0f080-0502-46ce-868e-8eabacf5c102"
    Corresponding value: "

The value must stand in the continuation. The prompt is that of lost-in-the-middle but for its last
quotation mark, which tells a base model where the value begins. There is nothing to guess: a value
is found by its key or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.base import Example, Outcome, Reference
from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.pairs import PairTask, Record
from giraffe_cli.evals.prompt import retrieval_scores, share_found


@dataclass(frozen=True)
class Kv(PairTask):
    """Share of keys whose value the model gives."""

    summary: ClassVar[str] = "the value of a key in a JSON object of random UUIDs"
    source: ClassVar[str] = "Liu et al. 2023 (nelson-liu/lost-in-the-middle, MIT)"
    record: ClassVar[Record] = Record(
        before="Extract the value corresponding to the specified key in the JSON object below.\n\n"
        "JSON data:\n{",
        pair='"{key}": "{value}"',
        between=",\n ",
        after="}\n",
        question='\nKey: "{key}"\n',
        prefix='Corresponding value: "',
        key_kind="uuid",
        value_kind="uuid",
        stops_when_found=True,
    )

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Generated: the value is a substring of the continuation."""
        return retrieval_scores(example, outcome, share_found(example.answers, outcome.text))
