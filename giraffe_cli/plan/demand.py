"""What a plan is asked about: a model, what of it is trained, and a window, of one process."""

from __future__ import annotations

from dataclasses import dataclass

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.train import TrainConfig

Tensors = list[tuple[float, float]]
"""How many, of how many bytes each."""


def live(tensors: Tensors) -> float:
    """Bytes of all."""
    return sum(count * size for count, size in tensors)


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
    """That share the base out, or can: those of one machine, of all under `shard_base: nodes`."""

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
    def trains_norms(self) -> bool:
        """Whether norms get gradients."""
        return self.train.method == "full" or "norms" in self.train.lora.also_train

    @property
    def trains_head(self) -> bool:
        """Whether the output head gets gradients."""
        also = self.train.method == "lora" and "embeddings" in self.train.lora.also_train
        return self.train.method == "full" or (also and self.shape.tie_word_embeddings)
