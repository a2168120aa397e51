"""Adapter into base weights: a standalone directory, written shard by shard.

Each trained tensor becomes what its update makes of it (`updates.py`), computed in float32 and
rounded once to the base's dtype; everything else is copied byte for byte. Of a base in several
float types everything is written in the one that transformers loads it in. File names, shard
layout, tensor order and vocabulary are the base's, and so is the base that is read: the original,
also where a run held it in 4 bits. The directory is built beside its final name and renamed when
its manifest is written, so it is whole or absent. One tensor is in memory, and changes by blocks
of rows: memory peaks at the largest tensor (in both types where it is converted) and about 300 MB,
whatever the size of the shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from giraffe_cli.adapter import Change, adapter_digest, is_full, read_adapter
from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import GiraffeError, not_finite
from giraffe_cli.merge_checks import check_same_table, check_targets, with_tied_head
from giraffe_cli.merge_folder import (
    BUILDING,
    STAGE,
    beside,
    clear_leftovers,
    copy_companions,
    copy_file,
    is_in_dtype,
    put_in_place,
    refuse_foreign_folder,
    say_dtype,
)
from giraffe_cli.progress import Bar, Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.install import ROPE_FILE, finish_directory
from giraffe_cli.rundir import begin_stage, finish_stage, stage_holds
from giraffe_cli.tensor_dtypes import DTYPES, STORED_NAMES, bytes_in, layout_in
from giraffe_cli.tensor_stream import (
    Layout,
    StoredTensor,
    read_layout,
    read_tensors,
    without_tables,
    write_index,
    write_shard,
)
from giraffe_cli.updates import AbstractUpdate
from giraffe_cli.weights import INDEX, weight_files

BLOCK = 1 << 24
"""Elements that are changed at a time: 64 MB in float32."""


def merge_stage(
    checkpoint: Checkpoint,
    adapter_dir: Path | None,
    table: RopeTable | None,
    out: Path,
    reporter: Reporter,
    replaces: bool = True,
) -> Path:
    """Write the extended model to `out` and return it; skipped when `out` holds it already. A link
    is followed: what it leads to is replaced.

    Without `adapter_dir` the weights are the base's, byte for byte: the zero-shot extension.
    Without `table` the RoPE is the base's, file by file.
    The manifest's `tensors` maps every tensor to the sha256 of its bytes.

    Raises:
        GiraffeError: an adapter that does not fit the base, or cannot be merged exactly.
        InvalidInput: damaged weights, an adapter of another table, an `out` that is not ours, or
            holds another merged model and is not one that this `replaces`.
    """
    named, out = out, out.resolve()
    changes = read_adapter(adapter_dir) if adapter_dir else {}
    inputs = {
        "stage": STAGE,
        "base": checkpoint.digest,
        "adapter": adapter_digest(adapter_dir) if adapter_dir else None,
        "table": table.to_json() if table else None,
    }
    clear_leftovers(out)
    if stage_holds(out, inputs) and is_in_dtype(out, checkpoint.dtype):
        reporter.info(f"{named} holds the merged model already")
        return named
    refuse_foreign_folder(out, checkpoint.path, inputs if not replaces else None)
    if adapter_dir and table:
        check_same_table(adapter_dir, table)
    is_adapter = adapter_dir is not None and not is_full(adapter_dir)
    changes = with_tied_head(changes, checkpoint, is_adapter)
    check_targets(changes, checkpoint.path)
    building = begin_stage(beside(out, BUILDING))
    try:
        digests = _write_weights(checkpoint, changes, building, reporter, bool(table))
        copy_companions(checkpoint.path, building)
        say_dtype(building / "config.json", checkpoint.dtype)
        if table:
            finish_directory(building, table)
        elif (checkpoint.path / ROPE_FILE).exists():
            copy_file(checkpoint.path / ROPE_FILE, building / ROPE_FILE)
        finish_stage(building, inputs, tensors=digests)
        put_in_place(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return named


def _write_weights(
    checkpoint: Checkpoint,
    changes: dict[str, Change],
    out: Path,
    reporter: Reporter,
    has_table: bool,
) -> dict[str, str]:
    """Every shard of `base` under its own name, and the index; sha256 by tensor. Rotary tables that
    old conversions store are left out where the model `has_table` of its own."""
    base, dtype = checkpoint.path, STORED_NAMES[checkpoint.dtype]
    layouts = {path: layout_in(read_layout(path), dtype) for path in weight_files(base)}
    if has_table:
        layouts = {path: without_tables(layout) for path, layout in layouts.items()}
    total = sum(tensor.num_bytes for layout in layouts.values() for tensor in layout.tensors)
    digests: dict[str, str] = {}
    with reporter.bar("merging", total / 1e6, "MB") as bar:
        for path, layout in layouts.items():
            payloads = _merged_tensors(path, layout, changes, bar)
            digests |= write_shard(out / path.name, layout, payloads)
    if (base / INDEX).exists():
        write_index(base / INDEX, out / INDEX, digests, int(total))
    return digests


def _merged_tensors(
    path: Path, layout: Layout, changes: dict[str, Change], bar: Bar
) -> Iterator[tuple[StoredTensor, bytearray]]:
    kept = {tensor.name: tensor for tensor in layout.tensors}
    for stored, raw in read_tensors(path):
        if stored.name not in kept:
            continue
        tensor = kept[stored.name]
        data = bytes_in(stored, raw, tensor.dtype)
        if tensor.name in changes:
            _apply(tensor, data, changes[tensor.name].load())
        yield tensor, data
        bar.advance(tensor.num_bytes / 1e6)


def _not_finite(tensor: StoredTensor, block: torch.Tensor) -> GiraffeError:
    if not torch.isfinite(block).all():
        return not_finite(tensor.name)
    return GiraffeError(
        f"{tensor.name} is not finite in {tensor.dtype} after the merge",
        "the training diverged, or the base overflows float16: train with a lower rate",
    )


def _apply(tensor: StoredTensor, data: bytearray, update: AbstractUpdate) -> None:
    """Change `data` in place, block by block."""
    weight = torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(tensor.shape)
    step = max(1, BLOCK * len(weight) // weight.numel())
    for start in range(0, len(weight), step):
        block = weight[start : start + step]
        merged = update.merged(block, start)
        if not torch.isfinite(merged).all():
            raise _not_finite(tensor, block)
        block.copy_(merged)
