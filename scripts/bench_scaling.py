"""How one training step grows with its tokens: time against the operation count, and memory.

    python scripts/bench_scaling.py --out scaling.json               # SmolLM2's shape, about 30 min
    python scripts/bench_scaling.py --layers 4 --rounds 1            # a quick look

Two series from 512 to 4,096 tokens on random weights of SmolLM2-135M's shape (30 layers, d 576, 9
heads, 3 key/value heads, f 1536, V 49,152; LoRA r 16 on all linear layers, checkpointed layers):
`one_document`, where attention sees the whole window, and `packed_512`, documents of 512 tokens.
Every cell is a fresh process on OMP_NUM_THREADS threads (default 1): the model is built, the peak
resident size read, then `--steps` steps are timed after one that is not. Cells are interleaved over
`--rounds`; medians of CPU-seconds and wall seconds. Limits held against the result: time growth of
one document within 15 % of the operations' growth, its memory ≤ 8x; packed time ≤ 8.5x.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from typing import Any

from bench_cells import THREADS, add_cell_options, finish, peak_bytes, run_cell, surroundings

LENGTHS = (512, 1024, 2048, 4096)
DOCUMENT = 512
SERIES = ("one_document", "packed_512")
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


def main() -> int:
    """Measure every cell, print the table, write the JSON; 1 when a limit is broken."""
    options = _options()
    if options.cell:
        print(json.dumps(measure(json.loads(options.cell))))
        return 0
    cells: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for length in LENGTHS:
            for series in SERIES:
                cell = {
                    "series": series,
                    "length": length,
                    "layers": options.layers,
                    "steps": options.steps,
                }
                found = run_cell(sys.executable, __file__, cell)
                cells.setdefault((series, length), []).append(found)
                print(f"{series} {length}: {found}", file=sys.stderr)
    result = {"settings": _settings(options), "cells": _medians(cells, options.layers)}
    result["growth"] = growth(result["cells"])
    result["limits"] = limits(result["growth"])
    return finish(result, result["limits"], options.out)


def measure(cell: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step (median over the steps) and the peak bytes above the loaded model."""
    import torch

    from giraffe_cli.train.optimizer import make_optimizer
    from giraffe_cli.train.setup import trainable_parameters, window_nats

    config, model = _build(cell["layers"])
    parameters = trainable_parameters(model)
    optimizer = make_optimizer(parameters, config)
    window = _window(cell["series"], cell["length"])
    base = peak_bytes()
    wall, cpu = [], []
    for _ in range(cell["steps"] + 1):
        started, started_cpu = time.perf_counter(), time.process_time()
        (window_nats(model, window, torch.device("cpu")) / window.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    return {
        "cpu_seconds": statistics.median(cpu[1:]),
        "wall_seconds": statistics.median(wall[1:]),
        "bytes": peak_bytes() - base,
        "base_bytes": base,
    }


def operations(length: int, document: int, layers: int) -> float:
    """Of a step over `length` tokens in documents of `document`; the rule of
    `giraffe_cli/plan/operations.py`, and LoRA's own products."""
    d, f, heads, kv = (
        SHAPE["hidden_size"],
        SHAPE["intermediate_size"],
        SHAPE["num_attention_heads"],
        SHAPE["num_key_value_heads"],
    )
    keys = d // heads * kv
    linear = 2 * layers * (2 * d * d + 2 * d * keys + 3 * d * f)
    adapter = 2 * layers * 16 * (4 * d + 2 * (d + keys) + 3 * (d + f))
    head = 2 * d * SHAPE["vocab_size"]
    attention = 2 * layers * d * min(length, document)
    return length * (3 * linear + 4 * adapter + 2 * head + 4.5 * attention)


def growth(cells: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Largest over smallest length of each series, and the log-log slope of the last doubling."""
    grown = {}
    for series in SERIES:
        row = sorted((c for c in cells if c["series"] == series), key=lambda c: c["length"])
        grown[series] = {
            name: row[-1][name] / row[0][name]
            for name in ("cpu_seconds", "wall_seconds", "bytes", "operations")
        }
        last = row[-1]["cpu_seconds"] / row[-2]["cpu_seconds"]
        grown[series]["last_slope"] = math.log2(last)
    return grown


def limits(grown: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """What was promised, what was found."""
    one, packed = grown["one_document"], grown["packed_512"]
    relative = one["cpu_seconds"] / one["operations"]
    return {
        "time_against_operations": {
            "found": relative,
            "allowed": [0.85, 1.15],
            "ok": 0.85 <= relative <= 1.15,
        },
        "memory": {"found": one["bytes"], "allowed": 8.0, "ok": one["bytes"] <= 8.0},
        "packed_time": {
            "found": packed["cpu_seconds"],
            "allowed": 8.5,
            "ok": packed["cpu_seconds"] <= 8.5,
        },
    }


def _build(layers: int, levers: Any = None) -> tuple[Any, Any]:
    """(training config, `WindowLoss`) on random float32 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from giraffe_cli.config.train import TrainConfig
    from giraffe_cli.model.attention import register_attention
    from giraffe_cli.model.levers import Levers
    from giraffe_cli.model.lora import add_lora
    from giraffe_cli.train.window_loss import WindowLoss

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE,
        num_hidden_layers=layers,
        max_position_embeddings=LENGTHS[-1],
        tie_word_embeddings=True,
        attn_implementation=register_attention(),
    )
    train = TrainConfig()
    base = LlamaForCausalLM(config)
    model = add_lora(base, train.lora, seed=0)
    model.train()
    return train, WindowLoss(model, torch.float32, levers or Levers())


def _window(series: str, length: int) -> Any:
    import numpy as np
    import torch

    from giraffe_cli.corpus.store import Row
    from giraffe_cli.train.data import Window, next_token_labels

    lengths = [length] if series == "one_document" else [DOCUMENT] * (length // DOCUMENT)
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], length).astype(np.int32)
    row = Row(tokens, np.array(lengths, dtype=np.int32), [f"doc-{n}" for n in range(len(lengths))])
    positions = np.concatenate([np.arange(n) for n in lengths])
    return Window(
        input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
        labels=torch.from_numpy(next_token_labels(row)),
        position_ids=torch.from_numpy(positions)[None],
        seq_lengths=tuple(lengths),
        doc_ids=tuple(row.doc_ids),
        dropout_seed=0,
    )


def _medians(
    cells: dict[tuple[str, int], list[dict[str, float]]], layers: int
) -> list[dict[str, Any]]:
    table = []
    for (series, length), rounds in cells.items():
        document = length if series == "one_document" else DOCUMENT
        names = ("cpu_seconds", "wall_seconds", "bytes", "base_bytes")
        medians = {name: statistics.median(r[name] for r in rounds) for name in names}
        done = operations(length, document, layers)
        table.append(
            {
                "series": series,
                "length": length,
                **medians,
                "operations": done,
                "gflops_per_cpu_second": done / medians["cpu_seconds"] / 1e9,
            }
        )
    return table


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    return {
        **SHAPE,
        "layers": options.layers,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": THREADS,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **surroundings(),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30, help="30 is SmolLM2-135M")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a cell, after one more")
    add_cell_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
