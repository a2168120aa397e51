"""From tokenised units to rows: the same rows whatever the way, and every choice accounted for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from conftest import prose

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.holdout import choose_held_out
from giraffe_cli.corpus.packed_facts import rows_without_target
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.stats import warnings_of
from giraffe_cli.corpus.store import held_out, open_packed
from giraffe_cli.errors import InvalidInput
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


# ── what is left out, and how often what is not ──────────────────────────────────────────────

PASSAGE = "eleven lanterns drifted past the broken mill before dawn and nobody on either bank of"
"""15 words: 3 runs of 13."""


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """`pack({"books": texts, ...}, ...)` → (stats, ids in the rows, one for each piece)."""
    monkeypatch.chdir(tmp_path)
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")

    def run(corpora: dict[str, dict[str, str]], window=128, **config):
        for name, texts in corpora.items():
            lines = [json.dumps({"id": key, "text": text}) for key, text in texts.items()]
            Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        sources = [f"{name}={name}.jsonl" for name in corpora]
        settings = PackConfig(**{"hold_out": 0, "min_piece": 1, "block_bytes": 2000, **config})
        out = tmp_path / "packed"
        stats = pack_stage(sources, tokenizer, window, settings, 0, out, SilentReporter())
        rows = open_packed(out)
        return stats, [name for n in range(len(rows)) for name in rows.row(n).doc_ids]

    return run


def removed(packed: Path = Path("packed")) -> list[dict]:
    path = packed / "removed.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_exact_repetitions_are_counted_and_left_out_on_request(pack):
    books = {f"b{i}": prose(i, 5) for i in range(30)}
    corpora = {"books": books, "web": {"w": books["b3"], "v": "new " * 9, "u": books["b29"]}}
    stats, ids = pack(corpora)
    assert sorted(set(ids)) == sorted({*books, "w", "v", "u"})
    repeated = sum(len(books[name]) + 2 for name in ("b3", "b29"))
    assert stats["duplicates"] == {
        **{"documents": 2, "tokens": repeated, "removed": False},
        **{"documents_of_held_out": 0, "tokens_of_held_out": 0},
    }
    assert removed() == []
    stats, ids = pack(corpora, dedupe=True)
    assert sorted(set(ids)) == sorted({*books, "v"})
    assert stats["duplicates"]["removed"]
    assert [(r["id"], r["source"], r["reason"]) for r in removed()] == [
        ("w", "web", "same text as b3"),
        ("u", "web", "same text as b29"),
    ]


@pytest.mark.parametrize("dedupe", [False, True])
@pytest.mark.parametrize("copy", [str, lambda text: text.replace(". ", ".\n\n") + "\n"])
def test_a_copy_of_a_text_that_is_held_out_is_not_trained_on(pack, copy, dedupe):
    names = [f"d{i}" for i in range(40)]
    held = choose_held_out(names, 0.2)
    copied = min(held)
    corpora = {"books": {n: prose(i, 4) for i, n in enumerate(names)}}
    corpora["books"]["copy-of-it"] = copy(corpora["books"][copied])
    assert "copy-of-it" not in choose_held_out(corpora["books"], 0.2)
    stats, ids = pack(corpora, hold_out=0.2, dedupe=dedupe)
    assert "copy-of-it" not in ids
    [entry] = removed()
    assert (entry["id"], entry["reason"]) == ("copy-of-it", "same text as a document held out")
    duplicates = stats["duplicates"]
    assert (duplicates["documents"], duplicates["documents_of_held_out"]) == (0, 1)
    assert duplicates["tokens_of_held_out"] == entry["tokens"]


def test_a_corpus_of_one_text_holds_nothing_out(pack):
    """Else there were nothing to train on; if all is held out, that is said."""
    same = {"books": {f"d{i}": prose(1, 4) for i in range(3)}}
    stats, ids = pack(same, hold_out=0.001)
    assert stats["documents_held_out"] == 0
    assert sorted(set(ids)) == ["d0", "d1", "d2"]
    with pytest.raises(InvalidInput, match="has the text of one held out"):
        pack(same, hold_out=0.999)


def test_the_one_that_is_held_out_is_no_copy_of_itself(pack):
    """No hash of the five lies below 0.0001 of its range, so that the lowest is held out."""
    stats, ids = pack({"books": {f"d{i}": prose(i, 4) for i in range(5)}}, hold_out=0.0001)
    assert (stats["documents_held_out"], len(set(ids))) == (1, 4)
    assert stats["duplicates"]["documents_of_held_out"] == 0


def test_a_source_without_a_share_takes_no_copy_away(pack):
    books = {f"b{i}": prose(i, 5) for i in range(8)}
    corpora = {"old": {f"o{i}": books[f"b{i}"] for i in range(4)}, "books": books}
    _, ids = pack(corpora, dedupe=True, mix={"old": 0, "books": 1})
    assert sorted(set(ids)) == sorted(books)


def test_a_share_that_is_not_met_is_told_and_a_small_total_takes_a_document(pack):
    corpora = {
        "long": {f"l{i}": prose(i, 60) for i in range(3)},
        "web": {f"w{i}": prose(90 + i, 4) for i in range(20)},
    }
    stats, ids = pack(corpora, mix={"long": 0.05, "web": 0.95})
    assert stats["mixture"]["sources"]["long"]["share"] == 0
    [told] = [line for line in warnings_of(stats) if line.startswith("long makes up")]
    assert "0.0% of the tokens, 5.0% was asked for" in told
    _, ids = pack({"long": corpora["long"]}, token_budget=10)
    assert len(set(ids)) == 1


def test_a_mix_that_names_no_source_is_told_before_anything_is_tokenised(pack):
    with pytest.raises(InvalidInput, match="--mix names `bokks`, which is no source"):
        pack({"books": {"a": "one"}, "web": {"b": "two"}}, mix={"bokks": 1, "web": 1})
    assert not Path("packed").exists()


def test_windows_without_a_target_are_dropped_and_counted(pack):
    """257 bytes with BOS and EOS are two windows of 128 and one of the EOS alone."""
    texts = {"books": {"a": "x" * 255}}
    for rule in ("concat", "best-fit", "one"):
        stats, ids = pack(texts, rule=rule)
        assert (stats["windows"], ids, stats["tokens_dropped"]) == (2, ["a", "a"], 1)
    assert rows_without_target(Path("packed")) == 0


def test_documents_that_hold_a_benchmark_are_left_out_by_name(pack, tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": PASSAGE}) + "\n")
    books = {f"b{i}": prose(i, 5) for i in range(10)}
    books["b4"] += f" {PASSAGE}. {prose(50, 2)}"
    books["b7"] += " " + " ".join(PASSAGE.split()[:14])
    stats, ids = pack({"books": books}, decontaminate=[str(tmp_path / "bench.jsonl")])
    assert sorted(set(ids)) == sorted(set(books) - {"b4"})
    assert stats["contamination"]["documents"] == 1
    assert stats["contamination"]["tokens"] == len(books["b4"]) + 2
    [entry] = removed()
    assert entry == {
        "id": "b4",
        "source": "books",
        "tokens": len(books["b4"]) + 2,
        "reason": "shares 13-word runs with an evaluation text",
    }


def test_shares_and_passes_arrive_in_the_rows(pack):
    corpora = {
        "books": {f"b{i}": "x" * 98 for i in range(20)},  # 100 tokens each
        "web": {f"w{i}": "y" * 48 for i in range(40)},  # 50 tokens each
    }
    stats, ids = pack(corpora, mix={"books": 3, "web": 1}, epochs=3, rule="one")
    # Three passes over books are 6,000 tokens; web gives a third of that: one pass.
    assert {name: ids.count(name) for name in corpora["books"]} == dict.fromkeys(
        corpora["books"], 3
    )
    assert sorted(name for name in ids if name[0] == "w") == sorted(corpora["web"])
    assert stats["tokens_in"] == stats["tokens_kept"] == 8000
    assert stats["mixture"]["sources"]["books"]["share"] == 0.75
    assert stats["mixture"]["most_often"] == 3


def test_passes_come_one_after_the_other_and_no_window_holds_a_document_twice(pack):
    texts = {f"b{i}": prose(i, 3) for i in range(20)}
    _, ids = pack({"books": texts}, epochs=2, window=512)
    assert sorted(ids[:20]) == sorted(ids[20:]) == sorted(texts)
    rows = open_packed(Path("packed"))
    for index in range(len(rows)):
        assert len(set(rows.row(index).doc_ids)) == len(rows.row(index).doc_ids)


def test_overlap_and_dropped_tails_add_up_in_the_rows(pack):
    texts = {"long": "x" * 298, "short": "y" * 48}
    stats, _ = pack({"books": texts}, overlap=28)
    assert (stats["tokens_kept"], stats["tokens_repeated"]) == (350, 28 * 2)
    rows = open_packed(Path("packed"))
    assert sum(len(rows.row(n).input_ids) for n in range(len(rows))) == 350 + 56
    stats, ids = pack({"books": texts}, rule="one", drop_tail=True)
    assert (stats["tokens_kept"], stats["tokens_dropped"]) == (128 + 50, 300 - 128)
    assert sorted(ids) == ["long", "short"]


@pytest.mark.parametrize("rule", ["best-fit", "concat", "one"])
def test_every_document_can_be_read_from_the_rows_again(pack, rule):
    texts = {f"b{i}": prose(i, 1 + i) for i in range(20)}
    pack({"books": texts}, rule=rule)
    rows, pieces = open_packed(Path("packed")), {}
    for index in range(len(rows)):
        row, at = rows.row(index), 0
        for name, length in zip(row.doc_ids, row.seq_lengths.tolist(), strict=True):
            pieces.setdefault(name, []).append(row.input_ids[at : at + length].tolist())
            at += length
    lengths = {name: sum(map(len, parts)) for name, parts in pieces.items()}
    assert lengths == {name: len(text) + 2 for name, text in texts.items()}
    for parts in pieces.values():
        assert sum(part[0] == 0 for part in parts) == sum(part[-1] == 1 for part in parts) == 1
