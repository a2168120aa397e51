"""The result of `method: full` on disk: every trained tensor under the base's name, in float32.

    trained.safetensors    model.embed_tokens.weight, model.layers.0.self_attn.q_proj.weight, …
    trained.json           {"method": "full", "base": …, "dtype": "float32", "tensors": 290}
    rope.json              the table it was trained under

A head tied to the embeddings has no tensor of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import write_sealed
from giraffe_cli.tensor_stream import Layout, StoredTensor, write_shard

TRAINED_WEIGHTS = "trained.safetensors"
TRAINED_CONFIG = "trained.json"


def save_full(model: nn.Module, folder: Path, table: RopeTable, source: str) -> None:
    """Write all parameters of `model` (float32) into the existing `folder`, one at a time."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    entries = {
        name: StoredTensor(name, "F32", tuple(tensor.shape), tensor.numel() * 4)
        for name, tensor in tensors.items()
    }
    layout = Layout({}, tuple(entries.values()), data_start=0)
    write_shard(folder / TRAINED_WEIGHTS, layout, _payloads(entries, tensors))
    facts = {"method": "full", "base": source, "dtype": "float32", "tensors": len(tensors)}
    write_sealed(folder / TRAINED_CONFIG, facts)
    write_sealed(folder / "rope.json", table.to_json())


def _payloads(
    entries: dict[str, StoredTensor], tensors: dict[str, Tensor]
) -> Iterator[tuple[StoredTensor, bytes]]:
    for name, entry in entries.items():
        flat = tensors[name].detach().float().cpu().contiguous().reshape(-1)
        yield entry, flat.view(torch.uint8).numpy().tobytes()
