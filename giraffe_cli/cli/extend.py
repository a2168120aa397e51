"""`giraffe extend`: a checkpoint goes in, a proven long-context model comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.extend_input import cautions_of_factors, default_run_dir, gather, given_factors
from giraffe_cli.cli.extend_nodes import is_another_node, join_run
from giraffe_cli.cli.launcher import start_alone
from giraffe_cli.cli.options import (
    AllowPickle,
    AsJson,
    Assignments,
    ConfigDtype,
    ConfigFile,
    Control,
    Factors,
    Model,
    Nodes,
    OnBad,
    OnExistingRope,
    Rope,
    SequenceParallel,
    Stages,
    Steps,
    TargetLen,
    Window,
    a_seed,
)
from giraffe_cli.config.building import build
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.errors import UsageError

EXAMPLES = """
Examples:

giraffe extend --target-len 16k

giraffe extend --model ./smollm2-135m --data books.jsonl.gz --target-len 16k --window 2k

giraffe extend --config llama3-8b-64k --model ./llama3-8b --data books.jsonl.gz --dry-run
"""


def extend(
    target_len: TargetLen = None,
    stages: Stages = None,
    model: Model = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Corpus, or a directory of `pack-data`; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: runs/MODEL-TARGET.")
    ] = None,
    rope: Rope = None,
    factors: Factors = None,
    on_existing_rope: OnExistingRope = None,
    steps: Steps = None,
    window: Window = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    control: Control = False,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(help="Corpus to evaluate on; repeatable. Default: held-out documents."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs to train on. Default: all visible.")
    ] = None,
    nodes: Nodes = None,
    node_rank: Annotated[
        int | None,
        typer.Option(min=0, help="Which of --nodes this is; 0 leads. Default: as Slurm says."),
    ] = None,
    rendezvous: Annotated[
        str | None,
        typer.Option(help="HOST[:PORT] of node 0 for the others. Default: its name, a free port."),
    ] = None,
    sequence_parallel: SequenceParallel = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Train to the same bits each time, on GPUs too: slower there."
        ),
    ] = False,
    keep_checkpoints: Annotated[
        int | None, typer.Option(min=1, help="How many checkpoints stay on disk. Default: 2.")
    ] = None,
    dtype: ConfigDtype = None,
    seed: Annotated[int | None, a_seed("Seed of all that is drawn. Default: 0.")] = None,
    on_bad: OnBad = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Skip the evaluation.")] = False,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish", help="End a stopped training at its newest checkpoint, and go on from it."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and stop; writes nothing.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A failed quality gate exits with 5.")
    ] = False,
    allow_native: Annotated[
        bool,
        typer.Option("--allow-native", help="A base that reaches the target is no error."),
    ] = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Extend a Llama checkpoint: RoPE strategy, packed windows, LoRA, merge, proof, report card.

    Without --model and --data it extends calf, a small embedded Llama, on the Python standard
    library's sources: minutes on any machine, no network. The same command resumes a stopped run.
    """
    console = Console(as_json)
    start_alone(console)
    flags = {
        "target_length": target_len,
        "stages": stages.split(",") if stages is not None else None,
        "model": model,
        "allow_pickle": allow_pickle or None,
        "data": data or None,
        "rope.strategy": rope,
        "rope.on_existing": on_existing_rope,
        "train.steps": steps,
        "train.window": window,
        "train.control": control or None,
        "train.processes": gpus,
        "train.nodes": nodes,
        "train.sequence_parallel": sequence_parallel,
        "train.deterministic": deterministic or None,
        "train.keep_checkpoints": keep_checkpoints,
        "eval.data": eval_data or None,
        "dtype": dtype,
        "seed": seed,
        "pack.on_bad": on_bad,
    }
    given = {path: value for path, value in flags.items() if value is not None}
    if factors is not None:
        given = {**given_factors(factors), **given}
    resolved = build(gather(config, given, assignments or []))
    for caution in cautions_of_factors(factors, resolved):
        console.warn(caution)
    run_dir = out or default_run_dir(resolved)
    if gpus is not None and not resolved.train.share_devices:
        _check_gpus(gpus, resolved.train.nodes)
    if finish:
        _check_finish(resolved, run_dir, dry_run)
    joins = is_another_node(resolved.train.nodes, node_rank, rendezvous, dry_run)
    if dry_run:
        _show_plan(resolved, run_dir, not no_eval, strict, allow_native, console)
    elif joins:
        join_run(resolved.train.nodes, node_rank, run_dir, console)
    else:
        switches = {
            "evaluate": not no_eval,
            "strict": strict,
            "allow_native": allow_native,
            "finish": finish,
            "rendezvous": rendezvous or "",
        }
        _run(resolved, run_dir, console, switches)


def _check_finish(config: ExtendConfig, run_dir: Path, dry_run: bool) -> None:
    from giraffe_cli.training import check_can_finish

    if dry_run:
        raise UsageError("--finish ends a training, --dry-run starts none", "leave one of them out")
    check_can_finish(config, run_dir)


def _check_gpus(requested: int, nodes: int) -> None:
    import torch

    visible = nodes * torch.cuda.device_count()
    if requested > visible:
        raise UsageError(
            f"--gpus {requested}: {visible} visible here",
            "lower --gpus, or leave it out to use what is there",
        )


def _show_plan(
    config: ExtendConfig,
    run_dir: Path,
    evaluates: bool,
    strict: bool,
    allow_native: bool,
    console: Console,
) -> None:
    """What a run would do, and every refusal of it that shows without a lock or a trace."""
    from giraffe_cli.cli.plan_text import plan_tables
    from giraffe_cli.evaluating import refuse_what_cannot_be_read
    from giraffe_cli.plan.machine import this_machine
    from giraffe_cli.plan.trial import pace_of
    from giraffe_cli.preflight import preflight
    from giraffe_cli.telling import announce
    from giraffe_cli.training import plan_stages, refuse_what_does_not_fit

    with tempfile.TemporaryDirectory() as scratch:
        start = preflight(
            config,
            run_dir,
            Path(scratch),
            console,
            evaluates=evaluates,
            allow_native=allow_native,
            reads_all=False,
            strict=strict,
        )
        checkpoint, machine = start.checkpoint, this_machine()
        if not start.stages:
            console.result({"native_length": checkpoint.reach}, f"nothing to do: {config.model}")
            return
        pace = pace_of(machine, checkpoint, config)
        plan = plan_stages(start.stages, checkpoint, start.controls, machine, pace)
    announce(plan, console)
    tables = plan_tables([*plan["stages"], *plan["control"]])
    console.result({**plan, "run_dir": str(run_dir)}, [*tables, f"would write {run_dir}/"])
    if config.trains:
        refuse_what_does_not_fit(plan)
    if evaluates:
        native = start.stages[-1].table.original_max_position_embeddings
        refuse_what_cannot_be_read(start.config, checkpoint, native)


def _run(
    config: ExtendConfig,
    run_dir: Path,
    console: Console,
    switches: Mapping[str, Any],
) -> None:
    from giraffe_cli.pipeline import Options, extend
    from giraffe_cli.report.serve import serve_lines
    from giraffe_cli.report.tables import summary_table
    from giraffe_cli.telling import describe_time

    report = extend(config, run_dir, Options(**switches), console)
    if "verify" not in report:
        console.result(report, f"nothing to do: {report['model_dir']}")
        return
    closing = ["", "serve it:", *serve_lines(Path(report["model_dir"]))]
    console.info(f"time: {describe_time(report)}")
    console.result(report, [*summary_table(report), *closing])
