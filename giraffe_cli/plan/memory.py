"""Peak memory of one process in a training step, part by part: which tensors live at one time.

Read off the code of `model/stack.py`, `model/loss.py` and PEFT's linear layer, for S tokens of the
process, d hidden, q = h·D query and k = kv·D key channels, f intermediate, V vocabulary, L layers
and b bytes a number (4, or 2 under bfloat16, where norms compute in 4):

    kept       layer inputs L·S·d·b; with `attention` also its outputs L·S·(q·b + 4·h)
    layer      S·b·(4d + 2q + 2k)     the attention block's saved tensors, gradients above and below
                 or S·b·(d + 2q + 2k) by tiles, with the attention of one of G groups of heads
               + T·b·(6f + 3d)        the MLP of T tokens (a tile): four saved, two gradients
                                      (5f where projections are fused)
                 or S·b·(3q + 4k)     the backward pass of attention, where that is more
                    + N·b·(10k + 2q)  where processes share windows of N tokens by keys
    loss       3·S·d·b + chunk·V·4    (half more in 16 bits)
    optimizer  two copies of the largest trained tensor

The peak is in whichever of layer, loss and optimizer needs most; the rest is there throughout. On
a CPU glibc keeps more, see `HEAP_SLACK`. `scripts/bench_plan.py` holds all this against training.
"""

from __future__ import annotations

from dataclasses import dataclass

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.operations import adapter_numbers, kept_attention_layers, linear_shapes

NF4_BYTES = 4.127 / 8
"""Of a weight: a code of 4 bits, a scale of 8 for each 64, and one of 32 for each 256 of those."""
CPU_PROCESS_BYTES = 570_000_000
"""Interpreter, torch, transformers, PEFT with bitsandbytes (45 MB), their kernels paged in: what a
training of 50,000 weights takes."""
CUDA_PROCESS_BYTES = 1_000_000_000
"""CUDA's context and cuBLAS's workspace; the caching allocator's slack is the margin's affair."""
HEAP_LIMIT = 32 << 20
"""Bytes from which glibc maps a tensor by itself and hands it back when it is freed (mallopt(3):
DEFAULT_MMAP_THRESHOLD_MAX); smaller ones lie in its heap, which does not shrink."""
HEAP_SLACK = 1.75
"""The heap's size over what lives in it at the most: holes between small objects. Fitted; between
1.4 and 2.0 over the settings marked `fit` in `scripts/bench_plan.py`."""

Tensors = list[tuple[float, float]]
"""How many, of how many bytes each."""


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
    processes: int = 1
    """Of one machine, that train together: they can share the base out."""

    @property
    def tokens(self) -> int:
        """S."""
        return -(-self.window // self.train.sequence_parallel)

    @property
    def seen(self) -> int:
        """Tokens whose keys the process holds at a time: its own, or by keys all of the window."""
        return self.window if self.train.sequence_parallel_by == "keys" else self.tokens

    @property
    def width(self) -> int:
        """b."""
        return 4 if self.dtype == "float32" else 2

    @property
    def queries(self) -> int:
        """Numbers of a token's queries, h·D."""
        return self.shape.num_attention_heads * self.shape.head_dim

    @property
    def keys(self) -> int:
        """Numbers of a token's keys, k·D."""
        return self.shape.num_key_value_heads * self.shape.head_dim

    @property
    def trains_head(self) -> bool:
        """Whether the output head gets gradients."""
        also = self.train.method == "lora" and "embeddings" in self.train.lora.also_train
        return self.train.method == "full" or (also and self.shape.tie_word_embeddings)


def bytes_by_part(demand: Demand, levers: Levers) -> dict[str, int]:
    """Predicted bytes at the peak, by part; `total` is their sum."""
    phases = _phases(demand, levers)
    peak = max(phases, key=lambda name: _live(phases[name]))
    in_memory = kept_bytes(demand, levers) - away_bytes(demand, levers)
    parts: dict[str, float] = {
        "process": CPU_PROCESS_BYTES if demand.kind == "cpu" else CUDA_PROCESS_BYTES,
        "weights": _weights(demand, levers),
        "trained": _trained(demand),
        "kept": 0 if peak == "optimizer" else in_memory,
        peak: _live(phases[peak]),
    }
    if demand.keeps_freed:
        parts["heap"] = max(0.0, _resident(demand, levers, phases) - parts["kept"] - parts[peak])
    whole = {name: int(count) for name, count in parts.items() if count}
    return {**whole, "total": sum(whole.values())}


def _phases(demand: Demand, levers: Levers) -> dict[str, Tensors]:
    """What lives in each part of a step, beside what is there throughout."""
    return {
        "layer": _layer(demand, levers),
        "loss": _loss(demand, levers),
        "optimizer": _optimizer(demand),
    }


def _resident(demand: Demand, levers: Levers, phases: dict[str, Tensors]) -> float:
    """What the phases and all that is kept between them occupy under glibc: the heap as large as
    any phase needed it, the largest of what is mapped beside it."""
    kept: Tensors = []
    arena = 0.0
    if levers.checkpointing == "none":
        layers = demand.shape.num_layers
        kept = [(layers * count, size) for count, size in _saved(demand)]
    elif levers.offload == "none":
        arena = kept_bytes(demand, levers)  # `ArenaStore`: mapped blocks
    else:
        arena = kept_bytes(demand, levers) - away_bytes(demand, levers)
    in_heap = [_live(kept, above=False)]
    mapped = [_live(kept, above=True)]
    for name, tensors in phases.items():
        still_kept = [] if name == "optimizer" else kept
        in_heap.append(_live([*tensors, *still_kept], above=False))
        mapped.append(_live([*tensors, *still_kept], above=True))
    return HEAP_SLACK * max(in_heap) + max(mapped) + arena


def _live(tensors: Tensors, above: bool | None = None) -> float:
    """Bytes of all, or only of those that are `above` the heap's limit, or not."""
    return sum(
        count * size for count, size in tensors if above is None or (size >= HEAP_LIMIT) == above
    )


def _weights(demand: Demand, levers: Levers) -> float:
    """Of the base, as it is loaded; shared out, a part of it and two layers."""
    shape, train = demand.shape, demand.train
    if levers.shard_base:
        units = sharded_numbers(demand)
        whole = shape.num_parameters - sum(units) + 2 * max(units)
        return (whole + sum(units) / demand.processes) * demand.width
    if train.method == "full":
        return 4.0 * shape.num_parameters
    if train.quantize_base == "none":
        return shape.num_parameters * demand.width
    linear = shape.num_layers * sum(i * o for i, o in linear_shapes(shape).values())
    return linear * NF4_BYTES + (shape.num_parameters - linear) * demand.width


def sharded_numbers(demand: Demand) -> list[int]:
    """Numbers of what is gathered at a time when the base is shared out: every layer's matrices,
    the embeddings, and the head unless it is them."""
    shape = demand.shape
    layer = sum(i * o for i, o in linear_shapes(shape).values())
    is_trained = "embeddings" in demand.train.lora.also_train
    heads = (0 if is_trained else 1) + (0 if shape.tie_word_embeddings else 1)
    return [layer] * shape.num_layers + [shape.vocab_size * shape.hidden_size] * heads


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
        return demand.shape.num_layers * _live(_saved(demand))
    return _recomputed_bytes(demand, levers, demand.shape.num_layers)


def away_bytes(demand: Demand, levers: Levers) -> float:
    """The part of `kept_bytes` that waits in host memory or in a file."""
    if levers.offload == "none":
        return 0.0
    return _recomputed_bytes(demand, levers, levers.offload_layers or demand.shape.num_layers)


def _recomputed_bytes(demand: Demand, levers: Levers, first: int) -> float:
    """What the first so many layers leave for the backward pass: inputs, and what is kept of their
    attention."""
    layers = demand.shape.num_layers
    count = min(first, layers)
    kept = kept_attention_layers(levers, layers)
    attending = max(0, count - (layers - kept))
    inputs = demand.shape.hidden_size * demand.width
    outputs = demand.queries * demand.width + 4 * demand.shape.num_attention_heads
    return float(demand.tokens * (count * inputs + attending * outputs))


def _saved(demand: Demand) -> Tensors:
    """What autograd saves of a whole layer: both residual sums, both norms' outputs, q, k, v, what
    attention returned, and four tensors of the MLP."""
    row = demand.tokens * demand.width
    return [
        (4, row * demand.shape.hidden_size),
        (2, row * demand.queries),
        (2, demand.seen * demand.width * demand.keys),
        (4, row * demand.shape.intermediate_size),
        *_wide_norms(demand, 2, demand.tokens),
    ]


def _layer(demand: Demand, levers: Levers) -> Tensors:
    """The largest layer's part of the backward pass, with the gradients that flow through it."""
    d, f, q, k = (
        demand.shape.hidden_size,
        demand.shape.intermediate_size,
        demand.queries,
        demand.keys,
    )
    row = demand.tokens * demand.width
    attending = _attending(demand)
    if levers.checkpointing == "none":
        passing: Tensors = [(2, row * d), (2, row * f), *_wide_norms(demand, 1, demand.tokens)]
        return max(passing, [(2, row * d), *attending], key=_live)
    mlp = _mlp(demand, levers)
    if levers.projection_tile:
        return _by_tiles(demand, levers, mlp)
    saved: Tensors = [
        (4, row * d),
        (2, row * q),
        (2, row * k),
        *_taken_back(demand, levers),
        *_wide_norms(demand, 1, demand.tokens),
    ]
    return [*saved, *max(mlp, attending, key=_live)]


def _attending(demand: Demand) -> Tensors:
    """What the backward pass of attention makes, of all heads."""
    q, k, row = demand.queries, demand.keys, demand.tokens * demand.width
    attending: Tensors = [(3, row * q), (4, row * k)]
    if demand.train.sequence_parallel_by == "keys":
        # all tokens' keys and values and their gradients, before and after they are exchanged; and
        # FlashAttention-2's gradients of a key head for each query head that shares it
        attending.append((10, demand.window * demand.width * k))
        if q > k:
            attending.append((2, demand.window * demand.width * q))
    return attending


def _mlp(demand: Demand, levers: Levers) -> Tensors:
    """Of a tile, with its backward pass."""
    tile = min(levers.mlp_tile or demand.tokens, demand.tokens)
    return [
        (5 if levers.fused else 6, tile * demand.width * demand.shape.intermediate_size),
        (3, tile * demand.width * demand.shape.hidden_size),
        *_wide_norms(demand, 2, tile),
    ]


def _taken_back(demand: Demand, levers: Levers) -> Tensors:
    """Inputs and attention outputs that are not among what is kept: this layer's and, where they
    come from elsewhere, those of the one below that are on their way; outputs that are computed
    again."""
    row = demand.tokens * demand.width
    layers = demand.shape.num_layers
    kept = kept_attention_layers(levers, layers)
    inputs, outputs = 0, 0 if kept == layers else 1
    if levers.offload != "none":
        ahead = 1 if levers.offload == "host" else 0
        inputs, outputs = 1 + ahead, 1 + (ahead if kept else 0)
    return [(inputs, row * demand.shape.hidden_size), (outputs, row * demand.queries)]


def _by_tiles(demand: Demand, levers: Levers, mlp: Tensors) -> Tensors:
    """`model/tiled.py`: the window's gradient, its queries, keys, values and the gradient of what
    was attended to; beside them a tile of the MLP, or what one group of heads needs to go back."""
    row, groups = demand.tokens * demand.width, levers.head_groups
    q, k = demand.queries, demand.keys
    standing: Tensors = [
        (1, row * demand.shape.hidden_size),
        (2 * groups, row * q / groups),
        (2 * groups, row * k / groups),
        *_taken_back(demand, levers),
    ]
    group: Tensors = [(1, row * q / groups), (2, row * k / groups)]
    if demand.kind == "cuda" and demand.width == 2:
        group.append((1, 4.0 * demand.tokens * q / groups))  # gradients are summed in float32
    if demand.train.sequence_parallel > 1:
        group = _attending(demand)
    return [*standing, *max(mlp, group, key=_live)]


def _wide_norms(demand: Demand, count: int, tokens: int) -> Tensors:
    """What norms hold in float32 beside a narrower computation."""
    return [(count, 4.0 * tokens * demand.shape.hidden_size)] if demand.width == 2 else []


def _loss(demand: Demand, levers: Levers) -> Tensors:
    """Hidden states, their gradient, and the logits of a chunk."""
    shape = demand.shape
    logits = min(levers.loss_chunk, demand.tokens) * shape.vocab_size
    found: Tensors = [
        (3, demand.tokens * demand.width * shape.hidden_size),
        (1, 4.0 * logits),
    ]
    if not (levers.fused and demand.kind == "cuda"):  # compiled, it holds nothing wide
        found += _wide_norms(demand, 1, demand.tokens)
    if demand.width == 2:
        found.append((1, 2.0 * logits))
    if demand.trains_head:
        found.append((2, 4.0 * shape.vocab_size * shape.hidden_size))
    return found


def _optimizer(demand: Demand) -> Tensors:
    """AdamW's two temporaries of the tensor it moves."""
    shape = demand.shape
    if demand.trains_head or "embeddings" in demand.train.lora.also_train:
        return [(2, 4.0 * shape.vocab_size * shape.hidden_size)]
    return []
