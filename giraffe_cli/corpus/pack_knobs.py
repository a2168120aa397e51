"""Knobs of packing that contradict each other or do nothing."""

from __future__ import annotations

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.lookups import LEAST_ROOM, room_for_lookups
from giraffe_cli.errors import UsageError

LOWER = "lower it (pack-data: --min-piece, extend: --set pack.min_piece=…)"


def _left_for_text(config: PackConfig, window: int) -> int:
    """Tokens of a window that documents have.

    Raises:
        UsageError: there is no room for a look-up.
    """
    room = room_for_lookups(config.lookups, window)
    if config.lookups and room < LEAST_ROOM:
        raise UsageError(
            f"lookups {config.lookups:g} leaves {room} tokens of a window of {window} tokens for "
            f"look-ups, which take {LEAST_ROOM} or more",
            "raise it (pack-data: --lookups, extend: --set pack.lookups=…), or take a longer "
            "window",
        )
    return window - room


def check_knobs(config: PackConfig, window: int) -> None:
    """Refuse knobs that contradict each other or do nothing.

    Raises:
        UsageError: the first of them.
    """
    overlap, whole, window = config.overlap or 0, window, _left_for_text(config, window)
    named = f"{window} tokens" + f" that look-ups leave of {whole}" * (window < whole)
    if window < 2:
        raise UsageError(
            "in a window of 1 token no token has a next one to predict", "take a longer --window"
        )
    if config.min_piece > window:
        raise UsageError(
            f"min_piece {config.min_piece} is longer than the window of {named}",
            f"{LOWER}, or take a longer window",
        )
    if overlap >= window:
        raise UsageError(
            f"overlap {overlap} is not shorter than the window of {named}",
            "lower --overlap",
        )
    if overlap and config.rule == "concat":
        raise UsageError(
            "overlap has no effect under rule concat, which cuts anywhere", "leave --overlap out"
        )
    if config.drop_tail and config.rule != "one":
        raise UsageError(
            f"drop_tail has no effect under rule {config.rule}", "pass --rule one, or leave it out"
        )


def check_shares(config: PackConfig) -> None:
    """Of what is still to be packed.

    Raises:
        UsageError: two knobs set the same share.
    """
    if config.short_mix is not None and config.upsample != "none":
        raise UsageError(
            f"short_mix {config.short_mix:g} and upsample {config.upsample} both set the share of "
            "short documents",
            "leave one of them out",
        )
