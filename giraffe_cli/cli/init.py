"""`giraffe init`: a commented config for a model, a target and a machine."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from giraffe_cli.checkpoint_source import EMBEDDED
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.extend_input import embedded_preset
from giraffe_cli.cli.init_text import commented
from giraffe_cli.cli.options import (
    AllowPickle,
    AsJson,
    Device,
    DeviceCount,
    DeviceMemory,
    Model,
    OnExistingRope,
    RequiredTargetLen,
    Window,
)
from giraffe_cli.cli.plan_machine import machine_of, tell_assumed
from giraffe_cli.config.building import build, put
from giraffe_cli.config.files import read_yaml
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.units import format_bytes, format_length, parse_length

if TYPE_CHECKING:
    from giraffe_cli.checkpoint import Checkpoint
    from giraffe_cli.plan.machine import Machine
    from giraffe_cli.plan.starting import Start

EXAMPLES = """
Examples:

giraffe init --model ./smollm2-135m --data books.jsonl.gz --target-len 16k

giraffe init --model ./llama3-8b --data books/ --target-len 64k --device h100 --gpus 8
"""


def init(
    target_len: RequiredTargetLen,
    model: Model = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Corpus, or a directory of `pack-data`; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write; an existing one stays.")] = Path(
        "giraffe.yaml"
    ),
    window: Window = None,
    on_existing_rope: OnExistingRope = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    gpus: DeviceCount = None,
    hours: Annotated[
        float, typer.Option(min=0.01, help="How long training may take, by the plan.")
    ] = 24.0,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented config: every knob that matters, chosen for the checkpoint and the machine.

    Window and windows a step are the longest and most whose plan fits the memory and the hours.
    Nothing is loaded; `giraffe extend --config FILE` then runs it. Ends with 4 when nothing fits.
    """
    console = Console(as_json)
    if out.exists():
        raise InvalidInput(f"{out} exists", "choose another --out, or move it away")
    given = _given(target_len, model, data, window, on_existing_rope)
    if allow_pickle:
        given["allow_pickle"] = True
    machine = machine_of(device, device_memory, gpus)
    tell_assumed(device, device_memory, gpus, console)
    for problem in _missing(given.get("data", [])):
        console.warn(f"{problem}; the config is written all the same")
    with tempfile.TemporaryDirectory() as scratch:
        start, checkpoint = _start(given, machine, hours, Path(scratch))
    if start.estimate["seconds"] > hours * 3600:
        console.warn(f"no window trains within {hours:g} hours: {start.reasons['train.steps']}")
    _write(out, commented(start.values, start.reasons, _heading(out, start, checkpoint)), start)
    shown = {"path": str(out), "config": start.values, "estimate": start.estimate}
    told = f"wrote {out}\n\nnext: giraffe extend {_option(out)} --dry-run"
    console.result(shown, told)


def _given(
    target_len: str,
    model: str | None,
    data: list[str] | None,
    window: str | None,
    on_existing: str | None,
) -> dict[str, Any]:
    """What was said, over calf's own settings for calf."""
    name = model or EMBEDDED
    if name != EMBEDDED and not data:
        raise UsageError(f"init for {name} needs --data", "name a corpus: --data books.jsonl.gz")
    values: dict[str, Any] = {"model": name}
    if name == EMBEDDED:
        values = embedded_preset({"target_length": target_len})
    if data:
        values["data"] = data
    values["target_length"] = format_length(parse_length(target_len))
    values.setdefault("rope", {"strategy": "auto"})
    if window is not None:
        put(values, "train.window", window)
    if on_existing is not None:
        put(values, "rope.on_existing", on_existing)
    return values


def _missing(sources: list[str]) -> Iterator[str]:
    """A sentence for each source that is not there yet, or not readable."""
    from giraffe_cli.config.pack import PackConfig
    from giraffe_cli.corpus.source_names import is_local
    from giraffe_cli.corpus.sources import resolve
    from giraffe_cli.corpus.store import is_packed

    for source in filter(is_local, sources):
        try:
            if not is_packed(Path(source)):
                resolve([source], PackConfig())
        except InvalidInput as error:
            yield error.message


def _start(
    given: dict[str, Any], machine: Machine, hours: float, scratch: Path
) -> tuple[Start, Checkpoint]:
    from giraffe_cli.checkpoint import head_to_extend, inspect
    from giraffe_cli.plan.starting import starting_point
    from giraffe_cli.plan.trial import pace_of

    config = build(given)
    checkpoint = inspect(config.model, scratch, config.allow_pickle)
    head_to_extend(checkpoint, config.target_length, config.rope.on_existing)
    pace = pace_of(machine, checkpoint, config)
    return starting_point(checkpoint, given, machine, pace, hours), checkpoint


def _heading(out: Path, start: Start, checkpoint: Checkpoint) -> list[str]:
    machine, target = start.estimate["machine"], build(start.values).target_length
    count = f"{machine['devices']} x " if machine["devices"] > 1 else ""
    where = f"{count}{machine['name'] or 'this machine: ' + machine['kind']}"
    return [
        f"{checkpoint.source} ({checkpoint.num_parameters / 1e6:,.0f}M parameters) from "
        f"{format_length(checkpoint.native_length)} to {format_length(target)} tokens,",
        f"planned for {where} with {format_bytes(machine['memory_bytes'])} of memory.",
        "",
        f"The plan, nothing is trained:  giraffe extend {_option(out)} --dry-run",
        f"The run:                       giraffe extend {_option(out)}",
        "",
        "A line like `#name: value` is a knob at its default; delete the # to change it.",
    ]


def _option(out: Path) -> str:
    return f"--config {shlex.quote(str(out))}"


def _write(out: Path, text: str, start: Start) -> None:
    """Read back before it gets its name: the file means what was chosen."""
    from giraffe_cli.rundir import atomic_open

    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "draft.yaml"
        draft.write_text(text, encoding="utf-8")
        assert build(read_yaml(draft)) == build(start.values)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(out) as handle:
        handle.write(text.encode())
