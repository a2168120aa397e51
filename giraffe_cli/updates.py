"""What training does to one weight of the base, row by row, in float32.

    LoRA          W + s B A                            (Hu et al., arXiv:2106.09685)
    DoRA          m (W + s B A) / ‖W + s B A‖          norm of each output row (arXiv:2402.09353)
    replacement   the trained tensor itself

Rows are independent of each other in all of them, so that a tensor may be changed in blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from giraffe_cli.tensor_dtypes import DTYPES
from giraffe_cli.tensor_stream import TensorInFile


class AbstractUpdate(ABC):
    """The change of one weight."""

    @abstractmethod
    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """float32: the changed rows, given the base's rows from `start` on."""

    def merged(self, weight: torch.Tensor, start: int = 0) -> torch.Tensor:
        """The same in the dtype of `weight`: one rounding, from float32."""
        return self.rows(weight, start).to(weight.dtype)


@dataclass(frozen=True)
class LoraUpdate(AbstractUpdate):
    """W + scaling · B A."""

    down: torch.Tensor
    """A, `[r, in]`, float32."""
    up: torch.Tensor
    """B, `[out, r]`, float32."""
    scaling: float

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        change = self.scaling * (self.up[start : start + len(weight)] @ self.down)
        return weight.to(torch.float32) + change


@dataclass(frozen=True)
class DoraUpdate(AbstractUpdate):
    """The direction of each row from a LoRA, its norm trained apart."""

    direction: LoraUpdate
    magnitude: torch.Tensor
    """m, `[out]`, float32."""

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        rows = self.direction.rows(weight, start)
        norm: torch.Tensor = torch.linalg.norm(rows, dim=1, keepdim=True)
        return self.magnitude[start : start + len(weight), None] / norm * rows


@dataclass(frozen=True)
class Replacement(AbstractUpdate):
    """A tensor that was trained whole, read from its file when it is needed."""

    tensor: TensorInFile

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        data = self.tensor.read_rows(start, start + len(weight))
        rows = torch.frombuffer(data, dtype=DTYPES[self.tensor.entry.dtype])
        return rows.reshape(weight.shape).to(torch.float32)
