"""`report.json`: what the stages returned, under the keys that other programs may rely on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.gates import Gate
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.train.loop import TrainResult

_SHOWN_AS = {"base": "base", "control": "control", "extended": "checkpoint"}
"""Model in the report → in `results.json`."""


def compose_report(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    table: RopeTable,
    trained: list[TrainResult],
    proof: dict[str, Any],
    results: dict[str, Any],
    gates: list[Gate],
    run_dir: Path,
    rope_choice: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`report.json`: the keys that DESIGN promises, from what the stages returned.

    Args:
        trained: of each target in turn; empty where nothing was trained. Steps, tokens and memory
            are told of all of them together, each one's under `stages`.
        rope_choice: content of `rope_choice.json`: a comparison and what came of it, where the
            table was left to giraffe; `settings` are empty where nothing was compared.
    """
    models, last = results.get("models", {}), config.stage_configs()[-1]
    scores: dict[str, Any] = {
        task: {
            shown: models[name]["tasks"].get(task, {})
            for shown, name in _SHOWN_AS.items()
            if name in models
        }
        for task in (config.eval.tasks if models else [])
    }
    return {
        "run_dir": str(run_dir),
        "model_dir": str(run_dir / "model"),
        "model": checkpoint.source,
        "strategy": table.strategy,
        "native_length": table.original_max_position_embeddings,
        "target_length": config.target_length,
        "steps": sum(result.steps for result in trained),
        "trained_tokens": sum(result.trained_tokens for result in trained),
        "final_loss": trained[-1].final_loss if trained else None,
        "peak_memory_bytes": max((result.peak_memory_bytes for result in trained), default=0),
        "stages": [
            describe_stage(stage, result)
            for stage, result in zip(config.stage_configs(), trained, strict=False)
        ],
        "seed": config.seed,
        "dtype": config.dtype,
        "data": last.data,
        "window": last.window,
        "positions": last.positions,
        "rope": {
            "strategy": table.strategy,
            "knobs": table.knobs,
            "attention_factor": table.attention_factor,
            "rope_parameters": table.rope_parameters,
        },
        "rope_choice": rope_choice or {},
        "train": last.train.model_dump(mode="json"),
        "verify": proof,
        **scores,
        "short_context": results.get("short_context", {}),
        "gates": [dataclasses.asdict(gate) for gate in gates],
        "evaluation": results,
        "warnings": results.get("warnings", []),
    }


def describe_stage(stage: ExtendConfig, trained: TrainResult) -> dict[str, Any]:
    """One target: what it was trained with, and what came of it."""
    return {
        "target_length": stage.target_length,
        "strategy": stage.rope.strategy,
        "window": stage.window,
        "positions": stage.positions,
        "steps": trained.steps,
        "trained_tokens": trained.trained_tokens,
        "seconds": trained.seconds,
        "final_loss": trained.final_loss,
        "held_out_nll": trained.held_out_nll,
        "adapter_step": trained.steps if trained.adapter_step is None else trained.adapter_step,
        "stopped_early": trained.stopped_early,
        "cut_short": trained.cut_short,
        "bad_steps": trained.bad_steps,
    }
