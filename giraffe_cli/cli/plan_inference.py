"""`giraffe plan --inference`: what `giraffe generate` will hold and take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from giraffe_cli.cli.console import Console
from giraffe_cli.errors import DoesNotFit, UsageError
from giraffe_cli.units import format_bytes, format_length, format_seconds, parse_length

if TYPE_CHECKING:
    from rich.table import Table

    from giraffe_cli.checkpoint import Checkpoint
    from giraffe_cli.plan.machine import Machine

MAX_NEW_TOKENS = 256


def refuse_training_options(given: Mapping[str, object]) -> None:
    """Options of a training say nothing about inference.

    Args:
        given: option name → value; None, False or empty where it was not given.

    Raises:
        UsageError: one was given.
    """
    idle = [f"--{name}" for name, value in given.items() if value]
    if idle:
        raise UsageError(
            f"{', '.join(idle)} without effect beside --inference",
            "give --model, --shape or --config-json, --prompt-len, --device, --device-memory, "
            "--kv-offload",
        )


def refuse_inference_options(given: Mapping[str, object]) -> None:
    """The other way round; raises as `refuse_training_options` does."""
    idle = [f"--{name}" for name, value in given.items() if value not in (None, False)]
    if idle:
        raise UsageError(f"{', '.join(idle)} without effect", "add --inference")


def show_inference(
    checkpoint: Checkpoint,
    machine: Machine,
    dtype: str,
    prompt_len: str | None,
    max_new_tokens: int | None,
    console: Console,
    *,
    kv_offload: bool = False,
) -> None:
    """Predict and show.

    Raises:
        DoesNotFit: no way of keeping keys and values fits.
        UsageError: they are to lie in host memory, and the machine has none beside its own, or
            nobody says how much.
    """
    from giraffe_cli.config.building import resolve_dtype
    from giraffe_cli.plan.inference import predict
    from giraffe_cli.plan.inference_trial import inference_pace_of

    computed = resolve_dtype(dtype, checkpoint.dtype, machine.has_bfloat16)
    new = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    length = parse_length(prompt_len) if prompt_len else max(1, checkpoint.reach - new)
    pace = inference_pace_of(machine, checkpoint, computed)
    host = _host_bytes(machine) if kv_offload else None
    found = predict(checkpoint, machine, pace, computed, length, new, host)
    if length + new > checkpoint.reach:
        console.warn(
            f"{length + new:,} tokens are beyond the window of {checkpoint.reach:,}; giraffe "
            f"extend --target-len {format_length(length + new)} reaches them"
        )
    console.result(found, [_table(found), *_closing(found)])
    _refuse(found)


def _host_bytes(machine: Machine) -> int:
    """What keys and values may take of host memory, as `giraffe generate` reckons."""
    if machine.kind == "cpu":
        raise UsageError(
            "--kv-offload on a CPU, whose memory is the host's", "leave it out, or name a GPU"
        )
    if machine.host_bytes is None:
        raise UsageError(
            f"--kv-offload: nobody says how much host memory {machine.label} has",
            "--host-memory 256GB",
        )
    return dataclasses.replace(machine, kind="cpu", memory_bytes=machine.host_bytes).usable_bytes


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Column, Table

    title = (
        f"{found['model']}, {found['prompt_length']:,} prompt tokens, computed in {found['dtype']}"
    )
    table = Table(
        # in 80 columns these keep a number whole; the others' units go on a second line
        Column("keys and\nvalues", no_wrap=True),
        *("a token", "of all", "peak memory", "fits"),
        Column("longest\nprompt,\ntokens", no_wrap=True),
        Column("prefill", no_wrap=True),
        Column("decode,\ntokens/s", no_wrap=True),
        title=title + ("; keys and values in host memory" if found["kv_offload"] else ""),
    )
    for one in found["caches"]:
        table.add_row(
            one["kv_dtype"],
            format_bytes(one["bytes_per_token"]),
            format_bytes(one["bytes"]["kv"]),
            format_bytes(one["bytes"]["total"]),
            "yes" if one["fits"] else "no",
            f"{one['longest_prompt']:,}",
            format_seconds(one["prefill_seconds"]),
            f"{one['decode_tokens_per_second']:.1f}",
        )
    return table


def _closing(found: dict[str, Any]) -> list[str]:
    parts = found["caches"][0]["bytes"]
    return [
        f"beside keys and values: weights {format_bytes(parts['weights'])}, process "
        f"{format_bytes(parts['process'])}, a chunk at work {format_bytes(parts['working'])}; "
        f"usable {format_bytes(found['usable_bytes'])}"
        + (f", and {format_bytes(found['host_bytes'])} of the host" if found["kv_offload"] else ""),
        f"the window is {found['window']:,} tokens; speeds: {found['pace']['source']}",
    ]


def _refuse(found: dict[str, Any]) -> None:
    caches = found["caches"]
    if any(one["fits"] for one in caches):
        return
    smallest = min(caches, key=lambda one: one["bytes"]["kv"])
    of_host = ""
    if found["kv_offload"]:
        of_host = (
            f", and {format_bytes(smallest['bytes']['kv'])} of the host, of which "
            f"{format_bytes(found['host_bytes'])} are"
        )
    raise DoesNotFit(
        f"a prompt of {found['prompt_length']:,} tokens with {found['max_new_tokens']:,} new ones "
        f"needs {format_bytes(smallest['bytes']['total'])} even with keys and values in "
        f"{smallest['kv_dtype']}; {format_bytes(found['usable_bytes'])} are usable{of_host}",
        _what_would_fit(found, smallest),
    )


def _what_would_fit(found: dict[str, Any], smallest: dict[str, Any]) -> str:
    """A shorter prompt, else a shorter answer to this one; host memory; else another model."""
    ways = []
    tokens = int((found["usable_bytes"] - _beside(smallest)) / smallest["bytes_per_token"])
    most = tokens - found["prompt_length"]
    if longest := max(one["longest_prompt"] for one in found["caches"]):
        ways.append(f"--prompt-len {longest} fits")
    elif most > 0 and not found["kv_offload"]:
        ways.append(f"--max-new-tokens {most} fits")
    can_offload = found["machine"]["kind"] == "cuda" and not found["kv_offload"]
    if can_offload and _beside(smallest) <= found["usable_bytes"]:
        size = format_bytes(smallest["bytes"]["kv"])
        ways.append(f"--kv-offload, with {size} of host memory for them in {smallest['kv_dtype']}")
    return "; or ".join(ways) or "choose a smaller model"


def _beside(cache: dict[str, Any]) -> int:
    """Bytes of the device beside keys and values."""
    return sum(size for part, size in cache["bytes"].items() if part not in ("kv", "total"))
