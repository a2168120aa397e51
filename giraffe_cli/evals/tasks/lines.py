"""Lines: a number by the name of its line, in a record of nothing but such lines.

    Below is a record of lines I want you to remember. ...
    line brave-otter: REGISTER_CONTENT is <48213>
    line dusty-canoe: REGISTER_CONTENT is <70418>
    Now the record is over. Tell me what is the <REGISTER_CONTENT> in line brave-otter? ...
    line brave-otter: REGISTER_CONTENT is <

The first integer of the continuation must be the number. LongEval takes the last one of a chat
answer, which repeats the question before it answers; here the answer is begun for the model, so
that a later integer belongs to a line it goes on with. LongEval's numbers are 1 to 50,000 and may
repeat; here all have five digits and differ, so that none begins or doubles another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.base import Example, Outcome, Reference
from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.pairs import PairTask, Record
from giraffe_cli.evals.prompt import retrieval_scores


@dataclass(frozen=True)
class Lines(PairTask):
    """Share of lines whose number the model gives."""

    summary: ClassVar[str] = "a number by the name of its line, among many lines"
    source: ClassVar[str] = "LongEval, Li et al. 2023 (DachengLi1/LongChat, Apache-2.0)"
    record: ClassVar[Record] = Record(
        before="Below is a record of lines I want you to remember. Each line begins with 'line "
        "<line index>' and contains a '<REGISTER_CONTENT>' at the end of the line as a numerical "
        "value. For each line index, memorize its corresponding <REGISTER_CONTENT>. At the end of "
        "the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of a certain "
        "line index. Now the record start:\n\n",
        pair="line {key}: REGISTER_CONTENT is <{value}>",
        between="\n",
        after="\n",
        question="\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {key}? "
        "I need the number.\n",
        prefix="line {key}: REGISTER_CONTENT is <",
        key_kind="word",
        value_kind="five-digits",
        stops_when_found=False,
    )

    answer_tokens: int = 12
    """Tokens generated greedily after the prompt."""

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Generated: the first integer is the number."""
        found = re.search(r"\d+", outcome.text)
        right = found is not None and found.group() in example.answers
        return retrieval_scores(example, outcome, float(right))
