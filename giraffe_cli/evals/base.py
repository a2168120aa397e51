"""What an evaluation task is: samples made from (length, seed), and scores for each answer.

A task needs no model and no network. `examples` builds token sequences of an exact length;
the runner gives each to a model and hands back an `Outcome`; `scores` turns it into numbers, one
for each of the task's measures (`measures.py`). The same examples go to the base and to the
extended model, so that differences are paired.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import InvalidInput, near_misses, raise_together
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.registry import discover, pick
from giraffe_cli.rundir import digest_bytes


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
    haystack: Sequence[str] = ()
    """Texts that needles are hidden in."""
    native_length: int = 0
    """Tokens that count as near: the base's window."""
    lengths: tuple[int, ...] = ()
    """All lengths that are evaluated, ascending; empty: only the length asked for."""
    reference_length: int = 0
    """Tokens the reference model reads well: the window of the evaluator, the base's by default."""
    other_text: Sequence[TokenDocument] = ()
    """Text of another domain than the documents."""
    copies: int = 0
    """Of held-out documents with a text that another has, which are left out."""
    cut_apart: tuple[str, ...] = ()
    """A warning for each model whose tokenizer cuts text otherwise than the first one's."""
    begins_apart: str = ""
    """The models whose tokenizers begin a text otherwise than the first one's."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Data files of tasks by name, such as `{"lambada": "lambada_test.jsonl.gz"}`."""
    chat: Callable[[str], list[int]] | None = None
    """A question → token ids of the chat template up to the assistant's turn, special tokens
    included; None: the bare text, as base models read it."""

    def prompt(self, text: str, prefix: str) -> list[int]:
        """Token ids of a question and the first words of its answer, `prefix`."""
        if self.chat is None:
            return [*self.bos_token_ids, *self.encode(text + prefix)]
        return [*self.chat(text), *self.encode(prefix)]


@dataclass(frozen=True)
class Example:
    """One sample. Prompt and answer together never exceed `length`."""

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
    answers: tuple[str, ...] = ()
    """All that a right generation holds."""
    stops_when_found: bool = False
    """Generation may end as soon as every answer is a substring of it: the score is settled."""
    candidates: tuple[tuple[int, ...], ...] = ()
    """Continuations whose probability is measured: first one for each of `answers`, then the
    wrong ones; with several answers the last is the whole list of them."""
    pairing: str = ""
    """What it is compared with under another length or context; empty: `key`."""
    for_reference: bool = False
    """Read by the reference model only, to choose what the others are scored on."""
    compared: bool = False
    """The next-token distributions at its targets are held against the base's."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the plots group by: depth, document, anchor, control."""

    @classmethod
    def of_sample(
        cls, sample: int, length: int, token_ids: list[int], details: dict[str, Any], **asked: Any
    ) -> Example:
        """The prompt of a draw that is independent of all others; `asked` are further fields."""
        name = f"sample {sample}"
        ids = np.asarray(token_ids, np.int32)
        return cls(name, name, length, ids, details={"sample": sample, **details}, **asked)

    @property
    def pair(self) -> str:
        """`pairing`, or `key` where there is none."""
        return self.pairing or self.key

    @property
    def digest(self) -> str:
        """sha256 of the prompt's token ids as little-endian int32, hex."""
        return digest_bytes(self.token_ids.astype("<i4").tobytes())


@dataclass(frozen=True)
class Outcome:
    """What a model did with an example."""

    target_nll: npt.NDArray[np.float64]
    """`[num_targets]` nats."""
    text: str
    """The generated text, `""` when nothing was generated."""
    candidate_nll: tuple[float, ...] = ()
    """Nats of each candidate, summed over its tokens."""
    candidate_greedy: tuple[bool, ...] = ()
    """Whether each candidate's every token is the most probable one."""
    divergence: npt.NDArray[np.float64] | None = None
    """`[num_targets]` KL(base || model) in nats; only of `compared` examples beside a base."""
    states: npt.NDArray[np.float32] | None = None
    """`[num_targets, hidden_size]` final hidden states before each target; only of `compared`
    examples fresh from a model, from where they go to a file."""
    read_by: str = ""
    """What computed it: versions, device, chunk; empty where that was not recorded."""


Reference = Mapping[str, Outcome]
"""The reference model's outcomes at one length, by key."""


@dataclass(frozen=True)
class AbstractTask(ABC):
    """One measurement; the dataclass fields are its knobs."""

    summary: ClassVar[str]
    source: ClassVar[str]
    measures: ClassVar[Mapping[str, Measure]]
    """By name; the main one is `""`."""
    contrasts: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Paired differences of two measures at one length: name → (minuend, subtrahend)."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What of the material it cannot do without: `documents`, `haystack`, `other_text`, a key of
    `files`."""
    when_empty: ClassVar[str] = ""
    """Why no sample may bear on the main measure, and what to do then."""

    least: ClassVar[Mapping[str, int]] = {}
    """The smallest value of a count among the knobs, where it is not 1."""
    most: ClassVar[Mapping[str, int]] = {}
    """The largest, where there is one."""

    def __post_init__(self) -> None:
        """Every knob is of its default's kind: true or false, a count, or a number above 0.

        Raises:
            InvalidInput: some are not; all that are so at once.
        """
        problems = [self._problem(knob.name, knob.default) for knob in fields(self)]
        raise_together([problem for problem in problems if problem], f"task `{self.name}`")

    @property
    def name(self) -> str:
        """As the registry calls it."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    def _problem(self, knob: str, default: Any) -> str:
        value = getattr(self, knob)
        is_bool, least = isinstance(value, bool), self.least.get(knob, 1)
        if isinstance(default, bool):
            fits, needed = is_bool, "true or false"
        elif isinstance(default, int):
            most = self.most.get(knob)
            fits = isinstance(value, int) and not is_bool and value >= least
            fits = fits and (most is None or value <= most)
            needed = f"{least} or more" if most is None else f"{least} to {most}"
        else:
            fits = isinstance(value, int | float) and not is_bool and value > 0
            needed = "a number above 0"
        return "" if fits else f"{knob} is {value}, must be {needed}"

    @abstractmethod
    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """Samples at `length` tokens, a function of the arguments alone.

        Raises:
            InvalidInput: the material cannot fill this length.
        """

    @abstractmethod
    def scores(
        self, example: Example, outcome: Outcome, reference: Reference
    ) -> Mapping[str, Value]:
        """What one sample says of the measures it bears on."""

    def bears_on(self, example: Example) -> Collection[str]:
        """The measures that `example` may give, known before a model has read it: all but of a
        task that reads some examples for another purpose, and of prompts without a key."""
        return () if example.details.get("control") else self.measures

    def curve(self, example: Example, outcome: Outcome) -> Mapping[str, Value]:
        """Scores along the positions of one sample, for plots; most tasks have none."""
        return {}


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
