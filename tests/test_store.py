"""The pack stage and its folder: rows that other tools read, nothing lost, repeatable."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tokenizer, prose

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import assemble, rows
from giraffe_cli.corpus.holdout import choose_held_out
from giraffe_cli.corpus.packed_facts import attention_share
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.store import Layout, held_out, is_packed, open_packed
from giraffe_cli.corpus.tokens import tokenizer_digest
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError
from giraffe_cli.progress import SilentReporter

BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture
def pack(tokenizer, tmp_path):
    """`pack(source, ..., window=64)` → (folder, stats, reporter)."""

    def run(*sources, window=64, out="packed", seed=0, **config):
        reporter = SilentReporter()
        folder = tmp_path / out
        named, settings = [str(source) for source in sources], PackConfig(**config)
        stats = pack_stage(named, tokenizer, window, settings, seed, folder, reporter)
        return folder, stats, reporter

    return run


def write_corpus(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in texts.items()))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents_from(folder: Path) -> dict[str, list[int]]:
    """Every document's tokens, put together again from the rows, cut or not."""
    rows = open_packed(folder)
    pieces: dict[str, list[list[int]]] = {}
    for index in range(len(rows)):
        row = rows.row(index)
        ends = np.cumsum(row.seq_lengths)
        for name, end, length in zip(row.doc_ids, ends, row.seq_lengths, strict=True):
            pieces.setdefault(name, []).append(row.input_ids[end - length : end].tolist())
    # The piece with BOS comes first; here no document has more than one whole window.
    return {n: sum(sorted(p, key=lambda ids: ids[0] != BOS), []) for n, p in pieces.items()}


# ── what is written ───────────────────────────────────────────────────────────────────────────


def test_every_document_can_be_put_together_again(pack, tokenizer, tmp_path):
    from tokenizers import Tokenizer

    texts = {f"d{i}": prose(i, 1 + i) for i in range(7)}
    folder, stats, _ = pack(write_corpus(tmp_path / "c.jsonl", texts), hold_out=0, min_piece=1)
    reference = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    expected = {
        name: [BOS, *reference.encode(text, add_special_tokens=False).ids, EOS]
        for name, text in texts.items()
    }
    assert documents_from(folder) == expected
    assert stats["documents"] == 7
    assert stats["tokens_in"] == stats["tokens_kept"] == sum(map(len, expected.values()))


def test_rows_are_read_by_datasets_and_agree_with_our_own(pack, corpus):
    from datasets import load_dataset

    folder, stats, _ = pack(corpus)
    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    table = load_dataset("parquet", data_files=files, split="train", cache_dir=folder.parent / "hf")
    rows = open_packed(folder)
    assert len(table) == len(rows) == stats["windows"]
    assert str(table.features["input_ids"].feature.dtype) == "int32"
    for index in (0, len(rows) // 2, len(rows) - 1):
        row, peer = rows.row(index), table[index]
        assert row.input_ids.tolist() == peer["input_ids"]
        assert row.seq_lengths.tolist() == peer["seq_lengths"]
        assert row.doc_ids == peer["doc_ids"]
        assert set(peer["source"]) == {str(corpus)}
        assert row.input_ids.dtype == row.seq_lengths.dtype == np.int32
        assert row.seq_lengths.sum() == len(row.input_ids) <= rows.window == 64
        assert len(row.doc_ids) == len(row.seq_lengths) == len(peer["source"])


def test_stats_hold_the_promised_keys_and_add_up(pack, corpus):
    folder, stats, _ = pack(corpus)
    assert json.loads((folder / "stats.json").read_text()) == stats
    promised = (
        "documents tokens_in tokens_kept windows window documents_split"
        " documents_longer_than_window padding tokenizer_backend long_share"
    )
    assert set(promised.split()) <= set(stats)
    assert stats["documents"] == 24
    assert stats["tokens_in"] == stats["tokens_kept"] + stats["tokens_dropped"]
    assert stats["padding"] == stats["windows"] * 64 - stats["tokens_kept"]
    rows = open_packed(folder)
    assert sum(len(rows.row(i).input_ids) for i in range(len(rows))) == stats["tokens_kept"]


def test_the_share_of_attention_is_what_the_documents_of_the_windows_leave_over(pack, corpus):
    folder, _, _ = pack(corpus)
    rows = open_packed(folder)
    by_hand = [
        sum(int(n) ** 2 for n in rows.row(index).seq_lengths) / rows.window**2
        for index in range(len(rows))
    ]
    assert 0 < min(by_hand) < max(by_hand) <= 1
    assert attention_share(folder) == pytest.approx(sum(by_hand) / len(by_hand))
    assert (rows.squares / rows.window**2).tolist() == pytest.approx(by_hand)


def test_rows_spread_over_groups_and_shards(pack, corpus, monkeypatch):
    whole, stats, _ = pack(corpus, out="whole")
    monkeypatch.setattr(rows, "TOKENS_IN_ROW_GROUP", 192)
    monkeypatch.setattr(rows, "TOKENS_IN_SHARD", 640)
    spread, _, _ = pack(corpus, out="spread")
    assert Layout.of(20, 64) == Layout(20, rows_per_group=3, rows_per_shard=9)
    assert len(list(spread.glob("*.parquet"))) == -(-stats["windows"] // 9)
    one, other = open_packed(whole), open_packed(spread)
    for index in reversed(range(len(one))):
        assert one.row(index).input_ids.tolist() == other.row(index).input_ids.tolist()
    with pytest.raises(IndexError):
        one.row(len(one))


def test_saved_truncation_and_special_tokens_of_the_tokenizer_do_not_shorten(
    pack, tokenizer, tmp_path
):
    from tokenizers import Tokenizer

    cut = tmp_path / "cut"
    cut.mkdir()
    changed = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    changed.enable_truncation(8)
    changed.save(str(cut / "tokenizer.json"))
    (cut / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    source = write_corpus(tmp_path / "c.jsonl", {"d": prose(1, 5)})
    pack_stage([str(source)], cut, 64, PackConfig(), 0, tmp_path / "p", SilentReporter())
    row = open_packed(tmp_path / "p").row(0)
    assert len(row.input_ids) > 8
    assert row.input_ids[0] == BOS
    assert row.input_ids[-1] != EOS  # this tokenizer names no end token


# ── repeatable, resumable ─────────────────────────────────────────────────────────────────────


def test_the_same_input_gives_the_same_bytes(pack, corpus):
    first, _, _ = pack(corpus, out="first")
    second, _, _ = pack(corpus, out="second")
    assert contents(first) == contents(second)
    name_flag_and_time = (first / "held_out.jsonl.gz").read_bytes()[3:8]
    assert name_flag_and_time == bytes(5)  # a gzip header holds neither
    assert open_packed(first).digest == open_packed(second).digest
    other, _, _ = pack(corpus, out="other", seed=1)
    assert open_packed(other).digest != open_packed(first).digest


def test_a_stage_that_holds_is_not_run_again_and_one_that_does_not_is(pack, corpus, monkeypatch):
    folder, stats, _ = pack(corpus)
    before = (folder / "manifest.json").stat().st_mtime_ns
    _, again, reporter = pack(corpus)
    assert again == stats
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert reporter.lines == [f"{folder} holds these windows already"]
    _, changed, _ = pack(corpus, window=32)
    assert changed["window"] == open_packed(folder).window == 32


def test_changed_text_is_noticed(pack, tmp_path):
    source = write_corpus(tmp_path / "c.jsonl", {"d": prose(1, 9)})
    folder, _, _ = pack(source)
    digest = open_packed(folder).digest
    write_corpus(source, {"d": prose(1, 9).replace("giraffe", "girafes")})
    pack(source)
    assert open_packed(folder).digest != digest


def test_a_failure_while_writing_leaves_nothing(pack, corpus, monkeypatch, tmp_path):
    def full(*_):
        raise GiraffeError("disk full")

    monkeypatch.setattr(assemble, "write_rows", full)
    with pytest.raises(GiraffeError, match="disk full"):
        pack(corpus)
    assert {path.name for path in (tmp_path / "packed").iterdir()} <= {".work", ".lock"}


def test_leftovers_of_a_killed_run_are_cleared_and_its_bytes_are_the_same(pack, corpus, tmp_path):
    whole, _, _ = pack(corpus, out="whole")
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "rows-00000.parquet").write_bytes(b"PAR1")
    (killed / "held_out.jsonl.gz.partial").write_bytes(b"")
    pack(corpus, out="killed")
    assert contents(killed) == contents(whole)


# ── held-out documents ────────────────────────────────────────────────────────────────────────


def test_held_out_documents_are_stored_and_never_packed(pack, corpus):
    folder, stats, _ = pack(corpus, hold_out=0.3)
    kept_out = held_out(folder)
    assert 0 < len(kept_out) == stats["documents_held_out"] < 24
    assert all(d.text == prose(int(d.id[4:]), 160 if int(d.id[4:]) % 2 else 8) for d in kept_out)
    assert not {d.id for d in kept_out} & set(documents_from_ids(folder))
    assert len(set(documents_from_ids(folder))) == 24 - len(kept_out)


def documents_from_ids(folder: Path) -> list[str]:
    rows = open_packed(folder)
    return [name for index in range(len(rows)) for name in rows.row(index).doc_ids]


def test_the_split_is_by_id_and_stays_when_the_corpus_grows():
    few, many = [f"d{i}" for i in range(50)], [f"d{i}" for i in range(500)]
    assert choose_held_out(few, 0.2) == choose_held_out(many, 0.2) & set(few)
    assert 70 < len(choose_held_out(many, 0.2)) < 130
    assert choose_held_out(many, 0.1) < choose_held_out(many, 0.2)


@pytest.mark.parametrize(
    ("count", "share", "held"), [(1, 0.9, 0), (2, 0.001, 1), (2, 0.999, 1), (9, 0, 0), (0, 0.5, 0)]
)
def test_never_all_and_at_least_one_of_two(count, share, held):
    assert len(choose_held_out([f"d{i}" for i in range(count)], share)) == held


def test_one_document_is_packed_and_the_user_is_told(pack, tmp_path):
    _, stats, reporter = pack(write_corpus(tmp_path / "c.jsonl", {"d": prose(0, 40)}))
    assert stats["documents_held_out"] == 0
    assert any("none is held out" in line for line in reporter.warnings)


# ── more than one source ──────────────────────────────────────────────────────────────────────


def test_equal_ids_of_two_sources_do_not_collide(pack, tmp_path):
    one = write_corpus(tmp_path / "one.jsonl", {"same": prose(1, 6), "a": prose(2, 6)})
    two = write_corpus(tmp_path / "two.jsonl", {"same": prose(3, 6)})
    folder, stats, _ = pack(one, two, hold_out=0)
    assert sorted(documents_from(folder)) == sorted([f"{one}:same", "a", f"{two}:same"])
    assert {name: entry["documents"] for name, entry in stats["sources"].items()} == {
        str(one): 2,
        str(two): 1,
    }


def test_a_source_named_twice_is_an_error_that_names_it(pack, corpus, tmp_path):
    with pytest.raises(UsageError, match=r"docs\.jsonl` is named twice"):
        pack(corpus, corpus.parent / "." / corpus.name)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text("a")
    with pytest.raises(UsageError, match="overlap"):
        pack(tmp_path / "in", tmp_path / "in" / "a.md")


# ── bad input ─────────────────────────────────────────────────────────────────────────────────


def test_short_documents_are_warned_about_with_numbers(pack, tmp_path):
    _, _, reporter = pack(write_corpus(tmp_path / "c.jsonl", {"a": "sun", "b": "sky"}), min_piece=1)
    (warning,) = [line for line in reporter.warnings if "nothing long" in line]
    assert "no document reaches the window of 64 tokens" in warning
    assert "long_share 0.00" in warning


def test_bad_records_stop_or_are_counted(pack, tmp_path):
    path = write_corpus(tmp_path / "c.jsonl", {"a": prose(1, 9), "b": prose(2, 9)})
    path.write_bytes(path.read_bytes() + b"{broken\n")
    with pytest.raises(InvalidInput, match=r"c\.jsonl:3: not valid JSON"):
        pack(path)
    assert not (tmp_path / "packed").exists()
    _, stats, reporter = pack(path, on_bad="skip")
    assert stats["skipped"] == {"not valid JSON": 1}
    told = "skipped: 1 × not valid JSON; stats.json names them as skipped_records"
    assert told in reporter.warnings
    (record,) = stats["skipped_records"]
    assert re.fullmatch(r".*c\.jsonl:3: not valid JSON.*", record)


def test_the_first_bad_records_are_named_and_all_are_counted(pack, tmp_path, monkeypatch):
    """Of two files with three bad lines each, where four may be named: three and one."""
    monkeypatch.setattr("giraffe_cli.corpus.base.MOST_NAMED", 4)
    monkeypatch.setattr("giraffe_cli.corpus.stats.MOST_NAMED", 4)
    paths = [
        write_corpus(tmp_path / f"{name}.jsonl", {name: prose(1, 9), f"{name}2": prose(2, 9)})
        for name in "ab"
    ]
    for path in paths:
        path.write_bytes(path.read_bytes() + b"{broken\n" * 3)
    _, stats, _ = pack(*paths, on_bad="skip")
    assert stats["skipped"] == {"not valid JSON": 6}
    places = [re.search(r"[ab]\.jsonl:\d", record)[0] for record in stats["skipped_records"]]
    assert places == ["a.jsonl:3", "a.jsonl:4", "a.jsonl:5", "b.jsonl:3"]


def test_an_empty_corpus_and_documents_too_short_are_errors(pack, tmp_path):
    with pytest.raises(InvalidInput, match="no documents in"):
        pack(write_corpus(tmp_path / "c.jsonl", {}))
    with pytest.raises(InvalidInput, match="no training document has 32 tokens"):
        pack(write_corpus(tmp_path / "c.jsonl", {"a": "sun"}))
    assert not is_packed(tmp_path / "packed")


def test_a_window_shorter_than_the_shortest_piece_is_an_error(pack, corpus):
    with pytest.raises(UsageError, match="min_piece 32 is longer than the window of 16 tokens"):
        pack(corpus, window=16)


def test_a_text_field_without_use_is_an_error(pack, tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(UsageError, match="text field `body` has no effect"):
        pack(tmp_path / "a.md", text_field="body")


def test_a_folder_of_other_files_is_never_cleared(pack, corpus, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match=r"thesis\.txt"):
        pack(corpus)
    assert (tmp_path / "packed" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InvalidInput, match="is not a directory"):
        pack(corpus, out="packed/thesis.txt/out")


def test_foreign_tokenizers_are_refused(corpus, tokenizer, tmp_path):
    def attempt(folder):
        pack_stage([str(corpus)], folder, 64, PackConfig(), 0, tmp_path / "p", SilentReporter())

    with pytest.raises(InvalidInput, match=r"has no tokenizer\.json"):
        attempt(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidInput, match="is no tokenizer"):
        attempt(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    with pytest.raises(InvalidInput, match="the model has 100 embeddings"):
        attempt(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|nowhere|>"}')
    with pytest.raises(InvalidInput, match="names `<|nowhere|>` as eos_token"):
        attempt(tmp_path)
    assert not (tmp_path / "p").exists()


def test_the_tokenizer_digest_ignores_window_limits(tokenizer, tmp_path):
    digest = tokenizer_digest(tokenizer)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    for changes, same in (({"model_max_length": 9}, True), ({"eos_token": None}, False)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **changes}))
        assert (tokenizer_digest(tmp_path) == digest) is same


def test_open_packed_refuses_what_is_unfinished_or_altered(pack, corpus, tmp_path):
    with pytest.raises(InvalidInput, match="no packed directory"):
        open_packed(tmp_path)
    folder, _, _ = pack(corpus)
    assert is_packed(folder)
    assert not is_packed(tmp_path)
    assert not is_packed(corpus)
    (folder / "held_out.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(InvalidInput, match="was altered"):
        open_packed(folder)
    with pytest.raises(InvalidInput, match="is damaged"):
        held_out(folder)
    (folder / "manifest.json").write_text('{"kind": "merged"}')
    assert not is_packed(folder)
    with pytest.raises(InvalidInput, match="not that of packed data"):
        open_packed(folder)
