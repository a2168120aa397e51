"""`giraffe plan`: what a run will need and which levers it will pull, here or elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from giraffe_cli.checkpoint_source import EMBEDDED
from giraffe_cli.cli import complete
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.extend_input import gather, given_factors
from giraffe_cli.cli.options import (
    AllowPickle,
    AsJson,
    Assignments,
    ConfigDtype,
    ConfigFile,
    Control,
    Device,
    DeviceCount,
    DeviceMemory,
    Factors,
    HostMemory,
    Model,
    Nodes,
    OnExistingRope,
    Rope,
    SequenceParallel,
    Stages,
    Steps,
    TargetLen,
    Window,
    one_of,
)
from giraffe_cli.cli.plan_inference import (
    refuse_inference_options,
    refuse_training_options,
    show_inference,
)
from giraffe_cli.cli.plan_machine import machine_of, tell_assumed
from giraffe_cli.cli.plan_refusals import cautions, check_processes, refusals, refuse_corpus
from giraffe_cli.cli.plan_training import plan_on, show_training
from giraffe_cli.config.building import build
from giraffe_cli.errors import UsageError
from giraffe_cli.plan.shapes import SHAPES

if TYPE_CHECKING:
    from giraffe_cli.checkpoint import Checkpoint

EXAMPLES = """
Examples:

giraffe plan --model ./smollm2-135m --target-len 16k --window 2k

giraffe plan --shape llama3-8b --target-len 64k --device h100 --gpus 8

giraffe plan --config llama3-8b-128k --shape llama3-8b --device-memory 40GB --gpus 1

giraffe plan --inference --shape llama3.2-1b --prompt-len 64k --device rtx4090
"""


def plan(
    target_len: TargetLen = None,
    stages: Stages = None,
    model: Model = None,
    shape: Annotated[
        str | None,
        one_of(SHAPES, f"Without weights: {', '.join(SHAPES)}.", complete.shapes),
    ] = None,
    config_json: Annotated[
        Path | None, typer.Option(help="Without weights: a model's config.json.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Packed windows: a directory of `pack-data`. Default: windows of one document."
        ),
    ] = None,
    rope: Rope = None,
    factors: Factors = None,
    on_existing_rope: OnExistingRope = None,
    steps: Steps = None,
    window: Window = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    nodes: Nodes = None,
    sequence_parallel: SequenceParallel = None,
    control: Control = False,
    dtype: ConfigDtype = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    gpus: DeviceCount = None,
    inference: Annotated[
        bool,
        typer.Option("--inference", help="Plan `giraffe generate` instead of a training."),
    ] = False,
    prompt_len: Annotated[
        str | None, typer.Option(help="--inference: tokens of the prompt. Default: the window.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="--inference: tokens of an answer. Default: 256.")
    ] = None,
    kv_offload: Annotated[
        bool,
        typer.Option("--kv-offload", help="--inference: keys and values lie in --host-memory."),
    ] = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Predict memory by part, speed and hours; show the ladder of levers and the rung it takes.

    With --inference: bytes of keys and values by type, the longest prompt that fits, seconds of
    reading it, tokens/s of the answer. Nothing is loaded or written; on this machine's CPU a trial
    of seconds measures the speed. Ends with 4 when no setting fits.
    """
    console = Console(as_json)
    _refuse_two_models(model, shape, config_json)
    if allow_pickle and (shape or config_json):
        raise UsageError("--allow-pickle and no weights to read", "pass --model, or leave it out")
    if inference:
        training = {
            "target-len": target_len, "stages": stages, "steps": steps, "window": window,
            "config": config, "set": assignments, "sequence-parallel": sequence_parallel,
            "control": control, "gpus": gpus, "nodes": nodes,
            "host-memory": None if kv_offload else host_memory,
            "data": data, "rope": rope, "factors": factors, "on-existing-rope": on_existing_rope,
        }  # fmt: skip
        refuse_training_options(training)
        machine = machine_of(device, device_memory, None, host_memory)
        tell_assumed(device, device_memory, None, console)
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = _checkpoint(
                model or EMBEDDED, shape, config_json, Path(scratch), allow_pickle
            )
        show_inference(
            checkpoint, machine, dtype or "auto", prompt_len, max_new_tokens, console,
            kv_offload=kv_offload,
        )  # fmt: skip
        return
    of_inference = {"prompt-len": prompt_len, "max-new-tokens": max_new_tokens}
    refuse_inference_options({**of_inference, "kv-offload": kv_offload})
    flags = {
        "target_length": target_len,
        "stages": stages.split(",") if stages is not None else None,
        "model": model or shape or (str(config_json) if config_json else None),
        "allow_pickle": allow_pickle or None,
        "data": [data] if data is not None else None,
        "rope.strategy": rope,
        "rope.on_existing": on_existing_rope,
        "train.nodes": nodes,
        "train.steps": steps,
        "train.window": window,
        "train.sequence_parallel": sequence_parallel,
        "train.control": control or None,
        "dtype": dtype,
    }
    given = {path: value for path, value in flags.items() if value is not None}
    if factors is not None:
        given = {**given_factors(factors), **given}
    refuse_corpus(data)
    resolved = build(gather(config, given, assignments or []))
    machine = machine_of(device, device_memory, gpus, host_memory)
    tell_assumed(device, device_memory, gpus, console)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = _checkpoint(
            resolved.model, shape, config_json, Path(scratch), resolved.allow_pickle
        )
        # sizes and hours have their use all the same
        refused = refusals(checkpoint, resolved, machine)
        for problem in refused:
            console.warn(f"giraffe extend would refuse this: {problem}")
        for caution in cautions(checkpoint, resolved, factors):
            console.warn(caution)
        check_processes(resolved, machine, console)
        found = {**plan_on(machine, checkpoint, resolved), "refusals": refused}
    show_training(found, checkpoint, machine, console, trains=resolved.trains)


def _refuse_two_models(*named: object) -> None:
    if sum(one is not None for one in named) > 1:
        raise UsageError("--model, --shape and --config-json name one model", "pass one of them")


def _checkpoint(
    model: str,
    shape: str | None,
    config_json: Path | None,
    scratch: Path,
    allow_pickle: bool,
) -> Checkpoint:
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.plan.shapes import named_shape, shape_of_config

    if shape is not None:
        return named_shape(shape)
    if config_json is not None:
        return shape_of_config(config_json)
    return inspect(model, scratch, allow_pickle)
