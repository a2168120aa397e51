"""One optimiser step over all windows of the step, in all processes.

Invariant: the loss is the mean over the targets of all the step's windows, whatever process or
accumulation step they fell to, and so is the gradient; a step whose loss or gradient is no number
moves nothing, neither weights nor the optimiser's moments.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from giraffe_cli.model.pieces import Piece
from giraffe_cli.train.gradients import clip, sum_of, sum_over_processes
from giraffe_cli.train.optimizer import set_rate
from giraffe_cli.train.run import Run


@dataclass(frozen=True)
class StepOutcome:
    """What a step did; equal in every process."""

    loss: float
    """Mean nats over the targets of all windows of the step."""
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    mean_weight: float = 1.0
    """What a target counted, on average."""
    documents: tuple[str, ...] = ()
    """Where loss or gradient are no numbers: what they came from."""

    @property
    def is_bad(self) -> bool:
        """Whether the step moved nothing."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))

    def complaint(self, step: int) -> str:
        """What was wrong with it, a sentence."""
        names = ", ".join(f"`{name}`" for name in self.documents)
        return (
            f"step {step}: loss {self.loss:g}, gradient norm {self.grad_norm:g}, "
            f"from documents {names}"
        )


def train_step(run: Run, rate: float) -> StepOutcome:
    """Move the weights once, by all windows of the step in all processes."""
    layout, config = run.layout, run.job.config

    # ── targets of the whole step first: what every window's loss is divided by ──────────────
    step = run.state.step
    share = run.stream.share(step, layout.window_rank, layout.window_processes)
    windows = run.stream.of_step(step, share)
    counts = sum_of(torch.tensor(layout.counts(windows), device=run.device))
    num_targets, num_tokens = counts.tolist()

    # ── forward and backward, window by window ───────────────────────────────────────────────
    told = torch.zeros(2, config.windows_per_step, dtype=torch.float64, device=run.device)
    for place, window in zip(share, windows, strict=True):
        of_window = run.objective.of_window(run.model, window, run.device)
        torch.autograd.backward(of_window.minimised / num_targets)
        run.model.end_backward()
        told[0, place] = of_window.nats
        told[1, place] = of_window.weights

    # ── sums over all processes: gradients, and every window's loss ──────────────────────────
    parameters = list(run.parameters.values())
    base = run.model.trained_base
    sum_over_processes([one for one in parameters if not isinstance(one, Piece)])
    if base and base.peers is not None:  # on each machine the pieces' have been
        pieces = [one for one in parameters if isinstance(one, Piece)]
        sum_over_processes(pieces, group=base.peers)
    grad_norm = clip(parameters, config.clip_norm, base.group if base else None)
    nats_of_windows, weights = sum_of(told).tolist()
    outcome = StepOutcome(
        sum(nats_of_windows) / num_targets, grad_norm, num_tokens, sum(weights) / num_targets
    )

    # ── move, or leave everything as it is ───────────────────────────────────────────────────
    if outcome.is_bad:
        suspects = _suspects(run, nats_of_windows)
        outcome = dataclasses.replace(outcome, num_tokens=0, documents=suspects)
    else:
        set_rate(run.optimizer, rate)
        run.optimizer.step()
        run.model.moved()
    run.optimizer.zero_grad(set_to_none=False)  # they stay where `lay_side_by_side` put them
    return outcome


def _suspects(run: Run, nats: list[float]) -> tuple[str, ...]:
    """The documents of the windows whose loss is no number, of all windows when each loss is."""
    first = run.state.step * len(nats)
    broken = [n for n, value in enumerate(nats) if not math.isfinite(value)]
    chosen = broken or range(len(nats))
    return tuple(sorted({name for n in chosen for name in run.stream.build(first + n).doc_ids}))
