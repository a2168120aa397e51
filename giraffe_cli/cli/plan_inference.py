"""`giraffe plan --inference`: what `giraffe generate` will hold and take."""

from __future__ import annotations

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
            "give --model, --shape or --config-json, --prompt-len, --device, --device-memory",
        )


def refuse_inference_options(given: Mapping[str, object]) -> None:
    """The other way round; raises as `refuse_training_options` does."""
    idle = [f"--{name}" for name, value in given.items() if value is not None]
    if idle:
        raise UsageError(f"{', '.join(idle)} without effect", "add --inference")


def show_inference(
    checkpoint: Checkpoint,
    machine: Machine,
    dtype: str,
    prompt_len: str | None,
    max_new_tokens: int | None,
    console: Console,
) -> None:
    """Predict and show.

    Raises:
        DoesNotFit: no way of keeping keys and values fits.
    """
    from giraffe_cli.config.building import resolve_dtype
    from giraffe_cli.plan.inference import predict
    from giraffe_cli.plan.inference_trial import inference_pace_of

    computed = resolve_dtype(dtype, checkpoint.dtype, machine.has_bfloat16)
    new = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    length = parse_length(prompt_len) if prompt_len else max(1, checkpoint.reach - new)
    pace = inference_pace_of(machine, checkpoint, computed)
    found = predict(checkpoint, machine, pace, computed, length, new)
    if length + new > checkpoint.reach:
        console.warn(
            f"{length + new:,} tokens are beyond the window of {checkpoint.reach:,}; giraffe "
            f"extend --target-len {format_length(length + new)} reaches them"
        )
    console.result(found, [_table(found), *_closing(found)])
    _refuse(found)


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
        title=title,
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
        f"usable {format_bytes(found['usable_bytes'])}",
        f"the window is {found['window']:,} tokens; speeds: {found['pace']['source']}",
    ]


def _refuse(found: dict[str, Any]) -> None:
    caches = found["caches"]
    if any(one["fits"] for one in caches):
        return
    smallest = min(caches, key=lambda one: one["bytes"]["total"])
    raise DoesNotFit(
        f"a prompt of {found['prompt_length']:,} tokens with {found['max_new_tokens']:,} new ones "
        f"needs {format_bytes(smallest['bytes']['total'])} even with keys and values in "
        f"{smallest['kv_dtype']}; {format_bytes(found['usable_bytes'])} are usable",
        _what_would_fit(found, smallest),
    )


def _what_would_fit(found: dict[str, Any], smallest: dict[str, Any]) -> str:
    """A shorter prompt, else a shorter answer to this one, else another model."""
    longest = max(one["longest_prompt"] for one in found["caches"])
    if longest:
        return f"--prompt-len {longest} fits"
    beside = sum(size for part, size in smallest["bytes"].items() if part not in ("kv", "total"))
    tokens = int((found["usable_bytes"] - beside) / smallest["bytes_per_token"])
    most = tokens - found["prompt_length"]
    return f"--max-new-tokens {most} fits" if most > 0 else "choose a smaller model"
