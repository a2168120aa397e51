"""What is trained as one function: a window in, the sum of nats over its targets out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from giraffe_cli.model.fused import FusedLayer, normed
from giraffe_cli.model.gathered_keys import KeyGroup
from giraffe_cli.model.kernel_base import Documents
from giraffe_cli.model.kernels import Kernels
from giraffe_cli.model.layer_base import AbstractLayer, Attending, Context
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loss import IGNORED, Weigh, chunked_nll, token_nll, weighted_nll
from giraffe_cli.model.plain import PlainLayer
from giraffe_cli.model.sequence_parallel import SequenceGroup
from giraffe_cli.model.sharded import ShardedBase
from giraffe_cli.model.sharded_training import TrainedBase
from giraffe_cli.model.stack import run_layers
from giraffe_cli.model.trainable import causal_model, head_weight

Tensors = tuple[Tensor, Tensor, Tensor, tuple[int, ...]]
"""Of a window, on the model's device: input_ids, labels, position_ids, seq_lengths."""


class WindowLoss(nn.Module):
    """The model with its loss: a window in, the SUM of nats over its targets out.

    Adapters are float32; under bfloat16 they compute in it by autocast. In a `group` every process
    is given the whole window and answers for its slice of the tokens: the sum over the group is
    the window's.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        levers: Levers,
        group: SequenceGroup | None = None,
        folder: Path | None = None,
        base: ShardedBase | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.levers = levers
        self.group = group
        self.folder = folder
        """Where `offload: disk` keeps its file."""
        self.base = base
        """Brings the weights, where processes share them."""
        self.kernels: Kernels | None = None
        """What attends; None: torch's own choice."""

    @property
    def trained_base(self) -> TrainedBase | None:
        """The base that processes share out and train."""
        return self.base if isinstance(self.base, TrainedBase) else None

    def held_here(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`parameters` of this module or of its model, this process's pieces in the place of those
        that are trained and shared out."""
        base = self.trained_base
        return base.held_here(parameters) if base else dict(parameters)

    def end_backward(self) -> None:
        """Call this after each backward pass: gradients of what is shared out are summed."""
        if self.trained_base:
            self.trained_base.end_backward()

    def moved(self) -> None:
        """Call this after trained weights were changed."""
        if self.trained_base:
            self.trained_base.moved()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        seq_lengths: tuple[int, ...],
    ) -> Tensor:
        """Shapes as in `Window`; returns a scalar."""
        hidden, labels = self._hidden(input_ids, labels, position_ids, seq_lengths)
        return chunked_nll(hidden, head_weight(self.model), labels, self.levers.loss_chunk)

    def weighted(self, tensors: Tensors, weigh: Weigh | None = None) -> tuple[Tensor, Tensor]:
        """As `weighted_nll`, over this process's slice of a window."""
        hidden, labels = self._hidden(*tensors)
        chunk = self.levers.loss_chunk
        return weighted_nll(hidden, head_weight(self.model), labels, chunk, weigh)

    @torch.no_grad()
    def nll_of_targets(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """`[slice]` nats of every target of this process's slice of a window, 0 elsewhere, and
        which tokens have one. Only those are projected. No gradient."""
        hidden, labels = self._hidden(*tensors)
        has_target = labels != IGNORED
        kept, chunk = hidden[has_target], self.levers.loss_chunk
        nats = token_nll(kept, head_weight(self.model), labels[has_target], chunk)
        return nats.new_zeros(len(labels)).masked_scatter(has_target, nats), has_target

    def _hidden(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        seq_lengths: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        """`[slice, d]` what the head multiplies, and the labels `[slice]`, of this process."""
        if self.group:
            input_ids, labels, position_ids, seq_lengths = slice_of(
                self.group, input_ids, labels, position_ids, seq_lengths
            )
        decoder = causal_model(self.model).model
        # boundaries stay on the CPU: reading them must not wait for the device in every layer
        cu_seqlens = torch.tensor([0, *seq_lengths], dtype=torch.int32).cumsum(0).int()
        settings: dict[str, Any] = {
            "cu_seqlens": cu_seqlens,
            "sequence_group": self.group,
            "kernels": self.kernels,
            "documents": Documents.of(seq_lengths, input_ids.device),
        }
        if isinstance(self.group, KeyGroup):
            settings["tails"] = self.group.tails(seq_lengths, input_ids.device)
        context = self._autocast(input_ids.device)
        if self.base:
            self.base.take_embeddings()
        with context():
            hidden = decoder.embed_tokens(input_ids)
            rotary = decoder.rotary_emb(hidden, position_ids=position_ids)
        attending = Attending(rotary, settings)
        kind = FusedLayer if self.levers.fused else PlainLayer
        layers: Sequence[AbstractLayer] = [kind(layer) for layer in decoder.layers]
        if self.base:
            layers = self.base.layers(layers)
        hidden = run_layers(layers, hidden, attending, self.levers, context, self.folder)
        with context():
            norm = decoder.norm
            hidden = (normed(norm, hidden) if self.levers.fused else norm(hidden))[0]
        if self.base:
            self.base.take_head()
        return hidden.to(self.dtype), labels

    def _autocast(self, device: torch.device) -> Context:
        """bfloat16 wherever it is safe, when the weights are bfloat16; float32 is left alone."""
        enabled = self.dtype == torch.bfloat16
        return lambda: torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def slice_of(
    group: SequenceGroup,
    input_ids: Tensor,
    labels: Tensor,
    position_ids: Tensor,
    seq_lengths: tuple[int, ...],
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """This process's share of a window; the row is padded by a last document without targets.

    5 tokens over 2 processes: tokens 0-2 and 3-4 with one of padding, documents (…, 1).
    """
    num_tokens = input_ids.shape[1]
    padding = group.padded(num_tokens) - num_tokens
    pieces = group.pieces(num_tokens)

    def mine(row: Tensor, value: int = 0) -> Tensor:
        padded = torch.nn.functional.pad(row, (0, padding), value=value)
        return torch.cat([padded[..., start:end] for start, end in pieces], -1)

    lengths = (*seq_lengths, padding) if padding else seq_lengths
    return mine(input_ids), mine(labels, IGNORED), mine(position_ids), lengths
