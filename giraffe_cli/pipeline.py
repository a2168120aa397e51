"""`giraffe extend` as a story: a stage is a function from a config slice and folders to a folder.

    inspect → rope → pack → train → merge → verify → eval → report

A stage whose manifest names the same inputs is not run again, so the same command resumes a run
that was stopped anywhere; a different config in the same folder is refused with the keys named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from giraffe_cli import plan
from giraffe_cli.checkpoint import Checkpoint, inspect, refuse_scaled
from giraffe_cli.config import ExtendConfig, differing_keys, read_yaml
from giraffe_cli.corpus.base import BadRecords, Document, reader_for
from giraffe_cli.corpus.packing import pack_stage, tokenizer_digest
from giraffe_cli.corpus.store import held_out, is_packed, open_packed
from giraffe_cli.errors import GateFailed, GiraffeError, InvalidInput
from giraffe_cli.evals.runner import Subject, evaluate
from giraffe_cli.gates import Gate, default_gates
from giraffe_cli.merge import merge_stage
from giraffe_cli.progress import Reporter
from giraffe_cli.report.write import write_report
from giraffe_cli.rope.base import RopeTable, make_table
from giraffe_cli.rundir import (
    atomic_open,
    digest_file,
    make_folder,
    read_json,
    write_json,
)
from giraffe_cli.train.loop import TrainResult, train_stage
from giraffe_cli.units import format_bytes, format_length, format_seconds
from giraffe_cli.verify import verify_directory


@dataclass(frozen=True)
class Options:
    """What a run does beyond its config; none of these changes a weight."""

    evaluate: bool = True
    strict: bool = False
    """A failed gate ends the command with exit code 5."""
    allow_native: bool = False
    """A base that already reaches the target is no error; nothing is written."""


@dataclass
class Timings:
    """Seconds by stage, kept in `timings.json` so that a resumed run reports the whole."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as `name`; a stage that was skipped keeps the time of its real run."""
        started = time.monotonic()
        yield
        elapsed = round(time.monotonic() - started, 2)
        self.seconds[name] = max(elapsed, self.seconds.get(name, 0.0))
        write_json(self.path, self.seconds)


def resolve_dtype(requested: str, stored: str) -> str:
    """`auto` computes in bfloat16 when the weights are stored in 16 bits, else in float32."""
    if requested != "auto":
        return requested
    return "float32" if stored == "float32" else "bfloat16"


def evaluation_lengths(config: ExtendConfig, native_length: int) -> list[int]:
    """The lengths to score: as configured, else native and every doubling up to the target."""
    if config.eval.lengths:
        return sorted({*config.eval.lengths})
    lengths = [native_length]
    while lengths[-1] * 2 < config.target_length:
        lengths.append(lengths[-1] * 2)
    return [*lengths, config.target_length]


def claim(config: ExtendConfig, run_dir: Path) -> None:
    """Make `run_dir` the folder of this config, or recognise it as such.

    Raises:
        InvalidInput: it holds a run of another config; the differing keys are named.
    """
    path, values = run_dir / "run.yaml", config.model_dump(mode="json")
    if path.exists():
        different = differing_keys(read_yaml(path), values)
        if different:
            raise InvalidInput(
                f"{run_dir} holds a run of another config; different: {', '.join(different)}",
                "pass the same options to resume it, or another --out to start a new run",
            )
        return
    if run_dir.exists() and not run_dir.is_dir():
        raise InvalidInput(f"{run_dir} is not a directory", "choose another --out")
    make_folder(run_dir)
    with atomic_open(path, "w") as handle:
        yaml.safe_dump(values, handle, sort_keys=False)


def make_plan(config: ExtendConfig, checkpoint: Checkpoint, table: RopeTable) -> dict[str, Any]:
    """What will be done and what it will cost, before anything is loaded.

    Raises:
        DoesNotFit: the estimate exceeds the machine's memory.
    """
    estimate = plan.estimate(checkpoint, config)
    plan.check_fits(estimate)
    return {
        "model": checkpoint.to_json(),
        "strategy": table.strategy,
        "native_length": checkpoint.native_length,
        "target_length": config.target_length,
        "window": config.window,
        "positions": config.positions,
        "steps": config.train.steps,
        "tokens_per_step": config.window * config.train.windows_per_step,
        "dtype": resolve_dtype(config.dtype, checkpoint.dtype),
        "estimate": estimate,
        "files": ["run.yaml", "plan.json", "rope.json", "packed/", "adapter/", "model/", "eval/"],
    }


def packed_folder(
    config: ExtendConfig, checkpoint: Checkpoint, run_dir: Path, reporter: Reporter
) -> Path:
    """The training windows: packed here, or the given directory once it is shown to fit.

    Raises:
        InvalidInput: a packed directory of another tokenizer or of shorter windows.
    """
    given = [Path(source) for source in config.data if is_packed(Path(source))]
    if not given:
        out = run_dir / "packed"
        pack_stage(
            config.data, checkpoint.path, config.window, config.pack, config.seed, out, reporter
        )
        return out
    if len(config.data) > 1:
        raise InvalidInput(
            f"--data mixes the packed directory {given[0]} with other sources",
            "pack all sources together with `giraffe pack-data`, or pass the directory alone",
        )
    rows = open_packed(given[0])
    if rows.tokenizer_digest != tokenizer_digest(checkpoint.path):
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


def evaluation_documents(
    config: ExtendConfig, packed: Path | None, reporter: Reporter
) -> list[Document]:
    """The documents to score on: `eval.data`, else what packing held out.

    Raises:
        InvalidInput: there are none.
    """
    if config.eval.data:
        bad = BadRecords(config.pack.on_bad)
        return [d for s in config.eval.data for d in reader_for(s).documents(s, bad)]
    documents = held_out(packed) if packed else []
    if not documents:
        raise InvalidInput(
            "no held-out documents to evaluate on",
            "pass --eval-data FILE, raise pack.hold_out, or pass --no-eval",
        )
    return documents


def check_documents_reach(documents: list[Document], config: ExtendConfig, longest: int) -> None:
    """Refuse before training what the evaluation would refuse after it.

    A token is at least one byte, so a document of fewer bytes than `longest` cannot fill it.
    """
    if "nll" in config.eval.tasks and all(len(d.text.encode()) < longest for d in documents):
        raise InvalidInput(
            f"none of the {len(documents)} held-out documents can hold {longest} tokens",
            "pass longer documents as --eval-data, shorter eval.lengths, or --no-eval",
        )


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
    if path.exists() and read_json(path)["inputs"] == inputs:
        kept: dict[str, Any] = read_json(path)["proof"]
        return kept
    proof = verify_directory(
        model_dir, adapter_dir=adapter, base=checkpoint.path, table=table, reporter=reporter
    )
    failed = {name: check for name, check in proof["checks"].items() if not check["ok"]}
    if failed:
        listed = "\n".join(
            f"  - {name}: found {check['found']}, expected {check['expected']}"
            for name, check in failed.items()
        )
        raise GiraffeError(f"{model_dir} is not what was trained\n{listed}", "report this")
    write_json(path, {"inputs": inputs, "proof": proof})
    return proof


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
        "native_length": checkpoint.native_length,
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


def extend(
    config: ExtendConfig, run_dir: Path, options: Options, reporter: Reporter
) -> dict[str, Any]:
    """Run every stage; returns `report.json`.

    Raises:
        InvalidInput: config, data or checkpoint cannot be used; nothing half-written stays.
        DoesNotFit: the plan exceeds the machine.
        Interrupted: a signal came; the checkpoint is saved.
        GateFailed: under `strict`, an interval lies on the wrong side of a gate.
    """
    # ── inspect ──────────────────────────────────────────────────────────────────────────────
    checkpoint = inspect(config.model, run_dir)
    if options.allow_native and checkpoint.native_length >= config.target_length:
        reporter.info(f"{checkpoint.source} already reaches {checkpoint.native_length} tokens")
        return {"model_dir": str(checkpoint.path), "native_length": checkpoint.native_length}
    table = choose_table(config, checkpoint)
    the_plan = make_plan(config, checkpoint, table)
    claim(config, run_dir)
    write_json(run_dir / "plan.json", the_plan)
    write_json(run_dir / "rope.json", table.to_json())
    announce(the_plan, reporter)
    timings = Timings(run_dir / "timings.json")
    if timings.path.exists():
        timings.seconds = read_json(timings.path)
    dtype, training = the_plan["dtype"], config.train.steps > 0

    # ── pack ─────────────────────────────────────────────────────────────────────────────────
    packed: Path | None = None
    if training or (options.evaluate and not config.eval.data):
        with timings.stage("pack"):
            packed = packed_folder(config, checkpoint, run_dir, reporter)
    lengths = evaluation_lengths(config, checkpoint.native_length)
    documents: list[Document] = []
    if options.evaluate:
        documents = evaluation_documents(config, packed, reporter)
        check_documents_reach(documents, config, lengths[-1])

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
                native_length=checkpoint.native_length,
                seed=config.seed,
                documents=documents,
                out=make_folder(run_dir / "eval"),
                cache=make_folder(run_dir / "eval" / "cache"),
                reporter=reporter,
            )

    # ── report ───────────────────────────────────────────────────────────────────────────────
    gates = default_gates(results, checkpoint.native_length, config.target_length)
    report = compose_report(config, checkpoint, table, trained, proof, results, gates, run_dir)
    report["seconds"] = {**timings.seconds, "total": round(sum(timings.seconds.values()), 2)}
    write_report(report, results, run_dir, model_dir)
    settle_gates(gates, options.strict, reporter)
    return report


def choose_table(config: ExtendConfig, checkpoint: Checkpoint) -> RopeTable:
    """The table of the configured strategy.

    Raises:
        InvalidInput: the base is scaled already, or reaches the target without scaling.
    """
    if config.target_length <= checkpoint.native_length:
        raise InvalidInput(
            f"{checkpoint.source} already reaches {checkpoint.native_length} tokens, "
            f"the target is {config.target_length}",
            "choose a longer --target-len, or pass --allow-native to accept the base as it is",
        )
    refuse_scaled(checkpoint)
    return make_table(
        config.rope.strategy, config.rope.knobs, checkpoint.head(config.target_length)
    )


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
