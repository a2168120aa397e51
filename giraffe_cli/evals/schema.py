"""The shape of `results.json`, as types: the published JSON schema comes from here.

    giraffe eval --schema > docs/results.schema.json

More keys may come under the same version; a key that goes or changes its meaning raises it.
Lengths are strings of token counts; a measure is `task` or `task.measure`, a subject `base`,
`checkpoint` or `control`.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from giraffe_cli.evals.measures import Kind
from giraffe_cli.evals.paired import PairedScore
from giraffe_cli.evals.statistics import Score

DOCUMENTED = ConfigDict(use_attribute_docstrings=True)

ByLength = dict[str, Score]
PairedByLength = dict[str, PairedScore]
BySubject = dict[str, PairedByLength]


@with_config(DOCUMENTED)
class Model(TypedDict):
    """Who was evaluated, and how it scored."""

    sha256: str
    """Digest of config and weights."""
    rope: dict[str, Any]
    """The RoPE keys of its config.json."""
    dtype: str
    """Computation type."""
    tasks: NotRequired[dict[str, ByLength]]
    """Measure → length → score."""
    effective_length: NotRequired[dict[str, int | None]]
    """Measure → tokens; null where none is shown."""
    controls: NotRequired[dict[str, ByLength]]
    """Measure → length → score of prompts that hold no answer."""
    by_depth: NotRequired[dict[str, dict[str, ByLength]]]
    """Measure → length → depth from 0 to 1 → score."""
    curves: NotRequired[dict[str, dict[str, ByLength]]]
    """Task → length → position in tokens → score."""


@with_config(DOCUMENTED)
class Requirement(TypedDict):
    """What the effective length asks of a measure."""

    threshold: float | None
    """For the lower bound; null where a difference is tested or nothing can be shown."""
    rule: str


@with_config(DOCUMENTED)
class MeasureInfo(TypedDict):
    """What a measure is."""

    summary: str
    higher_is_better: bool
    kind: Kind
    """proportion: 0/1; share: several questions a sample; mean: any number."""
    chance: float
    """What a model that knows nothing gets."""
    unit: str
    effective_length: Requirement


@with_config(DOCUMENTED)
class TestedGate(TypedDict):
    """A claim held against the bound of an interval."""

    name: str
    """The quantity as it was written."""
    op: Literal["<", "<=", ">", ">="]
    threshold: float
    bound: float | None
    """The bound that was tested, or the effective length in tokens; null when there is none."""
    ok: bool
    note: str
    """Why nothing could be tested; empty otherwise."""


@with_config(DOCUMENTED)
class Settings(TypedDict):
    """All that must be repeated to get the same numbers."""

    reference: NotRequired[dict[str, str | int]]
    """Whose reading chose the tokens of `longppl`: subject, sha256, dtype, and the tokens that it
    read."""
    chat: bool
    """Whether questions went through the chat template."""
    tasks: dict[str, dict[str, Any]]
    """Task → knobs."""
    documents: dict[str, int]
    """Held-out document → tokens."""
    other_text: NotRequired[dict[str, int]]
    """Document of another domain → tokens."""
    files: NotRequired[dict[str, str]]
    """Data file of a task → sha256."""
    digests: NotRequired[dict[str, str]]
    """sha256 of what was read by name: `documents` and `other_text` over token ids, `haystack` over
    texts."""
    chunk: int
    """Tokens that were read at one time."""
    harness: NotRequired[dict[str, Any]]
    """lm-eval's version, tasks, samples of each, and longest prompts."""


@with_config(DOCUMENTED)
class Results(TypedDict):
    """`results.json`; equal for equal models, samples and seed but for `seconds`."""

    schema_version: Literal[2]
    suite: str
    seed: int
    native_length: int
    """Tokens of the window that differences and effective lengths refer to."""
    lengths: list[int]
    """Tokens, rising."""
    models: dict[str, Model]
    """By subject."""
    measures: dict[str, MeasureInfo]
    paired: dict[str, dict[str, PairedByLength | BySubject]]
    """Measure → difference → length → score, or → subject → length → score."""
    short_context: dict[str, PairedScore | Score]
    """What the checkpoint lost or gained within the native window, against the base; differences
    carry a p-value, divergences none."""
    gates: list[TestedGate]
    harness: NotRequired[dict[str, dict[str, dict[str, Score]]]]
    """lm-eval's tasks: subject → task → length → score; a task that is none of RULER's stands as
    `task.metric` under the tokens of its longest prompt. Only where they were asked for."""
    settings: Settings
    rules: dict[str, str]
    """How intervals, p-values and effective lengths are made."""
    versions: dict[str, str]
    """What made this file."""
    read_by: NotRequired[dict[str, dict[str, int]]]
    """Subject → what computed its scores, which may be older than this file → samples."""
    warnings: list[str]
    seconds: float
    giraffe_seal: NotRequired[str]
    """Digest of all else, checked by who reads the file; who changes it takes the seal out."""


def results_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of `results.json`."""
    schema = TypeAdapter(Results).json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "giraffe evaluation results",
    }
