"""What users have lying about: gzip of several members, links, records beside texts, tokenizers
whose files are of an older kind."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
import threading
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from test_lookups import CALF

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import workers
from giraffe_cli.corpus.base import BadRecords, readers
from giraffe_cli.corpus.lookup_places import Places
from giraffe_cli.corpus.pack_knobs import check_shares
from giraffe_cli.corpus.readers._lines import BrokenStream, opened
from giraffe_cli.corpus.sources import reader_of, resolve
from giraffe_cli.corpus.token_bytes import bytes_of, is_text
from giraffe_cli.corpus.tokens import DocumentTokenizer, tokenizer_digest
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.rundir import LOCK

MEGABYTES = b"".join(b"%d the same line again and again\n" % (n % 7) for n in range(90_000))
"""Three, which gzip makes small: many times what comes in goes out."""


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# ── gzip ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("behind", [b"", b"\0" * 700])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_gzip_of_several_members_is_read_to_its_end(tmp_path, members, behind):
    """`cat a.gz b.gz`; a member's end is met while output waits. It went round for ever, so it is
    read in a thread that is not waited for."""
    path, found = tmp_path / "a.jsonl.gz", []
    path.write_bytes(b"".join(gzip.compress(MEGABYTES) + behind for _ in range(members)))

    def read():
        with opened(str(path)) as stream:
            found.append(stream.read())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert found == [MEGABYTES * members]


def test_what_is_no_gzip_behind_a_member_is_told(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(MEGABYTES) + b"and some words")
    with pytest.raises(BrokenStream), opened(str(path)) as stream:
        stream.read()


# ── what is a record, and read once ──────────────────────────────────────────────────────────────


def files_of(*sources, **knobs):
    units = resolve(list(map(str, sources)), PackConfig(**knobs))
    return [Path(span.path).name for unit in units for span in unit.files], units


def test_a_link_to_a_file_of_the_same_records_is_read_once(tmp_path):
    write(tmp_path / "set" / "a.jsonl", ["one"])
    (tmp_path / "set" / "latest.jsonl").symlink_to("a.jsonl")
    for source in (tmp_path / "set", f"{tmp_path}/set/*.jsonl"):
        names, (unit, *_) = files_of(source)
        assert names == ["a.jsonl"]
        assert dict(unit.passed_over) == {"link to a file of the same source": 1}
    write(tmp_path / "b.jsonl", ["two"])
    (tmp_path / "set" / "other.jsonl").symlink_to(tmp_path / "b.jsonl")
    assert files_of(f"{tmp_path}/set/*.jsonl")[0] == ["a.jsonl", "other.jsonl"]


def test_an_array_of_records_is_not_passed_over_for_a_readme_s_sake(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "notes.md").write_text("what this is")
    (folder / "data.json").write_text(json.dumps([{"id": 1, "text": "word " * 50}] * 20))
    with pytest.raises(InvalidInput, match=r"holds records \(1 .json\) and texts \(1 .md\)"):
        files_of(folder)
    (folder / "data.json").write_text(json.dumps([{"id": 1, "body": "word " * 50}] * 20))
    assert files_of(folder)[0] == ["notes.md"]
    (folder / "data.json").write_text(json.dumps({"name": "a package", "text": "x" * 900}))
    assert files_of(folder)[0] == ["notes.md"], "one object is a setting"


def test_what_giraffe_is_still_writing_is_no_part_of_the_corpus(tmp_path):
    write(tmp_path / "set" / "a.jsonl", ["one"])
    write(tmp_path / "set" / "packed" / "held_out.jsonl", ["two"])
    assert files_of(tmp_path / "set")[0] == ["a.jsonl", "held_out.jsonl"]
    (tmp_path / "set" / "packed" / LOCK).touch()
    for source in (tmp_path / "set", f"{tmp_path}/set/**/*.jsonl"):
        assert files_of(source)[0] == ["a.jsonl"]


def test_readers_are_looked_for_once():
    assert readers() is readers()


def test_an_array_of_texts_on_standard_input_is_no_text(giraffe, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b'["one text", "another"]')))
    options = ("--tokenizer", "calf", "--window", "64", "--out", tmp_path / "o")
    done = giraffe("pack-data", "-", *options)
    assert done.code == 3
    assert "stdin.json[0]: not a JSON object but str" in done.stderr


# ── knobs, workers ───────────────────────────────────────────────────────────────────────────────


def test_two_knobs_that_set_the_same_share_exclude_each_other():
    with pytest.raises(UsageError, match="short_mix 0.4 and upsample long both set the share"):
        check_shares(PackConfig(short_mix=0.4, upsample="long"))
    check_shares(PackConfig(upsample="long"))


def test_a_worker_opens_the_tokenizer_once_for_all_its_units():
    config = PackConfig().model_dump_json()
    assert workers._tools(str(CALF), config) is workers._tools(str(CALF), config)
    other = PackConfig(eos="no").model_dump_json()
    assert workers._tools(str(CALF), other) is not workers._tools(str(CALF), config)


def test_workers_that_have_nothing_to_share_are_told(giraffe, tmp_path):
    path = write(tmp_path / "a.jsonl", ["some words of a text " * 30] * 3)
    options = ("pack-data", path, "--tokenizer", "calf", "--window", "64", "--workers", "2")
    done = giraffe(*options, "--out", tmp_path / "one")
    assert done.code == 0, done.stderr
    assert "is read by one process: nothing in it can be shared out" in done.stderr
    write(tmp_path / "b.jsonl", ["other words of a text " * 30] * 3)
    two = giraffe(options[0], path, tmp_path / "b.jsonl", *options[2:], "--out", tmp_path / "two")
    assert two.code == 0, two.stderr
    assert "nothing in it can be shared out" not in two.stderr


# ── tokenizers ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def older(tmp_path):
    """calf's, with its special tokens in a file of their own."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(CALF / "tokenizer.json", folder)
    settings = json.loads((CALF / "tokenizer_config.json").read_text())
    named = {key: settings.pop(key) for key in ("bos_token", "eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    return folder


def test_special_tokens_of_a_file_of_their_own_end_documents(older):
    new, old = DocumentTokenizer(CALF), DocumentTokenizer(older)
    assert old.policy == new.policy
    assert old.encode(["a text"])[0].tolist() == new.encode(["a text"])[0].tolist()
    assert tokenizer_digest(older) == tokenizer_digest(CALF)
    path = older / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "bos_token": None, "eos_token": None}))
    assert DocumentTokenizer(older).policy == "text", "null is said, and holds"
    path.write_text(json.dumps(settings))
    (older / "special_tokens_map.json").unlink()
    assert DocumentTokenizer(older).policy == "text"
    assert tokenizer_digest(older) != tokenizer_digest(CALF)


def test_a_token_that_the_settings_alone_add_is_named(older):
    path = older / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    known = {"0": {"content": DocumentTokenizer(CALF).tokenizer.id_to_token(0)}}
    path.write_text(json.dumps({**settings, "added_tokens_decoder": known}))
    DocumentTokenizer(older)
    added = {**known, "9000": {"content": "<|sep|>"}}
    path.write_text(json.dumps({**settings, "added_tokens_decoder": added}))
    with pytest.raises(InvalidInput, match=r"adds the token `<\|sep\|>`, which tokenizer.json"):
        DocumentTokenizer(older)


# ── look-ups and characters ──────────────────────────────────────────────────────────────────────


def test_tokens_as_bytes():
    assert bytes_of(["Ġthe", "ä¸", "Ń", "<0xE4>"]) == [b" the", b"\xe4\xb8", b"\xad", b"\xe4"]
    assert bytes_of(["▁the", "é", "<0x41>", "¡"]) == [None, None, b"A", None]
    assert [is_text(one) for one in (b" the", b"\xe4\xb8", b"\xad")] == [True, False, False]


@pytest.mark.parametrize(
    "text",
    ["中文没有标点符号的长句子" * 9, "ภาษาไทยไม่มีช่องว่าง" * 9, "naïve café crème, brûlée. " * 20],
)
def test_no_look_up_stands_within_a_character(text):
    """Whatever the piece: a document is cut anywhere, and so within characters too."""
    tokenize = DocumentTokenizer(CALF)
    places, ids = Places(tokenize), tokenize.encode([text])[0].astype(np.int32)
    known = tokenize.tokenizer
    held = bytes_of([known.id_to_token(n) for n in range(known.get_vocab_size())])
    found = 0
    for start, end in itertools.combinations(range(1, min(60, len(ids) - 1)), 2):
        for place in places.of(ids[start:end]):
            before = b"".join(held[n] for n in ids[start : start + place])
            begun = before.lstrip(bytes(range(0x80, 0xC0)))  # of a character that was cut
            assert is_text(begun), before
            found += 1
    assert found > 1000


# ── pages and notebooks ──────────────────────────────────────────────────────────────────────────

PAGE = """<!doctype html><html><head><title>Whale</title><script>var x = 1;</script></head>
<body><nav><a href="/">Home</a></nav><h1>Loomings</h1><p>Call me <i>Ishmael</i>.<p>Some years
ago</body></html>"""
NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# A title\n", "and words\n"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"data": {"image/png": "iVBORw0"}}]},
        {"cell_type": "code", "source": [], "outputs": []},
    ]
}


def texts_of(source, **knobs):
    config, bad = PackConfig(**knobs), BadRecords(knobs.get("on_bad", "fail"))
    units = resolve([str(source)], config)
    found = [d for unit in units for d in reader_of(unit, config).documents(unit, bad)]
    return {document.id: document.text for document in found}, bad


def test_of_a_page_and_a_notebook_what_they_show_is_read(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.html").write_text(PAGE)
    (folder / "latin.htm").write_bytes(b'<meta charset="latin-1"><p>caf\xe9</p>')
    (folder / "b.ipynb").write_text(json.dumps(NOTEBOOK))
    (folder / "old.ipynb").write_text(
        json.dumps({"worksheets": [{"cells": [{"cell_type": "code", "input": "y = 2"}]}]})
    )
    texts, _ = texts_of(folder)
    assert texts == {
        "a.html": "Home\n\nLoomings\n\nCall me Ishmael.\n\nSome years ago",
        "b.ipynb": "# A title\nand words\n\nx = 1",
        "latin.htm": "café",
        "old.ipynb": "y = 2",
    }
    assert texts_of(folder / "a.html")[0]["a.html"].startswith("Home")


def test_a_repository_keeps_its_pages_and_not_its_pictures(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "b.ipynb").write_text(json.dumps(NOTEBOOK))
    (text,) = texts_of(f"repo:{tmp_path}")[0].values()
    assert "<script>var x = 1;</script>" in text
    assert "x = 1" in text
    assert "iVBORw0" not in text


def test_what_is_no_notebook_or_shows_nothing_is_told(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("a text")
    (folder / "b.ipynb").write_text("[1, 2]")
    with pytest.raises(InvalidInput, match=r"b.ipynb: not a notebook"):
        texts_of(folder)
    (folder / "b.ipynb").write_text(json.dumps({"cells": []}))
    (folder / "c.html").write_text("<html><script>x</script></html>")
    texts, bad = texts_of(folder, on_bad="skip")
    assert (list(texts), dict(bad.skipped)) == (["a.md"], {"empty file": 2})
    (folder / "c.html").write_text("<p>" + "long " * 99 + "</p>")
    texts, bad = texts_of(folder, on_bad="skip", max_doc_bytes=300)
    assert any("longer than 300 bytes" in reason for reason in bad.skipped)


def test_a_head_without_its_end_hides_no_page(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.html").write_text(
        "<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>T</title><h1>Guide</h1><p>Go"
    )
    assert texts_of(folder)[0] == {"a.html": "Guide\n\nGo"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("deep.ipynb", b"[" * 100_000, "not a notebook"),
        ("half.ipynb", rb'{"cells": [{"source": "\ud800"}]}', "holds half a surrogate pair"),
        ("zero.html", b"<p>\x00binary", "holds a NUL character"),
    ],
)
def test_an_odd_page_or_notebook_is_a_bad_record(tmp_path, name, content, told):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("a text")
    (folder / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=told):
        texts_of(folder)
    assert list(texts_of(folder, on_bad="skip")[0]) == ["a.md"]
