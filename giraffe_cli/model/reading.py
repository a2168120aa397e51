"""Reading tokens into a cache, a chunk at a time.

A chunk is fed behind all that the cache holds, so working memory is one chunk's activations plus
the keys and values, whatever the length; the final states are kept of the last tokens alone:

    kept = KeyValues(num_layers)
    states = read_chunks(partial(feed, model), ids, kept, chunk=256, keep=1)    # [1, d]

d hidden, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers.cache_utils import Cache

CHUNKS = {"cpu": 256, "cuda": 2048}
"""Tokens fed at a time. On a CPU within 2 % of the speed of 512 and 1024 (SmolLM2-135M, 4k), and
finer to share: a grid of 11 depths reads 16 % fewer tokens at 1k and 5 % at 2k. A GPU waits for
the launches of small pieces: 64k tokens took it 1.7 times as long in pieces of 512 (below)."""
PROMPT_CHUNKS = {"cpu": 256, "cuda": 3072}
"""The same where one prompt is read as fast as little memory allows. On an H200 64k tokens of a 1B
model take 2.5 s in chunks of 512, 1.48 s of 2048, 1.37 s of 4096, 1.31 s of 8192, and working
memory grows by 72 MB for every 1024."""
HEAD_ROWS = 8192
"""Rows of a 16-bit head that are widened at one time."""

Feed = Callable[..., "torch.Tensor"]
"""`feed` with its model bound: `(token_ids, kept) -> [len(token_ids), d]`."""


def feed(
    model: Any, token_ids: list[int], kept: Cache | None, **placed: torch.Tensor
) -> torch.Tensor:
    """Append tokens to what is kept; their final hidden states `[len(token_ids), d]`."""
    import torch

    from giraffe_cli.model.stored import StoredKeyValues

    device = model.device
    if "position_ids" in placed:
        placed["position_ids"] = placed["position_ids"].to(device)
    output = model.model(
        torch.tensor([token_ids], device=device),
        use_cache=kept is not None,
        **{cache_argument(model.model): kept},
        **({"past": kept} if isinstance(kept, StoredKeyValues) else {}),
        **placed,
    )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def cache_argument(model: Any) -> str:
    """What `forward` of a model of transformers calls the keys and values it is given:
    `past_key_values`, and `cache` from 5.24 on."""
    kind: Any = type(model)
    return "cache" if "cache" in _arguments(kind.forward) else "past_key_values"


@functools.cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def pieces(token_ids: Sequence[int], chunk: int, start: int = 0) -> Iterator[Sequence[int]]:
    """`token_ids[start:]`, so many at a time; the last piece may be shorter."""
    while start < len(token_ids):
        yield token_ids[start : start + chunk]
        start += chunk


def read_chunks(
    feed: Feed,
    token_ids: list[int],
    kept: Cache,
    *,
    chunk: int,
    keep: int,
    start: int = 0,
    told: Callable[[int], None] = lambda tokens: None,
) -> torch.Tensor:
    """Final states `[keep, d]` of the last tokens; the first `start` are in `kept` already.

    `told` hears how many tokens each piece held.
    """
    import torch

    first_kept, states = len(token_ids) - keep, []
    for piece in pieces(token_ids, chunk, start):
        hidden = feed(list(piece), kept)
        if start + len(piece) > first_kept:
            states.append(hidden[max(0, first_kept - start) :].clone())
        start += len(piece)
        told(len(piece))
    return torch.cat(states)


def wide_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`[n, V]` float32 of states `[n, d]` and a head `[V, d]`, never widened as a whole."""
    import torch

    hidden = hidden.float()
    if weight.dtype == torch.float32:
        return hidden @ weight.T
    out = torch.empty(len(hidden), len(weight), device=hidden.device)
    for start in range(0, len(weight), HEAD_ROWS):
        rows = weight[start : start + HEAD_ROWS]
        torch.mm(hidden, rows.float().T, out=out[:, start : start + HEAD_ROWS])
    return out


def most_probable(state: torch.Tensor, weight: torch.Tensor) -> int:
    """The token of the largest of `wide_logits`, of one state `[1, d]`; -1 if one is no number.

    A 16-bit head is not widened for it: its own logits are rounded by less than 1 part in 128, so
    only the rows within twice that of the largest are computed again in float32. 4 ms instead of
    20 ms with 49152 rows on a CPU.
    """
    rough = (state @ weight.T)[0].float()
    if not bool(rough.isfinite().all()):
        return -1
    if weight.element_size() > 2:
        return int(rough.argmax())
    largest = rough.max()
    near = (rough >= largest - largest.abs() / 64).nonzero()[:, 0]
    return int(near[(weight[near].float() @ state[0].float()).argmax()])
