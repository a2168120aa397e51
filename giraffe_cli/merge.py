"""Adapter into base weights: a standalone directory, written shard by shard.

Each targeted tensor becomes `W + scaling * (B @ A)`, computed in float32 and rounded once to the
base's dtype; everything else is copied byte for byte. File names, shard layout, tensor order and
vocabulary are the base's. The directory is built beside its final name and renamed when its
manifest is written, so it is whole or absent; memory peaks at a few times the largest tensor.

    adapter key  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   [r, in]
    base tensor                   model.layers.0.self_attn.q_proj.weight          [out, in]
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from giraffe_cli.adapter import LoraUpdate, adapter_digest, read_adapter
from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.progress import Bar, Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.install import finish_directory
from giraffe_cli.rundir import (
    MANIFEST,
    atomic_open,
    begin_stage,
    finish_stage,
    make_folder,
    read_json,
    stage_holds,
    sync_folder,
)
from giraffe_cli.tensor_stream import (
    StoredTensor,
    read_layout,
    read_tensors,
    stored_tensors,
    write_shard,
)
from giraffe_cli.weights import INDEX, weight_files

STAGE = "merge"
BUILDING, REPLACED = ".giraffe-building", ".giraffe-replaced"
"""Suffixes of the folders that exist beside the output while it is written."""
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def merge_stage(
    checkpoint: Checkpoint,
    adapter_dir: Path | None,
    table: RopeTable,
    out: Path,
    reporter: Reporter,
) -> Path:
    """Write the extended model to `out` and return it; skipped when `out` holds it already.

    Without `adapter_dir` the weights are the base's, byte for byte: the zero-shot extension.
    The manifest's `tensors` maps every tensor to the sha256 of its bytes.

    Raises:
        GiraffeError: an adapter that does not fit the base, or cannot be merged exactly.
        InvalidInput: damaged weights, an adapter of another table, an `out` that is not ours.
    """
    updates = read_adapter(adapter_dir) if adapter_dir else {}
    inputs = {
        "stage": STAGE,
        "base": checkpoint.digest,
        "adapter": adapter_digest(adapter_dir) if adapter_dir else None,
        "table": table.to_json(),
    }
    _clear_leftovers(out)
    if stage_holds(out, inputs):
        reporter.info(f"{out} holds the merged model already")
        return out
    refuse_foreign_folder(out, checkpoint.path)
    if adapter_dir:
        _check_same_table(adapter_dir, table)
    _check_targets(updates, checkpoint.path)
    building = begin_stage(_beside(out, BUILDING))
    try:
        digests = _write_weights(checkpoint.path, updates, building, reporter)
        _copy_companions(checkpoint.path, building)
        finish_directory(building, table)
        finish_stage(building, inputs, tensors=digests)
        _put_in_place(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return out


def _check_same_table(adapter_dir: Path, table: RopeTable) -> None:
    """An adapter knows the table it was trained with; peft itself would not carry it."""
    path = adapter_dir / "rope.json"
    if not path.exists():
        return
    trained = RopeTable.from_json(read_json(path))
    same = (trained.inv_freq, trained.attention_factor) == (table.inv_freq, table.attention_factor)
    if not same:
        raise InvalidInput(
            f"{adapter_dir} was trained with {trained.strategy} to {trained.target_length} tokens, "
            f"the merge was asked for {table.strategy} to {table.target_length}",
            "merge it with the rope.json of its own run",
        )


def _check_targets(updates: dict[str, LoraUpdate], base: Path) -> None:
    """Every update must find its tensor, in its shape, before anything is written."""
    stored = stored_tensors(base)
    unmatched = sorted(name for name in updates if name not in stored)
    if unmatched:
        raise GiraffeError(
            f"{len(unmatched)} adapter targets match no tensor of {base}: "
            f"{', '.join(unmatched[:3])}",
            "the adapter belongs to another base, or targets a head tied to the embeddings",
        )
    for name, update in updates.items():
        shape = (update.up.shape[0], update.down.shape[1])
        if stored[name].shape != shape or stored[name].dtype not in DTYPES:
            raise GiraffeError(
                f"{name} is {list(stored[name].shape)} {stored[name].dtype} in {base}, "
                f"the adapter changes a {list(shape)} matrix in {', '.join(DTYPES)}",
                "the adapter belongs to another base",
            )


def _write_weights(
    base: Path, updates: dict[str, LoraUpdate], out: Path, reporter: Reporter
) -> dict[str, str]:
    """Every shard of `base` under its own name, and the index; sha256 by tensor."""
    layouts = {path: read_layout(path) for path in weight_files(base)}
    total = sum(tensor.num_bytes for layout in layouts.values() for tensor in layout.tensors)
    digests: dict[str, str] = {}
    with reporter.bar("merge", total / 1e6, "MB") as bar:
        for path, layout in layouts.items():
            payloads = _merged_tensors(path, updates, bar)
            digests |= write_shard(out / path.name, layout, payloads)
    if (base / INDEX).exists():
        _copy_file(base / INDEX, out / INDEX)
    return digests


def _merged_tensors(
    path: Path, updates: dict[str, LoraUpdate], bar: Bar
) -> Iterator[tuple[StoredTensor, bytes | bytearray]]:
    for tensor, data in read_tensors(path):
        update = updates.get(tensor.name)
        yield tensor, data if update is None else _apply(tensor, data, update)
        bar.advance(tensor.num_bytes / 1e6)


def _apply(tensor: StoredTensor, data: bytearray, update: LoraUpdate) -> bytes:
    weight = torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(tensor.shape)
    merged = update.merged(weight)
    if not torch.isfinite(merged).all():
        raise GiraffeError(
            f"{tensor.name} is not finite in {tensor.dtype} after the merge",
            "the training diverged, or the base overflows float16: train with a lower rate",
        )
    raw: bytes = merged.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return raw


def _copy_file(source: Path, final: Path) -> None:
    """A real copy, durable; never a link, for either side may be edited or deleted later."""
    with open(source, "rb") as reader, atomic_open(final) as writer:
        shutil.copyfileobj(reader, writer)


def _copy_companions(base: Path, out: Path) -> None:
    for pattern in COPIED:
        for path in sorted(base.glob(pattern)):
            if path.is_file():
                _copy_file(path, out / path.name)


def refuse_foreign_folder(out: Path, base: Path) -> None:
    """Never replace what this stage did not write.

    Raises:
        InvalidInput: `out` is the base, or exists, is not empty and carries no manifest of a merge.
    """
    if out.resolve() == base.resolve():
        raise InvalidInput(f"{out} is the base itself", "choose another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / MANIFEST).is_file():
        manifest = read_json(out / MANIFEST)
        if isinstance(manifest, dict) and manifest.get("inputs", {}).get("stage") == STAGE:
            return
    raise InvalidInput(f"{out} exists and is no merged model", "choose another --out")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _clear_leftovers(out: Path) -> None:
    """What a killed merge left beside `out`: half a model, or the one that was being replaced."""
    for suffix in (BUILDING, REPLACED):
        shutil.rmtree(_beside(out, suffix), ignore_errors=True)


def _put_in_place(building: Path, out: Path) -> None:
    """Swap in the finished directory; at every instant `out` is whole or absent."""
    make_folder(out.parent)
    replaced = _beside(out, REPLACED)
    try:
        if out.exists():
            out.rename(replaced)
        building.rename(out)
    except OSError as error:
        raise GiraffeError(
            f"cannot move the merged model to {out}: {error.strerror or error}",
            "choose another --out",
        ) from error
    sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
