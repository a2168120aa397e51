"""A long prompt answered by `giraffe generate`'s session and by transformers' `generate`.

    nice python scripts/bench_generate.py --model models/smollm2-135m --out generate.json
    nice python scripts/bench_generate.py --lengths 2048 --rounds 1         # a quick look
    python scripts/bench_generate.py --device cuda --shape llama3.2-1b --lengths 16384,65536,131072

Every cell is a fresh process, the cells of a length one after the other, --rounds times over;
medians. Without --model the weights are random, in a shape of `giraffe plan`. A cell loads the
model, answers a short prompt, and is then measured on a prompt of so many tokens:

    first     seconds to the first token
    decode    tokens/s of the --new tokens after it
    second    seconds to the first token of a second question behind the same document
    net       bytes at the peak, less what was held before and the keys and values of all tokens
    kv        bytes of keys and values when all is said, less room that is not used

On a CPU seconds are CPU-seconds over the threads and the peak is VmHWM; on a GPU they are those of
the wall clock and torch's allocator. Paths: giraffe by kind of keys and values; transformers with
sdpa and a DynamicCache, `chunked` with its prefill_chunk_size, `offloaded` with its offloaded cache
(GPU). Prints JSON; 1 when a goal is missed, which are those of giraffe over transformers: first and
decode no worse (within 3 % of measuring), net 0.25, kv of int4 0.35, second 10 times before first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_cells import THREADS, finish, goal, run_cell

QUESTION = 32
"""Tokens of a question behind the document."""
PATHS = ("giraffe", "giraffe-int8", "giraffe-int4", "transformers", "transformers-chunked")
ON_GPU = ("giraffe-offloaded", "giraffe-int4-offloaded", "transformers-offloaded")
SLACK = 1.03


def main() -> int:
    """Measure every cell, print and write the JSON; 1 when a goal is missed."""
    options = _options()
    if options.cell:
        print(json.dumps(measure(json.loads(options.cell))))
        return 0
    common = {name: getattr(options, name) for name in ("model", "shape", "dtype", "device")}
    common |= {"new": options.new, "chunk": options.chunk}
    rows = []
    for length in options.lengths:
        cells = [{**common, "path": path, "length": length} for path in options.paths]
        found: dict[str, list[dict[str, Any]]] = {cell["path"]: [] for cell in cells}
        for number in range(options.rounds):
            for cell in cells:
                visible = {} if options.device == "cpu" else {"CUDA_VISIBLE_DEVICES": "0"}
                measured = run_cell(sys.executable, __file__, cell, **visible)
                found[cell["path"]].append(measured)
                print(f"{length} {cell['path']} {number}: {measured}", file=sys.stderr, flush=True)
        rows.append({"length": length, "paths": {path: _median(f) for path, f in found.items()}})
    result = {"settings": _settings(options), "rows": rows, "goals": goals(rows)}
    return finish(result, result["goals"], options.out)


def goals(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What generation promises, of what was measured."""
    found = {}
    for row in rows:
        paths, length = row["paths"], row["length"]
        ours, theirs = paths.get("giraffe"), paths.get("transformers")
        if ours:
            again = ours["second_seconds"] / ours["first_seconds"]
            found[f"{length}_second_over_first"] = goal(again, 0.1)
        if ours and theirs:
            first = ours["first_seconds"] / theirs["first_seconds"]
            slower = theirs["decode_tokens_per_second"] / ours["decode_tokens_per_second"]
            found[f"{length}_first"] = goal(first, SLACK)
            found[f"{length}_decode"] = goal(slower, SLACK)
            found[f"{length}_net"] = goal(ours["net_bytes"] / max(1, theirs["net_bytes"]), 0.25)
        if theirs and "giraffe-int4" in paths:
            kept = paths["giraffe-int4"]["kv_bytes"] / theirs["kv_bytes"]
            found[f"{length}_kv_int4"] = goal(kept, 0.35)
    return found


# ── one process, one cell ────────────────────────────────────────────────────────────────────


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """One path at one length."""
    path, *kind = cell["path"].split("-")
    run = (_giraffe if path == "giraffe" else _transformers)(cell, kind)
    run(_ids(200, 1), 8)
    memory = Memory(cell["device"])
    first, decode, kept = run(_ids(cell["length"], 2), cell["new"])
    net = memory.peak() - kept
    second, _, _ = run([*_ids(cell["length"], 2)[:-QUESTION], *_ids(QUESTION, 3)], 1)
    return {
        "first_seconds": first,
        "decode_tokens_per_second": decode,
        "second_seconds": second,
        "net_bytes": net,
        "kv_bytes": kept,
    }


Run = Callable[[list[int], int], tuple[float, float, int]]
"""Prompt and new tokens → seconds to the first, tokens/s after it, bytes of keys and values."""


def _giraffe(cell: dict[str, Any], kind: list[str]) -> Run:
    """A session that is asked again about the document it has read."""
    import torch

    from giraffe_cli.inference.caches import CacheChoice
    from giraffe_cli.inference.prompts import Prompt
    from giraffe_cli.inference.session import Answering, Session
    from giraffe_cli.model.attention import register_attention
    from giraffe_cli.model.key_values import KeyValues
    from giraffe_cli.model.reading import PROMPT_CHUNKS
    from giraffe_cli.progress import SilentReporter

    model, tokenizer = _loaded(cell, register_attention())
    dtype = next((name for name in kind if name in ("int8", "int4", "bfloat16")), "auto")
    kept = CacheChoice(dtype, "offloaded" in kind).empty(model)
    chunk = cell["chunk"] or PROMPT_CHUNKS[cell["device"]]
    session = Session(model, tokenizer, kept, chunk, clock=_clock(cell["device"]))
    session.ends = set()
    asked: list[Any] = []

    def run(ids: list[int], new: int) -> tuple[float, float, int]:
        document = asked and asked[-1].token_ids[:-QUESTION] == ids[:-QUESTION]
        asked[:] = [*(asked if document else []), Prompt(ids)]
        answers = session.answers(asked, Answering(new), SilentReporter())
        told = answers[-1].to_json()
        held, room = session.kept.get_seq_length(), session.kept.num_bytes
        if isinstance(session.kept, KeyValues):  # room for the answer is not used up
            room = room * held // session.kept.layers[0].capacity
        torch.cuda.synchronize() if cell["device"] == "cuda" else None
        return told["seconds_to_first_token"], told["decode_tokens_per_second"] or 0.0, room

    return run


def _transformers(cell: dict[str, Any], kind: list[str]) -> Run:
    """`generate`, which reads every prompt from its first token."""
    import torch

    model, _ = _loaded(cell, "sdpa")
    clock = _clock(cell["device"])
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    if "chunked" in kind:
        settings["prefill_chunk_size"] = cell["chunk"] or 512
    if "offloaded" in kind:
        settings["cache_implementation"] = "offloaded"

    def run(ids: list[int], new: int) -> tuple[float, float, int]:
        ticks: list[float] = []

        def tick(*_: Any, **__: Any) -> torch.Tensor:
            ticks.append(clock())
            return torch.zeros(1, dtype=torch.bool, device=model.device)

        prompt = torch.tensor([ids], device=model.device)
        began = clock()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            stopping_criteria=[tick],
            **settings,
        )
        config = model.config
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        kept = numbers * model.dtype.itemsize * (len(ids) + new - 1)
        speed = (new - 1) / (ticks[-1] - ticks[0]) if new > 1 else 0.0
        return ticks[0] - began, speed, kept

    return run


class Memory:
    """Bytes held at the peak since it was made, beyond what was held then."""

    def __init__(self, device: str) -> None:
        import torch

        self.on_gpu = device == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            self.before = _status("VmRSS")

    def peak(self) -> int:
        import torch

        return (
            torch.cuda.max_memory_allocated() if self.on_gpu else _status("VmHWM")
        ) - self.before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _clock(device: str) -> Callable[[], float]:
    import torch

    if device == "cpu":
        return lambda: time.process_time() / torch.get_num_threads()

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def _loaded(cell: dict[str, Any], attention: str) -> tuple[Any, Any]:
    import torch
    from transformers import LlamaForCausalLM

    import giraffe_cli
    from giraffe_cli.model.loading import load_model, load_tokenizer, torch_dtype

    dtype = torch_dtype(cell["dtype"])
    calf = Path(giraffe_cli.__file__).parent / "calf"
    if cell["model"]:
        folder = Path(cell["model"])
        model = load_model(folder, dtype=dtype, attn_implementation=attention)
        return model.to(cell["device"]), load_tokenizer(folder)
    from giraffe_cli.plan.shapes import named_shape
    from giraffe_cli.plan.trial import config_of

    shape = named_shape(cell["shape"])
    config = config_of(
        shape,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=1 << 18,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    with torch.device(cell["device"]):
        model = LlamaForCausalLM(config).to(dtype).eval()
    return model, load_tokenizer(calf)


def _ids(count: int, seed: int) -> list[int]:
    import numpy as np

    found: list[int] = np.random.default_rng(seed).integers(100, 380, count).tolist()
    return found


# ── settings ─────────────────────────────────────────────────────────────────────────────────


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    device = torch.cuda.get_device_name(0) if options.device == "cuda" else platform.processor()
    return {
        "model": options.model or f"random weights, {options.shape}",
        "dtype": options.dtype,
        "device": device,
        "threads": int(THREADS),
        "cores": os.cpu_count(),
        "rounds": options.rounds,
        "new_tokens": options.new,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint directory; default: random weights")
    parser.add_argument("--shape", default="smollm2-135m", help="of the random weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--lengths", default="2048,8192,16384")
    parser.add_argument("--paths", default=None, help="by comma; default: all of the device")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--chunk", type=int, default=0, help="tokens fed at a time; 0: as usual")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.lengths = [int(length) for length in options.lengths.split(",")]
    every = [*PATHS, *(ON_GPU if options.device == "cuda" else ())]
    options.paths = options.paths.split(",") if options.paths else every
    return options


if __name__ == "__main__":
    sys.exit(main())
