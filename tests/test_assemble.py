"""From tokenised units to rows: the same rows whatever the way, and every choice accounted for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from conftest import prose

from giraffe_cli.config import PackConfig
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.store import held_out, open_packed
from giraffe_cli.progress import SilentReporter

WINDOW = 256
PINNED_ROWS = "13a04442e4a39d210d2c4d12355ab1aebd16b683e9d208af9c1c5af265406bf6"
"""sha256 over what `rows_digest` reads from the corpus below."""


def write_byte_tokenizer(folder: Path) -> Path:
    """One token a byte, by hand: the digest below hangs on no trainer's tie-breaking."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(specials))
    return folder


def fixed_sources(folder: Path) -> list[str]:
    """300 JSONL documents of 30 to 3,400 bytes, 40 files of which 20 share an id with them."""
    lines = [
        json.dumps({"id": f"d{i}.md", "text": prose(i, 1 + i * i * 7 % 97 if i % 3 else 1 + i % 5)})
        for i in range(300)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "tree").mkdir()
    for i in range(40):
        name = f"d{i}.md" if i % 2 else f"note{i}.md"
        (folder / "tree" / name).write_text(prose(1000 + i, 1 + i))
    return ["a.jsonl", "tree"]


def rows_digest(packed: Path) -> str:
    """What training sees, in its order, and what evaluation is given."""
    rows, hasher = open_packed(packed), hashlib.sha256()
    for index in range(len(rows)):
        row = rows.row(index)
        parts = (row.input_ids.tolist(), row.seq_lengths.tolist(), row.doc_ids)
        hasher.update(json.dumps(parts).encode())
    hasher.update(json.dumps([[d.id, d.source, d.text] for d in held_out(packed)]).encode())
    return hasher.hexdigest()


def test_the_rows_of_a_fixed_corpus_stay_what_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the user's names of the sources are stored, so they are relative
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    sources, out = fixed_sources(tmp_path), tmp_path / "packed"
    stats = pack_stage(sources, tokenizer, WINDOW, PackConfig(), 0, out, SilentReporter())
    assert (stats["documents"], stats["documents_held_out"], stats["windows"]) == (340, 26, 1176)
    assert rows_digest(out) == PINNED_ROWS
