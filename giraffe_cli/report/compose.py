"""`report.json`: what the stages returned, under the keys that other programs may rely on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config import ExtendConfig, resolve_dtype
from giraffe_cli.gates import Gate
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.train.loop import TrainResult


def compose_report(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    table: RopeTable,
    trained: TrainResult | None,
    proof: dict[str, Any],
    results: dict[str, Any],
    gates: list[Gate],
    run_dir: Path,
) -> dict[str, Any]:
    """`report.json`: the keys that DESIGN promises, from what the stages returned."""
    models = results.get("models", {})
    scores: dict[str, Any] = {
        task: {
            "base": models["base"]["tasks"].get(task, {}),
            "extended": models["checkpoint"]["tasks"].get(task, {}),
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
        "steps": trained.steps if trained else 0,
        "trained_tokens": trained.trained_tokens if trained else 0,
        "final_loss": trained.final_loss if trained else None,
        "peak_memory_bytes": trained.peak_memory_bytes if trained else 0,
        "seed": config.seed,
        "dtype": resolve_dtype(config.dtype, checkpoint.dtype),
        "data": config.data,
        "window": config.window,
        "positions": config.positions,
        "rope": {
            "strategy": table.strategy,
            "knobs": table.knobs,
            "attention_factor": table.attention_factor,
            "rope_parameters": table.rope_parameters,
        },
        "train": config.train.model_dump(mode="json"),
        "verify": proof,
        **scores,
        "short_context": results.get("short_context", {}),
        "differences": results.get("paired", {}),
        "effective_length": {name: m.get("effective_length") for name, m in models.items()},
        "gates": [dataclasses.asdict(gate) for gate in gates],
        "warnings": results.get("warnings", []),
    }
