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

A run resumes from `--work` by the same command. Batches depend on (seed, step) alone, so a
resumed run sees the same windows as an uninterrupted one.
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import json
import os
import platform
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from calf_lookups import ANSWER, Lookups
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS = "<|begin|>", "<|end|>"
WINDOW = 1024
# Short windows first: induction forms sooner and attention is cheap; 60 % of tokens at full length.
GROWTH = f"0:128,0.1:256,0.2:512,0.4:{WINDOW}"
# What transformers 4 looks for where transformers 5 writes something else.
OLDER_READERS = {
    "config.json": {"rope_theta": 10000.0},
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
}
LONG_LINE = 40  # characters; shorter lines ("import os") are shared by all Python code


def read_documents(source: Path, drop_ids: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of a JSONL(.gz) file or of the `.py` files below a folder."""
    if source.is_dir():
        for path in sorted(source.rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if len(text) >= 2000 and "_vendor" not in path.parts:
                yield f"{source.name}/{path.relative_to(source)}", text
        return
    opener = gzip.open if source.suffix == ".gz" else open
    with opener(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if not any(fnmatch.fnmatch(document["id"], pattern) for pattern in drop_ids):
                yield document["id"], document["text"]


def long_lines(text: str) -> set[str]:
    return {s for line in text.splitlines() if len(s := line.strip()) >= LONG_LINE}


def library_lines() -> set[str]:
    """Long lines of the running Python's standard library: what calf must not have read."""
    root, lines = Path(sysconfig.get_paths()["stdlib"]), set[str]()
    for path in root.rglob("*.py"):
        if "site-packages" not in path.parts:
            lines |= long_lines(path.read_text(encoding="utf-8", errors="ignore"))
    return lines


def collect(args: argparse.Namespace) -> tuple[list[tuple[str, str]], list[str]]:
    """Documents that may be read, and the ids of those dropped as overlapping the library."""
    library, kept, dropped = library_lines(), [], []
    for source in args.data:
        for name, text in read_documents(source, args.drop_id):
            own = long_lines(text)
            shared = len(own & library) / max(1, len(own))
            if shared > args.max_overlap:
                dropped.append(name)
            else:
                kept.append((name, text))
    return kept, dropped


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits: SmolLM's pre-tokeniser, which llama.cpp knows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def prepare(args: argparse.Namespace) -> dict:
    """Tokenise once into `work/{train,held_out}.npy`; returns the facts for the card."""
    facts_path = args.work / "data.json"
    if facts_path.exists():
        return json.loads(facts_path.read_text())
    kept, dropped = collect(args)
    sample = [text[i : i + 20000] for _, text in kept for i in range(0, len(text), 200000)]
    tokenizer = train_tokenizer(sample, args.vocab_size)
    tokenizer.save_pretrained(args.work / "tokenizer")
    streams: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    counts: dict[str, int] = {}
    for index, (name, text) in enumerate(kept):
        ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        streams["held_out" if index % 50 == 7 else "train"].append(np.array(ids, np.uint16))
        group = name.split("/")[0]
        counts[group] = counts.get(group, 0) + len(ids)
    for part, arrays in streams.items():
        np.save(args.work / f"{part}.npy", np.concatenate(arrays))
    facts = {
        "documents": len(kept),
        "dropped_as_library_overlap": len(dropped),
        "dropped_ids": args.drop_id,
        "tokens_by_source": counts,
        "train_tokens": int(sum(map(len, streams["train"]))),
        "held_out_tokens": int(sum(map(len, streams["held_out"]))),
        "bytes": sum(len(text.encode()) for _, text in kept),
    }
    facts_path.write_text(json.dumps(facts, indent=1))
    return facts


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


def window_at(progress: float, args: argparse.Namespace) -> int:
    return max(size for start, size in args.growth if progress >= start)


def batch(
    stream: np.ndarray, lookups: Lookups | None, step: int, window: int, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch, window + 1]` token ids and weights; a function of (seed, step)."""
    rng, ids, weights = np.random.default_rng([args.seed, step]), [], []
    for _ in range(args.batch_tokens // window):
        if lookups and rng.random() < args.lookups:
            tokens, weight = lookups.window(rng, window + 1)
            weight = weighted(weight, args.answer_weight)
        else:
            start = int(rng.integers(0, len(stream) - window - 1))
            tokens = stream[start : start + window + 1].astype(np.int64)
            weight = np.ones(window + 1, np.float32)
        ids.append(tokens)
        weights.append(weight)
    return torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(weights))


def weighted(weights: np.ndarray, factor: float) -> np.ndarray:
    """`factor` on the tokens of answers, twice that on the first two, which tell keys apart."""
    answer = weights == ANSWER
    second = np.concatenate([[False, False], answer[:-2]])
    return np.where(answer, factor * np.where(answer & second, 1.0, 2.0), weights).astype(
        np.float32
    )


def token_nll(model: LlamaForCausalLM, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch, window]` nats of the tokens after the first, and whether each came out first."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=rows[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden)
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(rows), -1), logits.argmax(-1) == rows[:, 1:]


@torch.no_grad()
def answered(model: LlamaForCausalLM, lookups: Lookups, window: int, args) -> dict[str, float]:
    """Share of answers, in texts that are not trained on, of which every token comes out first."""
    found = {}
    for kind in ("repeat", "pairs", "dense", "hidden"):
        rng = np.random.default_rng([args.seed, 1 << 30])
        drawn = [lookups.window(rng, window + 1, [kind]) for _ in range(max(8, 8192 // window))]
        rows = torch.from_numpy(np.stack([ids for ids, _ in drawn]))
        _, right = token_nll(model, rows)
        marked = np.stack([weights for _, weights in drawn])[:, 1:] == ANSWER
        found[kind] = round(whole_answers(right.numpy(), marked), 3)
    return found


def whole_answers(right: np.ndarray, marked: np.ndarray) -> float:
    """Of the runs of marked tokens, the share of which all are right."""
    kept = []
    for row, marks in zip(right, marked, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
        kept += [row[begin:end].all() for begin, end in edges.reshape(-1, 2)]
    return float(np.mean(kept)) if kept else 0.0


@torch.no_grad()
def held_out_nll(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    count = min(64, (len(stream) - 1) // WINDOW)
    rows = torch.from_numpy(
        np.stack([stream[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(count)]).astype(np.int64)
    )
    return float(np.mean([float(token_nll(model, part)[0].mean()) for part in rows.split(8)]))


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Warm-up, constant, then linear decay to zero over the last part."""
    left = (args.steps - step) / (args.decay * args.steps)
    return args.lr * min(1.0, (step + 1) / args.warmup_steps, max(0.0, left))


def save_state(path: Path, model, optimizers, step: int, log: list) -> None:
    temporary = path.with_suffix(".tmp")
    state = {"model": model.state_dict(), "step": step, "log": log}
    torch.save({**state, "optimizers": [o.state_dict() for o in optimizers]}, temporary)
    os.replace(temporary, path)


def train(args: argparse.Namespace) -> tuple[LlamaForCausalLM, list[dict]]:
    stream = np.load(args.work / "train.npy", mmap_mode="r")
    held_out = np.load(args.work / "held_out.npy", mmap_mode="r")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer")
    lookups = Lookups(tokenizer, stream) if args.lookups else None
    model, state_path = build_model(args), args.work / f"{args.run}.pt"
    optimizers, step, log = build_optimizers(model, args.lr), 0, []
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, log = state["step"], state["log"]
    started, seconds_before = time.time(), log[-1]["seconds"] if log else 0.0
    last = min(args.steps, step + args.stop_after) if args.stop_after else args.steps
    while step < last:
        window = window_at(step / args.steps, args)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args)
        rows, weights = batch(stream, lookups, step, window, args)
        losses, weights = token_nll(model, rows)[0], weights[:, 1:]
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % args.log_every == 0 or step == last:
            seconds = seconds_before + time.time() - started
            entry = {"step": step, "tokens": step * args.batch_tokens, "window": window}
            entry |= {"loss": round(loss.item(), 4), "seconds": round(seconds, 1)}
            entry["held_out_nll"] = round(held_out_nll(model, held_out), 4)
            if lookups:
                entry["answered"] = answered(model, lookups, window, args)
            log.append(entry)
            print(json.dumps(entry), flush=True)
            save_state(state_path, model, optimizers, step, log)
    return model, log


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
    record["hardware"] = f"{torch.get_num_threads()} threads, {platform.machine()}, CPU"
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
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--decay", type=float, default=0.3, help="last part of the run")
    parser.add_argument("--warmup-steps", type=int, default=60)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--stop-after", type=int, help="steps of this call; the next goes on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    facts = prepare(args)
    print(json.dumps({"train_tokens": facts["train_tokens"], "documents": facts["documents"]}))
    model, log = train(args)
    if log[-1]["step"] < args.steps:
        print(f"stopped at step {log[-1]['step']} of {args.steps}: the same command goes on")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    write(args, model, facts, log)
    held_out = log[-1]["held_out_nll"]
    print(f"calf: {model.num_parameters():,} parameters, held-out NLL {held_out} -> {args.out}")


if __name__ == "__main__":
    main()
