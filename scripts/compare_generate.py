"""Generation over long prompts against transformers: greedy tokens, top tokens under small caches.

    nice python scripts/compare_generate.py runs/smollm2-16k/model --out same.json

For each length, in float32, a prompt of text from the Python standard library:

    greedy     whether the tokens after it are those of `transformers.generate`
    top1       of --positions tokens that follow it, fed eight at a time behind the cache, at how
               many the most probable next token is that of one stock pass without a cache
    clear      the same where transformers' two best logits are more than 0.05 apart

by how keys and values are kept. Prints JSON; 1 when greedy tokens differ, or bfloat16 or int8 keep
less than 99 % of the top tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from giraffe_cli.inference.caches import CacheChoice
from giraffe_cli.inference.prompts import Prompt
from giraffe_cli.inference.session import Answering, Session
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.loading import load_model, load_tokenizer
from giraffe_cli.model.reading import PROMPT_CHUNKS, feed, read_chunks
from giraffe_cli.progress import SilentReporter
from giraffe_cli.units import parse_length

KEPT = ("auto", "bfloat16", "int8", "int4")
NEEDED = {"auto": 0.99, "bfloat16": 0.99, "int8": 0.99}
STEP = 8
CLEAR = 0.05


def main() -> int:
    """Compare at every length, print and write the JSON; 1 when something is missed."""
    options = _options()
    rows = []
    for length in (parse_length(text) for text in options.lengths.split(",")):
        rows.append(compare(options.checkpoint, length, options.positions, options.new))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {"checkpoint": str(options.checkpoint), "rows": rows, "ok": all(map(_holds, rows))}
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if result["ok"] else 1


def compare(folder: Path, length: int, positions: int, new: int) -> dict[str, Any]:
    """Prompt, followed positions and new tokens together are `length` tokens."""
    began, ids = time.monotonic(), _text(folder, length - new)
    prompt = ids[: len(ids) - positions]
    stock = load_model(folder, dtype=torch.float32)
    with torch.inference_mode():
        everything = torch.tensor([ids])
        logits = stock(everything, use_cache=False, logits_to_keep=positions).logits[0]
        asked = torch.tensor([prompt])
        settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None}
        answer = stock.generate(
            asked, attention_mask=torch.ones_like(asked), pad_token_id=0, **settings
        )
    del stock
    two = logits.topk(2).values
    clear = two[:, 0] - two[:, 1] > CLEAR
    expected = logits.argmax(-1)
    model = load_model(folder, dtype=torch.float32, attn_implementation=register_attention())
    kept = {name: followed(model, ids, positions, name) for name in KEPT}
    return {
        "length": length,
        "prompt_tokens": len(prompt),
        "positions": positions,
        "greedy_equal": greedy(model, folder, prompt, new) == answer[0, len(prompt) :].tolist(),
        "top1": {n: float((found == expected).float().mean()) for n, found in kept.items()},
        "clear": {n: float((found == expected)[clear].float().mean()) for n, found in kept.items()},
        "seconds": round(time.monotonic() - began, 1),
    }


def followed(model: Any, ids: list[int], positions: int, name: str) -> torch.Tensor:
    """The most probable token after each of the last tokens, behind a cache of the others."""
    kept, found = CacheChoice(name).empty(model), []
    kept.reserve(len(ids))
    read = partial(feed, model)
    with torch.inference_mode():
        read_chunks(read, ids[:-positions], kept, chunk=PROMPT_CHUNKS["cpu"], keep=1)
        for start in range(len(ids) - positions, len(ids), STEP):
            state = read(ids[start : start + STEP], kept)
            found.append((state @ model.lm_head.weight.T).argmax(-1))
    return torch.cat(found)


def greedy(model: Any, folder: Path, prompt: list[int], new: int) -> list[int]:
    """What a session answers."""
    session = Session(
        model, load_tokenizer(folder), CacheChoice().empty(model), PROMPT_CHUNKS["cpu"]
    )
    session.ends = set()
    (answer,) = session.answers([Prompt(prompt)], Answering(new), SilentReporter())
    return answer.token_ids


def _text(folder: Path, count: int) -> list[int]:
    """`count` tokens of the standard library's sources."""
    tokenizer, text = load_tokenizer(folder), ""
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[20:]:
        text += path.read_text(encoding="utf-8")
        ids = tokenizer.backend_tokenizer.encode(text).ids if len(text) > 2 * count else []
        if len(ids) >= count:
            return list(ids[:count])
    raise SystemExit(f"the standard library has fewer than {count} tokens")


def _holds(row: dict[str, Any]) -> bool:
    return bool(row["greedy_equal"]) and all(row["top1"][n] >= NEEDED[n] for n in NEEDED)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--lengths", default="2k,9k,16k")
    parser.add_argument("--positions", type=int, default=512, help="a multiple of eight")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
