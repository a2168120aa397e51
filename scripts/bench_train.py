"""A LoRA training step against HF Trainer and TRL: the same weights, adapters, ids and labels.

    python scripts/bench_train.py --peers .venv-peers/bin/python --out train.json
    python scripts/bench_train.py --models d256-v32k --lengths 2048 --rounds 1      # a quick look

Rank 8 on all linear layers, every layer checkpointed, float32, OMP_NUM_THREADS threads (default 1).
Each window is one document, or seven (`packed`; s² = Σl²/S² is printed). TRL runs under the
interpreter --peers (torch, transformers, peft and trl installed there); without it TRL is left out.

    ours  train/setup.py: the model with its loss, clipped, AdamW, as in train/loop.py
    hf    transformers.Trainer, its own loss; packed rows carry position_ids, of which transformers
          makes the dense block mask for sdpa
    trl   SFTTrainer, its own loss; packed rows come from its own packing (`bfd`), which gives
          position_ids without a mask: on CPU the same dense block mask

Every cell is a fresh process, interleaved over --rounds. Timed are whole optimiser steps, the first
dropped; memory is the peak resident size at the end less what it was once the model was loaded. The
gate: loss and gradient norm of the first step, before any update, agree over the paths, or the run
ends there and says who differs. Finished cells wait in --cells and are not measured again as long
as code and versions are the same. Prints JSON; 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from bench_cells import (
    ROOT,
    THREADS,
    Ledger,
    add_cell_options,
    document_lengths,
    finish,
    goal,
    peak_bytes,
    revision,
    run_cell,
    squared_share,
)

PATHS = ("ours", "hf", "trl")
DOCUMENTS = ("one", "packed")
D256 = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "d256-v32k": {**D256, "vocab_size": 32000},
    "d256-v8k": {**D256, "vocab_size": 8000},
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "vocab_size": 512,
    },
}
LENGTHS = {
    "d256-v32k": (2048, 4096, 8192, 16384),
    "d256-v8k": (8192,),
    "smollm2-135m": (2048,),
    "tiny": (64, 128),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16
GATE = {"loss": (1e-3, 0.0), "grad_norm": (0.0, 1e-3)}
"""Absolute and relative difference allowed in the first step; sums of float32 differ by 1e-5."""


def main() -> int:
    """Measure what is missing, print and write the JSON; 1 when a goal is missed."""
    options = _options()
    if options.cell:
        cell = json.loads(options.cell)
        print(json.dumps(CELLS[cell["path"]](cell)))
        return 0
    cells = cells_of(options)
    with tempfile.TemporaryDirectory() as scratch:
        works = _works(measure_all(options, cells, Path(scratch)))
    result = {
        "settings": _settings(options),
        "works": works,
        "growth": growth(works),
        "goals": goals(works),
        "left_out": [] if options.peers else ["trl: no --peers"],
    }
    return finish(result, result["goals"], options.out)


# ── which cells, in which order ──────────────────────────────────────────────────────────────


def cells_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell once, the paths of the same work side by side."""
    cells = [
        {"model": model, "length": length, "documents": documents, "path": path}
        for model in options.models
        for length in options.lengths or LENGTHS[model]
        for documents in DOCUMENTS
        for path in PATHS
    ]
    return [cell for cell in cells if _is_wanted(cell, options)]


def _is_wanted(cell: dict[str, Any], options: argparse.Namespace) -> bool:
    """Of the small vocabulary only what shows ours to have no term in it; TRL up to 8k."""
    if cell["model"] == "d256-v8k" and (cell["path"], cell["documents"]) != ("ours", "one"):
        return False
    if cell["path"] == "trl" and (not options.peers or cell["length"] > 8192):
        return False
    return bool(re.search(options.only, name_of(cell)))


def name_of(cell: dict[str, Any]) -> str:
    """`d256-v32k/8192/packed/hf`."""
    return "/".join(str(cell[part]) for part in ("model", "length", "documents", "path"))


def measure_all(
    options: argparse.Namespace, cells: list[dict[str, Any]], scratch: Path
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(cell, its figures by round), each gated against the other paths of the same work."""
    ledger, runs = Ledger(options.cells), [(cell, []) for cell in cells]
    codes = {path: _code(path, options) for path in {cell["path"] for cell in cells}}
    first: dict[str, dict[str, dict[str, Any]]] = {}
    for number in range(options.rounds):
        for cell, found in runs:
            full = {**cell, **_conditions(options), "round": number, "code": codes[cell["path"]]}
            figures = ledger.get(full)
            is_new = figures is None
            if figures is None:
                python = options.peers if cell["path"] == "trl" else sys.executable
                adapters = _adapters(options, cell["model"], scratch)
                figures = run_cell(python, __file__, {**full, "adapters": adapters})
            same_work = first.setdefault(name_of({**cell, "path": ""}), {})
            gate(name_of(cell), figures, same_work)
            same_work.setdefault(cell["path"], figures)
            if is_new:
                ledger.add(full, figures)
            found.append(figures)
            print(f"{name_of(cell)}, round {number}: {figures}", file=sys.stderr)
    return runs


def gate(name: str, figures: dict[str, Any], others: dict[str, dict[str, Any]]) -> None:
    """Paths that train on different numbers are not comparable.

    Raises:
        SystemExit: loss or gradient norm of the first step differ by more than `GATE`.
    """
    for path, other in others.items():
        for what, (absolute, relative) in GATE.items():
            mine, theirs = figures[what][0], other[what][0]
            if not math.isclose(mine, theirs, abs_tol=absolute, rel_tol=relative):
                raise SystemExit(f"{name}: {what} of step 1 is {mine}, of {path} {theirs}")


def _adapters(options: argparse.Namespace, model: str, scratch: Path) -> str:
    """The file with the initial adapters of `model`, written when it is first asked for."""
    file = scratch / f"{model}.pt"
    if not file.exists():
        cell = {"path": "adapters", "model": model, "adapters": str(file)}
        run_cell(sys.executable, __file__, {**cell, **_conditions(options)})
    return str(file)


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What every cell of a run shares, and what its figures depend on."""
    malloc = {
        k: v for k, v in sorted(os.environ.items()) if k.startswith(("MALLOC_", "LD_PRELOAD"))
    }
    weights = str(options.model.resolve()) if options.model else ""
    return {"steps": options.steps, "threads": THREADS, "malloc": malloc, "weights": weights}


def _code(path: str, options: argparse.Namespace) -> str:
    """Versions of the libraries, and of ours the sources, so that a changed engine is measured."""
    sources = revision(ROOT / "giraffe_cli", Path(__file__)) if path == "ours" else ""
    return sources + json.dumps(_versions(options.peers if path == "trl" else sys.executable))


# ── the table ────────────────────────────────────────────────────────────────────────────────


def _works(runs: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One entry a model, length and kind of window: medians of every path, ours over each."""
    works: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell, rounds in runs:
        key = (cell["model"], cell["length"], cell["documents"])
        lengths = document_lengths(cell["documents"], cell["length"])
        work = works.setdefault(
            key,
            {
                **{name: cell[name] for name in ("model", "length", "documents")},
                "seq_lengths": lengths,
                "s2": squared_share(lengths),
                "paths": {},
            },
        )
        work["paths"][cell["path"]] = _medians(rounds)
    for work in works.values():
        work["ours_over"] = _ratios(work["paths"])
    return list(works.values())


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("cpu_seconds", "wall_seconds", "net_bytes", "base_bytes")
    spread = [figures["cpu_seconds"] for figures in rounds]
    return {
        **{name: statistics.median(figures[name] for figures in rounds) for name in names},
        "least_cpu_seconds": min(spread),
        "most_cpu_seconds": max(spread),
        "rounds": len(rounds),
        "loss": rounds[0]["loss"],
        "grad_norm": rounds[0]["grad_norm"],
        "attention": rounds[0]["attention"],
    }


def _ratios(paths: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    if "ours" not in paths:
        return {}
    names = ("cpu_seconds", "wall_seconds", "net_bytes")
    return {
        path: {name: paths["ours"][name] / found[name] for name in names}
        for path, found in paths.items()
        if path != "ours"
    }


def growth(works: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Between neighbouring lengths: bytes a token more costs, log-log slopes of time and memory."""
    rows = []
    for shorter in works:
        same = [
            work
            for work in works
            if (work["model"], work["documents"]) == (shorter["model"], shorter["documents"])
            and work["length"] > shorter["length"]
        ]
        if not same:
            continue
        longer = min(same, key=lambda work: work["length"])
        for path in shorter["paths"].keys() & longer["paths"].keys():
            few, many = shorter["paths"][path], longer["paths"][path]
            doublings = math.log2(longer["length"] / shorter["length"])
            more = many["net_bytes"] - few["net_bytes"]
            rows.append(
                {
                    **{name: shorter[name] for name in ("model", "documents")},
                    "path": path,
                    "lengths": [shorter["length"], longer["length"]],
                    "bytes_per_token": more / (longer["length"] - shorter["length"]),
                    "cpu_slope": math.log2(many["cpu_seconds"] / few["cpu_seconds"]) / doublings,
                    "memory_slope": math.log2(many["net_bytes"] / few["net_bytes"]) / doublings,
                }
            )
    return rows


def goals(works: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was promised at 8k, what was found; a goal whose cells were not run is not listed."""
    at_8k = {
        work["documents"]: work["ours_over"]
        for work in works
        if (work["model"], work["length"]) == ("d256-v32k", 8192)
    }
    wanted = {
        "one_document_cpu_over_hf": ("one", "hf", "cpu_seconds", 0.9),
        "one_document_cpu_over_trl": ("one", "trl", "cpu_seconds", 0.45),
        "packed_cpu_over_hf": ("packed", "hf", "cpu_seconds", 0.4),
        "one_document_net_bytes_over_hf": ("one", "hf", "net_bytes", 0.3),
        "packed_net_bytes_over_hf": ("packed", "hf", "net_bytes", 0.3),
    }
    found = {
        name: goal(at_8k[documents][path][what], allowed)
        for name, (documents, path, what, allowed) in wanted.items()
        if path in at_8k.get(documents, {})
    }
    net = {
        work["model"]: work["paths"]["ours"]["net_bytes"]
        for work in works
        if (work["length"], work["documents"]) == (8192, "one") and "ours" in work["paths"]
    }
    if net.keys() >= {"d256-v32k", "d256-v8k"}:
        # logits_kept: float32 copies of all logits that 24,000 entries more would add
        found["bytes_per_token_v32k_over_v8k"] = {
            **goal(net["d256-v32k"] / net["d256-v8k"], 1.05),
            "bytes": {model: net[model] / 8192 for model in ("d256-v32k", "d256-v8k")},
            "logits_kept": (net["d256-v32k"] - net["d256-v8k"]) / (4 * 24000 * 8192),
        }
    return found


# ── the paths, each in a process of its own ──────────────────────────────────────────────────


def ours(cell: dict[str, Any]) -> dict[str, Any]:
    """The step of train/loop.py without its records."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    from giraffe_cli.train.gradients import lay_side_by_side
    from giraffe_cli.train.optimizer import make_optimizer
    from giraffe_cli.train.setup import trainable_parameters, window_nats

    config, model = _build_ours(cell)
    base = peak_bytes()
    parameters = trainable_parameters(model)
    lay_side_by_side(parameters.values())
    optimizer = make_optimizer(parameters, config)
    window = _window(cell)
    clock, losses, norms = Clock(), [], []
    for _ in range(cell["steps"] + 1):
        loss = window_nats(model, window, torch.device("cpu")) / window.num_targets
        loss.backward()
        norms.append(float(clip_grad_norm_(parameters.values(), config.clip_norm)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        losses.append(float(loss.detach()))
        clock.tick()
    return {**clock.figures(base), "loss": losses, "grad_norm": norms, "attention": "giraffe"}


def hf(cell: dict[str, Any]) -> dict[str, Any]:
    """transformers.Trainer on rows whose first token of a document is no target."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator

    model = _peft_model(cell)
    base = peak_bytes()
    pieces = _documents(cell)
    row = {
        "input_ids": [token for piece in pieces for token in piece],
        "labels": [label for piece in pieces for label in (-100, *piece[1:])],
    }
    if len(pieces) > 1:
        row["position_ids"] = [place for piece in pieces for place in range(len(piece))]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**_arguments(cell, folder)),
            train_dataset=Dataset.from_list([row]),
            data_collator=default_data_collator,
        )
        return _train(trainer, base)


def trl(cell: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer on tokenised documents, which it packs itself."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    model = _peft_model(cell)
    base = peak_bytes()
    words = Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **_arguments(cell, folder),
                max_length=cell["length"],
                packing=cell["documents"] == "packed",
            ),
            train_dataset=Dataset.from_list([{"input_ids": ids} for ids in _documents(cell)]),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>"),
        )
        found = _train(trainer, base)
    rows = trainer.train_dataset["input_ids"]
    expected = [token for piece in _documents(cell) for token in piece]
    if [list(row) for row in rows] != [expected]:
        raise SystemExit(f"TRL trained on {len(rows)} other rows than the documents end to end")
    return found


def adapters(cell: dict[str, Any]) -> dict[str, Any]:
    """Writes the adapters all paths start from; both factors differ from 0, so that the gate sees
    every one of them."""
    import torch
    from peft import get_peft_model_state_dict

    model = _peft_model({**cell, "adapters": None})
    torch.manual_seed(1)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, tensor in tensors.items():
        tensor.normal_(std=0.05 if "lora_B" in name else tensor.shape[1] ** -0.5)
    torch.save(tensors, cell["adapters"])
    return {}


CELLS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ours": ours,
    "hf": hf,
    "trl": trl,
    "adapters": adapters,
}


class Clock:
    """Seconds from one tick to the next; the first step is dropped."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []
        self.tick()

    def tick(self) -> None:
        self._marks.append((time.process_time(), time.perf_counter()))

    def figures(self, base: int) -> dict[str, Any]:
        """Medians of the steps, and the peak above `base` bytes."""
        steps = list(zip(self._marks[1:], self._marks[2:], strict=False))
        return {
            "cpu_seconds": statistics.median(end[0] - start[0] for start, end in steps),
            "wall_seconds": statistics.median(end[1] - start[1] for start, end in steps),
            "net_bytes": peak_bytes() - base,
            "base_bytes": base,
        }


def _train(trainer: Any, base: int) -> dict[str, Any]:
    """Run a peer's trainer; a step reaches from the end of one to the end of the next."""
    from transformers import PrinterCallback, TrainerCallback

    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Ticks())
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        **clock.figures(base),
        "loss": [entry["loss"] for entry in log],
        "grad_norm": [float(entry["grad_norm"]) for entry in log],
        "attention": trainer.model.config._attn_implementation,
    }


def _arguments(cell: dict[str, Any], folder: str) -> dict[str, Any]:
    """Of both trainers: what the comparison fixes; everything else is their default."""
    return {
        "output_dir": folder,
        "max_steps": cell["steps"] + 1,
        "per_device_train_batch_size": 1,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


# ── what they are given ──────────────────────────────────────────────────────────────────────


def _build_ours(cell: dict[str, Any]) -> tuple[Any, Any]:
    """(training config, `WindowLoss`) on the same weights and adapters."""
    import torch
    from peft import set_peft_model_state_dict

    from giraffe_cli.config.lora import LoraConfig
    from giraffe_cli.config.train import TrainConfig
    from giraffe_cli.model.attention import register_attention
    from giraffe_cli.model.levers import Levers
    from giraffe_cli.model.lora import add_lora
    from giraffe_cli.train.window_loss import WindowLoss

    config = TrainConfig(lora=LoraConfig(rank=RANK, alpha=ALPHA, targets=TARGETS))
    base = _base(cell, attn_implementation=register_attention())
    model = add_lora(base, config.lora, seed=0)
    set_peft_model_state_dict(model, torch.load(cell["adapters"]))
    model.train()
    # d256-v8k is there for its bytes a token: as large a block of logits as of 32,000 entries
    times = 4 if cell["model"] == "d256-v8k" else 1
    # what a plan takes on a CPU, the loss chunk aside
    levers = Levers(fused=True, projection_tile=1024, loss_chunk=times * Levers().loss_chunk)
    return config, WindowLoss(model, torch.float32, levers)


def _peft_model(cell: dict[str, Any]) -> Any:
    """What a user of PEFT writes; with the cell's adapters, where there are any."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(_base(cell), config)
    if cell["adapters"]:
        set_peft_model_state_dict(model, torch.load(cell["adapters"]))
    return model


def _base(cell: dict[str, Any], **options: Any) -> Any:
    """The float32 model: `--model`'s weights, or random ones that keep the variance of the stream,
    so that a path that attends to something else shows in the loss."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if cell["weights"] and cell["model"] == "smollm2-135m":
        return LlamaForCausalLM.from_pretrained(cell["weights"], dtype=torch.float32, **options)
    shape = MODELS[cell["model"]]
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        initializer_range=shape["hidden_size"] ** -0.5,
        max_position_embeddings=32768,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **options,
    )
    return LlamaForCausalLM(config)


def _documents(cell: dict[str, Any]) -> list[list[int]]:
    """Random ids, one list a document, the longest first as TRL packs them."""
    import numpy as np

    generator = np.random.default_rng(0)
    size = MODELS[cell["model"]]["vocab_size"]
    lengths = document_lengths(cell["documents"], cell["length"])
    return [generator.integers(1, size, length).tolist() for length in lengths]


def _window(cell: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    from giraffe_cli.corpus.store import Row
    from giraffe_cli.train.data import Window, next_token_labels

    pieces = _documents(cell)
    lengths = [len(piece) for piece in pieces]
    tokens = np.concatenate(pieces).astype(np.int32)
    row = Row(tokens, np.array(lengths, dtype=np.int32), [f"doc-{n}" for n in range(len(lengths))])
    return Window(
        input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
        labels=torch.from_numpy(next_token_labels(row)),
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        seq_lengths=tuple(lengths),
        doc_ids=tuple(row.doc_ids),
        dropout_seed=0,
    )


def _versions(python: str) -> dict[str, str]:
    """Of the libraries a peer consists of; `-` where one is missing."""
    ask = (
        "import importlib.metadata as m, json\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "names = ('torch', 'transformers', 'peft', 'accelerate', 'datasets', 'trl')\n"
        "print(json.dumps({name: have.get(name, '-') for name in names}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", ask], text=True))
    return found


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "shapes": {model: MODELS[model] for model in options.models},
        "rank": RANK,
        "alpha": ALPHA,
        **_conditions(options),
        "rounds": options.rounds,
        "versions": _versions(sys.executable),
        "peers": _versions(options.peers) if options.peers else None,
        "giraffe": metadata.version("giraffe-cli"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    shapes = [name for name in MODELS if name != "tiny"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=shapes)
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; default: as each model has")
    parser.add_argument("--only", default="", help="regular expression on d256-v32k/8192/packed/hf")
    parser.add_argument("--model", type=Path, help="SmolLM2's real weights instead of random ones")
    parser.add_argument("--peers", help="python that has trl, peft and datasets")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a cell, after one more")
    parser.add_argument("--cells", type=Path, default=Path("bench_train.jsonl"), help="finished")
    add_cell_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
