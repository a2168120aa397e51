"""Operations of a training step, and how long they take at given rates.

Per token of a window of S tokens, forward,

    F_lin = 2·L·(2·d·h·D + 2·d·k·D + 3·d·f)    F_head = 2·d·V    F_att = 4·L·h·D·(S/2)·s²

s² = Σ l² / S² over the documents of a window is the share of attention that they leave over. A step
under adapters needs 2·(F_lin + F_head) + 3.5·F_att and the adapters' own products, a full fine-tune
3·(F_lin + F_head) + 3.5·F_att. Recomputed layers add F_lin, and F_att unless attention is kept.
LongCE adds two passes over pieces of K tokens, each deep target projected once:
2·F_lin + 2·F_att(K) + F_head·(1 - K/S).
L layers, d hidden, h heads of D, k key/value heads, f intermediate, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.levers import Levers


@dataclass(frozen=True)
class Rates:
    """Operations a second that one device sustains."""

    linear: float
    attention: float
    head: float
    attention_packed: float | None = None
    """By the kernel that tells documents apart; None: as `attention`."""

    def to_json(self) -> dict[str, float | None]:
        """Operations a second by name."""
        return dict(vars(self))

    def of_share(self, share: float) -> Rates:
        """Of a part of the device, such as some of its cores."""
        found = {name: value and share * value for name, value in vars(self).items()}
        return Rates(**found)

    def of_documents(self) -> Rates:
        """Where that kernel attends."""
        packed = self.attention_packed
        return self if packed is None else replace(self, attention=packed)


@dataclass(frozen=True)
class Operations:
    """Of one token, by what sustains a rate of its own."""

    linear: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention + self.head

    def seconds(self, rates: Rates) -> float:
        """At these rates, one after the other."""
        parts: dict[str, Any] = vars(self)
        return float(sum(count / getattr(rates, name) for name, count in parts.items()))


def linear_shapes(shape: Checkpoint) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a layer's projections by name."""
    d, f = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    return {
        "q_proj": (d, queries),
        "k_proj": (d, keys),
        "v_proj": (d, keys),
        "o_proj": (queries, d),
        "gate_proj": (d, f),
        "up_proj": (d, f),
        "down_proj": (f, d),
    }


def adapter_numbers(shape: Checkpoint, train: TrainConfig) -> int:
    """Numbers in the two factors of every adapter (and DoRA's magnitudes)."""
    lora, shapes = train.lora, linear_shapes(shape)
    adapted = [shapes[name] for name in lora.targets if name in shapes]
    magnitudes = sum(outputs for _, outputs in adapted) if lora.use_dora else 0
    return shape.num_layers * (lora.rank * sum(i + o for i, o in adapted) + magnitudes)


def forward_per_token(shape: Checkpoint, window: int, attention_share: float = 1.0) -> Operations:
    """F_lin, F_att and F_head, without adapters."""
    weights = sum(inputs * outputs for inputs, outputs in linear_shapes(shape).values())
    heads = shape.num_layers * shape.num_attention_heads * shape.head_dim
    return Operations(
        linear=2.0 * shape.num_layers * weights,
        attention=2.0 * heads * window * attention_share,
        head=2.0 * shape.hidden_size * shape.vocab_size,
    )


def whole_layers(levers: Levers, num_layers: int) -> int:
    """How many layers are not recomputed."""
    return num_layers if levers.checkpointing == "none" else min(levers.whole_layers, num_layers)


def layers_away(levers: Levers, num_layers: int) -> int:
    """How many recomputed layers, the first ones, leave what they keep elsewhere."""
    if levers.offload == "none":
        return 0
    recomputed = num_layers - whole_layers(levers, num_layers)
    return min(levers.offload_layers or recomputed, recomputed)


def kept_attention_layers(levers: Levers, num_layers: int) -> int:
    """Of how many recomputed layers attention is computed once."""
    if levers.checkpointing != "attention":
        return 0
    recomputed = num_layers - whole_layers(levers, num_layers)
    return min(levers.attention_layers or recomputed, recomputed)


def step_per_token(
    shape: Checkpoint,
    train: TrainConfig,
    window: int,
    levers: Levers,
    attention_share: float = 1.0,
) -> Operations:
    """Forward, backward and what `levers` recompute."""
    forward = forward_per_token(shape, window, attention_share)
    is_full = train.method == "full"
    adapters = 0.0 if is_full else 2.0 * adapter_numbers(shape, train)
    layers = shape.num_layers
    recomputed = layers - whole_layers(levers, layers)
    again = (recomputed - kept_attention_layers(levers, layers)) / layers
    share = recomputed / layers
    short = short_contexts(shape, train, window, attention_share)
    head_trains = is_full or ("embeddings" in train.lora.also_train and shape.tie_word_embeddings)
    return Operations(
        linear=((3 if is_full else 2) + share) * forward.linear
        + (3 + share) * adapters
        + share * _recomputed_otherwise(shape, levers)
        + short.linear
        + (2 * adapters if short.linear else 0.0),
        attention=(3.5 + again) * forward.attention + short.attention,
        head=(3 if head_trains else 2) * forward.head + short.head,
    )


def short_passes(train: TrainConfig) -> int:
    """Forward passes over a window beside its own."""
    return 0 if train.loss == "ce" else 2


def short_contexts(
    shape: Checkpoint, train: TrainConfig, window: int, attention_share: float
) -> Operations:
    """Of LongCE's passes, without adapters."""
    passes, context = short_passes(train), train.short_context_of(shape.native_length)
    if not passes:
        return Operations(0.0, 0.0, 0.0)
    # documents that are shorter than a piece stay whole
    piece = min(context, window * attention_share)
    forward = forward_per_token(shape, window, piece / window)
    deep = max(0.0, 1 - context / window)
    return Operations(passes * forward.linear, passes * forward.attention, deep * forward.head)


def _recomputed_otherwise(shape: Checkpoint, levers: Levers) -> float:
    """Beside one forward pass of the linear layers. Fused, the last product of a layer is not
    computed again; otherwise queries, keys and values are twice under a `projection_tile`."""
    shapes = linear_shapes(shape)
    twice = ("q_proj", "k_proj", "v_proj") if levers.projection_tile else ()
    more = 0 if levers.fused else sum(math.prod(shapes[name]) for name in twice)
    less = math.prod(shapes["down_proj"]) if levers.fused else 0
    return 2.0 * shape.num_layers * (more - less)
