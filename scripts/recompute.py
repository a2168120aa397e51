"""An evaluation computed again with transformers alone, to see that giraffe's figures are true.

    python scripts/recompute.py EVAL_DIR CHECKPOINT [--subject base] [--dtype bfloat16]

EVAL_DIR holds samples.jsonl and prompts.jsonl.gz. Every `nll` sample is one forward pass, its mean
loss over the last `num_targets` tokens; every `passkey` sample is a greedy `generate` whose first
integer is the answer. Prints JSON; exit code 1 when a loss is off by more than 1e-3 nats or a
passkey score differs. Only float32 agrees to 1e-3 (evaluate with --dtype float32): bfloat16 adds
in another order.
"""

import argparse
import gzip
import json
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("evaluation", type=Path)
parser.add_argument("checkpoint")
parser.add_argument("--subject", default="checkpoint")
parser.add_argument("--dtype", default="float32")
given = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(given.checkpoint)
model = AutoModelForCausalLM.from_pretrained(given.checkpoint, dtype=getattr(torch, given.dtype))
with gzip.open(given.evaluation / "prompts.jsonl.gz", "rt") as lines:
    prompts = {p["prompt_sha256"]: p["token_ids"] for p in map(json.loads, lines)}

count, off, other_scores = {"nll": 0, "passkey": 0}, [0.0], []
for line in (given.evaluation / "samples.jsonl").open(encoding="utf-8"):
    sample = json.loads(line)
    if sample["subject"] != given.subject or sample["task"] not in ("nll", "passkey"):
        continue
    ids, n = torch.tensor([prompts[sample["prompt_sha256"]]]), sample["num_targets"]
    count[sample["task"]] += 1
    with torch.inference_mode():
        if sample["task"] == "nll":
            logits = model(ids, use_cache=False, logits_to_keep=n + 1).logits[0, :-1].float()
            nll = torch.nn.functional.cross_entropy(logits, ids[0, -n:]).item()
            off.append(abs(nll - sample["mean_nll"]))
        else:
            limit = {"max_new_tokens": sample["max_new_tokens"], "do_sample": False}
            new = model.generate(ids, attention_mask=torch.ones_like(ids), **limit)[
                0, ids.shape[1] :
            ]
            text = tokenizer.decode(new, skip_special_tokens=True)
            number = re.search(r"\d+", text)
            right = number is not None and number.group() in sample["answers"]
            if float(right) != sample["scores"][""]:
                other_scores.append([sample["key"], sample["text"], text])
if not sum(count.values()):
    raise SystemExit(f"no nll or passkey samples of {given.subject} in {given.evaluation}")
largest = torch.tensor(off).max().item()  # NaN where one is
found = {**count, "largest_nll_difference": largest, "other_passkey_scores": other_scores}
print(json.dumps(found, indent=2))
raise SystemExit(not largest <= 1e-3 or bool(other_scores))
