"""`giraffe extend` as a story: a stage is a function from a config slice and folders to a folder.

    inspect → rope (compared under `auto`) → pack → train → merge → verify → eval → report

A stage whose manifest names the same inputs is not run again, so the same command resumes a run
that was stopped anywhere; a different config in the same folder is refused with the keys named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import inspect
from giraffe_cli.claim import check_folder, claimed, is_past_packing
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.control import control_stages, describe_control
from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.packed_facts import lookup_share
from giraffe_cli.corpus.unseen import not_trained_on
from giraffe_cli.evals.runner import evaluate
from giraffe_cli.evals.samples import Texts
from giraffe_cli.evals.subject import EVALUATOR, Subject
from giraffe_cli.evaluating import (
    check_samples,
    held_out_documents,
    reading_processes,
    refuse_what_cannot_be_read,
)
from giraffe_cli.gates import Gate, default_gates
from giraffe_cli.lock import held
from giraffe_cli.merge import merge_stage
from giraffe_cli.model.precision import computed_in
from giraffe_cli.preflight import preflight
from giraffe_cli.progress import Reporter
from giraffe_cli.report.compose import compose_report
from giraffe_cli.report.write import write_report
from giraffe_cli.rundir import make_folder, write_sealed
from giraffe_cli.stages import Timings, verified
from giraffe_cli.telling import announce, settle_gates
from giraffe_cli.train.crew import Crew, crew_of
from giraffe_cli.train.loop import TrainResult
from giraffe_cli.train.packed_checks import passes
from giraffe_cli.training import (
    TrainingStage,
    pack_stages,
    plan_stages,
    refuse_what_does_not_fit,
    train_stages,
    training_stages,
)
from giraffe_cli.tune.choice import budget_seconds, choose_rope, chooses_rope, predicted_seconds
from giraffe_cli.work import Options, Work

__all__ = ["Options", "extend"]


def extend(
    config: ExtendConfig, run_dir: Path, options: Options, reporter: Reporter
) -> dict[str, Any]:
    """Look before anything is written, then run every stage; returns `report.json`.

    Raises:
        InvalidInput: config, data or checkpoint cannot be used; nothing half-written stays.
        DoesNotFit: the plan exceeds the machine.
        Interrupted: a signal came; the checkpoint is saved.
        GateFailed: under `strict`, an interval lies on the wrong side of a gate.
        GiraffeError: another process writes `run_dir`, or a node is not there.
    """
    nodes = config.train.nodes
    check_folder(run_dir)  # which is locked before anything else is looked at
    with held(run_dir), crew_of(run_dir, nodes, options.rendezvous, reporter) as crew:
        return _extend(config, run_dir, options, reporter, crew)


def _extend(
    config: ExtendConfig, run_dir: Path, options: Options, reporter: Reporter, crew: Crew | None
) -> dict[str, Any]:
    # ── inspect ──────────────────────────────────────────────────────────────────────────────
    start = preflight(
        config,
        run_dir,
        run_dir,
        reporter,
        evaluates=options.evaluate,
        allow_native=options.allow_native,
        strict=options.strict,
    )
    checkpoint, stages, controls = start.checkpoint, start.stages, start.controls
    if not stages:
        reporter.info(f"{checkpoint.source} already reaches {checkpoint.reach} tokens")
        return {"model_dir": str(checkpoint.path), "native_length": checkpoint.reach}
    the_plan = plan_stages(stages, checkpoint, controls)
    announce(the_plan, reporter)
    if config.trains:
        refuse_what_does_not_fit(the_plan)
    if options.evaluate:
        native = stages[-1].table.original_max_position_embeddings
        refuse_what_cannot_be_read(start.config, checkpoint, native)
    with claimed(config, run_dir):
        config = start.config
        write_sealed(run_dir / "plan.json", the_plan)
        timings = Timings.kept(run_dir / "timings.json")

        # ── rope ─────────────────────────────────────────────────────────────────────────────
        choice: dict[str, Any] = {}
        if chooses_rope(config):
            with timings.stage("compare rope"):
                seconds = budget_seconds(config, predicted_seconds(the_plan, checkpoint, config))
                is_settled = is_past_packing(run_dir)
                choice = choose_rope(
                    config, checkpoint, run_dir, seconds, reporter, is_settled=is_settled
                )
            config = config.with_rope(choice["chosen"]["strategy"], choice["chosen"]["knobs"])
            stages = training_stages(config, checkpoint, run_dir)
            controls = control_stages(stages, checkpoint, run_dir)
            write_sealed(run_dir / "plan.json", plan_stages(stages, checkpoint, controls))
        write_sealed(run_dir / "rope.json", stages[-1].table.to_json())
        settled = dataclasses.replace(start, stages=stages, controls=controls)
        return run_stages(Work(config, settled, choice, run_dir, timings, options, reporter, crew))


def run_stages(work: Work) -> dict[str, Any]:
    """From the corpus to the report, in a folder that is claimed; raises as `extend` does."""
    checkpoint, table, run_dir = work.checkpoint, work.table, work.run_dir
    timings, reporter = work.timings, work.reporter

    # ── pack ─────────────────────────────────────────────────────────────────────────────────
    packed, texts = prepare_data(work)

    # ── train ────────────────────────────────────────────────────────────────────────────────
    trained: list[TrainResult] = []
    if work.config.trains:
        trained = train_stages(
            *(work.stages, packed, checkpoint, timings, reporter),
            crew=work.crew,
            finish=work.options.finish,
        )
    compared = train_stages(
        *(work.controls, packed, checkpoint, timings, reporter, "train control", work.crew),
        is_control=True,
    )
    if work.crew:
        work.crew.dismiss()

    # ── merge, verify ────────────────────────────────────────────────────────────────────────
    model_dir, proof = write_model(work, work.stages[-1], trained)
    models = {"checkpoint": model_dir}
    if compared:
        models["control"], _ = write_model(work, work.controls[-1], compared, " control")

    # ── evaluate ─────────────────────────────────────────────────────────────────────────────
    results = evaluate_models(work, models, texts) if work.options.evaluate else {}

    # ── report ───────────────────────────────────────────────────────────────────────────────
    gates = default_gates(results, work.native_length, work.config.target_length)
    gates += [Gate(**gate) for gate in results.get("gates", [])]
    report = compose_report(
        work.config,
        checkpoint,
        table,
        trained,
        proof,
        results,
        gates,
        run_dir,
        work.rope_choice,
    )
    if trained:
        report["lookups"] = lookup_share(set(packed.values()))
        for stage, told in zip(work.stages, report["stages"], strict=False):
            per_step = stage.config.train.windows_per_step
            told["passes"] = passes(packed[stage.folder], per_step, told["steps"])
    if compared:
        report["control"] = describe_control(work.controls[-1], compared, models["control"])
    report["seconds"] = {**timings.seconds, "total": round(sum(timings.seconds.values()), 2)}
    write_report(report, run_dir, model_dir)
    settle_gates(gates, work.options.strict, reporter)
    return report


def write_model(
    work: Work, stage: TrainingStage, trained: list[TrainResult], of: str = ""
) -> tuple[Path, dict[str, Any]]:
    """What the stages up to `stage` made, merged into its folder, and the proof of it."""
    adapter = trained[-1].adapter_dir if trained else None
    with work.timings.stage(f"merge{of}"):
        out = stage.folder / "model"
        model_dir = merge_stage(work.checkpoint, adapter, stage.table, out, work.reporter)
    with work.timings.stage(f"verify{of}"):
        proof = verified(work.checkpoint, adapter, stage.table, model_dir, work.reporter)
    work.reporter.info(f"verified: {len(proof['checks'])} checks passed on {model_dir}")
    return model_dir, proof


def prepare_data(work: Work) -> tuple[dict[Path, Path], Texts]:
    """The windows of each stage and the documents to score on; none of either where not needed.

    Raises:
        InvalidInput: a corpus cannot be packed, or the documents do not make the evaluation's
            samples; found before anything is trained.
    """
    config, start, packed = work.config, work.start, dict[Path, Path]()
    if config.trains or (start.evaluation and start.evaluation.documents is None):
        with work.timings.stage("pack"):
            packed = pack_stages(start.stages, start.checkpoint, work.reporter, start.controls)
    if start.evaluation is None:
        return packed, Texts()
    documents = scored_documents(work, packed, start.evaluation.documents)
    texts, evaluator = start.evaluation.texts(config, documents), start.evaluation.evaluator
    check_samples(config, start.checkpoint, evaluator, texts, work.native_length)
    return packed, texts


def scored_documents(
    work: Work, packed: Mapping[Path, Path], known: list[Document] | None
) -> list[Document]:
    """Those of `known` that no stage trains on, or what packing held out; raises InvalidInput where
    there are none."""
    documents = held_out_documents(packed.get(work.run_dir)) if known is None else known
    if not work.config.trains:
        return documents
    hint = "pass --eval-data with other text, raise pack.hold_out, or set pack.dedupe"
    tokenizers = [work.checkpoint.path]
    return not_trained_on(documents, packed.values(), tokenizers, hint, work.reporter)


def evaluate_models(work: Work, models: dict[str, Path], texts: Texts) -> dict[str, Any]:
    """The base and `models`, by name, on the same samples: the content of `results.json`."""
    config, checkpoint, out = work.config, work.checkpoint, work.run_dir / "eval"
    dtype, longest = config.dtype, {"control": work.native_length}
    subjects = [Subject("base", checkpoint.path, checkpoint.digest, dtype)] + [
        Subject(name, path, inspect(str(path), work.run_dir).digest, dtype, longest.get(name))
        for name, path in models.items()
    ]
    if evaluator := work.start.evaluation and work.start.evaluation.evaluator:
        computed = computed_in(work.start.requested_dtype, evaluator.dtype)
        subjects.append(Subject(EVALUATOR, evaluator.path, evaluator.digest, computed))
    processes = reading_processes(config)
    with work.timings.stage("eval"):
        return evaluate(
            subjects,
            config.eval.model_copy(update={"processes": processes}),
            lengths=work.lengths,
            native_length=work.native_length,
            seed=config.seed,
            texts=texts,
            out=make_folder(out),
            cache=make_folder(Path(config.eval.cache or out / "cache")),
            reporter=work.reporter,
        )
