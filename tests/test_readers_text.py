"""Text, Markdown and code as trees of files, on standard input, inside Python."""

from __future__ import annotations

import gzip
import io
import os
import sys
from pathlib import Path

import pytest
from test_readers import read

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.changes import raw_digest
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.errors import InvalidInput

# ── standard input ────────────────────────────────────────────────────────────────────────────

RECORDS = b'{"id": "x", "text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (RECORDS, [("x", "one"), ("stdin.jsonl:2", "two")]),
        (b"\xef\xbb\xbf" + RECORDS, [("x", "one"), ("stdin.jsonl:2", "two")]),
        (b" \n" + RECORDS, [("x", "one"), ("stdin.jsonl:3", "two")]),
        (gzip.compress(RECORDS), [("x", "one"), ("stdin.jsonl.gz:2", "two")]),
        (b"Call me\nIshmael.\n", [("stdin.txt", "Call me\nIshmael.\n")]),
        (b"[Music] la\n", [("stdin.txt", "[Music] la\n")]),
        (b'[\n {"id": "x", "text": "one"}]', [("x", "one")]),
        (b'{\n "text": "one"}', [("stdin.json", "one")]),
    ],
    ids=["records", "byte-order-mark", "blank-line", "gzip", "text", "brackets", "array", "object"],
)
def test_standard_input_is_records_or_one_text(tmp_path, monkeypatch, data, found):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    documents, _ = read("-", spool=str(tmp_path))
    assert [(d.id, d.text) for d in documents] == found
    assert {d.source for d in documents} == {"-"}


def test_standard_input_that_cannot_be_kept_or_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(InvalidInput, match="can only be packed"):
        read("-")
    with pytest.raises(InvalidInput, match="standard input is empty"):
        read("-", spool=str(tmp_path))


# ── text, Markdown and code ───────────────────────────────────────────────────────────────────


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "docs"
    for name, data in {
        "b.md": "# b",
        "a/z.py": "z = 1",
        "a/Z.txt": "Z",
        ".hidden.md": "no",
        ".git/config.txt": "no",
        "empty.md": " \n",
        "picture.png": "no",
        "README": "read me",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(data)
    (root / "binary.txt").write_bytes(b"\0\xff")
    return root


def test_a_tree_yields_one_document_a_file_in_path_order(tree):
    documents, bad = read(tree)
    assert [(d.id, d.text) for d in documents] == [
        ("README", "read me"),
        ("b.md", "# b"),
        ("a/Z.txt", "Z"),
        ("a/z.py", "z = 1"),
    ]
    assert bad.skipped == {"binary file": 1, "empty file": 1, "not a text suffix: .png": 1}


def test_one_file_is_one_document(tree):
    assert [(d.id, d.text) for d in read(tree / "b.md")[0]] == [("b.md", "# b")]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order-mark"])
def test_text_that_is_not_utf8_is_named_by_file_and_line(tree, start):
    (tree / "latin.txt").write_bytes(start + b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(InvalidInput, match=r"latin\.txt:3: not valid UTF-8"):
        read(tree)
    documents, bad = read(tree, "skip")
    assert len(documents) == 4
    assert bad.skipped["not valid UTF-8"] == 1


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert [d.text for d in read(tmp_path)[0]] == ["one"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_text_behind_the_byte_order_mark_of_another_encoding_is_read(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("\ufeffcafé\n".encode(encoding))
    documents, bad = read(tmp_path)
    assert [d.text for d in documents] == ["café\n"]
    assert not bad.skipped


@pytest.mark.parametrize("data", [b"\xff\xfea", "\ufeffone\nt\0wo".encode("utf-16-le")])
def test_bytes_like_a_mark_before_what_is_no_text_are_a_binary_file(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_text("one")
    documents, bad = read(tmp_path)
    assert [d.text for d in documents] == ["one"]
    assert bad.skipped == {"binary file": 1}


def test_a_folder_without_text_says_what_it_holds(tmp_path):
    with pytest.raises(InvalidInput, match="holds no text file$"):
        read(tmp_path)
    (tmp_path / "data.jsonl").write_text("{}")
    with pytest.raises(InvalidInput, match=r"holds no text file; it holds: 1 \.jsonl"):
        read(tmp_path)


def test_the_hub_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInput, match="need `datasets`") as error:
        read("hf:owner/name")
    assert "pip install datasets" in str(error.value.hint)


# ── the standard library ──────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def stdlib() -> dict[str, str]:
    return {d.id: d.text for d in read("python-stdlib")[0]}


def test_a_package_is_one_document_with_its_files_named(stdlib):
    text = stdlib["python-stdlib/asyncio"]
    assert text.startswith("# asyncio/__init__.py\n")
    assert text.index("\n# asyncio/base_events.py\n") < text.index("\n# asyncio/events.py\n")
    assert stdlib["python-stdlib/ast"].startswith("# ast.py\n")


def test_tests_and_installed_packages_are_left_out(stdlib):
    assert not {f"python-stdlib/{name}" for name in ("test", "site-packages", "turtledemo")} & {
        *stdlib
    }
    assert "# unittest/test/" not in stdlib["python-stdlib/unittest"]
    assert "import pytest" not in stdlib["python-stdlib/importlib"]
    assert all("idle_test/" not in text[:200] for text in stdlib.values())


def test_a_fifth_held_out_leaves_ten_long_documents_to_evaluate_on(stdlib):
    from giraffe_cli.corpus.holdout import choose_held_out

    held = choose_held_out(stdlib, 0.2)
    assert sum(len(stdlib[identity]) >= 60_000 for identity in held) >= 9


def test_a_name_that_is_no_utf_8_is_written_in_ascii(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("un")
    (folder / "caf\u00e9.txt").write_text("deux")
    documents, _ = read(folder)
    assert [(d.id, d.text) for d in documents] == [
        ("caf\u00e9.txt", "deux"),
        ("caf\\xe9.txt", "un"),
    ]
    [unit] = resolve([str(folder)], PackConfig())
    assert len(raw_digest(unit)) == 64
