"""lm-eval's own prompts through giraffe's scorer, on one model object, sample by sample.

    python scripts/compare_lm_eval.py --model models/smollm2-135m --length 1024 --samples 50

Each prompt is generated after twice, as lm-eval does it (one pass over the prompt, transformers'
`generate`) and as giraffe does it (chunks of 512 tokens, own greedy loop), to the same limit and
the same end of text, and scored by each side's own rule. Prints JSON: how many scores and texts
agree, and every sample that differs with both texts. Exit code 1 when a score differs. Needs
`giraffe-cli[eval]`. What was generated is kept beside `--out` and not generated again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> int:
    """Compare task by task; 1 when a score differs."""
    options = _options()
    rows = {}
    for name in options.tasks.split(","):
        kept = options.out.with_suffix(f".{name}.json")
        if not kept.exists():
            row = compare(name, options)
            kept.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        rows[name] = json.loads(kept.read_text(encoding="utf-8"))
    result = {
        "model": options.model.name,
        "dtype": options.dtype,
        "length": options.length,
        "stops_when_found": options.stop_early,
        "tasks": rows,
        "ok": all(row["equal"] == row["n"] for row in rows.values()),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0 if result["ok"] else 1


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One task: scores and texts of both scorers."""
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.evals.lm_eval_run import run_task
    from giraffe_cli.evals.lm_eval_tasks import load_task
    from giraffe_cli.evals.open_subject import open_subject
    from giraffe_cli.evals.subject import Subject

    digest = inspect(str(options.model), options.out.parent / "checkpoint").digest
    opened = open_subject(Subject("checkpoint", options.model, digest, options.dtype))
    tokenizer = opened.tokenizer
    task = load_task(name, options.length, tokenizer, options.model, 0)[name]
    started = time.monotonic()
    theirs = run_task(
        task,
        opened,
        options.out.with_suffix(".responses"),
        length=options.length,
        limit=options.samples,
        chat=None,
        seed=0,
    )
    between = time.monotonic()
    print(f"{name}: lm-eval took {between - started:.0f} s", file=sys.stderr)
    pairs = []
    for sample in theirs.samples:
        pairs.append((sample, _ours(opened, sample, options)))
        print(f"{name}: {len(pairs)} of {len(theirs.samples)}", file=sys.stderr, flush=True)
    scores = [
        (sample.scores[str(options.length)], score, sample.text, text)
        for sample, (score, text) in pairs
    ]
    return {
        "n": len(scores),
        "equal": sum(a == b for a, b, _, _ in scores),
        "same_text": sum(a == b for _, _, a, b in scores),
        "ours_begins_theirs": sum(a.startswith(b) for _, _, a, b in scores),
        "lm_eval_mean": theirs.means[str(options.length)],
        "giraffe_mean": float(np.mean([score for _, score, _, _ in scores])),
        "longest": theirs.longest,
        "seconds": {
            "lm_eval": round(between - started, 1),
            "giraffe": round(time.monotonic() - between, 1),
        },
        "differing": [
            {
                "document": sample.document,
                "answers": sample.answers,
                "lm_eval": {"score": sample.scores[str(options.length)], "text": sample.text},
                "giraffe": {"score": score, "text": text},
            }
            for sample, (score, text) in pairs
            if score != sample.scores[str(options.length)]
        ],
        "other_text": [
            {"document": sample.document, "lm_eval": sample.text, "giraffe": text}
            for sample, (_, text) in pairs
            if text != sample.text
        ],
    }


def _ours(opened: Any, sample: Any, options: argparse.Namespace) -> tuple[float, str]:
    """Score and text of giraffe's scorer on lm-eval's rendered prompt."""
    from giraffe_cli.evals.base import Example
    from giraffe_cli.evals.prompt import share_found

    prompt, settings = sample.requests[0]
    example = Example(
        key=str(sample.document),
        cluster=str(sample.document),
        length=options.length,
        token_ids=np.asarray(opened.tokenizer(prompt).input_ids, np.int32),
        max_new_tokens=settings["max_gen_toks"],
        answers=tuple(sample.answers),
        stops_when_found=options.stop_early,
    )
    text = opened.outcome(example).text
    return share_found(example.answers, text), text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a Llama directory")
    parser.add_argument("--tasks", default="niah_single_1,niah_multikey_2")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--stop-early", action="store_true", help="end ours when all is found, as the tasks do"
    )
    parser.add_argument("--out", type=Path, default=Path("lm-eval.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
