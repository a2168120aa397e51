"""A zero-shot extension in llama.cpp against transformers, beyond the native window of real text.

    python scripts/compare_llamacpp.py calf --target 4k --strategy yarn
    python scripts/compare_llamacpp.py ./SmolLM2-135M --target 32k --strategy yarn,power,longrope
    python scripts/compare_llamacpp.py calf --target 4k --strategy all --control

Each strategy (with the knobs of its demonstration where it has no defaults) is written as a
checkpoint, exported to an f16 GGUF and run by llama.cpp as a user gets it (float16 KV cache, one
thread). transformers runs the same checkpoint in float32 on weights rounded to float16, so that
what differs is arithmetic and RoPE. Both read the same Python sources of the standard library; the
512 positions that follow the native window are compared: the share of equal top tokens where
transformers' two best logits are more than 0.05 apart, and the mean NLL of the next token.
`--control` runs the same file without `rope_freqs.weight` and the attention factor, which is what
llama.cpp's own converter makes of `longrope`. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.export.base import ExportOptions, make_target
from giraffe_cli.merge import merge_stage
from giraffe_cli.model.loading import load_model, load_tokenizer
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import RopeTable, make_table, strategies
from giraffe_cli.rope.install import ROPE_FILE
from giraffe_cli.rundir import MANIFEST, read_json, write_json
from giraffe_cli.units import parse_length

Logits = npt.NDArray[np.float32]
CLEAR_GAP = 0.05
BATCH = 512


@dataclass(frozen=True)
class Passage:
    """A text and the positions of it that are compared."""

    text: str
    ids: list[int]
    """`[native + positions + 1]`, as the checkpoint's tokenizer makes them."""
    first: int
    """The first compared position: the native window."""


def passage(checkpoint: Checkpoint, positions: int) -> Passage:
    """As many whole lines of the standard library's sources as it takes, cut to the token."""
    tokenizer = load_tokenizer(checkpoint.path)
    needed, text, ids = checkpoint.native_length + positions + 1, "", []
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[20:]:
        text += path.read_text(encoding="utf-8")
        if len(text) > 2 * needed and len(ids := tokenizer(text).input_ids) >= needed:
            return Passage(text, ids[:needed], checkpoint.native_length)
    raise SystemExit(f"the standard library has fewer than {needed} tokens")


def in_transformers(folder: Path, passage: Passage) -> Logits:
    """`[positions, vocabulary]` in float32, from matrices rounded to float16."""
    import torch

    model = load_model(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.half().float())
        ids = torch.tensor([passage.ids[:-1]])
        keep = len(passage.ids) - 1 - passage.first
        logits = model(ids, use_cache=False, logits_to_keep=keep).logits[0]
    return np.asarray(logits.numpy(), dtype=np.float32)


class LlamaCpp:
    """A GGUF opened by llama.cpp, through the C functions that llama-cpp-python binds."""

    def __init__(self, path: Path, length: int) -> None:
        import llama_cpp

        self.lib = llama_cpp.llama_cpp
        self.messages: list[str] = []
        self._log = llama_cpp.llama_log_callback(
            lambda level, text, _: self.messages.append(text.decode(errors="replace"))
        )
        self.lib.llama_log_set(self._log, None)
        self.lib.llama_backend_init()
        parameters = self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp refuses {path}: {''.join(self.messages[-5:])}")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        settings = self.lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = length, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = 1
        self.context = self.lib.llama_init_from_model(self.model, settings)

    def tokenize(self, text: str) -> list[int]:
        """With the tokens that the file says are added, and none read out of the text."""
        raw = text.encode()
        buffer = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), buffer, len(buffer), True, False)
        return list(buffer[:count])

    def logits(self, passage: Passage) -> Logits:
        """`[positions, vocabulary]`; the prefix is read without asking for logits."""
        found = []
        ids, last = passage.ids[:-1], len(passage.ids) - 1
        edges = [*range(0, passage.first, BATCH), *range(passage.first, last, BATCH), last]
        for begin, end in zip(edges, edges[1:], strict=False):
            found.append(self._decode(ids[begin:end], begin, wanted=begin >= passage.first))
        return np.concatenate([part for part in found if part is not None])

    def greedy(self, ids: list[int], new: int) -> list[int]:
        """The most probable tokens after a prompt, up to an end of text, `new` at most."""
        for begin in range(0, len(ids) - 1, BATCH):
            self._decode(ids[begin : min(begin + BATCH, len(ids) - 1)], begin, wanted=False)
        found, token, ends = [], ids[-1], False
        while len(found) < new and not ends:
            logits = self._decode([token], len(ids) - 1 + len(found), wanted=True)
            assert logits is not None
            token = int(logits[0].argmax())
            ends = bool(self.lib.llama_vocab_is_eog(self.vocab, token))
            found += [] if ends else [token]
        return found

    def _decode(self, ids: list[int], begin: int, wanted: bool) -> Logits | None:
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for n, token in enumerate(ids):
            batch.token[n], batch.pos[n] = token, begin + n
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, 0
            batch.logits[n] = wanted
        code = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if code:
            raise SystemExit(f"llama_decode answered {code}")
        if not wanted:
            return None
        size = self.lib.llama_vocab_n_tokens(self.vocab)
        pointer = self.lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, shape=(len(ids), size)).copy()

    def close(self) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


def nll(logits: Logits, passage: Passage) -> float:
    """Mean over the compared positions, in nats."""
    wide = logits.astype(np.float64)
    best = wide.max(axis=1, keepdims=True)
    total = best[:, 0] + np.log(np.exp(wide - best).sum(axis=1))
    targets = np.array(passage.ids[passage.first + 1 :])
    return float(np.mean(total - wide[np.arange(len(targets)), targets]))


def scores(reference: Logits, found: Logits, passage: Passage) -> dict[str, Any]:
    """Agreement of `found` with `reference`."""
    two = np.sort(np.partition(reference, -2, axis=1)[:, -2:], axis=1)
    clear = two[:, 1] - two[:, 0] > CLEAR_GAP
    agree = reference.argmax(axis=1) == found.argmax(axis=1)
    return {
        "top1_agreement": float(agree[clear].mean()),
        "clear_positions": int(clear.sum()),
        "nll_transformers": nll(reference, passage),
        "nll_llamacpp": nll(found, passage),
        "max_logit_difference": float(np.abs(reference - found).max()),
    }


def write_checkpoint(checkpoint: Checkpoint, table: RopeTable, folder: Path) -> Path:
    """The zero-shot extension, as `giraffe extend --steps 0` writes it."""
    return merge_stage(checkpoint, None, table, folder, SilentReporter())


def without_table(folder: Path, table: RopeTable, copy: Path) -> Path:
    """The same checkpoint claiming plain RoPE: its GGUF is the other's less the table."""
    theta = table.rope_parameters["rope_theta"]
    copy.mkdir()
    for path in folder.iterdir():
        if path.name not in (ROPE_FILE, MANIFEST, "config.json"):
            (copy / path.name).hardlink_to(path)  # a symbolic one leads out of the checkpoint
    config = {k: v for k, v in read_json(folder / "config.json").items() if k != "rope_scaling"}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    write_json(copy / "config.json", config)
    return copy


def to_gguf(folder: Path, path: Path, dtype: str) -> dict[str, Any]:
    options = ExportOptions(out=path, dtype=dtype)
    return make_target("gguf").export(str(folder), options, SilentReporter()).facts


def run_file(path: Path, passage: Passage) -> tuple[Logits, list[int]]:
    """Logits, and llama.cpp's own tokens of the text."""
    runtime = LlamaCpp(path, len(passage.ids) + BATCH)
    try:
        return runtime.logits(passage), runtime.tokenize(passage.text)
    finally:
        runtime.close()


def compare(
    checkpoint: Checkpoint, table: RopeTable, passage: Passage, dtype: str, control: bool
) -> dict[str, Any]:
    """One strategy; with `control` also the file without its table."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(checkpoint, table, Path(scratch) / "model")
        facts = to_gguf(folder, Path(scratch) / "model.gguf", dtype)
        reference = in_transformers(folder, passage)
        found, tokens = run_file(Path(facts["path"]), passage)
        result = {
            "rope_type": table.rope_parameters["rope_type"],
            "rope_freqs": facts["rope_freqs"],
            "attention_factor": facts["attention_factor"],
            "tokens_equal": tokens[: len(passage.ids) - 8] == passage.ids[:-8],
            **scores(reference, found, passage),
        }
        if control and facts["rope_freqs"]:
            bare = without_table(folder, table, Path(scratch) / "bare")
            stripped = to_gguf(bare, Path(scratch) / "bare.gguf", dtype)
            dropped, _ = run_file(Path(stripped["path"]), passage)
            result["control"] = scores(reference, dropped, passage)
    return {**result, "seconds": round(time.monotonic() - begun, 1)}


def versions() -> dict[str, str]:
    import llama_cpp
    import transformers

    return {"llama_cpp_python": llama_cpp.__version__, "transformers": transformers.__version__}


def main(arguments: list[str], show: Callable[[str], Any] = print) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--target", default="4k")
    parser.add_argument("--strategy", default="all", help="names with commas, or all")
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--control", action="store_true")
    options = parser.parse_args(arguments)
    checkpoint = inspect(options.model, Path(options.model))
    head = checkpoint.head(parse_length(options.target))
    known = strategies()
    names = list(known) if options.strategy == "all" else options.strategy.split(",")
    text = passage(checkpoint, options.positions)
    results = {}
    for name in names:
        table = make_table(name, known[name].example(head), head)
        results[name] = compare(checkpoint, table, text, options.dtype, options.control)
        print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    facts = {**vars(options), **versions(), "first_position": text.first}
    show(json.dumps({**facts, "strategies": results}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
