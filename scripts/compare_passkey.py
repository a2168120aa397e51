"""A passkey far back in a long prompt: the same digits from llama.cpp and from transformers.

    python scripts/compare_passkey.py ./smollm2-16k --length 12k --out passkey.json

The prompts are those of the evaluation task `passkey`, at the depths of --depths. The checkpoint is
exported to an f16 GGUF and asked in llama.cpp as a user does it (one sequence, greedy, float16
keys and values), and by `transformers.generate` in float32 on matrices rounded to float16. Prints
one JSON object; 1 when a prompt is read as other tokens or answered with other digits, or none of
them with digits.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from compare_llamacpp import BATCH, LlamaCpp, to_gguf, versions

from giraffe_cli.evals.base import Example, Material
from giraffe_cli.evals.tasks.passkey import Passkey
from giraffe_cli.model.loading import load_model, load_tokenizer
from giraffe_cli.units import parse_length


def main() -> int:
    """Ask both, print and write the JSON; 1 when they differ."""
    options = _options()
    prompts = passkeys(options.checkpoint, options.length, options.depths, options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        facts = to_gguf(options.checkpoint, Path(scratch) / "model.gguf", "f16")
        there = in_llama_cpp(Path(facts["path"]), prompts, load_tokenizer(options.checkpoint))
    here = in_transformers(options.checkpoint, prompts)
    rows = [
        {
            "depth": prompt.details["depth"],
            "prompt_tokens": len(prompt.token_ids),
            "key": prompt.answers[0],
            "transformers": ours,
            "llama_cpp": {"text": text, "seconds": seconds},
            "tokens_equal": tokens_equal,
            "digits_equal": _digits(ours["text"]) == _digits(text),
            "key_found": _digits(ours["text"]) == prompt.answers[0],
        }
        for prompt, ours, (text, seconds, tokens_equal) in zip(prompts, here, there, strict=True)
    ]
    ok = all(row["tokens_equal"] and row["digits_equal"] for row in rows)
    ok = ok and any(_digits(row["transformers"]["text"]) for row in rows)  # else nothing is shown
    result = {"checkpoint": str(options.checkpoint), **versions(), "rows": rows, "ok": ok}
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if ok else 1


def passkeys(folder: Path, length: int, depths: int, seed: int) -> list[Example]:
    """One prompt a depth, as `giraffe eval --tasks passkey` makes them."""
    tokenizer = load_tokenizer(folder)
    begin = tuple(tokenizer("").input_ids)
    material = Material(
        encode=lambda text: tokenizer(text, add_special_tokens=False).input_ids,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        bos_token_ids=begin,
        documents=[],
    )
    task = Passkey(depths=depths, trials=1)
    every = task.examples(length, seed, material)
    return [one for one in every if not one.details["control"]]


def in_transformers(folder: Path, prompts: Sequence[Example]) -> list[dict[str, Any]]:
    """Greedy text after each prompt, from float32 arithmetic on float16 matrices."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype=torch.float32)
    found = []
    with torch.inference_mode():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.half().float())
        for prompt in prompts:
            ids, began = torch.from_numpy(prompt.token_ids.astype("int64"))[None], time.monotonic()
            answer = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=prompt.max_new_tokens,
                do_sample=False,
                pad_token_id=0,
            )[0, ids.shape[1] :]
            text = tokenizer.decode(answer, skip_special_tokens=True)
            found.append({"text": text, "seconds": round(time.monotonic() - began, 1)})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def in_llama_cpp(
    path: Path, prompts: Sequence[Example], tokenizer: Any
) -> list[tuple[str, float, bool]]:
    """Greedy text after each prompt, its seconds, and whether llama.cpp reads the same tokens."""
    longest = max(len(prompt.token_ids) + prompt.max_new_tokens for prompt in prompts)
    found = []
    for prompt in prompts:
        runtime, began = LlamaCpp(path, longest + BATCH), time.monotonic()
        try:
            ids = prompt.token_ids.tolist()
            words = tokenizer.decode(ids, skip_special_tokens=True)
            same = runtime.tokenize(words)[-len(ids) + 8 :] == ids[8:]
            text = tokenizer.decode(runtime.greedy(ids, prompt.max_new_tokens))
        finally:
            runtime.close()
        found.append((text, round(time.monotonic() - began, 1), same))
        print(found[-1], file=sys.stderr, flush=True)
    return found


def _digits(text: str) -> str | None:
    match = re.search(r"\d+", text)
    return match.group() if match else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--length", type=parse_length, default=parse_length("12k"))
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
