"""Which tensors live at one time in the backward pass of a layer, whole or recomputed.

Read off the code of `model/stack.py` and PEFT's linear layer, for S tokens of the process, d
hidden, q = h·D query and k = kv·D key channels, f intermediate and b bytes a number (4, or 2 under
bfloat16, where norms compute in 4). Of a recomputed one:

    S·b·(2d + q + 2k)           what the projections read and gave, and the gradient, over which
                                that of the layer's middle is written
      or S·b·(d + 2q + 2k)      by tiles, with the attention of one of G groups of heads
    + S·b·d + T·b·(6f + 3d)     the layer's middle, and the MLP of T tokens (a tile): four saved,
                                two gradients (5f where projections are fused)
      or S·b·(q + attention's)  the gradient of what it returned and what its kernel makes, where
                                that is more: `_attending`
    + S·b·(2d + 2q)             at the most, of what was fetched back or attended to again

With dropout or DoRA `plan/adapted.py`. Under 16 bits, where all weights train in float32, the
layer's matrices once more; where processes share them out, their gradients and what is being
summed.
"""

from __future__ import annotations

from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.adapted import ATTENTION, MLP, adapted, weighed
from giraffe_cli.plan.demand import Demand, Tensors, live
from giraffe_cli.plan.operations import (
    kept_attention_layers,
    layers_away,
    linear_shapes,
    whole_layers,
)


def saved(demand: Demand, levers: Levers) -> Tensors:
    """What autograd saves of a whole layer: both norms' inputs and outputs, q, k, v, what attention
    returned, and of the MLP both inputs of SwiGLU, its result and, unless one pass computes it,
    silu(gate); and what its adapters add."""
    row = demand.tokens * demand.width
    # norms that compute wider than their input save it so, unless compiled
    in_one_pass = levers.fused and demand.kind == "cuda"
    is_wide = _norms_are_wide(demand, levers)
    return [
        (2 if is_wide else 4, row * demand.shape.hidden_size),
        (2, row * demand.queries),
        (2, demand.seen * demand.width * demand.keys),
        (3 if in_one_pass else 4, row * demand.shape.intermediate_size),
        # of norms that train, what their weight multiplies
        (2 if demand.trains_norms else 0, row * demand.shape.hidden_size),
        *narrowed(demand, levers),
        *wide_norms(demand, levers, 2, demand.tokens),
        *adapted(demand, ATTENTION + MLP, demand.tokens),
    ]


def passing(demand: Demand, levers: Levers) -> Tensors:
    """The backward pass through a layer that is kept whole."""
    row = demand.tokens * demand.width
    d, f = row * demand.shape.hidden_size, row * demand.shape.intermediate_size
    passing: Tensors = [
        *((2, d), (2, f)),
        *wide_norms(demand, levers, 1, demand.tokens),
        *weighed(demand, MLP, demand.tokens),
    ]
    return [*max(passing, [(2, d), *_attending(demand)], key=live), *_of_the_head(demand)]


def recomputed(demand: Demand, levers: Levers, is_away: bool) -> Tensors:
    """A recomputed layer's part of the backward pass, with the gradients that flow through it.
    `is_away`: of a layer whose tensors wait elsewhere."""
    if levers.projection_tile:
        return _by_tiles(demand, levers, is_away)
    row = demand.tokens * demand.width
    hidden, queries = row * demand.shape.hidden_size, row * demand.queries
    standing: Tensors = [
        (2, hidden),
        (1, queries),
        (2, row * demand.keys),
        *_taken_back(demand, levers, is_away),
        *narrowed(demand, levers),
        *_of_the_head(demand),
        *wide_norms(demand, levers, 1, demand.tokens),
        *adapted(demand, ATTENTION, demand.tokens),
    ]
    mlp: Tensors = [(1, hidden), *_mlp(demand, levers)]
    return [*standing, *max(mlp, [(1, queries), *_attending(demand)], key=live)]


def _attending(demand: Demand) -> Tensors:
    """What the backward pass of attention makes, of all heads: gradients of queries, keys and
    values; on a GPU those of the queries in float32 before, and those of a key head for each query
    head that shares it. `scripts/bench_plan_gpu.py` reads them off torch's allocator."""
    q, k, row = demand.queries, demand.keys, demand.tokens * demand.width
    if demand.kind == "cpu":
        attending: Tensors = [(3, row * q), (4, row * k)]
    else:
        attending = [(3, row * q), (2, row * k), *_of_shared_keys(demand)]
    if demand.train.sequence_parallel_by == "keys":
        # all tokens' keys and values and their gradients, before and after they are exchanged
        attending.append((10, demand.window * demand.width * k))
    return attending


def _of_shared_keys(demand: Demand) -> Tensors:
    """cuDNN's kernel adds up the gradients of shared keys itself; `auto` takes another one for
    windows of several documents."""
    kernel = demand.train.attention_kernel
    if kernel == "cudnn" or demand.queries == demand.keys:
        return []
    # memory-efficient attention, the only one for float32, reads repeated keys and values too
    is_repeated = kernel == "efficient" or demand.width == 4
    return [(4 if is_repeated else 2, demand.seen * demand.width * demand.queries)]


def _mlp(demand: Demand, levers: Levers) -> Tensors:
    """Of a tile, with its backward pass."""
    tile = min(levers.mlp_tile or demand.tokens, demand.tokens)
    return [
        (5 if levers.fused else 6, tile * demand.width * demand.shape.intermediate_size),
        (3, tile * demand.width * demand.shape.hidden_size),
        *wide_norms(demand, levers, 2, tile),
        *adapted(demand, MLP, tile),
        *weighed(demand, MLP, tile),
    ]


def _taken_back(demand: Demand, levers: Levers, is_away: bool) -> Tensors:
    """Inputs and attention outputs that are not among what waits near: outputs that are computed
    again, and all of a layer that waits elsewhere and of the one below, which is on its way."""
    row, layers = demand.tokens * demand.width, demand.shape.num_layers
    recomputed = layers - whole_layers(levers, layers)
    kept = kept_attention_layers(levers, layers)
    inputs, outputs = 0, 0 if kept else 1
    if is_away:
        away = layers_away(levers, layers)
        of_two = 1 if levers.offload == "host" else 0
        inputs = 1 + (of_two if away > 1 else 0)
        outputs = 1 + (of_two if kept + away > recomputed + 1 else 0)
    return [(inputs, row * demand.shape.hidden_size), (outputs, row * demand.queries)]


def _by_tiles(demand: Demand, levers: Levers, is_away: bool) -> Tensors:
    """`model/tiled.py`: the window's gradient, its queries, keys, values and the gradient of what
    was attended to; beside them a tile of the MLP, or what one group of heads needs to go back."""
    row, groups = demand.tokens * demand.width, levers.head_groups
    q, k = demand.queries, demand.keys
    standing: Tensors = [
        (1, row * demand.shape.hidden_size),
        (2 * groups, row * q / groups),
        (2 * groups, row * k / groups),
        *_taken_back(demand, levers, is_away),
        *narrowed(demand, levers),
        *_of_the_head(demand),
    ]
    group: Tensors = [(1, row * q / groups), (2, row * k / groups)]
    if demand.kind == "cuda":
        group = [(count, size / groups) for count, size in _attending(demand)]
    if demand.train.sequence_parallel > 1:
        group = _attending(demand)
    return [*standing, *max(_mlp(demand, levers), group, key=live)]


def narrowed(demand: Demand, levers: Levers) -> Tensors:
    """A layer's matrices in 16 bits beside the float32 ones that are trained: autocast's copies,
    which the layer's backward pass needs. Where processes share the weights out they are gathered
    so; there a layer's gradients in float32, and the largest that are being summed; of them and of
    a layer to be gathered a process's own part."""
    if demand.train.method != "full":
        return []
    layer, ends = units(demand)
    if levers.shard_base:
        summed, parts = 4.0 * max(layer, ends), demand.processes
        return [(1, 4.0 * layer), (1, summed), (1 / parts, summed + demand.width * layer)]
    return [(1, 2.0 * layer)] if demand.width == 2 else []


def _of_the_head(demand: Demand) -> Tensors:
    """The gradient of a trained head that is the embeddings, which waits for theirs."""
    is_one = demand.trains_head and demand.shape.tie_word_embeddings
    return [(1, 4.0 * units(demand)[1])] if is_one else []


def units(demand: Demand) -> tuple[int, int]:
    """Numbers of a layer's matrices, and of the embeddings."""
    layer = sum(i * o for i, o in linear_shapes(demand.shape).values())
    return layer, demand.shape.vocab_size * demand.shape.hidden_size


def _norms_are_wide(demand: Demand, levers: Levers) -> bool:
    """Whether they hold float32 beside a narrower computation; compiled, they do not."""
    return demand.width == 2 and not (levers.fused and demand.kind == "cuda")


def wide_norms(demand: Demand, levers: Levers, count: int, tokens: int) -> Tensors:
    """What norms hold so."""
    is_wide = _norms_are_wide(demand, levers)
    return [(count, 4.0 * tokens * demand.shape.hidden_size)] if is_wide else []
