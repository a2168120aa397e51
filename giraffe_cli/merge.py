"""Adapter into base weights: a standalone directory, written shard by shard.

Each trained tensor becomes what its update makes of it (`updates.py`), computed in float32 and
rounded once to the base's dtype; everything else is copied byte for byte. File names, shard layout,
tensor order and vocabulary are the base's, and so is the base that is read: the original, also
where a run held it in 4 bits. The directory is built beside its final name and renamed when its
manifest is written, so it is whole or absent. One tensor is in memory, and changes by blocks of
rows: memory peaks at the largest tensor and about 300 MB, whatever the size of the shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from giraffe_cli.adapter import Change, adapter_digest, read_adapter
from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.progress import Bar, Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.install import ROPE_FILE, finish_directory
from giraffe_cli.rundir import (
    MANIFEST,
    atomic_open,
    begin_stage,
    digest_value,
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
from giraffe_cli.updates import DTYPES, AbstractUpdate
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
BLOCK = 1 << 24
"""Elements that are changed at a time: 64 MB in float32."""
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def merge_stage(
    checkpoint: Checkpoint,
    adapter_dir: Path | None,
    table: RopeTable | None,
    out: Path,
    reporter: Reporter,
) -> Path:
    """Write the extended model to `out` and return it; skipped when `out` holds it already.

    Without `adapter_dir` the weights are the base's, byte for byte: the zero-shot extension.
    Without `table` the RoPE is the base's, file by file.
    The manifest's `tensors` maps every tensor to the sha256 of its bytes.

    Raises:
        GiraffeError: an adapter that does not fit the base, or cannot be merged exactly.
        InvalidInput: damaged weights, an adapter of another table, an `out` that is not ours.
    """
    changes = read_adapter(adapter_dir) if adapter_dir else {}
    inputs = {
        "stage": STAGE,
        "base": checkpoint.digest,
        "adapter": adapter_digest(adapter_dir) if adapter_dir else None,
        "table": table.to_json() if table else None,
    }
    _clear_leftovers(out)
    if stage_holds(out, inputs):
        reporter.info(f"{out} holds the merged model already")
        return out
    refuse_foreign_folder(out, checkpoint.path)
    if adapter_dir and table:
        _check_same_table(adapter_dir, table)
    changes = _with_tied_head(changes, checkpoint)
    _check_targets(changes, checkpoint.path)
    building = begin_stage(_beside(out, BUILDING))
    try:
        digests = _write_weights(checkpoint.path, changes, building, reporter)
        _copy_companions(checkpoint.path, building)
        if table:
            finish_directory(building, table)
        elif (checkpoint.path / ROPE_FILE).exists():
            _copy_file(checkpoint.path / ROPE_FILE, building / ROPE_FILE)
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
    if digest_value(trained.to_json()) != digest_value(table.to_json()):
        raise InvalidInput(
            f"{adapter_dir} was trained with {trained.strategy} to {trained.target_length} tokens, "
            f"the merge was asked for {table.strategy} to {table.target_length}",
            "merge it with the rope.json of its own run",
        )


def check_same_base(adapter_dir: Path, checkpoint: Checkpoint) -> None:
    """A run's adapter belongs to the weights it was trained on, which its manifest names.

    Raises:
        InvalidInput: the base holds others now.
    """
    kept = read_json(adapter_dir / MANIFEST) if (adapter_dir / MANIFEST).is_file() else {}
    trained_on = kept["inputs"].get("checkpoint") if isinstance(kept.get("inputs"), dict) else None
    if trained_on not in (None, checkpoint.digest):
        raise InvalidInput(
            f"{checkpoint.source} is not what {adapter_dir} was trained on: a file in it changed",
            "put the base back as it was, or train again",
        )


def _with_tied_head(changes: dict[str, Change], checkpoint: Checkpoint) -> dict[str, Change]:
    """A head tied to the embeddings is what they are: without a tensor where the base has none,
    changed with them where the base stores a copy. PEFT stores its trained copy twice."""
    embeddings, head = changes.get(EMBEDDINGS), changes.get(HEAD)
    if not checkpoint.tie_word_embeddings or embeddings is None:
        return changes
    if head is not None and not head.equals(embeddings):
        raise GiraffeError(
            f"the adapter trained {HEAD} and {EMBEDDINGS} to different weights, in "
            f"{checkpoint.path} they are one",
            "train it again with ensure_weight_tying",
        )
    stored = stored_tensors(checkpoint.path)
    others = {name: change for name, change in changes.items() if name != HEAD}
    return others | ({HEAD: embeddings} if HEAD in stored else {})


def _check_targets(changes: dict[str, Change], base: Path) -> None:
    """Every change must find its tensor, in its shape, before anything is written."""
    stored = stored_tensors(base)
    unmatched = sorted(name for name in changes if name not in stored)
    if unmatched:
        raise GiraffeError(
            f"{len(unmatched)} adapter targets match no tensor of {base}: "
            f"{', '.join(unmatched[:3])}",
            "the adapter belongs to another base, or targets a head tied to the embeddings",
        )
    for name, change in changes.items():
        if stored[name].shape != change.shape or stored[name].dtype not in DTYPES:
            raise GiraffeError(
                f"{name} is {list(stored[name].shape)} {stored[name].dtype} in {base}, "
                f"the adapter changes a tensor of {list(change.shape)} in {', '.join(DTYPES)}",
                "the adapter belongs to another base",
            )


def _write_weights(
    base: Path, changes: dict[str, Change], out: Path, reporter: Reporter
) -> dict[str, str]:
    """Every shard of `base` under its own name, and the index; sha256 by tensor."""
    layouts = {path: read_layout(path) for path in weight_files(base)}
    total = sum(tensor.num_bytes for layout in layouts.values() for tensor in layout.tensors)
    digests: dict[str, str] = {}
    with reporter.bar("merging", total / 1e6, "MB") as bar:
        for path, layout in layouts.items():
            payloads = _merged_tensors(path, changes, bar)
            digests |= write_shard(out / path.name, layout, payloads)
    if (base / INDEX).exists():
        _copy_file(base / INDEX, out / INDEX)
    return digests


def _merged_tensors(
    path: Path, changes: dict[str, Change], bar: Bar
) -> Iterator[tuple[StoredTensor, bytearray]]:
    for tensor, data in read_tensors(path):
        if tensor.name in changes:
            _apply(tensor, data, changes[tensor.name].load())
        yield tensor, data
        bar.advance(tensor.num_bytes / 1e6)


def _apply(tensor: StoredTensor, data: bytearray, update: AbstractUpdate) -> None:
    """Change `data` in place, block by block."""
    weight = torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(tensor.shape)
    step = max(1, BLOCK * len(weight) // weight.numel())
    for start in range(0, len(weight), step):
        block = weight[start : start + step]
        merged = update.merged(block, start)
        if not torch.isfinite(merged).all():
            raise GiraffeError(
                f"{tensor.name} is not finite in {tensor.dtype} after the merge",
                "the training diverged, or the base overflows float16: train with a lower rate",
            )
        block.copy_(merged)


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
