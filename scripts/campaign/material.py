"""What cases are made of: a tiny Llama, corpora, a packed folder and a finished run, made once.

material/base          2 layers, 64 wide, 384 tokens, window 128
material/docs.jsonl    24 documents; docs.parquet, docs.arrow, texts/ hold the same
material/packed        windows of 64 tokens
material/run           `giraffe extend` to 256 tokens: packed, checkpoints, adapter, model, eval
material/base.gguf
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from scripts.campaign.commands import run

ROOT = Path(__file__).resolve().parents[2]
PACK = "pack-data docs.jsonl --tokenizer base --window 64 --out out".split()
TRAIN = (
    "extend --model base --data docs.jsonl --target-len 256 --window 64 --rope yarn --steps 4"
    " --no-eval --set train.checkpoint_every=1 --set train.warmup_steps=1"
    " --set train.keep_checkpoints=3 --out out"
).split()
EXTEND = (
    "extend --model base --data docs.jsonl --target-len 256 --window 64 --rope yarn --steps 3"
    " --set train.checkpoint_every=1 --set train.warmup_steps=1 --set eval.tasks=[nll]"
    " --set eval.lengths=[128,256] --set eval.documents=2 --set eval.knobs.nll.targets=32"
    " --out run"
).split()
MERGE = "merge run".split()
EVAL = (
    "eval run/model --base base --data docs.jsonl --tasks nll,passkey,short --lengths 128,256"
    " --samples 1 --documents 2 --set nll.targets=32 --set short.targets=32 --out out"
).split()
GGUF = "export run --to gguf --out out.gguf".split()
ADAPTER = "export run --to adapter --out out".split()


def build(work: Path) -> Path:
    """`work/material`, made where it is not complete.

    Raises:
        RuntimeError: a command that is not disturbed at all failed.
    """
    folder = work / "material"
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import build_tiny_llama, prose

    build_tiny_llama(folder / "base")
    documents = [{"id": f"doc-{i}", "text": prose(i, 60 if i % 2 else 8)} for i in range(24)]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / "docs.jsonl").write_text(lines, encoding="utf-8")
    _tables(folder, documents)
    (folder / "texts").mkdir()
    for document in documents[:6]:
        (folder / "texts" / f"{document['id']}.md").write_text(document["text"], encoding="utf-8")
    (folder / "config.yaml").write_text(
        "model: base\ndata: [docs.jsonl]\ntarget_length: 256\nrope: {strategy: yarn}\n"
        "train: {steps: 3, window: 64, lora: {rank: 2, targets: [q_proj]}}\n"
        "eval: {tasks: [nll], lengths: [128, 256]}\n"
    )
    for words in (
        [*PACK[:-1], "packed"],
        EXTEND,
        "export base --to gguf --out base.gguf".split(),
        [*GGUF[:-1], "run.gguf"],
        "eval run --data docs.jsonl --tasks nll --lengths 128"
        " --documents 2 --set nll.targets=32 --out scores".split(),
    ):
        ended = run(words, folder)
        if ended.code:
            raise RuntimeError(f"giraffe {' '.join(words)}\n{ended.stderr}")
    (folder / "complete").touch()
    return folder


def _tables(folder: Path, documents: list[dict[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(documents)
    pyarrow.parquet.write_table(table, folder / "docs.parquet", row_group_size=8)
    with pyarrow.ipc.new_stream(str(folder / "docs.arrow"), table.schema) as sink:
        sink.write_table(table)


def lay_out(material: Path, folder: Path, *names: str) -> None:
    """Copies of parts of the material in the folder of a case."""
    for name in names:
        source = material / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
