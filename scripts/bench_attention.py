"""Attention of a packed row: document by document against the dense block mask of transformers.

    python scripts/bench_attention.py --out attention.json
    python scripts/bench_attention.py --lengths 2048 --rounds 1      # a quick look

One layer's attention, forward and backward, on seven documents of unequal length (s² = Σl²/S² is
printed), 8 heads, 2 key/value heads, D 64, float32, OMP_NUM_THREADS threads (default 1).

    ours    giraffe_cli.model.attention.document_attention
    dense   transformers' sdpa on the mask transformers makes of restarting position_ids
    causal  transformers' sdpa without a mask: documents see each other; what full attention costs

Every cell is a fresh process, interleaved over --rounds; medians of CPU-seconds over steps and
rounds, the first step dropped; memory is the peak resident size less what it was with the inputs
made, the mask counted. In the first round output and gradients are held against attention written
out in float32, a head at a time. Prints JSON; 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from bench_cells import (
    THREADS,
    add_cell_options,
    document_lengths,
    finish,
    goal,
    peak_bytes,
    run_cell,
    squared_share,
    surroundings,
)

PATHS = ("ours", "dense", "causal")
HEADS, KEY_HEADS, HEAD_DIM = 8, 2, 64
EXACT = 1e-5
FASTER = 8.0


def main() -> int:
    """Measure every cell, print and write the JSON; 1 when a goal is missed."""
    options = _options()
    if options.cell:
        print(json.dumps(measure(json.loads(options.cell))))
        return 0
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for length in options.lengths:
            for path in PATHS:
                cell = {"path": path, "length": length, "steps": options.steps}
                found = run_cell(sys.executable, __file__, {**cell, "check": number == 0})
                runs.setdefault((length, path), []).append(found)
                print(f"{length} {path}, round {number}: {found}", file=sys.stderr)
    rows = [_row(length, runs) for length in options.lengths]
    result = {"settings": _settings(options), "rows": rows, "slopes": slopes(rows)}
    result["goals"] = goals(rows)
    return finish(result, result["goals"], options.out)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Seconds and bytes of forward and backward; the largest difference, when asked for."""
    _step(PATH_OF[cell["path"]]([2, 1]), *_tensors(3))  # imports are nobody's memory
    lengths = document_lengths("packed", cell["length"])
    inputs, outer = _tensors(cell["length"])
    base = peak_bytes()
    attend = PATH_OF[cell["path"]](lengths)
    seconds = []
    for _ in range(cell["steps"] + 1):
        started = time.process_time()
        outcome = _step(attend, inputs, outer)
        seconds.append(time.process_time() - started)
    found = {"cpu_seconds": statistics.median(seconds[1:]), "bytes": peak_bytes() - base}
    if cell["check"]:
        expected = _reference(inputs, outer, lengths)
        pairs = zip(outcome, expected, strict=True)
        found["difference"] = max(float((a - b).abs().max()) for a, b in pairs)
    return found


def _step(attend: Callable[..., Any], inputs: tuple[Any, ...], outer: Any) -> tuple[Any, ...]:
    """Forward and backward: the output, and the gradients of the inputs."""
    import torch

    out = attend(*inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs, outer))


def _row(length: int, runs: dict[tuple[int, str], list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of the paths at one length, and how many times ours they take."""
    paths = {}
    for path in PATHS:
        rounds = runs[length, path]
        seconds = [found["cpu_seconds"] for found in rounds]
        paths[path] = {
            "cpu_seconds": statistics.median(seconds),
            "least_cpu_seconds": min(seconds),
            "most_cpu_seconds": max(seconds),
            "bytes": statistics.median(found["bytes"] for found in rounds),
            "difference": rounds[0]["difference"],
        }
    lengths = document_lengths("packed", length)
    times = {path: paths[path]["cpu_seconds"] / paths["ours"]["cpu_seconds"] for path in PATHS[1:]}
    return {
        "length": length,
        "seq_lengths": lengths,
        "s2": squared_share(lengths),
        "paths": paths,
        "times_ours": times,
    }


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log-log slope of the seconds between neighbouring lengths."""
    return [
        {
            "lengths": [few["length"], many["length"]],
            **{
                path: math.log(
                    many["paths"][path]["cpu_seconds"] / few["paths"][path]["cpu_seconds"]
                )
                / math.log(many["length"] / few["length"])
                for path in PATHS
            },
        }
        for few, many in zip(rows, rows[1:], strict=False)
    ]


def goals(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Exact at every length; at 8k so many times faster than the dense mask."""
    found = {
        f"difference_at_{row['length']}": goal(row["paths"]["ours"]["difference"], EXACT)
        for row in rows
    }
    for row in rows:
        if row["length"] == 8192:
            times = row["times_ours"]["dense"]
            found["times_faster_than_dense_at_8192"] = {
                "found": times,
                "needed": FASTER,
                "ok": times >= FASTER,
            }
    return found


# ── the paths: document lengths → (query, key, value) → [1, S, H, D] ─────────────────────────


def ours(lengths: list[int]) -> Callable[..., Any]:
    """One causal call a document."""
    import torch

    from giraffe_cli.model.attention import document_attention

    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    module = torch.nn.Module()
    return lambda q, k, v: document_attention(module, q, k, v, None, cu_seqlens=bounds)[0]


def dense(lengths: list[int]) -> Callable[..., Any]:
    """The mask is made once, as in a model, where all layers share it."""
    import torch
    from transformers import LlamaConfig
    from transformers.masking_utils import create_causal_mask

    mask = create_causal_mask(  # of no padding and no cache, whose names differ by version
        LlamaConfig(attn_implementation="sdpa"),
        torch.empty(1, sum(lengths), 1),
        *(None, None),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
    )
    if mask is None or tuple(mask.shape[-2:]) != (sum(lengths), sum(lengths)):
        raise SystemExit("transformers made no block mask of these position_ids")
    return _sdpa(mask)


def causal(lengths: list[int]) -> Callable[..., Any]:
    """The same row as if it were one document."""
    return _sdpa(None)


PATH_OF: dict[str, Callable[[list[int]], Callable[..., Any]]] = {
    "ours": ours,
    "dense": dense,
    "causal": causal,
}


def _sdpa(mask: Any) -> Callable[..., Any]:
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module = torch.nn.Module()
    module.num_key_value_groups = HEADS // KEY_HEADS  # type: ignore[assignment]
    module.is_causal = True  # type: ignore[assignment]
    return lambda q, k, v: sdpa_attention_forward(module, q, k, v, mask)[0]


def _tensors(length: int) -> tuple[tuple[Any, Any, Any], Any]:
    """Query [1, H, S, D], key and value [1, K, S, D]; the output's gradient [1, S, H, D]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, HEAD_DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    query, key, value = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in shapes
    )
    return (query, key, value), torch.randn(1, length, HEADS, HEAD_DIM, generator=generator)


def _reference(inputs: tuple[Any, ...], outer: Any, lengths: list[int]) -> tuple[Any, ...]:
    """Output and gradients of softmax(QKᵀ/√D + mask)V, [S, S] at a time: a head, then the next."""
    import torch

    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sees = (numbers[:, None] == numbers[None, :]).tril()
    query, key, value = (tensor.detach() for tensor in inputs)
    out = torch.empty_like(outer)
    sums = [torch.zeros_like(tensor) for tensor in (query, key, value)]
    for head in range(HEADS):
        shared = head * KEY_HEADS // HEADS
        q, k, v = query[0, head], key[0, shared], value[0, shared]
        parts = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        scores = (parts[0] @ parts[1].T * HEAD_DIM**-0.5).masked_fill(~sees, -math.inf)
        result = scores.softmax(-1) @ parts[2]
        out[0, :, head] = result.detach()
        found = torch.autograd.grad(result, parts, outer[0, :, head])
        for total, place, gradient in zip(sums, (head, shared, shared), found, strict=True):
            total[0, place] += gradient
    return (out, *sums)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    import importlib.metadata as metadata

    return {
        "heads": HEADS,
        "key_value_heads": KEY_HEADS,
        "head_dim": HEAD_DIM,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": THREADS,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        **surroundings(),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--steps", type=int, default=3, help="timed steps a cell, after one more")
    add_cell_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
