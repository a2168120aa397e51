"""How long processes wait for each other when they share out the windows of a step.

    giraffe pack-data corpus.jsonl --tokenizer MODEL --window 128k --out packed
    python scripts/window_shares.py packed --shape llama3-8b --device h200

Nothing is timed: a window's time is its operations at the rates that `giraffe plan` assumes of the
device. Each layout is counted over an epoch of the packed windows, in the order of seed 0: the step
takes as long as its slowest process (`alone`), or, where a base is shared out and every layer waits
for all, as its slowest windows one after the other (`together`). Both as multiples of the mean,
once with the windows dealt in turn, once as `giraffe_cli/train/balance.py` shares them out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.store import PackedRows, open_packed
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.machine import DEVICES
from giraffe_cli.plan.operations import step_per_token
from giraffe_cli.plan.shapes import SHAPES, named_shape
from giraffe_cli.train.balance import shared_out

LAYOUTS = ((2, 8), (8, 16), (8, 32), (8, 64), (16, 64))
"""(processes, windows of a step)."""


def main() -> int:
    """Print the JSON of every layout, and the share of attention that the windows have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path, help="what `giraffe pack-data` wrote")
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--device", choices=DEVICES, default="h200")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    rows = open_packed(options.packed)
    seconds = seconds_of_windows(rows, options.shape, options.device)
    result = {
        "windows": len(rows),
        "window": rows.window,
        "attention_share": float(rows.squares.mean() / rows.window**2),
        "seconds": {"median": float(np.median(seconds)), "most": float(seconds.max())},
        "layouts": [
            waiting(seconds, rows.squares, *layout)
            for layout in LAYOUTS
            if layout[1] <= len(seconds)
        ],
    }
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def seconds_of_windows(rows: PackedRows, shape: str, device: str) -> np.ndarray[Any, Any]:
    """[rows] of each window's own training, rank 16 on all linear layers, attention kept."""
    train, levers, rates = TrainConfig(), Levers("attention"), DEVICES[device].rates
    whole = step_per_token(named_shape(shape), train, rows.window, levers)
    fixed = whole.linear / rates.linear + whole.head / rates.head
    of_attention = whole.attention / (rates.attention_packed or rates.attention)
    found: np.ndarray[Any, Any] = rows.window * (
        fixed + of_attention * rows.squares / rows.window**2
    )
    return found


def waiting(
    seconds: np.ndarray[Any, Any], squares: np.ndarray[Any, Any], processes: int, windows: int
) -> dict[str, Any]:
    """Means over the steps of an epoch, as multiples of a step that nobody waits in."""
    order = np.random.default_rng(0).permutation(len(seconds))
    found: dict[str, list[float]] = {}
    for first in range(0, len(order) - windows + 1, windows):
        own = order[first : first + windows]
        in_turn = [list(range(rank, windows, processes)) for rank in range(processes)]
        mean = seconds[own].sum() / processes
        for name, shares in (
            ("in_turn", in_turn),
            ("shared_out", shared_out(squares[own].tolist(), processes)),
        ):
            taken = seconds[own][np.array(shares)]
            found.setdefault(f"{name}_alone", []).append(taken.sum(1).max() / mean)
            found.setdefault(f"{name}_together", []).append(taken.max(0).sum() / mean)
    means = {name: round(float(np.mean(values)), 3) for name, values in found.items()}
    return {"processes": processes, "windows_per_step": windows, **means}


if __name__ == "__main__":
    raise SystemExit(main())
