"""What a training run is built from: the devices, the model with its loss, the learning rate."""

from __future__ import annotations

import math
import resource

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType, ProjectConfiguration
from peft import PeftModel
from torch import Tensor, nn

from giraffe_cli.checkpoint import load_model, torch_dtype
from giraffe_cli.config import TrainConfig
from giraffe_cli.errors import InvalidInput, near_misses
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.lora import add_lora
from giraffe_cli.model.loss import chunked_nll
from giraffe_cli.train.data import Window
from giraffe_cli.train.job import TrainJob

REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Layouts in which each process holds the whole model."""


class WindowLoss(nn.Module):
    """The model with its loss: a window in, the SUM of nats over its targets out.

    Adapters are float32; under bfloat16 they compute in it by autocast.
    """

    def __init__(self, model: PeftModel, dtype: torch.dtype, chunk: int) -> None:
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
        causal_model = self.model.get_base_model()
        # boundaries stay on the CPU: reading them must not wait for the device in every layer
        cu_seqlens = torch.tensor([0, *seq_lengths], dtype=torch.int32).cumsum(0).int()
        with torch.autocast(
            input_ids.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        ):
            hidden = causal_model.model(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=None,
                use_cache=False,
                cu_seqlens=cu_seqlens,
            ).last_hidden_state[0]
        head = causal_model.lm_head.weight
        return chunked_nll(hidden.to(head.dtype), head, labels, self.chunk)


def make_accelerator(job: TrainJob) -> Accelerator:
    """Devices and trackers. Precision is ours (`WindowLoss`), so that a process may train twice.

    Raises:
        InvalidInput: a tracker that is unknown or not installed, or a sharded layout.
    """
    for name in job.config.trackers:
        known = {str(kind) for kind in LoggerType} - {"all"}
        if name not in known:
            raise InvalidInput(f"unknown tracker `{name}`", near_misses(name, known))
        if name not in {str(kind) for kind in get_available_trackers()}:
            raise InvalidInput(f"tracker `{name}` is not installed", f"run pip install {name}")
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
    """The checkpoint under the job's table, frozen, with adapters, in training mode."""
    dtype = torch_dtype(job.dtype)
    base = load_model(
        job.checkpoint.path,
        dtype=dtype,
        table=job.table,
        attn_implementation=register_attention(),
    )
    model = add_lora(base, job.config.lora, job.seed)
    if job.config.checkpointing != "none":
        # Without reentry no input needs a gradient, so the frozen embedding stays without one.
        base.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    chunk = 1024 if job.config.loss_chunk == "auto" else job.config.loss_chunk
    return WindowLoss(model, dtype, chunk)


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What the optimiser moves, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(parameters: dict[str, Tensor], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with β = (0.9, 0.95), as YaRN and LongLoRA fine-tune."""
    return torch.optim.AdamW(
        parameters.values(),
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of `step` (from 0): linear warm-up, then constant or a cosine to a tenth.

    10 warm-up steps: step 0 → a tenth of the peak, step 9 → the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


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
