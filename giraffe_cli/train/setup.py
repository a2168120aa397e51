"""What a training run is built from: the devices, the model with its loss, the optimiser."""

from __future__ import annotations

import resource

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import Tensor, nn

from giraffe_cli.checkpoint import torch_dtype
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.loss import chunked_nll
from giraffe_cli.model.trainable import causal_model, head_weight, load_base, make_trainable
from giraffe_cli.train.data import Window
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.trackers import check_trackers

REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Layouts in which each process holds the whole model."""


class WindowLoss(nn.Module):
    """The model with its loss: a window in, the SUM of nats over its targets out.

    Adapters are float32; under bfloat16 they compute in it by autocast.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, chunk: int) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.chunk = chunk

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        seq_lengths: tuple[int, ...],
    ) -> Tensor:
        """Shapes as in `Window`; returns a scalar."""
        # boundaries stay on the CPU: reading them must not wait for the device in every layer
        cu_seqlens = torch.tensor([0, *seq_lengths], dtype=torch.int32).cumsum(0).int()
        with torch.autocast(
            input_ids.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        ):
            hidden = (
                causal_model(self.model)
                .model(
                    input_ids=input_ids,
                    position_ids=position_ids,
                    attention_mask=None,
                    use_cache=False,
                    cu_seqlens=cu_seqlens,
                )
                .last_hidden_state[0]
            )
        head = head_weight(self.model)
        return chunked_nll(hidden.to(head.dtype), head, labels, self.chunk)


def make_accelerator(job: TrainJob) -> Accelerator:
    """Devices and trackers. Precision is ours (`WindowLoss`), so that a process may train twice.

    Raises:
        InvalidInput: a tracker that is unknown or not installed, or a sharded layout.
    """
    check_trackers(job.config.trackers)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        log_with=job.config.trackers or None,
        project_config=ProjectConfiguration(logging_dir=str(job.run_dir / "trackers")),
    )
    if accelerator.distributed_type not in REPLICATED:
        raise InvalidInput(
            f"training under Accelerate's {accelerator.distributed_type.value} is not supported: "
            "the adapter's parameters must stay whole in every process",
            "use a launcher config with distributed_type NO or MULTI_GPU",
        )
    return accelerator


def build_model(job: TrainJob) -> WindowLoss:
    """The checkpoint under the job's table as what is trained, in training mode."""
    dtype = torch_dtype(job.dtype)
    base = load_base(
        job.checkpoint.path,
        job.config,
        dtype=dtype,
        table=job.table,
        attn_implementation=register_attention(),
    )
    model = make_trainable(base, job.config, dtype, job.seed)
    if job.config.checkpointing != "none":
        # Without reentry no input needs a gradient, so the frozen embedding stays without one.
        base.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    chunk = 1024 if job.config.loss_chunk == "auto" else job.config.loss_chunk
    return WindowLoss(model, dtype, chunk)


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What the optimiser moves, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def window_nats(model: nn.Module, window: Window, device: torch.device) -> Tensor:
    """Sum of nats of one window; dropout is drawn from the window's own seed."""
    torch.manual_seed(window.dropout_seed)
    nats: Tensor = model(
        window.input_ids.to(device),
        window.labels.to(device),
        window.position_ids.to(device),
        window.seq_lengths,
    )
    return nats


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: of the GPU when it trains there, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
