"""Whether packed windows hold what a training asks of them: told for each stage before the first
one trains, hours before the last one would be opened."""

from __future__ import annotations

from pathlib import Path

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.packed_facts import (
    num_held_out,
    num_rows,
    rows_without_target,
    share_beyond,
)
from giraffe_cli.corpus.stats import MANY_PASSES
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import Reporter
from giraffe_cli.units import counted, format_length


def check_packed(packed_dir: Path, config: TrainConfig, native_length: int) -> None:
    """What `config` trains and measures on is there; `native_length` is the base's.

    Raises:
        InvalidInput: there are no windows, some without a target or none that LongCE can weigh, or
            nothing is held out to be measured on.
    """
    if not num_rows(packed_dir):
        raise InvalidInput(f"{packed_dir} holds no training windows", "give more --data")
    if count := rows_without_target(packed_dir, config.across_documents):
        raise InvalidInput(
            f"{packed_dir}: {counted(count, 'window')} with nothing but documents of single tokens",
            "pack again: such windows are left out",
        )
    if config.loss != "ce":
        compared_share(packed_dir, config, native_length)
    if config.held_out_every and not num_held_out(packed_dir):
        raise nothing_held_out(packed_dir)


def passes(packed_dir: Path, windows_per_step: int, steps: int) -> float:
    """How often a training of `steps` reads each window of `packed_dir`."""
    return steps * windows_per_step / num_rows(packed_dir)


def tell_passes(packed_dir: Path, config: TrainConfig, reporter: Reporter) -> None:
    """Say how many windows there are and how often each is read; warn where that is too often."""
    windows = num_rows(packed_dir)
    often = passes(packed_dir, config.windows_per_step, config.steps)
    told = f"each is read {often:.3g} times" if often > 1 else f"{often:.0%} of them are read"
    reporter.info(f"{counted(windows, 'window')} in {packed_dir}; {told}")
    if often > MANY_PASSES:
        most = MANY_PASSES * windows // config.windows_per_step
        fewer = f"at most {most} --steps" if most else "fewer train.windows_per_step"
        reporter.warn(
            f"{counted(windows, 'window')} make {often:.3g} passes over the same text; beyond "
            f"{MANY_PASSES} they teach little: give more --data, or {fewer}"
        )


def compared_share(packed_dir: Path, config: TrainConfig, native_length: int) -> float:
    """Of all tokens of the windows, those that LongCE weighs, above 0.

    Raises:
        InvalidInput: none, since all documents are short.
    """
    short = config.short_context_of(native_length)
    share = share_beyond(packed_dir, short, config.across_documents)
    if not share:
        raise InvalidInput(
            f"loss: {config.loss} weighs tokens with more than {format_length(short)} tokens of "
            f"their own document before them, and {packed_dir} holds none",
            "give longer --data, or a smaller train.short_context",
        )
    return share


def nothing_held_out(packed_dir: Path) -> InvalidInput:
    """For a training that measures on documents packing held out."""
    return InvalidInput(
        f"train.held_out_every measures on documents that packing held out; {packed_dir} holds "
        "none",
        "pack with --hold-out 0.1 and more than one document, or --set train.held_out_every=0",
    )
