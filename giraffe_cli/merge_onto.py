"""An extension on a sibling of its base: what a run changed, added to another fine-tune's weights.

    W_sibling + (W_trained − W_base)

which is task arithmetic (Ilharco et al., arXiv:2212.04089), and what a chat vector is the other way
round (Huang et al., arXiv:2310.04799). Of a LoRA the difference is s B A whatever it is added to,
so its matrices serve as they are; a tensor that was trained whole becomes the sibling's plus what
training made of the base's, summed in float32 and rounded once. What comes of it is an adapter of
the sibling like any other, merged and proven as one.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import torch

from giraffe_cli.adapter import ADAPTER_WEIGHTS, PREFIX, is_full
from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import InvalidInput
from giraffe_cli.merge_folder import beside, copy_file
from giraffe_cli.model.full import TRAINED_CONFIG, TRAINED_WEIGHTS
from giraffe_cli.progress import Bar, Reporter
from giraffe_cli.rope.install import ROPE_FILE
from giraffe_cli.rundir import make_folder, read_json
from giraffe_cli.tensor_dtypes import DTYPES, STORED_NAMES
from giraffe_cli.tensor_stream import (
    Layout,
    StoredTensor,
    TensorInFile,
    tensors_in_file,
    write_shard,
)
from giraffe_cli.weights import ADAPTER_CONFIG, EMBEDDINGS, HEAD, weight_files

WORK = ".giraffe-onto"
"""Suffix of a folder beside the output."""
BLOCK = 1 << 24
"""Elements of a tensor that are added at a time: 64 MB each in float32."""
SAME = (
    "head_dim rope_theta native_length hidden_size intermediate_size num_layers "
    "num_attention_heads num_key_value_heads tie_word_embeddings"
).split()
SCALED = ("existing_rope", "base_table", "base_attention_factor")
"""Facts of a checkpoint in which a sibling is its base's equal; those of its scaling."""
Stored: TypeAlias = dict[str, TensorInFile]


@contextlib.contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """Where what is only needed for a merge into `out` lies; gone after it, and so is what one that
    was killed left there."""
    work = beside(out, WORK)
    shutil.rmtree(work, ignore_errors=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_sibling(base: Checkpoint, sibling: Checkpoint, reporter: Reporter) -> float:
    """How far the matrices of `sibling` lie from those of `base`: ‖W_sibling − W_base‖ / ‖W_base‖.

    Norms are left out, being near 1 in every model, and rows of tokens that the sibling added.

    Raises:
        InvalidInput: another shape, window or table than the base's, fewer tokens, or weights that
            have nothing to do with the base's.
    """
    ours, theirs = ({key: getattr(one, key) for key in SAME} for one in (base, sibling))
    other = [f"{key} {theirs[key]} (base {ours[key]})" for key in SAME if ours[key] != theirs[key]]
    if any(getattr(base, key) != getattr(sibling, key) for key in SCALED):
        other.append(f"{_scaling(sibling)} (base {_scaling(base)})")
    if sibling.vocab_size < base.vocab_size:
        other.append(f"vocab_size {sibling.vocab_size} (base {base.vocab_size})")
    if other:
        raise InvalidInput(
            f"{sibling.source} is no fine-tune of {base.source}: {', '.join(other)}",
            _extend_itself(sibling),
        )
    distance = _distance(_stored(base), _stored(sibling), reporter)
    if not distance < 1:
        raise InvalidInput(
            f"{sibling.source} is no fine-tune of {base.source}: its weights lie {distance:.0%} of "
            "their size away, and zeros would lie 100 % away",
            _extend_itself(sibling),
        )
    return distance


def _scaling(checkpoint: Checkpoint) -> str:
    rope = checkpoint.existing_rope
    return f"{rope['rope_type']} to {checkpoint.reach} tokens" if rope else "not scaled"


def _extend_itself(sibling: Checkpoint) -> str:
    return f"extend it itself: giraffe extend --model {shlex.quote(sibling.source)}"


def _distance(base: Stored, sibling: Stored, reporter: Reporter) -> float:
    moved = size = 0.0
    shared = [name for name, tensor in base.items() if name in sibling and _is_matrix(tensor)]
    with reporter.bar("comparing with the base", len(shared), "tensors") as bar:
        for name in shared:
            for before, now in _blocks(base[name], sibling[name]):
                moved += float((now - before).square().sum())
                size += float(before.square().sum())
            bar.advance()
    return math.sqrt(moved / size)


def adapter_for(
    adapter: Path, base: Checkpoint, sibling: Checkpoint, work: Path, reporter: Reporter
) -> Path:
    """What `adapter` of `base` is on `sibling`: itself, or, where it holds tensors that were
    trained whole, an adapter that is written into `work`.

    Raises:
        InvalidInput: a DoRA, or files that cannot be read.
    """
    is_lora = not is_full(adapter)
    if is_lora and read_json(adapter / ADAPTER_CONFIG).get("use_dora"):
        raise InvalidInput(
            f"{adapter} is a DoRA: the norms that it trained would take the place of those of "
            f"{sibling.source}",
            "train without lora.dora; or " + _extend_itself(sibling),
        )
    weights, settings = (
        (ADAPTER_WEIGHTS, ADAPTER_CONFIG) if is_lora else (TRAINED_WEIGHTS, TRAINED_CONFIG)
    )
    trained = tensors_in_file(adapter / weights)
    if all("lora_" in key for key in trained):
        return adapter
    make_folder(work)
    ours, theirs = (_with_head(_stored(one), one) for one in (base, sibling))
    layout = _layout(trained, theirs, sibling.dtype)
    with reporter.bar("carrying over", len(layout.tensors), "tensors") as bar:
        write_shard(work / weights, layout, _carried(layout, trained, ours, theirs, bar))
    for name in (settings, ROPE_FILE):
        if (adapter / name).is_file():
            copy_file(adapter / name, work / name)
    return work


def _stored(checkpoint: Checkpoint) -> Stored:
    files = [tensors_in_file(path) for path in weight_files(checkpoint.path)]
    return {name: tensor for tensors in files for name, tensor in tensors.items()}


def _with_head(stored: Stored, checkpoint: Checkpoint) -> Stored:
    """PEFT stores a head that is tied beside the embeddings, and a base need not."""
    return {HEAD: stored[EMBEDDINGS], **stored} if checkpoint.tie_word_embeddings else stored


def _layout(trained: Stored, sibling: Stored, dtype: str) -> Layout:
    """What is written: LoRA matrices as they are, whole tensors in the sibling's shape and type."""
    stored, entries = STORED_NAMES[dtype], []
    for key, tensor in trained.items():
        entry = tensor.entry
        if "lora_" not in key:
            shape = sibling[key.removeprefix(PREFIX)].entry.shape
            size = math.prod(shape) * DTYPES[stored].itemsize
            entry = StoredTensor(key, stored, shape, size)
        entries.append(entry)
    return Layout({}, tuple(entries), 0)


def _carried(
    layout: Layout, trained: Stored, base: Stored, sibling: Stored, bar: Bar
) -> Iterator[tuple[StoredTensor, bytes | bytearray]]:
    for entry in layout.tensors:
        tensor, name = trained[entry.name], entry.name.removeprefix(PREFIX)
        if "lora_" in name:
            yield entry, tensor.read_rows(0, entry.shape[0])
        else:
            yield entry, _moved(entry, tensor, base[name], sibling[name])
        bar.advance()


def _moved(
    entry: StoredTensor, trained: TensorInFile, base: TensorInFile, sibling: TensorInFile
) -> bytearray:
    """The bytes of sibling + (trained − base); of rows that the sibling has more, its own."""
    data = bytearray(entry.num_bytes)
    found, start = torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape), 0
    for before, after, now in _blocks(base, trained, sibling):
        found[start : start + len(now)] = now + (after - before)
        start += len(now)
    if start < len(found):
        found[start:] = _rows(sibling, start, len(found))
    return data


def _is_matrix(tensor: TensorInFile) -> bool:
    return len(tensor.entry.shape) == 2 and tensor.entry.dtype in DTYPES


def _blocks(first: TensorInFile, *others: TensorInFile) -> Iterator[tuple[torch.Tensor, ...]]:
    """The rows of the first, some at a time, and the same ones of the others, in float32."""
    count = first.entry.shape[0]
    step = max(1, BLOCK * count // math.prod(first.entry.shape))
    for start in range(0, count, step):
        stop = min(count, start + step)
        yield tuple(_rows(tensor, start, stop) for tensor in (first, *others))


def _rows(tensor: TensorInFile, start: int, stop: int) -> torch.Tensor:
    values = torch.frombuffer(tensor.read_rows(start, stop), dtype=DTYPES[tensor.entry.dtype])
    return values.reshape(stop - start, *tensor.entry.shape[1:]).to(torch.float32)
