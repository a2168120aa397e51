"""What is told of a step: a line of `metrics.jsonl`, and the fields behind the bar."""

from __future__ import annotations

import math
from typing import Any

from giraffe_cli.train.run import Run
from giraffe_cli.train.setup import peak_memory_bytes
from giraffe_cli.train.step import StepOutcome
from giraffe_cli.units import format_seconds, three_digits


def metrics(run: Run, outcome: StepOutcome, rate: float, seconds: float) -> dict[str, Any]:
    """The step as a line of `metrics.jsonl`; what is no number is null, as JSON has none."""
    line = {
        "step": run.state.step,
        "loss": _or_null(outcome.loss),
        "grad_norm": _or_null(outcome.grad_norm),
        "learning_rate": rate,
        "tokens": run.state.trained_tokens,
        "tokens_per_second": outcome.num_tokens / seconds,
        "seconds": run.state.seconds,
    }
    if run.job.config.loss != "ce":
        line["mean_weight"] = _or_null(outcome.mean_weight)
    return {**line, "skipped": True} if outcome.is_bad else line


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def first_step(seconds: float, left: int) -> str:
    """How long a run will take, once it is known."""
    rest = format_seconds(seconds * left)
    return f"measured: {three_digits(seconds)} s a step; {left} more take about {rest}"


def live_fields(
    run: Run, outcome: StepOutcome, rate: float, seconds: float, planned: float | None
) -> dict[str, str]:
    """What stands behind the bar: at most seven fields, 67 characters with their names, so that the
    line fits a terminal of 100 columns. `planned`: seconds a step that were told beforehand."""
    fields = {"loss": f"{outcome.loss:.3f}"}
    if run.state.held_out_nll is not None:
        fields["held"] = f"{run.state.held_out_nll:.3f}"
    fields["grad"] = three_figures(outcome.grad_norm)
    fields["lr"] = _rate(rate)
    fields["tok/s"] = three_figures(outcome.num_tokens / seconds)
    fields["GB"] = three_figures(peak_memory_bytes(run.device) / 1e9)
    if planned:
        fields["plan"] = f"{100 * planned / seconds:.0f}%"
    return fields


def three_figures(value: float) -> str:
    """Four characters for what is not negative: 0.52, 5.23, 52.3, 523, 5.2k, 52k, 5.2M."""
    if not math.isfinite(value):
        return f"{value:g}"
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _rate(rate: float) -> str:
    """1.9e-4, 2e-4."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
