"""Whether attention can be shared and kept as asked for: told before anything is packed."""

from __future__ import annotations

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.flash import why_not_recorded


def check_heads(num_heads: int, config: TrainConfig) -> None:
    """Refuse a window shared by heads that the processes cannot share.

    Raises:
        InvalidInput: the heads do not divide by the processes; the hint says what does.
    """
    share = config.sequence_parallel
    if num_heads % share == 0 or config.sequence_parallel_by == "keys":
        return
    shares = ", ".join(str(n) for n in range(2, num_heads + 1) if num_heads % n == 0)
    raise InvalidInput(
        f"{num_heads} attention heads cannot be shared by {share} processes",
        f"--sequence-parallel takes a divisor of the heads: {shares}; "
        "--set train.sequence_parallel_by=keys takes any number",
    )


def check_keys(config: TrainConfig, attention_dropout: float, dtype: str, is_on_gpus: bool) -> None:
    """Refuse a window shared by keys where nothing attends so.

    Raises:
        InvalidInput: under the checkpoint's attention dropout, or in float32 on GPUs.
    """
    if config.sequence_parallel_by != "keys":
        return
    by_heads = "--set train.sequence_parallel_by=heads"
    if attention_dropout:
        raise InvalidInput(
            "sequence_parallel_by: keys draws no dropout, the checkpoint's attention_dropout is "
            f"{attention_dropout:g}",
            f"{by_heads}, or attention_dropout 0 in its config.json",
        )
    if is_on_gpus and dtype == "float32":
        raise InvalidInput(
            "sequence_parallel_by: keys attends in 16 bits on a GPU, the run computes in float32",
            f"--set dtype=bfloat16, or {by_heads}",
        )


def check_recorded(config: TrainConfig, attention_dropout: float) -> None:
    """Refuse attention whose output is to be kept and cannot be.

    Raises:
        InvalidInput: under the checkpoint's attention dropout.
    """
    obstacle = why_not_recorded(attention_dropout)
    if config.checkpointing == "attention" and obstacle:
        raise InvalidInput(
            f"checkpointing: attention cannot keep its output: {obstacle}",
            "--set train.checkpointing=full",
        )
