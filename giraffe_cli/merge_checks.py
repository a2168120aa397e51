"""Whether an adapter belongs to the base, the table and the tensors that it is merged into."""

from __future__ import annotations

from pathlib import Path

from giraffe_cli.adapter import Change
from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import MANIFEST, digest_value, read_json
from giraffe_cli.tensor_dtypes import DTYPES
from giraffe_cli.tensor_stream import stored_tensors, tensors_in_file
from giraffe_cli.weights import EMBEDDINGS, HEAD, weight_files


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


def check_stored_head(checkpoint: Checkpoint) -> None:
    """A head that a base stores beside its embeddings, and ties to them, is what they are.

    Raises:
        InvalidInput: it is another; transformers would leave it out.
    """
    if not checkpoint.tie_word_embeddings:
        return
    files = [tensors_in_file(path) for path in weight_files(checkpoint.path)]
    found = {name: tensor for tensors in files for name, tensor in tensors.items()}
    head, embeddings = found.get(HEAD), found.get(EMBEDDINGS)
    if head and embeddings and not head.equals(embeddings):
        raise InvalidInput(
            f"{checkpoint.source} stores a {HEAD} of its own, and its config.json says "
            "tie_word_embeddings: true",
            "set tie_word_embeddings to false there, or save the model again without the head",
        )


def with_tied_head(
    changes: dict[str, Change], checkpoint: Checkpoint, is_adapter: bool
) -> dict[str, Change]:
    """A head tied to the embeddings is what they are: without a tensor where the base has none,
    changed with them where the base stores a copy. An adapter in PEFT's format stores its trained
    copy twice.

    Raises:
        GiraffeError: it trained the one and not the other, which no tied weights can hold.
    """
    stores_head = HEAD in stored_tensors(checkpoint.path)
    is_touched = EMBEDDINGS in changes or (HEAD in changes and stores_head)
    if not checkpoint.tie_word_embeddings or not is_touched:
        return changes
    difference = _between_tied(changes) if is_adapter else None
    if difference:
        raise GiraffeError(
            f"the adapter {difference}; in {checkpoint.path} they are one",
            "train it again with ensure_weight_tying",
        )
    others = {name: change for name, change in changes.items() if name != HEAD}
    return others | ({HEAD: changes[EMBEDDINGS]} if stores_head else {})


def _between_tied(changes: dict[str, Change]) -> str | None:
    """PEFT runs the one that was trained alone beside the other as the base had it."""
    for trained, left in ((EMBEDDINGS, HEAD), (HEAD, EMBEDDINGS)):
        if left not in changes:
            return f"trained {trained} and left {left} as it was"
    if not changes[HEAD].equals(changes[EMBEDDINGS]):
        return f"trained {HEAD} and {EMBEDDINGS} to different weights"
    return None
