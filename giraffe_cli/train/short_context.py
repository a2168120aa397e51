"""Short contexts for all tokens of a window by two cuts of it, and where there are none.

Documents are cut into pieces of K tokens, once from their start and once from half a piece on, and
a target is taken from the cut that shows more of what is before it: K/2 to K tokens.

    K 4, a document of 10    0123|4567|89    its tokens 6 and 7
                             01|2345|6789    its tokens 4, 5, 8 and 9
                                             0 to 3 see everything already

PKU-ML/LongPPL moves 5,120 tokens on by 1,024, which shows a target 4,096 to 5,119 tokens for five
times the tokens instead of two; here 4,096 are the most. Pieces keep their places in the window,
which rotary attention, a function of differences, does not see.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import Reporter
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.packed_checks import compared_share
from giraffe_cli.units import format_length


class Pieces(NamedTuple):
    """A window's documents, cut."""

    lengths: tuple[int, ...]
    """Of the pieces, in order."""
    is_taken: Tensor
    """[n] bool: tokens whose target is read from this cut."""


def cuts(seq_lengths: tuple[int, ...], short_context: int) -> tuple[Pieces, Pieces]:
    """Documents of `seq_lengths` in pieces of `short_context` tokens, 2 or more: from their start,
    and from half a piece on. A token with at least `short_context` others before it is taken from
    exactly one of the two, and sees at least half as many there, itself counted."""
    half = short_context // 2
    lengths: tuple[list[int], list[int]] = ([], [])
    taken: tuple[list[Tensor], list[Tensor]] = ([], [])
    for length in seq_lengths:
        places = torch.arange(length)
        is_deep, is_late = places >= short_context, places % short_context >= half
        for number, (first, wanted) in enumerate(((short_context, is_late), (half, ~is_late))):
            lengths[number].extend(_pieces(length, first, short_context))
            taken[number].append(is_deep & wanted)
    from_start, from_half = (
        Pieces(tuple(of_cut), torch.cat(wanted))
        for of_cut, wanted in zip(lengths, taken, strict=True)
    )
    return from_start, from_half


def _pieces(length: int, first: int, others: int) -> list[int]:
    """`length` as a piece of `first`, then of `others`, and what is left."""
    if length <= first:
        return [length]
    whole, left = divmod(length - first, others)
    return [first, *[others] * whole, *([left] if left else [])]


def tell_compared(job: TrainJob, reporter: Reporter) -> None:
    """Say how many tokens of the packed windows LongCE can weigh; raises as `compared_share`."""
    if job.config.loss == "ce":
        return
    native_length = job.checkpoint.native_length
    share = compared_share(job.packed_dir, job.config, native_length)
    short = format_length(job.config.short_context_of(native_length))
    reporter.info(
        f"LongCE weighs {100 * share:.0f} % of the tokens, those with {short} or more before them; "
        "the others count once"
    )


def check_short_context(config: TrainConfig, window: int, native_length: int) -> None:
    """Refuse LongCE where no target sees more than a short context.

    Raises:
        InvalidInput: windows are no longer than it.
    """
    if config.loss == "ce":
        return
    short = config.short_context_of(native_length)
    if window <= short:
        raise InvalidInput(
            f"loss: {config.loss} compares each token's whole context with one of "
            f"{format_length(short)}, and a window holds no more than {format_length(window)}",
            f"--set train.short_context={format_length(max(2, window // 4))}, or a longer "
            "train.window",
        )
