"""What calf is trained on: documents kept, tokenizer trained, everything tokenised once.

work/tokenizer/  work/train.npy  work/held_out.npy  work/data.json
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<|begin|>", "<|end|>"
WINDOW = 1024
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
