"""The evaluation's engine: what sharing, rows, chunks and kept room save, and what a pass holds.

    nice python scripts/bench_eval.py --model models/smollm2-135m --out eval.json
    nice python scripts/bench_eval.py --sections grid --length 1024 --rounds 1     # a quick look

Every cell is a fresh process with OMP_NUM_THREADS threads (default 1), the cells of a section one
after the other, --rounds times over; medians of CPU-seconds, wall-clock beside them, loading left
out. Without --model the weights are random, in the shape of SmolLM2-135M.

grid    `niah` at 11 depths, ranked against nine and generated, at --length tokens:
            shared      prompts that begin alike are read on from there, candidates in one row
            candidates  the same, but every prompt from its first token
            nothing     besides, every candidate behind its prompt from the first token
memory  one NLL of 256 tokens behind --long tokens: peak resident size less what the process had
        with everything imported and nothing loaded, over
            weights + keys and values of all tokens + activations of one layer
        The activations are those of --long tokens at the widest place of a layer, with which a
        pass without chunks could not do: the residual and gate, up and their product,
        (d + 3·f) numbers a token. `over_chunk` takes them of one chunk of 512 instead.
chunks  tokens a second of a piece of 128 to 2048 tokens behind 0, 4k and 15k others
decode  one token behind 4k and 15k others, into kept room and into a DynamicCache
rows    64 scored prompts of 96 tokens, 16 of 256, 4 of 1024: one by one and in rows
pace    seconds predicted by evals/pace.py for the grid, and 8 NLLs at twice its length, against
        CPU-seconds taken

Prints JSON; 1 when a goal is missed: the grid 3 times faster, memory within 1.3, pace within 30 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_cells import (
    SMOLLM2,
    THREADS,
    add_cell_options,
    finish,
    peak_bytes,
    run_cell,
    surroundings,
)

SECTIONS = ("grid", "memory", "chunks", "decode", "rows", "pace")
PIECES, CONTEXTS = (128, 256, 512, 1024, 2048), (0, 4096, 15360)
ROWS = ((96, 64), (256, 16), (1024, 4))
FASTER, WITHIN, OFF = 3.0, 1.3, 0.30


def main() -> int:
    """Measure every cell, print and write the JSON; 1 when a goal is missed."""
    options = _options()
    if options.cell:
        cell = json.loads(options.cell)
        print(json.dumps(MEASURE[cell["section"]](cell)))
        return 0
    rows: list[dict[str, Any]] = []
    common = {"model": options.model, "dtype": options.dtype}
    for section in options.sections:
        cells = [{**common, "section": section, **cell} for cell in _cells(section, options)]
        found: dict[str, list[dict[str, Any]]] = {json.dumps(cell): [] for cell in cells}
        for number in range(options.rounds):
            for cell in cells:
                found[json.dumps(cell)].append(run_cell(sys.executable, __file__, cell))
                print(f"{cell}, round {number}: {found[json.dumps(cell)][-1]}", file=sys.stderr)
        rows += [{**json.loads(cell), **_median(runs)} for cell, runs in found.items()]
    result = {"settings": _settings(options), "rows": rows, "goals": goals(rows)}
    return finish(result, result["goals"], options.out)


def goals(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the evaluation promises, of what was measured."""
    found: dict[str, dict[str, Any]] = {}
    grid = {row["mode"]: row for row in rows if row["section"] == "grid"}
    if {"shared", "nothing"} <= {*grid}:
        times = grid["nothing"]["cpu_seconds"] / grid["shared"]["cpu_seconds"]
        found["grid_times_faster"] = {"found": times, "needed": FASTER, "ok": times >= FASTER}
        same = len({row["ranked_first"] for row in grid.values()}) == 1
        found["grid_same_ranks"] = {"ok": same}
    for row in rows:
        if row["section"] == "memory":
            ratio = row["ratio"]
            found["memory_ratio"] = {"found": ratio, "allowed": WITHIN, "ok": ratio <= WITHIN}
        if row["section"] == "pace":
            off = abs(row["predicted"] / row["cpu_seconds"] - 1)
            found[f"pace_{row['what']}"] = {"found": off, "allowed": OFF, "ok": off <= OFF}
    return found


# ── one process, one cell ────────────────────────────────────────────────────────────────────


def grid(cell: dict[str, Any]) -> dict[str, Any]:
    """All prompts of one haystack."""
    opened = _opened(cell)
    opened.shares_prompts = cell["mode"] == "shared"
    opened.shares_candidates = cell["mode"] != "nothing"
    examples = _needles(cell)
    outcomes: list[Any] = []
    timed = _timed(lambda: outcomes.extend(opened.outcome(example) for example in examples))
    nll = [outcome.candidate_nll for outcome in outcomes]
    ranked = [min(range(len(values)), key=values.__getitem__) for values in nll]
    return {**timed, "fed_tokens": opened.fed_tokens, "ranked_first": str(ranked)}


def memory(cell: dict[str, Any]) -> dict[str, Any]:
    """Peak of one pass over what it cannot do without."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import giraffe_cli.evals.open_subject  # noqa: F401

    before = peak_bytes()
    opened = _opened(cell)
    loaded = peak_bytes() - before
    timed = _timed(lambda: opened.outcome(_text(cell["length"], 256)))
    held, config = peak_bytes() - before, opened.model.config
    size = next(opened.model.parameters()).element_size()
    weights = size * sum(weight.numel() for weight in opened.model.parameters())
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    widest = size * (config.hidden_size + 3 * config.intermediate_size)
    kept = size * per_token * cell["length"]
    needed = weights + kept + widest * cell["length"]
    return {
        **timed,
        "bytes": held,
        "bytes_after_loading": loaded,
        "weights": weights,
        "keys_and_values": kept,
        "activations": widest * cell["length"],
        "ratio": held / needed,
        "over_chunk": held / (weights + kept + widest * opened.chunk),
    }


def chunks(cell: dict[str, Any]) -> dict[str, Any]:
    """One piece behind others."""
    timed = _timed(_piece(_opened(cell), cell["piece"], cell["context"], kept_room=True))
    return {**timed, "tokens_per_cpu_second": cell["piece"] / timed["cpu_seconds"]}


def decode(cell: dict[str, Any]) -> dict[str, Any]:
    """Eight tokens, one by one."""
    step = _piece(_opened(cell), 1, cell["context"], kept_room=cell["cache"] == "room")
    timed = _timed(lambda: [step() for _ in range(8)])
    return {**timed, "cpu_milliseconds_a_token": 125 * timed["cpu_seconds"]}


def rows(cell: dict[str, Any]) -> dict[str, Any]:
    """Scored prompts, so many to a row."""
    from giraffe_cli.evals.order import Prompt

    opened, size, count, width = _opened(cell), cell["prompt"], cell["count"], cell["in_a_row"]
    prompts = [Prompt((("", _text(size, 8, seed)),)) for seed in range(count)]
    opened.outcomes(prompts[:1])
    read: list[Any] = []

    def work() -> None:
        for start in range(0, count, width):
            read.extend(opened.outcomes(prompts[start : start + width]))

    timed = _timed(work)
    total = sum(float(outcome.target_nll.sum()) for (outcome,) in read)
    return {**timed, "tokens_per_cpu_second": size * count / timed["cpu_seconds"], "nll": total}


def pace(cell: dict[str, Any]) -> dict[str, Any]:
    """Predicted before, taken after."""
    from giraffe_cli.evals.order import reading_plan
    from giraffe_cli.evals.pace import measured_pace

    opened, length = _opened(cell), cell["length"]
    examples = _needles(cell)
    if cell["what"] == "nll":
        examples = [_text(2 * length, 256, seed) for seed in range(8)]
    plan = reading_plan([("", example) for example in examples], 2048)
    measured = measured_pace(opened, 2 * length, time.process_time)
    predicted = measured.seconds(plan, opened.chunk)
    timed = _timed(lambda: [opened.outcomes(step.prompts) for step in plan])
    return {**timed, "predicted": predicted, "tokens": sum(step.tokens for step in plan)}


MEASURE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "grid": grid,
    "memory": memory,
    "chunks": chunks,
    "decode": decode,
    "rows": rows,
    "pace": pace,
}


def _opened(cell: dict[str, Any]) -> Any:
    """The model under test, as `giraffe eval` opens it; random without a directory."""
    import torch

    from giraffe_cli.evals.open_subject import OpenSubject, open_subject
    from giraffe_cli.evals.subject import Subject
    from giraffe_cli.model.attention import register_attention
    from giraffe_cli.model.loading import load_model, load_tokenizer

    if cell["model"]:
        return open_subject(Subject("checkpoint", Path(cell["model"]), "", cell["dtype"]))
    from tempfile import TemporaryDirectory

    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = getattr(torch, cell["dtype"])
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMOLLM2, max_position_embeddings=8192)).to(
            dtype
        ).save_pretrained(folder)
        model = load_model(Path(folder), dtype=dtype, attn_implementation=register_attention())
    return OpenSubject(model, load_tokenizer(_calf()))


def _calf() -> Path:
    import giraffe_cli

    return Path(giraffe_cli.__file__).parent / "calf"


def _needles(cell: dict[str, Any]) -> list[Any]:
    """One haystack of `niah` at all depths, in the order of reading."""
    from giraffe_cli.evals.base import Material
    from giraffe_cli.evals.haystack import python_documentation
    from giraffe_cli.evals.order import reading_plan
    from giraffe_cli.evals.tasks.niah import Niah
    from giraffe_cli.model.loading import load_tokenizer

    tokenizer = load_tokenizer(Path(cell["model"] or _calf()))
    material = Material(
        encode=lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
        decode=tokenizer.decode,
        bos_token_ids=(),
        documents=[],
        haystack=python_documentation(),
    )
    examples = Niah(samples=1).examples(cell["length"], 0, material)
    plan = reading_plan([("niah", example) for example in examples], 0)
    return [example for step in plan for p in step.prompts for _, example in p.entries]


def _text(length: int, targets: int, seed: int = 0) -> Any:
    import numpy as np

    from giraffe_cli.evals.base import Example

    ids = np.random.default_rng(seed).integers(100, 5000, length).astype(np.int32)
    return Example(f"{seed}", "", length, ids, num_targets=targets)


def _piece(opened: Any, piece: int, context: int, kept_room: bool) -> Callable[[], Any]:
    """Reads `piece` tokens behind `context` zeros."""
    import torch
    from transformers import DynamicCache

    kept = opened.nothing_kept()
    kept.reserve(context + piece + 8)
    with torch.inference_mode():
        opened.feed([0], kept)
        kept.pretend(max(1, context))
        if not kept_room:
            copied = DynamicCache()
            for number, layer in enumerate(kept.layers):
                copied.update(layer.keys.clone(), layer.values.clone(), number)
            kept = copied

    def read() -> Any:
        with torch.inference_mode():
            return opened.feed([7] * piece, kept)

    return read


def _timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, spent = time.perf_counter(), time.process_time()
    work()
    return {
        "cpu_seconds": time.process_time() - spent,
        "wall_seconds": time.perf_counter() - wall,
    }


def _cells(section: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What a section measures."""
    length: dict[str, Any] = {"length": options.length}
    match section:
        case "grid":
            yield from ({**length, "mode": m} for m in ("shared", "candidates", "nothing"))
        case "memory":
            yield {"length": options.long}
        case "chunks":
            yield from ({"piece": p, "context": c} for c in CONTEXTS for p in PIECES)
        case "decode":
            yield from (
                {"context": c, "cache": k} for c in CONTEXTS[1:] for k in ("room", "dynamic")
            )
        case "rows":
            yield from (
                {"prompt": size, "count": count, "in_a_row": width}
                for size, count in ROWS
                for width in sorted(
                    {1, max(1, 1024 // size), 2048 // size, min(count, 4096 // size)}
                )
            )
        case "pace":
            yield from ({**length, "what": what} for what in ("grid", "nll"))


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every number over the rounds; anything else as the first round has it."""
    return {
        key: statistics.median(run[key] for run in runs) if isinstance(value, float) else value
        for key, value in runs[0].items()
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    import importlib.metadata as metadata

    return {
        "model": options.model or "random weights in the shape of SmolLM2-135M",
        "dtype": options.dtype,
        "rounds": options.rounds,
        "threads": THREADS,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        **surroundings(),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="", help="a checkpoint directory; default: random")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--length", type=int, default=2048, help="of the grid, in tokens")
    parser.add_argument("--long", type=int, default=16384, help="of the memory pass, in tokens")
    add_cell_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
