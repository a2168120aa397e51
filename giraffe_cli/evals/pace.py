"""How long a loaded model will take over a plan: a few timed pieces, then arithmetic.

    one forward = t₀ + n·t + n·c·t'        n tokens behind c others

The four numbers come from a piece of n tokens and from one token, each behind nothing and behind
zeros that stand for a long context: attention grows with the context, all else does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from giraffe_cli.evals.answers import judged
from giraffe_cli.evals.open_subject import OpenSubject
from giraffe_cli.evals.order import Prompt, Step

PIECE_OPERATIONS = 4e11
"""Of a timed piece on a CPU: about four seconds of one core."""
SEEN = 4096
"""Tokens of context that a piece is timed behind, at most."""
JUDGED = {"cpu": 64, "cuda": 1024}
"""States whose losses are timed; of fewer a GPU would time its launches."""
REPEATS = {"cpu": 1, "cuda": 4}
"""How often each piece is timed, the fastest counts: on a GPU the first of a shape sets its kernels
up. Timed once, an evaluation that took three minutes was foretold to take fifteen."""


@dataclass(frozen=True)
class Pace:
    """Seconds."""

    forward: float
    """Of a pass through the model, whatever it reads."""
    token: float
    """More for each token that is read."""
    pair: float
    """More for each pair of a token and an earlier one."""
    step_pair: float
    """The same where a single token is read."""
    loss: float
    """Of the head and the loss of one state."""
    ranks_at_once: bool = True
    """Whether all candidates of a prompt go through the model in one pass."""

    def seconds(self, plan: Sequence[Step], chunk: int) -> float:
        """Of the whole plan. A generation that ends once it is right is taken to use half of its
        tokens, since some need none and others all; any other one all."""
        return sum(
            self._reading(step, chunk) + sum(self._answering(p) for p in step.prompts)
            for step in plan
        )

    def _reading(self, step: Step, chunk: int) -> float:
        passes = 1 if len(step.prompts) > 1 else -(-step.tokens // chunk)
        return passes * self.forward + step.tokens * self.token + step.seen * self.pair

    def _answering(self, prompt: Prompt) -> float:
        length, total = len(prompt.token_ids), 0.0
        for _, example in prompt.entries:
            ranked = [len(candidate) for candidate in example.candidates]
            fed = sum(ranked) - len(ranked)
            if fed:
                passes = 1 if self.ranks_at_once else sum(size > 1 for size in ranked)
                total += passes * self.forward + fed * (self.token + length * self.pair)
            steps = max(0, example.max_new_tokens - 1) / (1 + example.stops_when_found)
            total += steps * (self.forward + self.token + length * self.step_pair)
            total += self.loss * (example.num_targets + sum(ranked) + example.max_new_tokens)
        return total


def measured_pace(
    opened: OpenSubject, longest: int, clock: Callable[[], float] = time.perf_counter
) -> Pace:
    """Time `opened` by `clock` on pieces that stand for prompts of up to `longest` tokens."""
    piece, seen = _piece(opened), max(1, min(longest, SEEN))
    ids = np.zeros(piece, np.int32).tolist()
    fed = opened.fed_tokens
    _after(opened, 0, ids[:8], clock)  # the first pass of all sets things up
    short, long = (_after(opened, c, ids, clock) for c in (0, seen))
    one_short, one_long = (_after(opened, c, ids[:1], clock) for c in (1, seen + 1))
    opened.fed_tokens = fed
    pair = max(0.0, (long - short) / (piece * seen))
    forward = min(one_short, short)
    token = max(0.0, short - forward - pair * piece**2 / 2) / piece
    step_pair = max(0.0, (one_long - one_short) / seen)
    return Pace(
        forward, token, pair, step_pair, _loss_seconds(opened, clock), _kind(opened) == "cpu"
    )


def _kind(opened: OpenSubject) -> str:
    """`cpu` or `cuda`."""
    kind: str = opened.model.device.type
    return kind


def _piece(opened: OpenSubject) -> int:
    """Tokens of a timed piece: a chunk, or what is affordable on a CPU."""
    if _kind(opened) != "cpu":
        return opened.chunk
    operations = 2.0 * sum(weight.numel() for weight in opened.model.parameters())
    return max(1, min(opened.chunk, max(32, int(PIECE_OPERATIONS / operations))))


def _after(opened: OpenSubject, context: int, ids: list[int], clock: Callable[[], float]) -> float:
    """Seconds of reading `ids` behind `context` tokens."""
    import torch

    def once() -> float:
        kept = opened.nothing_kept()
        kept.reserve(context + len(ids))
        if context:
            opened.feed(ids[:1], kept)
            kept.pretend(context)
        return _seconds(lambda: opened.feed(ids, kept)[-1].sum().item(), clock)

    with torch.inference_mode():
        return min(once() for _ in range(REPEATS[_kind(opened)]))


def _loss_seconds(opened: OpenSubject, clock: Callable[[], float]) -> float:
    import torch

    kind, weight = _kind(opened), opened.model.lm_head.weight
    count = JUDGED[kind]
    with torch.inference_mode():
        hidden = torch.zeros(count, weight.shape[1], dtype=weight.dtype, device=weight.device)
        times = [
            _seconds(lambda: judged(hidden, weight, [0] * count), clock)
            for _ in range(REPEATS[kind])
        ]
    return min(times) / count


def _seconds(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
