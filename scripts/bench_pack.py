"""Packing against its peers: the same JSONL, the same tokenizer, windows of 16k, fresh processes.

    python scripts/bench_pack.py compare --data books.jsonl.gz --tokenizer models/smollm2-135m \
        --peers .venv-peers/bin/python --megabytes 10 30 --out pack.json
    python scripts/bench_pack.py memory --data books.jsonl.gz --tokenizer models/smollm2-135m \
        --megabytes 30 300 3000 --out memory.json

`compare` writes the first documents of --data as plain JSONL of the asked size and lets each packer
make windows of it, interleaved over --rounds, one thread (OMP_NUM_THREADS=1,
RAYON_NUM_THREADS=1, TOKENIZERS_PARALLELISM=false). CPU-seconds and peak memory are those of the
whole process, imports included, up to the moment when its windows are there; those of the work
alone begin after the imports. What compares the ids afterwards counts for nobody. The ids are
compared in the run: a packer that keeps every token must yield every id exactly as often as ours.
The peers run under the interpreter --peers (trl, datasets, datatrove installed there).

`memory` writes corpora of varied documents (words of --data in random order, random lengths) and
reads the peak resident size of `giraffe pack-data` on each. Medians; prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WINDOW = 16384
OURS = ("giraffe fastokens", "giraffe tokenizers")
PEERS = ("trl bfd", "trl bfd_split", "trl wrapped", "datasets group_texts", "datatrove")
FLOORS = ("floor fastokens", "floor tokenizers")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def main() -> int:
    """Run the asked mode, write and print its JSON."""
    options = _options()
    if options.mode == "cell":
        print(json.dumps(CELLS[options.packer.partition(" ")[0]](options)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        run = compare if options.mode == "compare" else memory
        result = {"settings": _settings(options), **run(options, Path(scratch))}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


# ── the comparison ───────────────────────────────────────────────────────────────────────────


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """`{"megabytes": {packer: figures}}`, with ratios to our fast backend."""
    found: dict[str, Any] = {}
    packers = (*OURS, *FLOORS, *(PEERS if options.peers else ()))
    for megabytes in options.megabytes:
        corpus = scratch / f"{megabytes}.jsonl"
        head_of(options.data, corpus, megabytes * 1_000_000)
        cells: dict[str, list[dict[str, Any]]] = {packer: [] for packer in packers}
        for number in range(options.rounds):
            for packer in packers:
                cells[packer].append(run_cell(options, packer, corpus, scratch / "out"))
                print(f"{megabytes} MB, {packer}, {number}: {cells[packer][-1]}", file=sys.stderr)
        found[str(megabytes)] = _table(cells)
    return {"compared": found}


def run_cell(options: argparse.Namespace, packer: str, corpus: Path, out: Path) -> dict[str, Any]:
    """One fresh process; its own answer beside what the kernel says of it."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    ours = packer in (*OURS, *FLOORS)
    command = [sys.executable if ours else options.peers, __file__, "cell"]
    command += ["--packer", packer, "--data", str(corpus), "--tokenizer", str(options.tokenizer)]
    command += ["--window", str(options.window), "--work", str(out)]
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **ONE_THREAD}, cwd=Path.cwd()
    )
    assert process.stdout is not None
    answer = process.stdout.read()
    if process.wait():
        raise SystemExit(f"{packer} ended with {process.returncode}: {' '.join(command)}")
    found = json.loads(answer.splitlines()[-1])
    ended = found.pop("ended")
    return {**found, "wall_seconds": ended - started}


def _table(cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians by packer; ids held against ours."""
    rows = {}
    ours = cells[OURS[0]][0]
    for packer, runs in cells.items():
        row = dict(runs[0])
        for key in ("cpu_seconds", "wall_seconds", "work_cpu_seconds", "peak_bytes"):
            row[key] = statistics.median(run[key] for run in runs)
        if packer not in FLOORS:
            kept_all = row["tokens_kept"] == ours["tokens_kept"]
            assert not kept_all or row["ids_digest"] == ours["ids_digest"], packer
            row["kept_share"] = row["tokens_kept"] / ours["tokens_kept"]
            row["same_ids"] = kept_all
        rows[packer] = row
    for row in rows.values():
        row["cpu_times_ours"] = row["cpu_seconds"] / rows[OURS[0]]["cpu_seconds"]
        row["cpu_times_ours_hf"] = row["cpu_seconds"] / rows[OURS[1]]["cpu_seconds"]
    return rows


# ── memory against corpus size ───────────────────────────────────────────────────────────────


def memory(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Peak resident bytes of `giraffe pack-data` by corpus size."""
    rows = {}
    for megabytes in options.megabytes:
        corpus = scratch / "varied.jsonl"
        varied(options.data, corpus, megabytes * 1_000_000)
        cell = run_cell(options, OURS[0], corpus, scratch / "out")
        rows[str(megabytes)] = {k: v for k, v in cell.items() if k != "ids_digest"}
        print(f"{megabytes} MB: {cell}", file=sys.stderr)
    peaks = [row["peak_bytes"] for row in rows.values()]
    return {"memory": rows, "largest_over_smallest": max(peaks) / min(peaks)}


def varied(data: Path, out: Path, size: int) -> None:
    """`size` bytes of documents of 200 to 200,000 words, log-uniform, words in random order."""
    generator = random.Random(0)
    words: list[str] = []
    for text in texts_of(data):
        words += text[:200_000].split(" ")
        if len(words) > 1_000_000:
            break
    written = number = 0
    with open(out, "w", encoding="utf-8") as handle:
        while written < size:
            length = int(200 * 1000 ** generator.random())
            # Runs of words keep the statistics of text; their order differs everywhere.
            parts: list[str] = []
            while len(parts) < length:
                at = generator.randrange(len(words) - 64)
                parts += words[at : at + generator.randrange(4, 64)]
            line = json.dumps({"id": f"d{number}", "text": " ".join(parts)}) + "\n"
            written += len(line)
            number += 1
            handle.write(line)


# ── the packers, each in a process of its own ────────────────────────────────────────────────


def marks(started: float) -> dict[str, float]:
    """What the process has used up to now, its children included; `started`: end of imports."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "work_cpu_seconds": time.process_time() - started,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used),
        "peak_bytes": max(usage.ru_maxrss for usage in used) * 1024,
        "ended": time.monotonic(),
    }


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """The real command line, in this process."""
    from giraffe_cli.cli.app import main as giraffe

    backend = options.packer.split()[1]
    out = options.work / "packed"
    sys.argv = ["giraffe", "pack-data", str(options.data), "--tokenizer", str(options.tokenizer)]
    sys.argv += ["--window", str(options.window), "--out", str(out), "--backend", backend]
    sys.argv += ["--hold-out", "0", "--min-piece", "1"]
    quiet, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    started = time.process_time()
    try:
        giraffe()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.stdout = quiet
    used = marks(started)
    stats = json.loads((out / "stats.json").read_text())
    return {
        **used,
        "windows": stats["windows"],
        "tokens_kept": stats["tokens_kept"],
        "avoidable_cuts": stats["documents_split"] - stats["documents_longer_than_window"],
        "padding_share": stats["padding"] / (stats["windows"] * options.window),
        "ids_digest": _digest_of_parquet(out),
    }


def floor(options: argparse.Namespace) -> dict[str, Any]:
    """The tokenizer alone on the parsed texts: what no packer can be faster than."""
    texts = list(texts_of(options.data))
    path = str(options.tokenizer / "tokenizer.json")
    if options.packer.endswith("fastokens"):
        os.environ["FASTOKENS_BPE_THREADS"] = "1"
        from fastokens._native import Tokenizer

        tokenizer = Tokenizer.from_file(path)
        started = time.process_time()
        tokenizer.encode_batch_flat(texts)
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(path)
        started = time.process_time()
        for text in texts:
            tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return marks(started)


def trl(options: argparse.Namespace) -> dict[str, Any]:
    """SFTTrainer as a user builds it: its own tokenising, EOS and packing."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    started = time.process_time()
    rows = load_dataset(
        "json", data_files=str(options.data), split="train", cache_dir=str(options.work / "cache")
    ).select_columns(["text"])
    settings = SFTConfig(
        output_dir=str(options.work),
        packing=True,
        packing_strategy=options.packer.split()[1],
        max_length=options.window,
        report_to="none",
        use_cpu=True,
    )
    trainer = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    used = marks(started)
    lengths, digest = _digest_of_rows(trainer.train_dataset["input_ids"])
    cuts = _stream_cuts(options, tokenizer) if options.packer.endswith("wrapped") else 0
    return _peer_row(options, used, lengths, digest, cuts)


def group_texts(options: argparse.Namespace) -> dict[str, Any]:
    """run_clm's recipe: tokenise by map, concatenate each batch of 1,000, drop its tail."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    eos = tokenizer.eos_token_id
    started = time.process_time()
    rows = load_dataset(
        "json", data_files=str(options.data), split="train", cache_dir=str(options.work / "cache")
    )

    def tokenise(batch: Any) -> Any:
        encoded = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [[*ids, eos] for ids in encoded]}

    def group(batch: Any) -> Any:
        joined = [token for ids in batch["input_ids"] for token in ids]
        total = len(joined) // options.window * options.window
        chunks = [joined[i : i + options.window] for i in range(0, total, options.window)]
        return {"input_ids": chunks, "labels": [list(chunk) for chunk in chunks]}

    tokenised = rows.map(tokenise, batched=True, remove_columns=rows.column_names)
    grouped = tokenised.map(group, batched=True)
    used = marks(started)
    lengths, digest = _digest_of_rows(grouped["input_ids"])
    cuts = _stream_cuts(options, tokenizer)
    return _peer_row(options, used, lengths, digest, cuts)


def datatrove(options: argparse.Namespace) -> dict[str, Any]:
    """DocumentTokenizer: a flat stream of ids on disk, windows cut when it is read."""
    import numpy as np
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    eos = json.loads((options.tokenizer / "tokenizer_config.json").read_text())["eos_token"]
    out = options.work / "tokens"
    started = time.process_time()
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(options.data.parent), glob_pattern=options.data.name),
            DocumentTokenizer(
                output_folder=str(out),
                tokenizer_name_or_path=str(options.tokenizer / "tokenizer.json"),
                eos_token=eos,
                shuffle_documents=False,
            ),
        ],
        tasks=1,
        logging_dir=str(options.work / "logs"),
    ).run()
    used = marks(started)
    (stream,) = out.glob("*.ds")
    size = 2 if _vocabulary(options) <= 65536 else 4
    ids = np.fromfile(stream, dtype="<u2" if size == 2 else "<u4")
    windows = len(ids) // options.window
    from transformers import AutoTokenizer

    cuts = _stream_cuts(options, AutoTokenizer.from_pretrained(options.tokenizer))
    return {
        **used,
        "windows": windows,
        "tokens_kept": len(ids),
        "avoidable_cuts": cuts,
        "padding_share": 0.0,
        "ids_digest": _digest_of_counts(np.bincount(ids, minlength=1 << 17)),
    }


CELLS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "giraffe": ours,
    "floor": floor,
    "trl": trl,
    "datasets": group_texts,
    "datatrove": datatrove,
}


def _peer_row(
    options: argparse.Namespace, used: dict[str, float], lengths: list[int], digest: str, cuts: int
) -> dict[str, Any]:
    kept = sum(lengths)
    return {
        **used,
        "windows": len(lengths),
        "tokens_kept": kept,
        "avoidable_cuts": cuts,
        "padding_share": 1 - kept / (len(lengths) * options.window),
        "ids_digest": digest,
    }


# ── helpers ──────────────────────────────────────────────────────────────────────────────────


def _stream_cuts(options: argparse.Namespace, tokenizer: Any) -> int:
    """Documents that fit a window and are cut when documents lie end to end."""
    cuts = at = 0
    for text in texts_of(options.data):
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
        crosses = at // options.window != (at + length - 1) // options.window
        cuts += length <= options.window and crosses
        at += length
    return cuts


def _digest_of_rows(rows: Any) -> tuple[list[int], str]:
    import numpy as np

    counts, lengths = np.zeros(1 << 17, dtype=np.int64), []
    for row in rows:
        lengths.append(len(row))
        counts += np.bincount(np.asarray(row), minlength=1 << 17)
    return lengths, _digest_of_counts(counts)


def _digest_of_parquet(folder: Path) -> str:
    import numpy as np
    import pyarrow.parquet as pq

    counts = np.zeros(1 << 17, dtype=np.int64)
    for path in sorted(folder.glob("rows-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(64, columns=["input_ids"]):
            counts += np.bincount(batch.column(0).values.to_numpy(), minlength=1 << 17)
    return _digest_of_counts(counts)


def _digest_of_counts(counts: Any) -> str:
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()[:16]


def _vocabulary(options: argparse.Namespace) -> int:
    value = json.loads((options.tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    added = [token["id"] for token in value.get("added_tokens", [])]
    return int(max([*value["model"]["vocab"].values(), *added])) + 1


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a JSONL file, gzipped or plain."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)["text"]


def head_of(data: Path, out: Path, size: int) -> None:
    """The documents of `data` from the first on, until `size` bytes are written."""
    written = 0
    with open(out, "w", encoding="utf-8") as handle:
        for number, text in enumerate(texts_of(data)):
            line = json.dumps({"id": f"d{number}", "text": text}) + "\n"
            handle.write(line)
            written += len(line)
            if written >= size:
                return


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    import importlib.metadata as metadata

    versions = {name: metadata.version(name) for name in ("tokenizers", "pyarrow", "numpy")}
    return {
        "window": options.window,
        "rounds": options.rounds,
        "tokenizer": options.tokenizer.name,
        "python": platform.python_version(),
        "versions": versions,
        "cores": os.cpu_count(),
        "page_size": resource.getpagesize(),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=["compare", "memory", "cell"])
    parser.add_argument("--data", type=Path, required=True, help=".jsonl or .jsonl.gz with `text`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model directory")
    parser.add_argument("--peers", help="python that has trl, datasets and datatrove")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path, default=Path("pack.json"))
    parser.add_argument("--packer", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
