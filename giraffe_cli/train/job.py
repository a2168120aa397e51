"""What one training run is: its inputs as one value that travels to worker processes as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.train import LONGCE_KNOBS, TrainConfig, knobs_without_effect
from giraffe_cli.model.levers import Levers
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import digest_file, digest_value

WEIGHTS = "weights.safetensors"
_OFF = {"projection_tile": 0, "whole_layers": 0, "head_groups": 1}


@dataclass(frozen=True)
class TrainJob:
    """A fine-tune of `checkpoint` under `table` on the rows of `packed_dir`, kept in `run_dir`."""

    checkpoint: Checkpoint
    table: RopeTable
    packed_dir: Path
    config: TrainConfig
    positions: str
    """Name of the position scheme."""
    target_length: int
    dtype: str
    """`float32` or `bfloat16`; adapters are float32 in both."""
    seed: int
    run_dir: Path
    planned_seconds_per_step: float | None = None
    """What the plan expects, for comparison while it trains."""
    start_from: Path | None = None
    """The run folder of the stage before, whose `weights.safetensors` this one goes on from."""
    hands_on: bool = False
    """Whether a later stage goes on from here: then the weights are left for it."""
    levers: Levers = Levers()
    """How a step fits into memory; changes no weight, except that dropout is drawn by tile."""
    may_end: bool = False
    """Whether `--finish` could end it: the last training of a run, and no control."""
    ends_now: bool = False
    """Whether the newest checkpoint is the end, whatever steps are left."""
    evaluated_documents: int = 0
    """How many of the longest held-out documents the evaluation scores: they are not measured on
    while training."""

    @property
    def window(self) -> int:
        """Most tokens in a training window."""
        return self.config.window or self.target_length

    @property
    def adapter_dir(self) -> Path:
        """What was trained, when it is done."""
        return self.run_dir / "adapter"

    @property
    def checkpoints_dir(self) -> Path:
        """A folder `step-N` for each checkpoint."""
        return self.run_dir / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a step."""
        return self.run_dir / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """Steps, tokens, seconds and memory of the finished run; outside `adapter/`, whose bytes
        depend on the weights alone."""
        return self.run_dir / "training.json"

    @property
    def weights_path(self) -> Path:
        """The trained parameters under their own names, whatever kind of adapter they make up."""
        return self.run_dir / WEIGHTS

    def identity(self, packed_digest: str) -> dict[str, Any]:
        """What decides the weights: manifests name it, and only equal ones are resumed."""
        free = knobs_without_effect(self.config, self.checkpoint.attention_dropout)
        knobs = self.config.model_dump(mode="json", exclude=free)
        if "mlp_tile" in knobs:
            knobs["mlp_tile"] = self.levers.mlp_tile
        for name in ("projection_tile", "whole_layers", "head_groups"):
            # named where they are in force: folders from before there were these go on
            if knobs.pop(name, None) and (value := getattr(self.levers, name)) != _OFF[name]:
                knobs[name] = value
        for knobs_of, name, plain in (
            (knobs, "embeddings_rate", 1.0),
            (knobs.get("lora", {}), "b_rate", 1.0),
        ):
            if knobs_of.get(name) == plain:  # the same
                del knobs_of[name]
        if self.config.loss == "ce":
            # folders from before there was another loss go on
            for name in ("loss", *LONGCE_KNOBS):
                knobs.pop(name)
        else:
            knobs["short_context"] = self.config.short_context_of(self.checkpoint.native_length)
        if self.evaluated_documents and "held_out_every" in knobs:
            knobs["evaluated_documents"] = self.evaluated_documents
        start = {"start_from": digest_file(self.start_from / WEIGHTS)} if self.start_from else {}
        return {
            **start,
            "checkpoint": self.checkpoint.digest,
            "source": self.checkpoint.source,
            "rope": digest_value(self.table.to_json()),
            "packed": packed_digest,
            "train": {**knobs, "window": self.window},
            "positions": self.positions,
            "target_length": self.target_length,
            "dtype": self.dtype,
            "seed": self.seed,
        }

    def to_json(self) -> dict[str, Any]:
        """All fields, for a process of its own; `from_json` reads them."""
        return {
            "checkpoint": self.checkpoint.to_json(),
            "table": self.table.to_json(),
            "packed_dir": str(self.packed_dir.absolute()),
            "config": self.config.model_dump(mode="json"),
            "positions": self.positions,
            "target_length": self.target_length,
            "dtype": self.dtype,
            "seed": self.seed,
            "run_dir": str(self.run_dir.absolute()),
            "planned_seconds_per_step": self.planned_seconds_per_step,
            "start_from": str(self.start_from.absolute()) if self.start_from else None,
            "hands_on": self.hands_on,
            "levers": self.levers.to_json(),
            "may_end": self.may_end,
            "ends_now": self.ends_now,
            "evaluated_documents": self.evaluated_documents,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainJob:
        """Inverse of `to_json`."""
        checkpoint = dict(value["checkpoint"])
        return cls(
            checkpoint=Checkpoint(**{**checkpoint, "path": Path(checkpoint["path"])}),
            table=RopeTable.from_json(value["table"]),
            packed_dir=Path(value["packed_dir"]),
            config=TrainConfig.model_validate(value["config"]),
            positions=value["positions"],
            target_length=value["target_length"],
            dtype=value["dtype"],
            seed=value["seed"],
            run_dir=Path(value["run_dir"]),
            planned_seconds_per_step=value["planned_seconds_per_step"],
            start_from=Path(value["start_from"]) if value["start_from"] else None,
            hands_on=value["hands_on"],
            levers=Levers(**value["levers"]),
            may_end=value["may_end"],
            ends_now=value["ends_now"],
            evaluated_documents=value["evaluated_documents"],
        )
