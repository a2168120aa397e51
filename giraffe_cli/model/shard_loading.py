"""A checkpoint opened for `ShardedBase`: one weight in memory at a time, of each the part to keep.

Sharded are the matrices of the layers, the embeddings and the head, unless they alone are trained;
what is left, norms and biases, is whole in every process, and small. Where all weights are trained
the parts are float32, and so are norms and biases; of a base in 4 bits a layer's are its codes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.loading import config_for
from giraffe_cli.model.shard_codes import (
    codes_of,
    is_to_be_coded,
    with_coded_layers,
    without_codes,
)
from giraffe_cli.model.sharded import Shard, ShardedBase, absent, layout
from giraffe_cli.model.sharded_training import TrainedBase, TrainedShard
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.install import check_table
from giraffe_cli.weights import EMBEDDINGS, HEAD, weight_files

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

CPU = torch.device("cpu")
Made = TypeVar("Made")
"""`Shard` or `TrainedShard`."""


def whole_weights(config: TrainConfig) -> frozenset[str]:
    """Names of the matrices that `config` trains beside the adapter."""
    is_trained = config.method == "lora" and "embeddings" in config.lora.also_train
    return frozenset([EMBEDDINGS]) if is_trained else frozenset()


@dataclass(frozen=True)
class ShardedLoader:
    """Opens `path` for one of several processes."""

    path: Path
    dtype: torch.dtype
    rank: int
    processes: int
    whole: frozenset[str] = frozenset()
    """Names of weights that are not to be sharded: those that an adapter is trained beside."""
    trains_all: bool = False
    """Whether `shards` are `TrainedShard`s."""
    in_4_bits: bool = False
    """Whether the layers' matrices are held in NF4."""

    def model(self, table: RopeTable | None, attn_implementation: str) -> LlamaForCausalLM:
        """The model in evaluation mode, without the weights to be sharded, which read as NaN.

        Raises:
            InvalidInput: a weight is missing, or bitsandbytes.
        """
        config = config_for(self.path, table)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation=attn_implementation
            )
        if self.in_4_bits:
            with_coded_layers(model, self.dtype)
        sharded = {name for unit in self._units(model) for name in unit}
        with _opened(self.path) as files:
            for name, empty in list(model.named_parameters()):
                if name in sharded and is_to_be_coded(empty):
                    owner = model.get_submodule(name.rpartition(".")[0])
                    owner.weight = without_codes(empty, owner)
                    continue
                if name in sharded:
                    found = absent(empty.shape, self._gathered_dtype(name), CPU)
                else:
                    found = self._read(files, name, self._kept_dtype())
                _put(model, name, nn.Parameter(found, requires_grad=False))
        model.tie_weights()
        check_table(model, table)
        opened: LlamaForCausalLM = model.eval()
        return opened

    def base(self, model: nn.Module, device: torch.device, group: Any = None) -> ShardedBase:
        """What brings the weights of a `model` that `self.model` opened: parts on `device`, shared
        by the processes of `group`.

        Raises:
            InvalidInput: a weight is missing.
        """
        if not self.trains_all:
            shards, line = self.shards(model, device)
            return ShardedBase(shards, line, self.processes, group)
        parts, line = self._on_line(
            model, lambda files, weights: self._trained(files, weights, device, group)
        )
        return TrainedBase(parts, line, self.processes, self.rank, group)

    def shards(
        self, model: nn.Module, device: torch.device
    ) -> tuple[list[Shard], list[int | None]]:
        """What `ShardedBase` is made of, of a `model` that `self.model` opened: parts on `device`,
        and the line.

        Raises:
            InvalidInput: a weight is missing.
        """
        return self._on_line(model, lambda files, weights: self._shard(files, weights, device))

    def _on_line(
        self, model: nn.Module, make: Callable[[Mapping[str, Any], dict[str, Any]], Made]
    ) -> tuple[list[Made], list[int | None]]:
        """What `make` makes of the open files and of each unit's weights, and the line of them."""
        parameters = dict(model.named_parameters())
        shards: list[Made] = []
        line: list[int | None] = []
        with _opened(self.path) as files:
            for names in self._units(model):
                if names:
                    weights = {name: parameters[name] for name in names}
                    shards.append(make(files, weights))
                line.append(len(shards) - 1 if names else None)
        return shards, line if HEAD in parameters else [*line, line[0]]

    def _units(self, model: Any) -> Iterator[list[str]]:
        """Names of what is gathered at a time: embeddings, each layer's matrices, and the head
        unless it is the embeddings."""
        parameters = dict(model.named_parameters())
        matrices = [n for n, weight in parameters.items() if weight.dim() == 2]
        sharded = [name for name in matrices if name not in self.whole]
        heads = [HEAD] if HEAD in parameters else []
        places = [EMBEDDINGS, *(f"model.layers.{n}." for n in range(len(model.model.layers)))]
        for place in [*places, *heads]:
            yield [name for name in sharded if name.startswith(place)]

    def _shard(
        self, files: Mapping[str, Any], weights: dict[str, Any], device: torch.device
    ) -> Shard:
        """This process's part of `weights`, one after the other."""
        offsets, size = layout(list(weights.values()), self.processes)
        part = torch.zeros(size, dtype=torch.uint8)
        for name, offset in zip(weights, offsets, strict=True):
            numbers, weight = self._read(files, name, self.dtype), weights[name]
            if is_to_be_coded(weight):
                raw = codes_of(numbers, weight, device)
            else:
                raw = numbers.reshape(-1).view(torch.uint8)
            self._lay(raw, offset, part)
        return Shard(part.to(device), tuple(weights.values()), offsets)

    def _trained(
        self, files: Mapping[str, Any], weights: dict[str, Any], device: torch.device, group: Any
    ) -> TrainedShard:
        """As `_shard`, in float32."""
        offsets, size = layout(list(weights.values()), self.processes)
        wide = next(iter(weights.values())).element_size()
        part = torch.zeros(size // wide)
        for name, offset in zip(weights, offsets, strict=True):
            self._lay(self._read(files, name, torch.float32).reshape(-1), offset // wide, part)
        return TrainedShard(part.to(device), weights, offsets, self.rank, self.processes, group)

    def _lay(self, numbers: Tensor, offset: int, part: Tensor) -> None:
        """What this process has of `numbers`, which begin at `offset` of all."""
        first, last = self.rank * len(part), (self.rank + 1) * len(part)
        begin, end = max(first, offset), min(last, offset + len(numbers))
        if begin < end:
            part[begin - first : end - first] = numbers[begin - offset : end - offset]

    def _gathered_dtype(self, name: str) -> torch.dtype:
        """Of a sharded weight, when it is there."""
        return self._kept_dtype() if name in (EMBEDDINGS, HEAD) else self.dtype

    def _kept_dtype(self) -> torch.dtype:
        return torch.float32 if self.trains_all else self.dtype

    def _read(self, files: Mapping[str, Any], name: str, dtype: torch.dtype) -> Tensor:
        if name not in files:
            raise InvalidInput(
                f"{self.path} has no tensor {name}", f"run giraffe verify {self.path}"
            )
        found: Tensor = files[name].get_tensor(name)
        return found.to(dtype).contiguous()


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Tensor name → the open safetensors file of `folder` that has it."""
    files: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for path in weight_files(folder):
            opened: Any = stack.enter_context(safe_open(path, framework="pt"))
            files.update(dict.fromkeys(opened.keys(), opened))
        yield files
