"""What an evaluation task is: samples made from (length, seed), and a score for each answer.

A task needs no model and no network. `examples` builds token sequences of an exact length;
the runner gives each to a model and hands back an `Outcome`; `score` turns it into one number.
The same examples go to the base and to the extended model, so that differences are paired.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import InvalidInput, near_misses
from giraffe_cli.registry import discover, pick


@dataclass(frozen=True)
class TokenDocument:
    """A held-out document, already tokenised without special tokens."""

    id: str
    token_ids: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Material:
    """What tasks build samples from."""

    encode: Callable[[str], list[int]]
    """Text → token ids, no special tokens."""
    decode: Callable[[Sequence[int]], str]
    """Token ids → text, special tokens skipped."""
    bos_token_ids: tuple[int, ...]
    """What the tokenizer puts before a text (usually one id, or none)."""
    documents: Sequence[TokenDocument]
    """Held-out text; may be empty for tasks that need none."""


@dataclass(frozen=True)
class Example:
    """One sample. `len(token_ids) + max_new_tokens <= length` always."""

    key: str
    """Identity within (task, length, seed): equal keys mean equal samples."""
    cluster: str
    """The independent unit for intervals: the document, or the sample itself."""
    length: int
    token_ids: npt.NDArray[np.int32]
    num_targets: int = 0
    """How many of the last tokens are scored teacher-forced."""
    max_new_tokens: int = 0
    """How many tokens are generated greedily after the prompt."""
    answer: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    """What the plots group by: depth, document, anchor, control."""


@dataclass(frozen=True)
class Outcome:
    """What a model did with an example."""

    target_nll: npt.NDArray[np.float64]
    """`[num_targets]` nats."""
    text: str
    """The generated text, `""` when nothing was generated."""


@dataclass(frozen=True)
class AbstractTask(ABC):
    """One measurement; the dataclass fields are its knobs."""

    summary: ClassVar[str]
    source: ClassVar[str]
    higher_is_better: ClassVar[bool]
    proportion: ClassVar[bool]
    """True: 0/1 scores, Wilson interval. False: mean with a bootstrap over clusters."""

    @abstractmethod
    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """Samples at `length` tokens, a function of the arguments alone.

        Raises:
            InvalidInput: the material cannot fill this length.
        """

    @abstractmethod
    def score(self, example: Example, outcome: Outcome) -> float:
        """One number for one sample."""


def tasks() -> dict[str, type[AbstractTask]]:
    """Every registered task by name."""
    return discover("giraffe_cli.evals.tasks", AbstractTask)


def make_task(name: str, knobs: dict[str, Any]) -> AbstractTask:
    """The task `name` with `knobs`.

    Raises:
        InvalidInput: unknown task or knob.
    """
    kind = pick(name, tasks(), "evaluation task")
    known = [entry.name for entry in fields(kind)]
    for given in knobs:
        if given not in known:
            raise InvalidInput(f"`{given}` is no knob of `{name}`", near_misses(given, known))
    try:
        return kind(**knobs)
    except TypeError as error:
        raise InvalidInput(f"task `{name}`: {error}") from error
