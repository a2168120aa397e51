"""The result of `method: full` on disk: every trained tensor under the base's name, in float32.

    trained.safetensors    model.embed_tokens.weight, model.layers.0.self_attn.q_proj.weight, …
    trained.json           {"method": "full", "base": …, "dtype": "float32", "tensors": 290}
    rope.json              the table it was trained under

A head tied to the embeddings has no tensor of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from giraffe_cli.model.pieces import Spread, all_spread, give, whole_bytes
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import write_sealed
from giraffe_cli.tensor_stream import Layout, StoredTensor, write_shard

TRAINED_WEIGHTS = "trained.safetensors"
TRAINED_CONFIG = "trained.json"


def save_full(
    parameters: Mapping[str, Tensor], folder: Path, table: RopeTable, source: str
) -> None:
    """Write the `parameters` of a model (float32) into the existing `folder`, one at a time. Where
    they are spread over processes, the others `give_full`."""
    tensors = all_spread(parameters)
    entries = {
        name: StoredTensor(name, "F32", tuple(tensor.shape), math.prod(tensor.shape) * 4)
        for name, tensor in tensors.items()
    }
    layout = Layout({}, tuple(entries.values()), data_start=0)
    write_shard(folder / TRAINED_WEIGHTS, layout, _payloads(entries, tensors))
    facts = {"method": "full", "base": source, "dtype": "float32", "tensors": len(tensors)}
    write_sealed(folder / TRAINED_CONFIG, facts)
    write_sealed(folder / "rope.json", table.to_json())


def give_full(parameters: Mapping[str, Tensor]) -> None:
    """Take part in another process's `save_full`."""
    for tensor in all_spread(parameters).values():
        give(tensor)


def _payloads(
    entries: dict[str, StoredTensor], tensors: Mapping[str, Tensor | Spread]
) -> Iterator[tuple[StoredTensor, memoryview]]:
    for name, entry in entries.items():
        yield entry, whole_bytes(tensors[name])
