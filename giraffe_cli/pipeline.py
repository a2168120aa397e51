"""`giraffe extend` as a story: a stage is a function from a config slice and folders to a folder.

    inspect → rope (compared under `auto`) → pack → train → merge → verify → eval → report

A stage whose manifest names the same inputs is not run again, so the same command resumes a run
that was stopped anywhere; a different config in the same folder is refused with the keys named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.config.base import AUTO
from giraffe_cli.config.building import resolve_dtype
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.control import control_stages, describe_control
from giraffe_cli.corpus.unseen import not_trained_on
from giraffe_cli.errors import GateFailed, InvalidInput
from giraffe_cli.evals.runner import Subject, evaluate
from giraffe_cli.evals.samples import Texts, default_lengths
from giraffe_cli.evals.subject import EVALUATOR
from giraffe_cli.gates import Gate, default_gates
from giraffe_cli.lock import held
from giraffe_cli.merge import merge_stage
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.low_bits import check_low_bits
from giraffe_cli.progress import Reporter, SilentReporter
from giraffe_cli.report.compose import compose_report
from giraffe_cli.report.write import write_report
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import make_folder, read_kept, write_sealed
from giraffe_cli.stages import (
    Timings,
    check_samples,
    claimed,
    evaluation_documents,
    evaluation_texts,
    open_evaluator,
    verified,
)
from giraffe_cli.train.crew import Crew, crew_of
from giraffe_cli.train.loop import TrainResult
from giraffe_cli.training import (
    TrainingStage,
    check_stages,
    pack_stages,
    plan_stages,
    refuse_what_does_not_fit,
    train_stages,
    training_stages,
)
from giraffe_cli.tune.choice import budget_seconds, choose_rope, chooses_rope, predicted_seconds
from giraffe_cli.units import format_bytes, format_length, format_seconds


@dataclass(frozen=True)
class Options:
    """What a run does beyond its config; none of these changes a weight."""

    evaluate: bool = True
    strict: bool = False
    """A failed gate ends the command with exit code 5."""
    allow_native: bool = False
    """A base that already reaches the target is no error; nothing is written."""
    rendezvous: str = ""
    """Where other nodes reach this one, `HOST[:PORT]`; empty: its name and a free port."""


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
    with held(run_dir), crew_of(run_dir, nodes, options.rendezvous, reporter) as crew:
        return _extend(config, run_dir, options, reporter, crew)


def _extend(
    config: ExtendConfig, run_dir: Path, options: Options, reporter: Reporter, crew: Crew | None
) -> dict[str, Any]:
    # ── inspect ──────────────────────────────────────────────────────────────────────────────
    check_low_bits(config.train)
    checkpoint = inspect(config.model, run_dir, config.allow_pickle)
    if options.allow_native and checkpoint.reach >= config.target_length:
        reporter.info(f"{checkpoint.source} already reaches {checkpoint.reach} tokens")
        return {"model_dir": str(checkpoint.path), "native_length": checkpoint.reach}
    if config.rope.on_existing != "refuse" and checkpoint.existing_rope is None:
        reporter.warn(
            f"--on-existing-rope {config.rope.on_existing} has no effect: "
            f"{checkpoint.source} is not scaled"
        )
    stages = training_stages(config, checkpoint, run_dir)
    controls = control_stages(stages, checkpoint, run_dir)
    if config.trains:
        check_stages((*stages, *controls), checkpoint, SilentReporter())
    the_plan = plan_stages(stages, checkpoint, controls)
    announce(the_plan, reporter)
    refuse_what_does_not_fit(the_plan)
    _check_same_base(run_dir, checkpoint)
    with claimed(config, run_dir):
        write_sealed(run_dir / "plan.json", the_plan)
        timings = Timings.kept(run_dir / "timings.json")

        # ── rope ─────────────────────────────────────────────────────────────────────────────
        choice: dict[str, Any] = {}
        if chooses_rope(config):
            with timings.stage("compare rope"):
                seconds = budget_seconds(config, predicted_seconds(the_plan, checkpoint, config))
                choice = choose_rope(config, checkpoint, run_dir, seconds, reporter)
            config = config.with_rope(choice["chosen"]["strategy"], choice["chosen"]["knobs"])
            stages = training_stages(config, checkpoint, run_dir)
            controls = control_stages(stages, checkpoint, run_dir)
            write_sealed(run_dir / "plan.json", plan_stages(stages, checkpoint, controls))
        write_sealed(run_dir / "rope.json", stages[-1].table.to_json())
        work = Work(
            config, checkpoint, stages, controls, choice, run_dir, timings, options, reporter, crew
        )
        return run_stages(work)


def _check_same_base(run_dir: Path, checkpoint: Checkpoint) -> None:
    """A run goes on from the weights it began with.

    Raises:
        InvalidInput: the base holds others now, and something was trained on the first.
    """
    kept = read_kept(run_dir / "plan.json") or {}
    began_with = kept.get("model", {}).get("digest")
    trained = [*run_dir.glob("**/checkpoints/step-*/manifest.json"), *run_dir.glob("**/adapter")]
    if trained and began_with not in (None, checkpoint.digest):
        raise InvalidInput(
            f"{checkpoint.source} is not what {run_dir} was trained on: a file in it changed",
            "put the base back as it was, or choose another --out",
        )


@dataclass(frozen=True)
class Work:
    """What every stage of a claimed folder works on."""

    config: ExtendConfig
    checkpoint: Checkpoint
    stages: list[TrainingStage]
    controls: list[TrainingStage]
    """One for each of `stages`, or none."""
    rope_choice: dict[str, Any]
    """What `rope.strategy: auto` compared and chose; empty for a strategy that was named."""
    run_dir: Path
    timings: Timings
    options: Options
    reporter: Reporter
    crew: Crew | None = None
    """The other nodes, where there are any."""

    @property
    def table(self) -> RopeTable:
        """Of the model that is written."""
        return self.stages[-1].table

    @property
    def native_length(self) -> int:
        """Tokens of the window that the base was trained for."""
        return self.table.original_max_position_embeddings

    @property
    def lengths(self) -> list[int]:
        """Context lengths of the evaluation, rising."""
        chosen = sorted({*(self.config.eval.lengths or [])})
        return chosen or default_lengths(self.native_length, self.config.target_length)


def run_stages(work: Work) -> dict[str, Any]:
    """From the corpus to the report, in a folder that is claimed; raises as `extend` does."""
    checkpoint, table, run_dir = work.checkpoint, work.table, work.run_dir
    timings, reporter = work.timings, work.reporter

    # ── pack ─────────────────────────────────────────────────────────────────────────────────
    packed, texts = prepare_data(work)

    # ── train ────────────────────────────────────────────────────────────────────────────────
    trained: list[TrainResult] = []
    if work.config.trains:
        trained = train_stages(work.stages, packed, checkpoint, timings, reporter, crew=work.crew)
    compared = train_stages(
        work.controls, packed, checkpoint, timings, reporter, "train control", work.crew
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
        InvalidInput: a corpus or the evaluation cannot be used; found before anything is trained.
    """
    config, evaluates = work.config, work.options.evaluate
    packed: dict[Path, Path] = {}
    if config.trains or (evaluates and not config.eval.data):
        with work.timings.stage("pack"):
            packed = pack_stages(work.stages, work.checkpoint, work.reporter, work.controls)
    if not evaluates:
        return packed, Texts()
    documents = evaluation_documents(config, packed.get(work.run_dir))
    if config.trains:
        hint = "pass --eval-data with other text, raise pack.hold_out, or set pack.dedupe"
        tokenizers = [work.checkpoint.path]
        documents = not_trained_on(documents, packed.values(), tokenizers, hint, work.reporter)
    if work.controls and work.lengths[0] > work.native_length:
        raise InvalidInput(
            f"the control run is scored up to {format_length(work.native_length)}, eval.lengths "
            f"begins at {format_length(work.lengths[0])}",
            f"add {format_length(work.native_length)} to eval.lengths, or leave --control out",
        )
    evaluator = open_evaluator(config, work.run_dir)
    texts = evaluation_texts(config.eval, documents, evaluator)
    check_samples(config, work.checkpoint, texts, work.lengths, work.native_length, evaluator)
    return packed, texts


def evaluate_models(work: Work, models: dict[str, Path], texts: Texts) -> dict[str, Any]:
    """The base and `models`, by name, on the same samples: the content of `results.json`."""
    config, checkpoint, out = work.config, work.checkpoint, work.run_dir / "eval"
    dtype = resolve_dtype(config.dtype, checkpoint.dtype)
    longest = {"control": work.native_length}
    subjects = [Subject("base", checkpoint.path, checkpoint.digest, dtype)] + [
        Subject(name, path, inspect(str(path), work.run_dir).digest, dtype, longest.get(name))
        for name, path in models.items()
    ]
    if evaluator := open_evaluator(config, work.run_dir):
        computed = resolve_dtype(config.dtype, evaluator.dtype)
        subjects.append(Subject(EVALUATOR, evaluator.path, evaluator.digest, computed))
    on_this_node = config.train.processes and config.train.processes // config.train.nodes
    own_device_each = None if config.train.share_devices else on_this_node
    processes = config.eval.processes or own_device_each
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


def announce(the_plan: dict[str, Any], reporter: Reporter) -> None:
    """The plan in a few lines, before the money is spent."""
    model, estimate, strategy = the_plan["model"], the_plan["estimate"], the_plan["strategy"]
    if strategy == AUTO:
        strategy = "the table that a comparison on the training text finds best"
    reporter.info(
        f"{model['source']}: {format_length(the_plan['native_length'])} → "
        f"{format_length(the_plan['target_length'])} tokens by {strategy}"
    )
    for number, stage in enumerate(the_plan["stages"], start=1):
        name = f"stage {number}, {format_length(stage['target_length'])}"
        reporter.info(
            f"{name if len(the_plan['stages']) > 1 else 'training'}: {stage['steps']} steps of "
            f"{stage['tokens_per_step']} tokens, windows of {format_length(stage['window'])} "
            f"({stage['positions']}), {the_plan['dtype']}"
        )
    for stage in the_plan["control"]:
        reporter.info(
            f"control: {stage['steps']} steps of {stage['tokens_per_step']} tokens, windows of "
            f"{format_length(stage['window'])}, unscaled"
        )
    levers = Levers(**estimate["levers"]).sentence
    reporter.info(f"memory: about {format_bytes(estimate['bytes']['total'])} predicted; {levers}")


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
