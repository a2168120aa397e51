"""What the pipeline's stages need around them: their times, tables, plan, windows and proof."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint, head_to_extend
from giraffe_cli.claim import has_trained
from giraffe_cli.config.base import AUTO
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.packed_facts import given_attention_share
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.source_names import is_local
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.corpus.store import is_packed, open_packed
from giraffe_cli.corpus.tokens import tokenizer_digest
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.estimate import Pace, estimate
from giraffe_cli.plan.machine import Machine
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable, make_table
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.rundir import MANIFEST, digest_file, read_json, read_kept, write_sealed
from giraffe_cli.tune.settings import settings
from giraffe_cli.units import brief, format_length
from giraffe_cli.verify import verify_directory

STOPPED = "stopped"
"""Where `timings.json` has the stages that did not end."""


@dataclass
class Timings:
    """Seconds by stage, kept in `timings.json` so that a resumed run reports the whole."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the stages that ended, with what they took before they were stopped."""
    stopped: dict[str, float] = field(default_factory=dict)
    """Of those that have not."""

    @classmethod
    def kept(cls, path: Path) -> Timings:
        """With what earlier calls of the same run took."""
        found = read_kept(path) or {}
        return cls(path, found, found.pop(STOPPED, {}))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as `name`; a stage that was skipped keeps the time of its real run, and
        one that is stopped goes on counting from there."""
        started, before = time.monotonic(), self.stopped.pop(name, 0.0)
        try:
            yield
        except BaseException:
            self.stopped[name] = round(before + time.monotonic() - started, 2)
            with contextlib.suppress(GiraffeError):  # what stopped it may be a full disk
                self._write()
            raise
        self.at_least(name, before + time.monotonic() - started)

    def at_least(self, name: str, seconds: float) -> None:
        """What is known of `name` otherwise, such as of a training that was killed."""
        self.seconds[name] = max(round(seconds, 2), self.seconds.get(name, 0.0))
        self._write()

    def _write(self) -> None:
        """Unless a refusal has taken the folder with it, or comes before there is one."""
        if self.path.parent.is_dir():
            stopped = {STOPPED: self.stopped} if self.stopped else {}
            write_sealed(self.path, {**self.seconds, **stopped})


def choose_table(config: ExtendConfig, checkpoint: Checkpoint) -> RopeTable:
    """The table of the configured strategy; of `auto` the likeliest, to plan with.

    Raises:
        InvalidInput: the base reaches the target, or is scaled and `rope.on_existing` refuses;
            an unknown strategy, position scheme or knob.
    """
    make_positions(config.positions, config.train.position_knobs)
    head = head_to_extend(
        checkpoint, config.target_length, config.rope.on_existing, "--allow-native"
    )
    if config.rope.strategy == AUTO:
        return settings(head)[0][0].table
    return make_table(config.rope.strategy, config.rope.knobs, head)


def make_plan(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    table: RopeTable,
    machine: Machine | None = None,
    pace: Pace | None = None,
    kept: Levers | None = None,
) -> dict[str, Any]:
    """What will be done and what it will cost, before anything is loaded.

    On `machine` at `pace`, else here; `kept` are the levers of an earlier call of the same run.
    """
    share = given_attention_share(config.data, config.train.across_documents)
    estimated = estimate(checkpoint, config, machine, pace, kept, share)
    return {
        "model": checkpoint.to_json(),
        "strategy": config.rope.strategy,
        "native_length": table.original_max_position_embeddings,
        "target_length": config.target_length,
        "window": config.window,
        "positions": config.positions,
        "steps": config.train.steps,
        "tokens_per_step": config.window * config.train.windows_per_step,
        "dtype": estimated["dtype"],
        "estimate": estimated,
        "files": ["run.yaml", "plan.json", "rope.json", "packed/", "adapter/", "model/", "eval/"],
    }


def packed_folder(
    config: ExtendConfig, checkpoint: Checkpoint, run_dir: Path, reporter: Reporter
) -> Path:
    """The training windows: packed here, or the given directory once it is shown to fit.

    Raises:
        InvalidInput: a packed directory of another tokenizer or of shorter windows; a corpus that
            changed after something was trained on it.
    """
    given = given_windows(config, checkpoint)
    if given:
        _warn_of_other_knobs(config.pack, given, reporter)
        return given
    out = run_dir / "packed"
    pack_stage(
        *(config.data, checkpoint.path, config.window, config.pack, config.seed, out, reporter),
        replace=not has_trained(run_dir),
    )
    return out


def _warn_of_other_knobs(asked: PackConfig, packed: Path, reporter: Reporter) -> None:
    """Say which knobs of packing come too late for windows that are there."""
    was = read_json(packed / MANIFEST)["inputs"]["config"]
    values = asked.model_dump(
        mode="json", exclude_defaults=True, exclude={"backend", "block_bytes"}
    )
    late = [name for name, value in values.items() if value != was.get(name)]
    if late:
        found = {name: "none" if was.get(name) is None else brief(was[name]) for name in late}
        told = ", ".join(f"{name} {value}" for name, value in found.items())
        named = ", ".join(f"pack.{name}" for name in late)
        reporter.warn(f"{named} without effect: {packed} is packed already, with {told}")


def given_windows(config: ExtendConfig, checkpoint: Checkpoint) -> Path | None:
    """The packed directory that `config` names in the place of a corpus; raises as
    `packed_folder`."""
    given = [Path(source) for source in config.data if is_packed(Path(source))]
    if not given:
        return None
    if len(config.data) > 1:
        raise InvalidInput(
            f"--data mixes the packed directory {given[0]} with other sources",
            "pack all sources together with `giraffe pack-data`, or pass the directory alone",
        )
    rows = open_packed(given[0])
    has_tokenizer = checkpoint.path.is_dir()  # no model that only its shape is known of
    if has_tokenizer and rows.tokenizer_digest != tokenizer_digest(checkpoint.path):
        raise InvalidInput(
            f"{given[0]} was packed with another tokenizer than {checkpoint.source} has",
            f"run giraffe pack-data SRC --tokenizer {checkpoint.source} --window "
            f"{format_length(config.window)} --out {given[0]}",
        )
    if rows.window != config.window:
        raise InvalidInput(
            f"{given[0]} holds windows of {rows.window} tokens, {config.window} were asked for",
            f"pass --window {rows.window}, or pack again with --window {config.window}",
        )
    return given[0]


def check_sources(config: ExtendConfig, checkpoint: Checkpoint | None) -> None:
    """Look at what would be packed, and read nothing of it; standard input and the Hub are left
    alone, and without a checkpoint packed windows are.

    Raises:
        InvalidInput, UsageError: as `packed_folder`, as far as the files' names tell.
    """
    if checkpoint is None and any(is_packed(Path(named)) for named in config.data):
        return
    if checkpoint is None or given_windows(config, checkpoint) is None:
        resolve([named for named in config.data if is_local(named)], config.pack)


def verified(
    checkpoint: Checkpoint,
    adapter: Path | None,
    table: RopeTable,
    model_dir: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """The proof that `model_dir` is what was trained; kept in `verify.json` beside its inputs.

    Raises:
        GiraffeError: any check failed; each difference is named.
    """
    path = model_dir.parent / "verify.json"
    inputs = {"model": digest_file(model_dir / "manifest.json"), "base": checkpoint.digest}
    kept = read_kept(path) or {}
    if kept.get("inputs") == inputs:
        earlier: dict[str, Any] = kept["proof"]
        return earlier
    proof = verify_directory(
        model_dir, adapter_dir=adapter, base=checkpoint.path, table=table, reporter=reporter
    )
    failed = {name: check for name, check in proof["checks"].items() if not check["ok"]}
    if failed:
        listed = "\n".join(
            f"  - {name}: found {check['found']}, expected {check['expected']}"
            for name, check in failed.items()
        )
        if "finite_logits" in failed:
            raise GiraffeError(
                f"{model_dir} computes no numbers, as after a training that diverged\n{listed}",
                "lower train.learning_rate, with another --out; metrics.jsonl tells every step",
            )
        raise GiraffeError(f"{model_dir} is not what was trained\n{listed}", "report this")
    write_sealed(path, {"inputs": inputs, "proof": proof})
    return proof
