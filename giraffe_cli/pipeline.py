"""`giraffe extend` as a story: a stage is a function from a config slice and folders to a folder.

    inspect → rope → pack → train → merge → verify → eval → report

A stage whose manifest names the same inputs is not run again, so the same command resumes a run
that was stopped anywhere; a different config in the same folder is refused with the keys named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.config import ExtendConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.errors import GateFailed
from giraffe_cli.evals.runner import Subject, evaluate
from giraffe_cli.evals.samples import default_lengths
from giraffe_cli.gates import Gate, default_gates
from giraffe_cli.merge import merge_stage
from giraffe_cli.progress import Reporter
from giraffe_cli.report.compose import compose_report
from giraffe_cli.report.write import write_report
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import make_folder, read_json, write_json
from giraffe_cli.stages import (
    Timings,
    check_samples,
    choose_table,
    claimed,
    evaluation_documents,
    make_plan,
    packed_folder,
    verified,
)
from giraffe_cli.train.loop import TrainResult, train_stage
from giraffe_cli.units import format_bytes, format_length, format_seconds


@dataclass(frozen=True)
class Options:
    """What a run does beyond its config; none of these changes a weight."""

    evaluate: bool = True
    strict: bool = False
    """A failed gate ends the command with exit code 5."""
    allow_native: bool = False
    """A base that already reaches the target is no error; nothing is written."""


def extend(
    config: ExtendConfig, run_dir: Path, options: Options, reporter: Reporter
) -> dict[str, Any]:
    """Look before anything is written, then run every stage; returns `report.json`.

    Raises:
        InvalidInput: config, data or checkpoint cannot be used; nothing half-written stays.
        DoesNotFit: the plan exceeds the machine.
        Interrupted: a signal came; the checkpoint is saved.
        GateFailed: under `strict`, an interval lies on the wrong side of a gate.
    """
    # ── inspect ──────────────────────────────────────────────────────────────────────────────
    checkpoint = inspect(config.model, run_dir)
    if options.allow_native and checkpoint.reach >= config.target_length:
        reporter.info(f"{checkpoint.source} already reaches {checkpoint.reach} tokens")
        return {"model_dir": str(checkpoint.path), "native_length": checkpoint.reach}
    if config.rope.on_existing != "refuse" and checkpoint.existing_rope is None:
        reporter.warn(
            f"--on-existing-rope {config.rope.on_existing} has no effect: "
            f"{checkpoint.source} is not scaled"
        )
    table = choose_table(config, checkpoint)
    the_plan = make_plan(config, checkpoint, table)
    announce(the_plan, reporter)
    with claimed(config, run_dir):
        write_json(run_dir / "plan.json", the_plan)
        write_json(run_dir / "rope.json", table.to_json())
        return run_stages(config, checkpoint, table, the_plan, run_dir, options, reporter)


def run_stages(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    table: RopeTable,
    the_plan: dict[str, Any],
    run_dir: Path,
    options: Options,
    reporter: Reporter,
) -> dict[str, Any]:
    """From the corpus to the report, in a folder that is claimed; raises as `extend` does."""
    timings = Timings(run_dir / "timings.json")
    if timings.path.exists():
        timings.seconds = read_json(timings.path)
    dtype, training = the_plan["dtype"], config.train.steps > 0
    native = table.original_max_position_embeddings

    # ── pack ─────────────────────────────────────────────────────────────────────────────────
    packed: Path | None = None
    if training or (options.evaluate and not config.eval.data):
        with timings.stage("pack"):
            packed = packed_folder(config, checkpoint, run_dir, reporter)
    lengths = sorted({*(config.eval.lengths or [])}) or default_lengths(
        native, config.target_length
    )
    documents: list[Document] = []
    if options.evaluate:
        documents = evaluation_documents(config, packed)
        check_samples(config, checkpoint, documents, lengths)

    # ── train ────────────────────────────────────────────────────────────────────────────────
    trained: TrainResult | None = None
    if training:
        assert packed is not None
        with timings.stage("train"):
            trained = train_stage(
                checkpoint,
                table,
                packed,
                config.train,
                positions=config.positions,
                target_length=config.target_length,
                dtype=dtype,
                seed=config.seed,
                run_dir=run_dir,
                reporter=reporter,
            )
    adapter = trained.adapter_dir if trained else None

    # ── merge, verify ────────────────────────────────────────────────────────────────────────
    with timings.stage("merge"):
        model_dir = merge_stage(checkpoint, adapter, table, run_dir / "model", reporter)
    with timings.stage("verify"):
        proof = verified(checkpoint, adapter, table, model_dir, reporter)
    reporter.info(f"verified: {len(proof['checks'])} checks passed on {model_dir}")

    # ── evaluate ─────────────────────────────────────────────────────────────────────────────
    results: dict[str, Any] = {}
    if options.evaluate:
        subjects = [
            Subject("base", checkpoint.path, checkpoint.digest, dtype),
            Subject("checkpoint", model_dir, inspect(str(model_dir), run_dir).digest, dtype),
        ]
        with timings.stage("eval"):
            results = evaluate(
                subjects,
                config.eval,
                lengths=lengths,
                native_length=native,
                seed=config.seed,
                documents=documents,
                out=make_folder(run_dir / "eval"),
                cache=make_folder(Path(config.eval.cache or run_dir / "eval" / "cache")),
                reporter=reporter,
            )

    # ── report ───────────────────────────────────────────────────────────────────────────────
    gates = default_gates(results, native, config.target_length)
    report = compose_report(config, checkpoint, table, trained, proof, results, gates, run_dir)
    report["seconds"] = {**timings.seconds, "total": round(sum(timings.seconds.values()), 2)}
    write_report(report, results, run_dir, model_dir)
    settle_gates(gates, options.strict, reporter)
    return report


def announce(the_plan: dict[str, Any], reporter: Reporter) -> None:
    """The plan in three lines, before the money is spent."""
    model, estimate = the_plan["model"], the_plan["estimate"]
    reporter.info(
        f"{model['source']}: {format_length(the_plan['native_length'])} → "
        f"{format_length(the_plan['target_length'])} tokens by {the_plan['strategy']}"
    )
    reporter.info(
        f"training: {the_plan['steps']} steps of {the_plan['tokens_per_step']} tokens, windows of "
        f"{format_length(the_plan['window'])} ({the_plan['positions']}), {the_plan['dtype']}"
    )
    reporter.info(f"memory: about {format_bytes(estimate['bytes']['total'])} predicted")


def settle_gates(gates: list[Gate], strict: bool, reporter: Reporter) -> None:
    """Warn of every failed gate.

    Raises:
        GateFailed: under `strict`.
    """
    failed = [gate for gate in gates if not gate.ok]
    for gate in failed:
        reporter.warn(f"gate failed: {gate.sentence}")
    if failed and strict:
        raise GateFailed("; ".join(gate.sentence for gate in failed), "see report.html")


def describe_time(report: dict[str, Any]) -> str:
    """`train 1 min 20 s, eval 40 s; 2 min 10 s in all`."""
    seconds = dict(report["seconds"])
    total = seconds.pop("total")
    parts = ", ".join(f"{stage} {format_seconds(spent)}" for stage, spent in seconds.items())
    return f"{parts}; {format_seconds(total)} in all"
