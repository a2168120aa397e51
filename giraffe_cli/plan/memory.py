"""Peak memory of one process in a training step, part by part: which tensors live at one time.

Read off the code of `model/stack.py`, `model/loss.py` and PEFT's linear layer, for S tokens of the
process, d hidden, q = h·D query and k = kv·D key channels, f intermediate, V vocabulary, L layers
and b bytes a number (4, or 2 under bfloat16, where norms compute in 4):

    kept       layer inputs L·S·d·b; with `attention` also its outputs L·S·(q·b + 4·h)
    layer      S·b·(4d + 3q + 2k)     the attention block's saved tensors, gradients above and below
               + T·b·(6f + 3d)        the MLP of T tokens (a tile): four saved, two gradients
                 or S·b·(3q + 4k)     the backward pass of attention, where that is more
    loss       3·S·d·b + chunk·V·4    (half more in 16 bits)
    optimizer  a copy or two of the largest trained tensor

The peak is in whichever of layer, loss and optimizer needs most; the rest is there throughout. On
a CPU comes what glibc's heap keeps of freed tensors (`_heap`). Coefficients are checked by
`scripts/bench_plan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config import TrainConfig
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.operations import adapter_numbers, linear_shapes

NF4_BYTES = 4.127 / 8
"""Of a weight: a code of 4 bits, a scale of 8 for each 64, and one of 32 for each 256 of those."""
CPU_PROCESS_BYTES = 570_000_000
"""Interpreter, torch, transformers, PEFT with bitsandbytes (45 MB), their kernels paged in: what a
training of 50,000 weights takes."""
CUDA_PROCESS_BYTES = 1_000_000_000
"""CUDA's context and cuBLAS's workspace; the caching allocator's slack is the margin's affair."""
HEAP_LIMIT = 32 << 20
"""Bytes from which glibc maps a tensor by itself and hands it back when it is freed (mallopt(3):
DEFAULT_MMAP_THRESHOLD_MAX)."""


@dataclass(frozen=True)
class Demand:
    """What one process holds: its model, what it trains, and a window."""

    shape: Checkpoint
    train: TrainConfig
    dtype: str
    """Of the computation."""
    window: int
    """Tokens, before processes share it."""
    kind: str
    """`cpu` or `cuda`."""
    keeps_freed: bool = False
    attention_share: float = 1.0
    """s² of the windows."""

    @property
    def tokens(self) -> int:
        """S."""
        return -(-self.window // self.train.sequence_parallel)

    @property
    def width(self) -> int:
        """b."""
        return 4 if self.dtype == "float32" else 2

    @property
    def queries(self) -> int:
        return self.shape.num_attention_heads * self.shape.head_dim

    @property
    def keys(self) -> int:
        return self.shape.num_key_value_heads * self.shape.head_dim

    @property
    def trains_head(self) -> bool:
        also = self.train.method == "lora" and "embeddings" in self.train.lora.also_train
        return self.train.method == "full" or (also and self.shape.tie_word_embeddings)


def bytes_by_part(demand: Demand, levers: Levers) -> dict[str, int]:
    """Predicted bytes at the peak, by part; `total` is their sum."""
    phases = {
        "layer": _layer(demand, levers),
        "loss": _loss(demand, levers),
        "optimizer": _optimizer(demand),
    }
    peak = max(phases, key=lambda name: phases[name])
    in_memory = 0 if levers.offload != "none" else kept_bytes(demand, levers)
    parts: dict[str, float] = {
        "process": CPU_PROCESS_BYTES if demand.kind == "cpu" else CUDA_PROCESS_BYTES,
        "weights": _weights(demand),
        "trained": _trained(demand),
        "kept": 0 if peak == "optimizer" else in_memory,
        peak: phases[peak],
        "heap": _heap(demand, levers),
    }
    whole = {name: int(count) for name, count in parts.items() if count}
    return {**whole, "total": sum(whole.values())}


def _weights(demand: Demand) -> float:
    """Of the base, as it is loaded."""
    shape, train = demand.shape, demand.train
    if train.method == "full":
        return 4.0 * shape.num_parameters
    if train.quantize_base == "none":
        return shape.num_parameters * demand.width
    linear = shape.num_layers * sum(i * o for i, o in linear_shapes(shape).values())
    return linear * NF4_BYTES + (shape.num_parameters - linear) * demand.width


def _trained(demand: Demand) -> float:
    """Float32 numbers beside the base, and gradient and moments of all that is trained."""
    numbers = trained_numbers(demand.shape, demand.train)
    copies = 0 if demand.train.method == "full" else 4
    moments = 8 if demand.train.optimizer == "adamw" else 2
    return float(numbers * (copies + 4 + moments))


def trained_numbers(shape: Checkpoint, train: TrainConfig) -> int:
    """How many numbers the optimiser moves."""
    if train.method == "full":
        return shape.num_parameters
    also, d = train.lora.also_train, shape.hidden_size
    norms = (2 * shape.num_layers + 1) * d if "norms" in also else 0
    embeddings = shape.vocab_size * d if "embeddings" in also else 0
    return adapter_numbers(shape, train) + norms + embeddings


def kept_bytes(demand: Demand, levers: Levers) -> float:
    """What waits for the backward pass of one window, wherever that is."""
    if levers.checkpointing == "none":
        return demand.shape.num_layers * demand.tokens * _saved_per_token(demand)
    token = demand.shape.hidden_size * demand.width
    if levers.checkpointing == "attention":
        token += demand.queries * demand.width + 4 * demand.shape.num_attention_heads
    return float(demand.shape.num_layers * demand.tokens * token)


def _saved_per_token(demand: Demand) -> float:
    """Bytes that autograd saves of a whole layer: both residual sums, both norms' outputs, q, k,
    v, what attention returned, and four tensors of the MLP."""
    d, f, q, k = (
        demand.shape.hidden_size,
        demand.shape.intermediate_size,
        demand.queries,
        demand.keys,
    )
    wide_norms = 2 * 4 * d if demand.width == 2 else 0
    return (4 * d + 2 * q + 2 * k + 4 * f) * demand.width + wide_norms


def _layer(demand: Demand, levers: Levers) -> float:
    """The largest layer's part of the backward pass, with the gradients that flow through it."""
    d, f, q, k = (
        demand.shape.hidden_size,
        demand.shape.intermediate_size,
        demand.queries,
        demand.keys,
    )
    tokens, width, heads = demand.tokens, demand.width, demand.shape.num_attention_heads
    wide_norm = 4 * d if width == 2 else 0
    attending = (3 * q + 4 * k) * width
    if levers.checkpointing == "none":
        return tokens * max((2 * d + 2 * f) * width + wide_norm, 2 * d * width + attending)
    tile = min(levers.mlp_tile or tokens, tokens)
    mlp = tile * ((6 * f + 3 * d) * width + 2 * wide_norm)
    saved = (4 * d + 2 * q + 2 * k) * width + wide_norm
    if levers.offload != "none":  # what was taken back from the store
        saved += d * width
    if levers.checkpointing == "full" or levers.offload != "none":
        saved += q * width + 4 * heads
    return tokens * saved + max(mlp, tokens * attending)


def _loss(demand: Demand, levers: Levers) -> float:
    """Hidden states, their gradient, and the logits of a chunk."""
    shape, width = demand.shape, demand.width
    chunk = min(levers.loss_chunk, demand.tokens)
    logits = chunk * shape.vocab_size * (4 if width == 4 else 6)
    head = 2 * 4 * shape.vocab_size * shape.hidden_size if demand.trains_head else 0
    wide_norm = 4 * shape.hidden_size if width == 2 else 0
    return demand.tokens * (3 * shape.hidden_size * width + wide_norm) + logits + head


def _optimizer(demand: Demand) -> float:
    """AdamW's two temporaries of the tensor it moves."""
    shape = demand.shape
    if demand.trains_head or "embeddings" in demand.train.lora.also_train:
        return 8.0 * shape.vocab_size * shape.hidden_size
    return 0.0


def _heap(demand: Demand, levers: Levers) -> float:
    """Freed tensors that stay resident."""
    return 0.0
