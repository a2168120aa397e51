"""What a model says after a prompt: losses of targets, ranks of candidates, greedy text.

All of it comes from float32 logits, whatever the model's type: a bfloat16 logit of 20 is off by up
to 0.06. V vocabulary, d hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.prompt import share_found
from giraffe_cli.model.reading import wide_logits

if TYPE_CHECKING:
    import torch

LOGITS = 1 << 23
"""Logits that exist at one time: 32 MB."""


class Ranking(NamedTuple):
    """Of an example's candidates."""

    nll: tuple[float, ...] = ()
    """Nats of each, summed over its tokens."""
    greedy: tuple[bool, ...] = ()
    """Whether each one's every token is the most probable."""
    begun: tuple[int, ...] = ()
    """The longest start of one whose tokens all are: greedy generation begins with them."""


def judged(
    hidden: torch.Tensor, weight: torch.Tensor, labels: Sequence[int]
) -> tuple[list[float], list[bool]]:
    """Nats of each label after its state, and whether it is the most probable token.

    Args:
        hidden: `[n, d]`, one state before each of the n labels.
    """
    import torch

    nats: list[float] = []
    right: list[bool] = []
    rows = max(1, LOGITS // len(weight))
    for start in range(0, len(labels), rows):
        logits = wide_logits(hidden[start : start + rows], weight)
        wanted = torch.tensor(labels[start : start + rows], device=logits.device)
        of_wanted = logits.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        right += (logits.argmax(-1) == wanted).tolist()
        nats += (logits.logsumexp(-1) - of_wanted).tolist()
    return nats, right


def ranking(states: torch.Tensor, weight: torch.Tensor, example: Example) -> Ranking:
    """From the states `[tokens, d]` before each token of each candidate, one after the other."""
    nats, right = judged(states, weight, [token for c in example.candidates for token in c])
    nll, greedy, place = [], [], 0
    begun: tuple[int, ...] = ()
    for candidate in example.candidates:
        stop = place + len(candidate)
        sure = next((n for n, good in enumerate(right[place:stop]) if not good), len(candidate))
        begun = max(begun, candidate[:sure], key=len)
        nll.append(sum(nats[place:stop]))
        greedy.append(sure == len(candidate))
        place = stop
    return Ranking(tuple(nll), tuple(greedy), begun)


def generated(
    example: Example,
    begun: Sequence[int],
    follow: Callable[[list[int]], int],
    stop: set[int],
    decode: Callable[[list[int]], str],
) -> str:
    """Greedy continuation up to a stop token, `max_new_tokens`, or all answers where that settles.

    Args:
        begun: tokens it is known to begin with.
        follow: the most probable token after the prompt and all tokens given to it so far.
    """
    tokens: list[int] = []
    given, text = 0, ""
    while len(tokens) < example.max_new_tokens:
        if len(tokens) < len(begun):
            token = begun[len(tokens)]
        else:
            token, given = follow(tokens[given:]), len(tokens)
        if token in stop:
            break
        tokens.append(token)
        text = decode(tokens)
        if example.stops_when_found and share_found(example.answers, text) == 1:
            break
    return text
