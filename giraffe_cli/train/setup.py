"""What a training run is built from: the devices, the model with its loss, the optimiser."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import Tensor, nn

from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.collectives import told_by_all
from giraffe_cli.model.flash import why_not_recorded
from giraffe_cli.model.fused import why_not_fused
from giraffe_cli.model.kernels import Kernels
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loading import torch_dtype
from giraffe_cli.model.low_bits import keep_codes
from giraffe_cli.model.probe import AttentionShape, agreed, probe, repeatable, settle
from giraffe_cli.model.shard_loading import ShardedLoader, whole_weights
from giraffe_cli.model.sharded import ShardedBase
from giraffe_cli.model.sharded_training import TrainedBase
from giraffe_cli.model.trainable import causal_model, load_base, make_trainable
from giraffe_cli.train.data import Window
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.layout import PATIENCE, Layout
from giraffe_cli.train.sharing import check_keys, check_recorded
from giraffe_cli.train.trackers import check_trackers
from giraffe_cli.train.window_loss import Tensors, WindowLoss

REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Layouts in which each process holds the whole model."""
_BY_HEADS = "--set train.sequence_parallel_by=heads takes any kernel, where heads divide"


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
        kwargs_handlers=[_of_the_group()],
    )
    if accelerator.distributed_type not in REPLICATED:
        raise InvalidInput(
            f"training under Accelerate's {accelerator.distributed_type.value} is not supported: "
            "the adapter's parameters must stay whole in every process",
            "use a launcher config with distributed_type NO or MULTI_GPU",
        )
    return accelerator


def _of_the_group() -> InitProcessGroupKwargs:
    """Our patience, and gloo where this machine's processes are more than its GPUs: NCCL refuses to
    share one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    is_shared = torch.cuda.is_available() and processes > torch.cuda.device_count()
    if is_shared:
        return InitProcessGroupKwargs(backend="gloo", timeout=PATIENCE)
    return InitProcessGroupKwargs(timeout=PATIENCE)


def build_model(
    job: TrainJob, layout: Layout | None = None, device: torch.device | None = None
) -> WindowLoss:
    """The checkpoint under the job's table as what is trained, in training mode, on `device`; for
    this process's place in the `layout`, alone by default.

    Every process must call this, in the same order as its other collective calls.
    """
    dtype, layout = torch_dtype(job.dtype), layout or Layout()
    device = device or torch.device("cpu")
    base, shared = _open_base(job, dtype, layout, device)
    model = make_trainable(base, job.config, dtype, job.seed)
    model.train()
    levers = _levers_that_work(job, base.config.attention_dropout)
    levers = _fused_where_possible(job, levers, causal_model(model).model.layers)
    levers = dataclasses.replace(levers, shard_base=shared is not None)
    if shared:
        shared.let_go()  # else its weights, which are not there, would be moved to the device
    group = layout.sequence_group()
    return WindowLoss(model, dtype, levers, group, job.run_dir, shared).to(device)


def _open_base(
    job: TrainJob, dtype: torch.dtype, layout: Layout, device: torch.device
) -> tuple[Any, ShardedBase | None]:
    """The checkpoint whole, or with what brings its weights where the processes share them out."""
    path, attention = job.checkpoint.path, register_attention()
    parts = layout.base_processes
    if not job.levers.shard_base or parts == 1:
        opened = load_base(
            path, job.config, dtype=dtype, table=job.table, attn_implementation=attention
        )
        return opened, None
    whole, trains_all = whole_weights(job.config), job.config.method == "full"
    in_4_bits = job.config.quantize_base == "nf4"
    loader = ShardedLoader(path, dtype, layout.base_rank, parts, whole, trains_all, in_4_bits)
    base = loader.model(job.table, attention)
    brought = loader.base(base, device, layout.base_group())
    keep_codes(base)
    if isinstance(brought, TrainedBase):
        brought.peers = layout.peer_group()
    return base, brought


def _levers_that_work(job: TrainJob, attention_dropout: float) -> Levers:
    """The job's levers; layers recomputed whole where attention cannot be kept and nobody asked.

    Raises:
        InvalidInput: `checkpointing: attention` was asked for and cannot be.
    """
    if job.levers.checkpointing != "attention" or why_not_recorded(attention_dropout) is None:
        return job.levers
    check_recorded(job.config, attention_dropout)
    return dataclasses.replace(job.levers, checkpointing="full")


def _fused_where_possible(job: TrainJob, levers: Levers, layers: Sequence[Any]) -> Levers:
    """`levers`, not fused where the layers cannot be and nobody asked.

    Raises:
        InvalidInput: `fused_layers: on` was asked for and cannot be.
    """
    obstacle = why_not_fused(layers) if levers.fused else None
    if obstacle is None:
        return levers
    if job.config.fused_layers == "on":
        raise InvalidInput(
            f"fused_layers: on cannot take the projections together: {obstacle}",
            "--set train.fused_layers=off",
        )
    return dataclasses.replace(levers, fused=False)


def choose_kernels(
    job: TrainJob, attention_dropout: float, device: torch.device
) -> tuple[Kernels | None, str]:
    """What attends on `device`, and how it was chosen, the same in every process; None on a CPU,
    whose attention has one kernel, and under dropout, which torch's own attention draws.

    Every process must call this, in the same order as its other collective calls.

    Raises:
        InvalidInput: the kernel that was asked for cannot be used, or windows cannot be shared by
            keys.
    """
    by_keys = job.config.sequence_parallel_by == "keys"
    check_keys(job.config, attention_dropout, job.dtype, device.type == "cuda")
    if device.type == "cpu" or attention_dropout:
        return None, ""
    share, shape = 1 if by_keys else job.config.sequence_parallel, job.checkpoint
    per_process = AttentionShape(
        shape.num_attention_heads // share,
        max(1, shape.num_key_value_heads // share),
        shape.head_dim,
    )
    dtype, wanted = torch_dtype(job.dtype), job.config.attention_kernel
    if by_keys and wanted == "auto":
        wanted = "flash"
    probed = agreed(told_by_all(probe(per_process, dtype, job.window, device, wanted, by_keys)))
    if job.config.deterministic:
        probed = repeatable(probed)
    return settle(wanted, probed, _BY_HEADS if by_keys else "")


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What the optimiser moves, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def window_nats(model: WindowLoss, window: Window, device: torch.device) -> Tensor:
    """Sum of nats of one window, or of this process's slice of it."""
    nats: Tensor = model(*on_device(model, window, device))
    return nats


def on_device(model: WindowLoss, window: Window, device: torch.device) -> Tensors:
    """What `model` takes of a window. Dropout is drawn from here on from the window's own seed, and
    differently for each slice."""
    torch.manual_seed(window.dropout_seed + (model.group.rank if model.group else 0))
    return (
        window.input_ids.to(device),
        window.labels.to(device),
        window.position_ids.to(device),
        window.seq_lengths,
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: of the GPU when it trains there, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
