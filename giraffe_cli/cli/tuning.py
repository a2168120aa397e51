"""What `giraffe rope compare` and `giraffe rope search` have in common: options, and opening."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from giraffe_cli.checkpoint_source import EMBEDDED, short_name
from giraffe_cli.cli.evaluate_input import DEFAULT_DATA
from giraffe_cli.cli.launcher import start_alone
from giraffe_cli.cli.options import a_seed, one_of
from giraffe_cli.errors import InvalidInput, UsageError, first_line
from giraffe_cli.plain_yaml import parse_yaml

if TYPE_CHECKING:
    from giraffe_cli.progress import Reporter
    from giraffe_cli.rope.base import Head
    from giraffe_cli.tune.evidence import Evidence
    from giraffe_cli.tune.reading import TableReader


def _fitnesses() -> tuple[str, ...]:
    from giraffe_cli.tune.evidence import FITNESSES

    return FITNESSES


Data = Annotated[
    list[str] | None,
    typer.Option(help=f"Corpus to compare on; repeatable. Default: {DEFAULT_DATA}."),
]
Fitness = Annotated[
    str,
    one_of(_fitnesses, "What decides: nll, or needle-nll (the loss of looked-up numbers alone)."),
]
Seed = Annotated[int, a_seed("Seed of samples, intervals and proposals.")]


class Opened(NamedTuple):
    """A checkpoint and what its tables are judged on."""

    reader: TableReader
    head: Head
    evidence: Evidence


def default_out(kind: str, model: str, target_len: str) -> Path:
    """`runs/compare-calf-16k`."""
    from giraffe_cli.units import format_length, parse_length

    name = short_name(model)
    return Path("runs") / f"{kind}-{name}-{format_length(parse_length(target_len))}"


def open_for_tuning(
    model: str,
    data: list[str] | None,
    target_len: str,
    on_existing: str | None,
    dtype: str,
    out: Path,
    reporter: Reporter,
    allow_pickle: bool,
    result: str,
    **wanted: Any,
) -> Opened:
    """The checkpoint's head, a reader with its cache in `out`, and samples of the longest texts.

    Args:
        result: the file that the command writes into `out`.
        wanted: `documents`, `seed`, `fitness`, `needles`, as `gather_evidence` takes them.

    Raises:
        InvalidInput: checkpoint or corpus cannot be used, or no document reaches the target.
    """
    from giraffe_cli.checkpoint import head_to_extend, inspect
    from giraffe_cli.evals.samples import Texts
    from giraffe_cli.model.precision import computed_in
    from giraffe_cli.own_folder import CACHE, refuse_anothers
    from giraffe_cli.rundir import make_folder
    from giraffe_cli.tune.compare import COMPARISON
    from giraffe_cli.tune.evidence import gather_evidence
    from giraffe_cli.tune.reading import TableReader
    from giraffe_cli.tune.search import FACTORS, SEARCH
    from giraffe_cli.tune.texts import longest_documents
    from giraffe_cli.units import parse_length

    start_alone(reporter)
    refuse_anothers(out, [result], [FACTORS])
    for other in {COMPARISON, SEARCH} - {result}:
        if (out / other).exists():  # both write factors.json
            raise InvalidInput(f"{out} holds {other}, of the other command", "choose another --out")
    checkpoint = inspect(model, out, allow_pickle)
    head = head_to_extend(checkpoint, parse_length(target_len), on_existing or "refuse")
    documents = longest_documents(data or [DEFAULT_DATA], wanted["documents"])
    if not documents:
        raise InvalidInput(f"no documents in {', '.join(data or [DEFAULT_DATA])}")
    evidence = gather_evidence(
        checkpoint,
        head.original_max_position_embeddings,
        head.target_length,
        Texts(documents, documents),
        reporter,
        **wanted,
    )
    computed = computed_in(dtype, checkpoint.dtype, reporter)
    return Opened(TableReader(checkpoint, computed, make_folder(out / CACHE)), head, evidence)


def knobs_by_strategy(settings: list[str]) -> dict[str, dict[str, Any]]:
    """`["yarn.beta_fast=64"]` → `{"yarn": {"beta_fast": 64}}`.

    Raises:
        UsageError: no `NAME.knob=value`.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        path, separator, text = setting.partition("=")
        name, dot, knob = path.strip().partition(".")
        if not (separator and dot and name and knob):
            raise UsageError(
                f"--set {setting}: no `STRATEGY.knob=value`", "write --set yarn.beta_fast=64"
            )
        try:
            found.setdefault(name, {})[knob] = parse_yaml(text)
        except ValueError as error:
            raise UsageError(f"--set {setting}: no plain YAML: {first_line(error)}") from error
    return found


class Extending(NamedTuple):
    """What the command that uses a table takes over from the one that found it."""

    model: str
    data: list[str] | None
    target_len: str
    on_existing: str | None
    allow_pickle: bool = False

    def line(self, strategy: str, knobs: dict[str, Any], factors: Path | None = None) -> str:
        """`giraffe extend ...`, as it can be typed."""
        words = ["giraffe", "extend"]
        words += ["--model", self.model] if self.model != EMBEDDED else []
        words += [word for source in self.data or [] for word in ("--data", source)]
        words += ["--target-len", self.target_len]
        if self.on_existing:
            words += ["--on-existing-rope", self.on_existing]
        words += ["--allow-pickle"] if self.allow_pickle else []
        words += ["--rope", strategy] if factors is None else ["--factors", str(factors)]
        for key, value in knobs.items():
            words += ["--set", f"rope.knobs.{key}={value}"]
        return shlex.join(words)
