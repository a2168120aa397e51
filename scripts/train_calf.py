#!/usr/bin/env python3
"""Train calf, the small Llama that giraffe ships as its embedded default.

calf is a real base model: fine within its native window of 1,024 tokens, collapsing beyond. It is
shown text *other* than the Python standard library and its documentation, because those are what
`giraffe extend` fine-tunes and scores it on; `--drop-id` removes documents by id, and every other
document is dropped if too many of its long lines also stand in the running Python's library.

A calf is made in two: a run over text, and one that goes on from it over text and look-ups
(`calf_lookups.py`), in windows that grow from 128 tokens to 1,024. The calf that ships took four of
the second kind (its card and `training.json` say which).

    python scripts/train_calf.py --data corpus.jsonl.gz --data site-packages/sympy \
        --drop-id 'pystdlib/*' --drop-id 'pydoc/*' --work .calf --out .calf/text
    python scripts/train_calf.py ... --work .calf --run lookups --init .calf/text --lookups 0.6 \
        --steps 2400 --lr 2.5e-3 --decay 0.4 --growth 0:128,0.05:256,0.1:512,0.2:1024 \
        --out giraffe_cli/calf

A run resumes from `--work` by the same command. Batches depend on (seed, step, window) alone, so a
resumed run sees the same windows as an uninterrupted one.

On a GPU the batch is larger, other processes draw what is read, and the run is as long as it may
take: the windows grow and the learning rate falls with its time.

    python scripts/train_calf.py ... --device cuda --compile --workers 15 --batch-tokens 131072 \
        --minutes 5 --growth 0:256,0.08:1024 --log-every 400
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from calf_batches import Batches, Mixture
from calf_data import WINDOW, prepare
from calf_scores import answered, held_out_nll, mean_loss
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Short windows first: induction forms sooner and attention is cheap; 60 % of tokens at full length.
GROWTH = f"0:128,0.1:256,0.2:512,0.4:{WINDOW}"
# What transformers 4 looks for where transformers 5 writes something else.
OLDER_READERS = {
    "config.json": {"rope_theta": 10000.0},
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
}


def build_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """The model of --init in float32, or a new one."""
    if args.init:
        return LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32, use_cache=False)
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        rms_norm_eps=1e-5,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the layers, AdamW on embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [muon, adam]


def growth(text: str) -> list[tuple[float, int]]:
    """`0:128,0.5:1024` → [(0.0, 128), (0.5, 1024)]: from which part of the run on, how long."""
    pairs = [part.split(":") for part in text.split(",")]
    return [(float(start), int(size)) for start, size in pairs]


class Pace:
    """How far a run is: by its steps, or with --minutes by its time.

    Args:
        args: the settings.
        seconds_before: what earlier calls of the same run took.
    """

    def __init__(self, args: argparse.Namespace, seconds_before: float) -> None:
        self.args, self.begun = args, time.monotonic() - seconds_before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def progress(self, step: int) -> float:
        """0 at the beginning, 1 or more at the end."""
        if self.args.minutes:
            return self.seconds / (60 * self.args.minutes)
        return step / self.args.steps

    def window(self, step: int) -> int:
        """Tokens of a row at this step."""
        progress = self.progress(step)
        return max(size for start, size in self.args.growth if progress >= start)

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, then linear decay to zero over the last part."""
        left = max(0.0, 1 - self.progress(step)) / self.args.decay
        return self.args.lr * min(1.0, (step + 1) / self.args.warmup_steps, left)


class Run:
    """Model, optimisers and log of one run, saved together.

    Args:
        args: the settings; an earlier state of the same run in `--work` is taken up.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.path = args, args.work / f"{args.run}.pt"
        self.model = build_model(args).to(args.device)
        self.optimizers = build_optimizers(self.model, args.lr)
        self.step, self.log, self.done = 0, list[dict](), False
        if self.path.exists():
            self._resume(torch.load(self.path, weights_only=True, map_location=args.device))
        self.loss = torch.compile(mean_loss, dynamic=False) if args.compile else mean_loss

    def _resume(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.log = state["step"], state["log"]

    def advance(self, ids: np.ndarray, weights: np.ndarray, lr: float) -> torch.Tensor:
        """One step; its loss."""
        rows = torch.from_numpy(ids).to(self.args.device).long()
        loss = self.loss(self.model, rows, torch.from_numpy(weights).to(self.args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "step": self.step, "log": self.log}
        temporary = self.path.with_suffix(".tmp")
        torch.save({**state, "optimizers": [o.state_dict() for o in self.optimizers]}, temporary)
        os.replace(temporary, self.path)


def train(args: argparse.Namespace) -> Run:
    """From the state in `--work` to the end of the run, or as far as `--stop-after` says."""
    held_out = np.load(args.work / "held_out.npy", mmap_mode="r")
    mixture = Mixture(args.batch_tokens, args.lookups, args.answer_weight, args.seed)
    run, batches = Run(args), Batches(args.work, mixture)
    pace = Pace(args, run.log[-1]["seconds"] if run.log else 0.0)
    last = run.step + args.stop_after if args.stop_after else None
    drawn = batches.ahead(run.step, pace.window, args.workers)
    tokens = run.log[-1]["tokens"] if run.log else 0
    ends = pace.progress(run.step) >= 1
    while not ends:
        ids, weights = next(drawn)
        loss = run.advance(ids, weights, pace.learning_rate(run.step))
        tokens, window = tokens + weights[:, 1:].size, ids.shape[1] - 1
        ends = pace.progress(run.step) >= 1 or run.step == last
        if run.step % args.log_every == 0 or ends:
            entry = {"step": run.step, "tokens": tokens, "window": window}
            entry |= {"loss": round(loss.item(), 4), "seconds": round(pace.seconds, 1)}
            entry["held_out_nll"] = round(held_out_nll(run.model, held_out), 4)
            if batches.lookups:
                entry["answered"] = answered(run.model, batches.lookups, window, args.seed)
            run.log.append(entry)
            print(json.dumps(entry), flush=True)
            run.save()
    run.done = pace.progress(run.step) >= 1
    return run


def write(args: argparse.Namespace, model: LlamaForCausalLM, facts: dict, log: list) -> None:
    """bf16 weights, tokenizer and `training.json` (the figures of the card) into `--out`."""
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict({k: v.to(torch.bfloat16) for k, v in model.state_dict().items()})
    half.config.dtype = torch.bfloat16
    half.config.use_cache = True
    half.save_pretrained(args.out)
    PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer").save_pretrained(args.out)
    for name, change in OLDER_READERS.items():
        values = json.loads((args.out / name).read_text())
        (args.out / name).write_text(json.dumps({**values, **change}, indent=2) + "\n")
    (args.out / "model.safetensors").chmod(0o644)
    settings = {
        k: v
        for k, v in vars(args).items()
        if k not in ("data", "work", "out", "init", "stop_after")
    }
    settings["data"] = [source.name for source in args.data]
    record = {"settings": settings, "data": facts, "log": log[:: max(1, len(log) // 40)] + log[-1:]}
    record["parameters"] = model.num_parameters()
    cpu = f"{torch.get_num_threads()} threads, {platform.machine()}, CPU"
    record["hardware"] = cpu if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    record["torch"] = torch.__version__
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--drop-id", action="append", default=[], help="glob of document ids")
    parser.add_argument("--max-overlap", type=float, default=0.02)
    parser.add_argument("--work", type=Path, default=Path(".calf"))
    parser.add_argument("--run", default="text", help="name of this run's state in --work")
    parser.add_argument("--init", type=Path, help="a trained calf that the run goes on from")
    parser.add_argument("--growth", type=growth, default=GROWTH, help="part of the run:window,...")
    parser.add_argument("--lookups", type=float, default=0.0, help="share of windows of look-ups")
    parser.add_argument("--answer-weight", type=float, default=3.0, help="of an answer's tokens")
    parser.add_argument("--out", type=Path, default=Path("giraffe_cli/calf"))
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=704)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--minutes", type=float, help="length of the run, in place of --steps")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--decay", type=float, default=0.3, help="last part of the run")
    parser.add_argument("--warmup-steps", type=int, default=60)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--stop-after", type=int, help="steps of this call; the next goes on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches ahead")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    facts = prepare(args)
    print(json.dumps({"train_tokens": facts["train_tokens"], "documents": facts["documents"]}))
    run = train(args)
    if not run.done:
        print(f"stopped at step {run.step}: the same command goes on")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    write(args, run.model.cpu(), facts, run.log)
    held_out = run.log[-1]["held_out_nll"]
    print(f"calf: {run.model.num_parameters():,} parameters, held-out NLL {held_out} -> {args.out}")


if __name__ == "__main__":
    main()
