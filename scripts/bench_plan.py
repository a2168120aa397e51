"""What `giraffe plan` predicts against what training takes: memory at the peak, time of a step.

    python scripts/bench_plan.py --cells plan.jsonl --out plan.json     # about 25 min of one core
    python scripts/bench_plan.py --only 'd256' --table                  # a quick look

Every setting trains in a fresh process by `train_stage`, the function that `giraffe extend` trains
with: random weights on disk, packed windows, checkpoints and adapter written. Measured are the
peak resident size of that process and the CPU-seconds of each step (OMP_NUM_THREADS threads,
default 1). Predicted is the memory, from shape and settings alone, and the time, once the rate is
known from one step: of the plan's own trial step in another fresh process (`trial`), and of the
first step of the run (`first step`). Settings marked `fit` are those the coefficients of
`giraffe_cli/plan/memory.py` were chosen on.

Goals: |peak error| at most 10 %, |time error| at most 25 %. Finished settings wait in --cells and
are not measured again; the predictions are made anew each time. Prints JSON, or a table for the
docs (--table); 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import re
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_cells import (
    D256,
    SMOLLM2,
    THREADS,
    Ledger,
    document_lengths,
    goal,
    peak_bytes,
    run_cell,
    squared_share,
)

MODELS: dict[str, dict[str, Any]] = {
    "d256": {**D256, "vocab_size": 32000},
    "d576": {**SMOLLM2, "num_hidden_layers": 6},
    "smollm2": SMOLLM2,
    "tiny": {**D256, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 512},
}
PLAIN = {"checkpointing": "attention", "offload": "none", "mlp_tile": 1024, "loss_chunk": 256}
WHOLE = {"checkpointing": "none", "mlp_tile": "none", "fused_layers": "on"}
UNFUSED = {"checkpointing": "none", "mlp_tile": "none", "fused_layers": "off"}
DROPOUT, DORA = {"rank": 8, "dropout": 0.05}, {"rank": 8, "use_dora": True}
PISSA = {"rank": 8, "init_lora_weights": "pissa"}
WIDE = {"mlp_tile": "none", "loss_chunk": 1024}


def cell(model: str, length: int, **changes: Any) -> dict[str, Any]:
    """A setting: `changes` are knobs of `train`, or `documents` and `dtype`."""
    documents, dtype = changes.pop("documents", "one"), changes.pop("dtype", "float32")
    train = {**PLAIN, "lora": {"rank": 8}, **changes}
    if train.get("method") == "full":
        del train["lora"]
    return {
        "model": model,
        "length": length,
        "documents": documents,
        "dtype": dtype,
        "train": train,
    }


FIT = [
    cell("d256", 8192, **WIDE),
    cell("d256", 4096, **WIDE, checkpointing="none"),
    cell("d576", 2048, **WIDE, checkpointing="full"),
    cell("d576", 4096, documents="packed"),
    cell("d256", 2048, **WIDE, method="full"),
    cell("d256", 4096),
    cell("smollm2", 2048, **WHOLE),
    cell("smollm2", 2048, dtype="bfloat16", **WHOLE),
]
HELD = [
    cell("d256", 8192, documents="packed"),
    cell("d256", 4096, dtype="bfloat16"),
    cell("d256", 8192, offload="disk", checkpointing="full"),
    cell("d576", 1024, checkpointing="none", mlp_tile="none"),
    cell("d576", 2048),
    cell("d576", 1024, method="full"),
    cell("d576", 2048, **WIDE, lora={"rank": 64}),
    cell("smollm2", 1024),
    cell("d256", 8192, projection_tile=1024),
    cell("d576", 4096, checkpointing="full", projection_tile=512),
    cell("d576", 2048, projection_tile=1024, fused_layers="on"),
    cell("smollm2", 1024, dtype="bfloat16", fused_layers="on"),
    cell("d576", 2048, projection_tile=1024, fused_layers="on", whole_layers=3),
    cell("smollm2", 1024, fused_layers="on", whole_layers=15),
    cell("d576", 2048, **UNFUSED),
    cell("d576", 2048, **UNFUSED, lora=DROPOUT),
    cell("d576", 2048, **UNFUSED, lora=DORA),
    cell("d576", 2048, **UNFUSED, lora=PISSA),
    cell("d576", 2048, **UNFUSED, quantize_base="nf4"),
    cell("smollm2", 1024, **UNFUSED),
    cell("smollm2", 1024, **UNFUSED, lora=DROPOUT),
    cell("smollm2", 1024, **UNFUSED, lora=PISSA),
    cell("d576", 2048, lora=DROPOUT),
    cell("d576", 2048, lora=DORA),
    cell("d256", 8192, **WIDE, lora=DROPOUT),
    cell("d256", 8192, projection_tile=1024, lora=DORA),
]
SETTINGS = [
    *({**entry, "fit": True} for entry in FIT),
    *({**entry, "fit": False} for entry in HELD),
]
STEPS = 3


class Clock:
    """A reporter that reads the CPU clock when the bar moves: once a step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def info(self, text: str) -> None:
        """Nobody is told."""

    warn = info

    def bar(self, *_: Any, **__: Any) -> Any:
        self.tick()
        return contextlib.nullcontext(self)

    def advance(self, *_: Any, **__: Any) -> None:
        self.tick()

    def tick(self) -> None:
        self.times.append((time.process_time(), time.perf_counter()))


def prepare(settings: dict[str, Any]) -> dict[str, Any]:
    """Write random weights and packed windows into the folder `settings` names."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from giraffe_cli.corpus.rows import Layout, RowGroup, Strings, write_rows
    from giraffe_cli.rundir import begin_stage, finish_stage, write_json

    folder = Path(settings["folder"])
    shape, length = MODELS[settings["model"]], settings["length"]
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=16384))
    model.to(getattr(torch, settings["dtype"])).save_pretrained(folder / "model")

    packed = begin_stage(folder / "packed")
    pieces = document_lengths(settings["documents"], length)
    layout, random = Layout.of(STEPS, length), np.random.default_rng(0)
    groups = (
        RowGroup(
            random.integers(0, shape["vocab_size"], length * rows).astype(np.int32),
            np.full(rows, length, np.int32),
            np.array(pieces * rows, np.int32),
            np.full(rows, len(pieces), np.int32),
            Strings.of(["random"] * len(pieces) * rows).take(np.arange(len(pieces) * rows)),
            Strings.of([f"doc-{n}" for n in range(len(pieces) * rows)]).take(
                np.arange(len(pieces) * rows)
            ),
        )
        for first, end in layout.groups()
        for rows in [end - first]
    )
    write_rows(packed, groups, layout)
    write_json(packed / "stats.json", {})
    inputs = {"tokenizer": "", "config": {"bos": "no", "eos": "no"}}
    finish_stage(packed, inputs, kind="packed", window=length, layout=asdict(layout))
    return {}


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Train `STEPS` steps; peak bytes of the process and seconds of each step."""
    from giraffe_cli.control import native_table
    from giraffe_cli.train.loop import train_stage

    folder, clock = Path(settings["folder"]), Clock()
    checkpoint = checkpoint_of(settings["model"], settings["dtype"], folder / "model")
    with tempfile.TemporaryDirectory() as scratch:
        train_stage(
            checkpoint,
            native_table(checkpoint),
            folder / "packed",
            train_config(settings),
            positions="plain",
            target_length=settings["length"],
            dtype=settings["dtype"],
            seed=0,
            run_dir=Path(scratch),
            reporter=clock,
        )
    cpu, wall = (
        [later - earlier for earlier, later in itertools.pairwise(times)]
        for times in zip(*clock.times, strict=True)
    )
    return {"peak_bytes": peak_bytes(), "cpu_seconds": cpu, "wall_seconds": wall}


def checkpoint_of(model: str, dtype: str, path: Path) -> Any:
    """The facts that planning and training need of random weights."""
    from giraffe_cli.checkpoint import Checkpoint
    from giraffe_cli.checkpoint_config import Shape
    from giraffe_cli.weights import expected_shapes

    sizes = MODELS[model]
    shape = Shape(
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        num_layers=sizes["num_hidden_layers"],
        **{k: v for k, v in sizes.items() if k != "num_hidden_layers"},
    )
    return Checkpoint(
        **asdict(shape),
        source=model,
        path=path,
        digest="",
        rope_theta=10000.0,
        native_length=16384,
        dtype=dtype,
        num_parameters=sum(math.prod(size) for size in expected_shapes(shape).values()),
        existing_rope=None,
    )


def trial(settings: dict[str, Any]) -> dict[str, Any]:
    """The plan's trial step: rates of this machine for the model of `settings`."""
    from giraffe_cli.plan.trial import trial_step

    checkpoint = checkpoint_of(settings["model"], settings["dtype"], Path())
    train = train_config(settings)
    return trial_step(checkpoint, train, settings["dtype"], settings["length"]).to_json()


PARTS = {"prepare": prepare, "measure": measure, "trial": trial}


def main() -> int:
    """Measure what is missing, hold the plan against it; 1 when a goal is missed."""
    options = _options()
    if options.cell:
        settings = json.loads(options.cell)
        print(json.dumps(PARTS[settings["part"]](settings)))
        return 0
    ledger, rows = Ledger(options.cells), []
    wanted = [one for one in SETTINGS if re.search(options.only, name_of(one))]
    if not wanted:
        sys.exit(f"--only {options.only}: no setting has that; {name_of(SETTINGS[0])} is one")
    for settings in wanted:
        rows.append(compared(settings, *found_for(settings, ledger)))
        print(json.dumps(rows[-1]), file=sys.stderr)
    result = {"threads": THREADS, "goals": goals(rows), "settings": rows}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(rows) if options.table else json.dumps(result, indent=2))
    return 0 if all(one["ok"] for one in result["goals"].values()) else 1


def found_for(settings: dict[str, Any], ledger: Ledger) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of training and of the trial step, measured unless the ledger has them."""
    cell = {k: v for k, v in settings.items() if k != "fit"}
    of_trial = {
        "trial": [cell["model"], cell["dtype"], cell["length"], cell["train"].get("method")]
    }
    found, rates = ledger.get(cell), ledger.get(of_trial)
    if found is None:
        with tempfile.TemporaryDirectory() as folder:
            run_cell(sys.executable, __file__, {**cell, "part": "prepare", "folder": folder})
            found = run_cell(
                sys.executable, __file__, {**cell, "part": "measure", "folder": folder}
            )
        ledger.add(cell, found)
    if rates is None:
        rates = run_cell(sys.executable, __file__, {**cell, "part": "trial"})
        ledger.add(of_trial, rates)
    return found, rates


def compared(
    settings: dict[str, Any], found: dict[str, Any], rates: dict[str, Any]
) -> dict[str, Any]:
    """Predicted beside measured; errors as shares of what was measured."""
    from giraffe_cli.model.levers import Levers
    from giraffe_cli.plan.demand import Demand
    from giraffe_cli.plan.ladder import make_rung
    from giraffe_cli.plan.machine import Machine
    from giraffe_cli.plan.operations import Rates

    train = train_config(settings)
    pieces = document_lengths(settings["documents"], settings["length"])
    demand = Demand(
        checkpoint_of(settings["model"], settings["dtype"], Path()),
        train,
        settings["dtype"],
        settings["length"],
        kind="cpu",
        keeps_freed=True,
        attention_share=squared_share(pieces),
    )
    rung = make_rung(demand, Machine("cpu", 1, 10**12), Rates(**rates), Levers.asked_for(train))
    first, *later = found["cpu_seconds"]
    step = statistics.median(later)
    return {
        "setting": name_of(settings),
        "fit": settings["fit"],
        "peak_bytes": found["peak_bytes"],
        "predicted_bytes": rung.total,
        "parts": rung.bytes,
        "peak_error": rung.total / found["peak_bytes"] - 1,
        "cpu_seconds": step,
        "trial_seconds": rung.seconds_per_step,
        "trial_error": rung.seconds_per_step / step - 1,
        "first_step_error": first / step - 1,
    }


def goals(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The largest errors against what was promised."""
    return {
        name: goal(max(abs(row[name]) for row in rows), allowed)
        for name, allowed in (
            ("peak_error", 0.10),
            ("trial_error", 0.25),
            ("first_step_error", 0.25),
        )
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown for docs/benchmarks.md."""
    lines = [
        "| setting | | peak | predicted | error | s a step | by trial step | error | first step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["setting"],
            "fit" if row["fit"] else "",
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{row['predicted_bytes'] / 1e6:,.0f} MB",
            f"{row['peak_error']:+.1%}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['trial_seconds']:.2f}",
            f"{row['trial_error']:+.0%}",
            f"{row['first_step_error']:+.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def train_config(settings: dict[str, Any]) -> Any:
    """The training knobs of a setting."""
    from giraffe_cli.config.train import TrainConfig

    knobs = {"steps": STEPS, "warmup_steps": 1, "window": settings["length"]}
    return TrainConfig.model_validate({**settings["train"], **knobs})


def name_of(settings: dict[str, Any]) -> str:
    """What differs from `PLAIN`, in words."""
    train = {k: v for k, v in settings["train"].items() if PLAIN.get(k) != v}
    words = ", ".join(f"{k} {v}" for k, v in train.items())
    named = (str(settings[part]) for part in ("model", "length", "documents", "dtype"))
    return f"{' '.join(named)} {words}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=Path("bench_plan.jsonl"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
