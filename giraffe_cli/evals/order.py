"""In what order prompts are read, so that little is read twice; a pure function of the prompts.

    sort by token ids  →  equal prompts are one prompt, and prompts that begin alike are neighbours
    short prompts  →  several to a row: they would share little
    all others  →  one by one, each from the first chunk that the one before it does not share

    chunk = short = 2:
                 a b c d e   reads 5 tokens
                 a b c x     reads c x: the chunk `a b` stays, `c d` differs
                 q r         in a row with the other short ones

What the model will read is thereby known to the token before it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from giraffe_cli.evals.base import Example
from giraffe_cli.model.reading import CHUNKS

SHORT = 512
"""Tokens of the longest prompts that are read in rows."""
ATTENTION_MATCHES = 4096
"""Context at which attention takes about as long as all else in a model of 135M parameters; only
for sharing out work evenly."""

Entry = tuple[str, Example]
"""An example with the name of its task."""


@dataclass(frozen=True)
class Prompt:
    """Token ids that are read once, and all that is asked of them."""

    entries: tuple[Entry, ...]

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """`[tokens]`, the same of all entries."""
        return self.entries[0][1].token_ids

    @property
    def keep(self) -> int:
        """Of how many of the last tokens the final states are needed."""
        return 1 + max(example.num_targets for _, example in self.entries)

    @property
    def room_after(self) -> int:
        """The most tokens that are fed behind it at one time."""
        examples = [example for _, example in self.entries]
        ranked = max(sum(len(c) - 1 for c in example.candidates) for example in examples)
        return max(ranked, *(example.max_new_tokens for example in examples))

    @property
    def reach(self) -> int:
        """Tokens of the longest text there is: the prompt and one thing that follows it."""
        examples = [example for _, example in self.entries]
        ranked = max(max((len(c) for c in example.candidates), default=0) for example in examples)
        longest = max(ranked, *(example.max_new_tokens for example in examples))
        return len(self.token_ids) + longest


@dataclass(frozen=True)
class Step:
    """One reading: a prompt whose first `shared` tokens are there, or a row of short ones."""

    prompts: tuple[Prompt, ...]
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Prompt tokens that go through the model."""
        return sum(len(prompt.token_ids) for prompt in self.prompts) - self.shared

    @property
    def seen(self) -> float:
        """Pairs of a token and an earlier one it attends to."""
        lengths = [len(prompt.token_ids) for prompt in self.prompts]
        return (sum(length**2 for length in lengths) - self.shared**2) / 2

    @property
    def work(self) -> float:
        """What it costs, in tokens without context; answers count as the tokens they are."""
        answers = sum(prompt.room_after for prompt in self.prompts)
        return self.tokens + answers + self.seen / ATTENTION_MATCHES


def reach_of(plan: Sequence[Step]) -> int:
    """Tokens of the longest text in `plan`, with what follows it; 0 of none."""
    return max((prompt.reach for step in plan for prompt in step.prompts), default=0)


def shared_tokens(
    before: npt.NDArray[np.int32], token_ids: npt.NDArray[np.int32], keep: int, chunk: int
) -> int:
    """Tokens of `token_ids` that need no reading after `before`: whole chunks that begin both, but
    for those whose states are asked for."""
    both = min(len(token_ids), len(before))
    differing = np.flatnonzero(token_ids[:both] != before[:both])
    common = int(differing[0]) if len(differing) else both
    return max(0, min(common, len(token_ids) - keep) // chunk * chunk)


def reading_plan(
    entries: Iterable[Entry], batch_tokens: int, chunk: int = CHUNKS["cpu"], short: int = SHORT
) -> list[Step]:
    """Every entry once, in the steps that read the fewest tokens.

    Args:
        batch_tokens: the most tokens in a row of short prompts; 0: all prompts one by one.
        short: tokens of the longest of them.
    """
    prompts = _prompts(entries)
    few = [p for p in prompts if batch_tokens and len(p.token_ids) <= short]
    many = [p for p in prompts if not batch_tokens or len(p.token_ids) > short]
    return _in_order([*_rows(few, batch_tokens), *((prompt,) for prompt in many)], chunk)


def split_plan(plan: Sequence[Step], processes: int, chunk: int) -> list[list[Step]]:
    """`plan` shared out to `processes`, about evenly by work.

    Prompts that share a beginning stay together, unless that is more than a process's part.
    """
    part = sum(step.work for step in plan) / processes
    pieces = [piece for group in _groups(plan) for piece in _pieces(group, part)]
    pieces.sort(key=lambda piece: -sum(step.work for step in piece))
    shares: list[list[Step]] = [[] for _ in range(processes)]
    for piece in pieces:
        min(shares, key=lambda share: sum(step.work for step in share)).extend(piece)
    return [_in_order((step.prompts for step in share), chunk) for share in shares]


def _prompts(entries: Iterable[Entry]) -> list[Prompt]:
    """Equal prompts together, in the order of their token ids."""
    found: dict[bytes, list[Entry]] = {}
    for task, example in entries:
        found.setdefault(example.token_ids.astype(">i4").tobytes(), []).append((task, example))
    return [Prompt(tuple(found[ids])) for ids in sorted(found)]


def _in_order(rows: Iterable[tuple[Prompt, ...]], chunk: int) -> list[Step]:
    """Rows of several as they are; then prompts alone, each after the one it shares most with."""
    rows = list(rows)
    steps = [Step(row) for row in rows if len(row) > 1]
    alone = [row[0] for row in rows if len(row) == 1]
    before = np.zeros(0, np.int32)
    for prompt in sorted(alone, key=lambda prompt: prompt.token_ids.astype(">i4").tobytes()):
        shared = shared_tokens(before, prompt.token_ids, prompt.keep, chunk)
        steps.append(Step((prompt,), shared))
        before = prompt.token_ids
    return steps


def _rows(prompts: Sequence[Prompt], batch_tokens: int) -> Iterator[tuple[Prompt, ...]]:
    row: list[Prompt] = []
    for prompt in prompts:
        if row and sum(len(p.token_ids) for p in [*row, prompt]) > batch_tokens:
            yield tuple(row)
            row = []
        row.append(prompt)
    if row:
        yield tuple(row)


def _groups(plan: Sequence[Step]) -> list[list[Step]]:
    """Runs of steps of which each shares tokens with the one before it."""
    groups: list[list[Step]] = []
    for step in plan:
        if step.shared:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _pieces(group: list[Step], part: float) -> Iterator[list[Step]]:
    """`group` in runs of at most `part` of work, or of one step."""
    piece: list[Step] = []
    for step in group:
        if piece and sum(s.work for s in [*piece, step]) > part:
            yield piece
            piece = []
        piece.append(step)
    yield piece
