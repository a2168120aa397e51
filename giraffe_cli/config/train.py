"""The fine-tune."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from giraffe_cli.config.base import Knobs, Length, Section, switch
from giraffe_cli.config.lora import LoraConfig

LONGEST_SHORT_CONTEXT = 4096
"""Tokens: the least that LongCE's authors compare with."""
LONGCE_KNOBS = {"short_context": None, "weight_cap": 5.0, "weight_floor": 1.0}
"""Knobs of `loss: longce` alone, with their defaults."""


class TrainConfig(Section):
    """The fine-tune."""

    steps: int = Field(default=100, ge=0)
    """Optimiser steps; 0 writes the zero-shot extension."""
    window: Length | None = None
    """Tokens in a training window; default: the target length. Shorter windows train with PoSE."""
    positions: Literal["auto"] | str = "auto"
    """Position scheme; auto: `plain` for full windows, `pose` for shorter ones."""
    position_knobs: Knobs = Field(default_factory=dict)
    """Knobs of the position scheme, such as `chunks`."""
    windows_per_step: int = Field(default=1, ge=1)
    """Windows in one optimiser step, over all processes and accumulation together."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After warm-up: cosine to a tenth of the peak, constant, or constant and then linearly to
    nought over the last `decay_steps` (warm-up, stable, decay)."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Steps of the decay under `wsd`; default: a fifth of the steps."""
    embeddings_rate: float = Field(default=1.0, gt=0)
    """Their rate where embeddings are trained, in learning rates: 0.2 moves them a fifth as fast as
    all else."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay, of matrices; embeddings and norms do not decay."""
    loss: Literal["ce", "longce"] = "ce"
    """What is minimised: the cross-entropy of every token alike; or LongCE, each token's times how
    much likelier the long context makes it than a short one, which takes two more forward passes,
    over short pieces."""
    short_context: Length | None = None
    """Tokens of that short context, half of which each token sees at the least; default: the native
    window, at most 4k."""
    weight_cap: float = Field(default=5.0, gt=1)
    """Most that LongCE lets a token count."""
    weight_floor: float = Field(default=1.0, ge=0, le=1)
    """Least that it lets a token count. 0: as published, where tokens that the long context makes
    less likely hardly count; 1: these count once."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    method: Literal["lora", "full"] = "lora"
    """Train an adapter, or every weight: in float32, computing in the run's dtype, which takes 16
    bytes a weight with gradients and moments."""
    lora: LoraConfig = Field(default_factory=LoraConfig)
    """The adapter."""
    quantize_base: Literal["none", "nf4"] = "none"
    """nf4: hold the frozen base in 4 bits (bitsandbytes); the merge goes into the original, which
    differs from what was trained on by that rounding."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit: moments in 8 bits (bitsandbytes)."""
    checkpointing: Literal["auto", "none", "attention", "full"] = "auto"
    """Layers recomputed in the backward pass: none; all but attention, whose output is kept; all.
    auto: the first that fits."""
    attention_layers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Under `checkpointing: attention`: of how many layers the output is kept, from the last; the
    others' is computed again. auto: as many as fit on a GPU, all of them on a CPU."""
    whole_layers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Of how many layers, from the last, everything is kept while the others are recomputed. auto:
    as many as fit on a CPU, with nothing offloaded; none on a GPU, where it has not run yet."""
    offload: Literal["auto", "none", "host", "disk"] = "auto"
    """Where the inputs of recomputed layers wait: on the device, in host memory, in a file."""
    offload_layers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """How many layers' wait there, from the first; the others' stay on the device. auto: as many as
    the plan needs on a GPU, all of them on a CPU."""
    attention_kernel: Literal["auto", "cudnn", "flash", "flash4", "efficient"] = "auto"
    """What a GPU attends with; auto: the fastest of torch's own in a short measurement, which is
    told. flash4 needs `pip install --pre flash-attn-4`, and has not run yet. A CPU has one."""
    fused_layers: Annotated[Literal["auto", "on", "off"], BeforeValidator(switch)] = "auto"
    """Take the projections of a layer together, and on a GPU what lies between them in one pass;
    auto: where the adapter is plain LoRA; over a base in 4 bits on a CPU alone, since it has not
    run on a GPU yet."""
    shard_base: Literal["auto", "none", "full", "nodes"] = "auto"
    """Share the base out over the processes: each keeps a part of every layer (of a base in 4 bits
    its codes), under `method: full` with its gradients and moments, and gathers a layer when it
    computes it. full: over those of a
    machine; nodes: over those of all machines; auto: over those of a machine where that is the
    fastest setting that fits, on CPUs; on GPUs, where it has not run yet, a plan proposes it."""
    mlp_tile: Literal["auto", "none"] | Length = "auto"
    """Tokens that pass through an MLP at a time while layers are recomputed."""
    projection_tile: Literal["auto", "none"] | Length = "auto"
    """Tokens that are projected for attention at a time while layers are recomputed. auto: where it
    costs nothing or the plan needs it, on a CPU; on a GPU, where it has not run yet, a plan
    proposes it."""
    head_groups: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Under a `projection_tile`: heads attend in so many groups, one after the other, which must
    divide the key heads. auto: up to four on a GPU, one on a CPU, whose threads share the heads
    out, and where processes share a window."""
    loss_chunk: Literal["auto"] | Length = "auto"
    """Tokens whose logits exist at one time; auto: as many as the memory left over holds, up to 256
    on a CPU, where more are not faster, and 4,096 on a GPU."""
    across_documents: bool = False
    """Let the documents of a window see each other, on purpose."""
    held_out_every: int = Field(default=0, ge=0)
    """Steps between measurements of the loss on held-out windows; 0: never."""
    held_out_windows: int = Field(default=4, ge=1)
    """Windows of a measurement."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many measurements in a row without a lower loss."""
    keep: Literal["last", "best"] = "last"
    """Which weights the run ends with: of the last step, or of the lowest held-out loss."""
    control: bool = False
    """Train a second adapter for comparison: same steps and documents, at the native window and
    without scaling. What it gains is the text's domain, not length."""
    max_bad_steps: int = Field(default=3, ge=0)
    """A step whose loss is no number moves nothing; after so many more in a row the run ends."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints stay on disk."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that train together; default: one per visible GPU, one without GPUs."""
    nodes: int = Field(default=1, ge=1)
    """Machines that train together, all alike and each running the same command; `processes` are
    those of all of them. The run folder, model and packed data must be seen by each."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Processes that share each window, every one a slice of its tokens."""
    sequence_parallel_by: Literal["heads", "keys"] = "heads"
    """What they exchange for attention. heads: each gets all tokens of its share of the heads,
    which must divide by the processes. keys: each gathers all keys and values for its own queries,
    whatever the heads; on GPUs in 16 bits by `flash`, where it has not run yet."""
    share_devices: bool = False
    """Let `processes` be more than the GPUs, several on each: to try a layout on fewer than it is
    meant for. They speak through host memory (gloo), which is slower than one process."""
    deterministic: bool = False
    """Repeat the training to the bit on a GPU too, at the price of slower kernels; a resumed run
    then ends in the same bytes, as it does on a CPU."""
    trackers: list[str] = Field(default_factory=list)
    """Accelerate trackers, such as `tensorboard`, `trackio` or `wandb`."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> TrainConfig:
        if problems := _problems(self):
            raise ValueError("; ".join(problems))
        return self

    def short_context_of(self, native_length: int) -> int:
        """Tokens of the short context of `loss: longce`, for a base of `native_length`."""
        return self.short_context or min(native_length, LONGEST_SHORT_CONTEXT)

    @property
    def shares_base(self) -> bool:
        """Whether the base is asked to be shared out."""
        return self.shard_base in ("full", "nodes")

    @property
    def trains_embeddings(self) -> bool:
        """Whether the embeddings get gradients."""
        return self.method == "full" or "embeddings" in self.lora.also_train

    @property
    def can_shard_base(self) -> bool:
        """Whether what is trained allows the base to be shared out."""
        needs_weights = self.lora.use_dora or self.lora.init_lora_weights == "pissa"
        by_blocks = self.method == "full" and self.optimizer == "adamw8bit"
        return not needs_weights and not by_blocks and self.checkpointing != "none"


def _problems(train: TrainConfig) -> list[str]:
    """A sentence for each knob that would have no effect, or cannot have the one asked for."""
    is_shared = train.shares_base
    rules = (
        (train.decay_steps and train.schedule != "wsd", "decay_steps needs schedule: wsd"),
        (
            train.steps and (train.decay_steps or 0) > train.steps,
            f"decay_steps {train.decay_steps} is more than the {train.steps} steps there are",
        ),
        (
            train.loss == "ce" and any(getattr(train, k) != v for k, v in LONGCE_KNOBS.items()),
            "short_context, weight_cap and weight_floor need loss: longce",
        ),
        (
            train.embeddings_rate != 1 and not train.trains_embeddings,
            "embeddings_rate needs lora.also_train: [embeddings], or method: full",
        ),
        (train.short_context == 1, "short_context 1 leaves no context; the least is 2"),
        (train.patience and not train.held_out_every, "patience needs held_out_every"),
        (
            is_shared and train.checkpointing == "none",
            "shard_base needs checkpointing: kept activations keep the gathered weights",
        ),
        (
            is_shared and train.checkpointing != "none" and not train.can_shard_base,
            f"shard_base: {train.shard_base} shares out a base under plain LoRA or trained: "
            "use_dora, pissa, and adamw8bit under method: full need it whole",
        ),
        (
            train.shard_base == "nodes" and train.nodes == 1,
            "shard_base: nodes needs nodes, of which there is one; full shares out on it",
        ),
        (
            train.sequence_parallel_by == "keys" and train.sequence_parallel == 1,
            "sequence_parallel_by: keys needs sequence_parallel: how many share a window",
        ),
        (
            train.sequence_parallel_by == "keys"
            and train.attention_kernel not in ("auto", "flash", "flash4"),
            "sequence_parallel_by: keys attends by attention_kernel: flash, or flash4",
        ),
        (
            train.deterministic and train.attention_kernel in ("cudnn", "flash4"),
            "deterministic: the backward pass of attention_kernel: "
            f"{train.attention_kernel} adds in any order; flash and efficient repeat it",
        ),
        (
            train.share_devices and train.processes is None,
            "share_devices needs processes: how many share the GPUs",
        ),
        (
            train.keep == "best" and not train.held_out_every,
            "keep: best needs held_out_every",
        ),
        (
            train.method == "full" and train.quantize_base != "none",
            "method: full trains every weight, quantize_base freezes them",
        ),
        (
            train.method == "full" and train.lora != LoraConfig(),
            "method: full has no adapter, lora has no effect on it",
        ),
        (
            train.lora.use_dora and train.lora.init_lora_weights == "pissa",
            "use_dora and init_lora_weights: pissa exclude each other: what PiSSA starts "
            "from is constant, DoRA scales it",
        ),
        (
            train.checkpointing == "none" and train.offload in ("host", "disk"),
            "offload needs checkpointing",
        ),
        (
            train.checkpointing in ("none", "full") and train.attention_layers != "auto",
            "attention_layers needs checkpointing: attention",
        ),
        (
            train.checkpointing == "none" and train.whole_layers not in ("auto", 0),
            "whole_layers needs checkpointing: without it every layer is whole",
        ),
        (
            is_shared and train.whole_layers not in ("auto", 0),
            f"shard_base: {train.shard_base} keeps no layer whole, which would keep its gathered "
            "weights",
        ),
        (
            train.offload == "none" and train.offload_layers != "auto",
            "offload_layers needs offload",
        ),
        (
            train.checkpointing == "none"
            and train.offload == "auto"
            and train.offload_layers != "auto",
            "offload_layers needs checkpointing",
        ),
        (
            train.checkpointing == "none" and isinstance(train.mlp_tile, int),
            "mlp_tile needs checkpointing",
        ),
        (
            train.checkpointing == "none" and isinstance(train.projection_tile, int),
            "projection_tile needs checkpointing",
        ),
        (
            train.head_groups not in ("auto", 1) and not isinstance(train.projection_tile, int),
            "head_groups needs projection_tile",
        ),
        (
            train.head_groups not in ("auto", 1) and train.sequence_parallel > 1,
            "head_groups divides the heads of one process, which sequence_parallel exchanges",
        ),
    )
    return [sentence for is_wrong, sentence in rules if is_wrong]


def knobs_without_effect(train: TrainConfig, attention_dropout: float = 0.0) -> set[str]:
    """Knobs of `train` that change no trained weight beyond the order of float sums, of a base with
    that `attention_dropout`: a run may be resumed with others of them."""
    free = {
        *("checkpoint_every", "keep_checkpoints", "processes", "trackers", "max_bad_steps"),
        *("checkpointing", "attention_layers", "offload", "offload_layers", "loss_chunk"),
        *("attention_kernel", "fused_layers", "head_groups", "shard_base"),
        *("control", "nodes", "share_devices", "deterministic"),
    }
    # masks are drawn tile by tile, but for layers that are kept whole, and slice by slice; those of
    # attention by groups of heads
    if train.lora.dropout == 0:
        free |= {"mlp_tile"}
    if train.lora.dropout == 0 and attention_dropout == 0:
        free |= {"projection_tile", "whole_layers", "sequence_parallel", "sequence_parallel_by"}
    if attention_dropout:
        free -= {"head_groups"}
    if train.patience is None and train.keep == "last":
        free |= {"held_out_every", "held_out_windows"}
    return free
