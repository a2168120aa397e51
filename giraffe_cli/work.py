"""What every stage of a run works on, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.evaluating import evaluated_lengths
from giraffe_cli.preflight import Start
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.stages import Timings
from giraffe_cli.train.crew import Crew
from giraffe_cli.training import TrainingStage


@dataclass(frozen=True)
class Options:
    """What a run does beyond its config; of these only `finish` changes a weight."""

    evaluate: bool = True
    strict: bool = False
    """A failed gate ends the command with exit code 5."""
    allow_native: bool = False
    """A base that already reaches the target is no error; nothing is written."""
    finish: bool = False
    """Training ends at its newest checkpoint, whatever steps are left."""
    rendezvous: str = ""
    """Where other nodes reach this one, `HOST[:PORT]`; empty: its name and a free port."""


@dataclass(frozen=True)
class Work:
    """What every stage of a claimed folder works on."""

    config: ExtendConfig
    start: Start
    """What was opened before, under the table that was chosen since."""
    rope_choice: dict[str, Any]
    """What `rope.strategy: auto` compared and chose; empty for a strategy that was named."""
    run_dir: Path
    timings: Timings
    options: Options
    reporter: Reporter
    crew: Crew | None = None
    """The other nodes, where there are any."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The base."""
        return self.start.checkpoint

    @property
    def stages(self) -> list[TrainingStage]:
        """What is trained, first to last."""
        return self.start.stages

    @property
    def controls(self) -> list[TrainingStage]:
        """One for each of `stages`, or none."""
        return self.start.controls

    @property
    def table(self) -> RopeTable:
        """Of the model that is written."""
        return self.start.stages[-1].table

    @property
    def native_length(self) -> int:
        """Tokens of the window that the base was trained for."""
        return self.table.original_max_position_embeddings

    @property
    def lengths(self) -> list[int]:
        """Context lengths of the evaluation, rising."""
        return evaluated_lengths(self.config, self.native_length)
