"""Whether an adapter belongs to the base, the table and the tensors that it is merged into."""

from __future__ import annotations

from pathlib import Path

from giraffe_cli.adapter import Change
from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import MANIFEST, digest_value, read_json
from giraffe_cli.tensor_stream import stored_tensors
from giraffe_cli.updates import DTYPES


def check_same_table(adapter_dir: Path, table: RopeTable) -> None:
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
    kept = read_json(adapter_dir / MANIFEST) if (adapter_dir / MANIFEST).is_file() else None
    inputs = kept.get("inputs") if isinstance(kept, dict) else None
    trained_on = inputs.get("checkpoint") if isinstance(inputs, dict) else None
    if trained_on not in (None, checkpoint.digest):
        raise InvalidInput(
            f"{checkpoint.source} is not what {adapter_dir} was trained on: a file in it changed",
            "put the base back as it was, or train again",
        )


def check_targets(changes: dict[str, Change], base: Path) -> None:
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
