"""Readers: the contract that every registered one meets, then each one's own defects."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from giraffe_cli.corpus.base import (
    BLOCK_BYTES,
    BadRecords,
    Document,
    Unit,
    make_reader,
    reader_for,
    readers,
)
from giraffe_cli.errors import InvalidInput

NAMES = sorted(readers())


def read(
    source: object, on_bad="fail", block_bytes=BLOCK_BYTES, **knobs
) -> tuple[list[Document], BadRecords]:
    bad = BadRecords(on_bad)
    reader = reader_for(str(source), knobs)
    units = reader.units(str(source), str(source), block_bytes)
    return [d for unit in units for d in reader.documents(unit, bad)], bad


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# ── the contract ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=NAMES)
def reader(request, tmp_path, monkeypatch):
    """Each registered reader; on standard input lie two records."""
    lines = b'{"id": "one", "text": "a text"}\n{"text": "another"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    knobs = {"spool": str(tmp_path / "spool")} if request.param == "stdin" else {}
    return make_reader(request.param, knobs)


def all_documents(reader, units) -> list[Document]:
    bad = BadRecords()
    return [document for unit in units for document in reader.documents(unit, bad)]


def test_exactly_one_reader_claims_the_example(reader, tmp_path):
    source = reader.example(tmp_path)
    assert [name for name in NAMES if readers()[name]().claims(source)] == [
        name for name in NAMES if readers()[name] is type(reader)
    ]


def test_documents_are_whole_and_the_same_each_time(reader, tmp_path):
    units = reader.units(reader.example(tmp_path), "mine")
    documents = all_documents(reader, units)
    assert documents
    assert len({document.id for document in documents}) == len(documents)
    assert all(document.text.strip() and document.source == "mine" for document in documents)
    assert all(document.text.encode() for document in documents)
    assert all_documents(reader, units) == documents


def test_units_travel_as_json_and_have_names_of_their_own(reader, tmp_path):
    units = reader.units(reader.example(tmp_path), "mine", 20)
    assert [Unit.from_json(json.loads(json.dumps(unit.to_json()))) for unit in units] == units
    assert len({unit.name for unit in units}) == len(units)
    assert all(unit.source == "mine" and unit.reader in NAMES for unit in units)
    assert all(unit.size == sum(f.end - f.start for f in unit.files) for unit in units)


def test_units_hold_the_same_documents_wherever_they_are_cut(reader, tmp_path, monkeypatch):
    source = reader.example(tmp_path)
    if source == "-":
        pytest.skip("it can be listed once; its units are those of a file")
    whole = all_documents(reader, reader.units(source, "mine"))
    for block_bytes in (1, 7, 40):
        units = reader.units(source, "mine", block_bytes)
        assert all_documents(reader, units) == whole
        parts = [all_documents(reader, [unit]) for unit in reversed(units)]
        assert [document for part in reversed(parts) for document in part] == whole


def test_a_vanished_source_is_an_error_that_names_it(reader, tmp_path):
    source = reader.example(tmp_path)
    path = Path(source.removeprefix("repo:"))
    if not path.exists():
        pytest.skip("this source is no file")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InvalidInput, match="does not exist") as error:
        read(source)
    assert path.name in str(error.value)


def test_it_says_what_it_reads_and_claims_no_nonsense(reader):
    assert reader.summary
    assert not reader.claims("no-such-thing")
    assert hash(reader) == hash(type(reader)())  # frozen: knobs only, no state


def test_a_source_nobody_reads_lists_what_can_be_read(tmp_path):
    with pytest.raises(InvalidInput, match="`nowhere` does not exist") as error:
        reader_for("nowhere")
    assert ".jsonl" in str(error.value.hint)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    with pytest.raises(InvalidInput, match="no reader for"):
        reader_for(str(tmp_path / "photo.png"))


# ── JSONL ─────────────────────────────────────────────────────────────────────────────────────


def test_jsonl_takes_id_or_file_and_line(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", {"id": "x", "text": "one"}, {"text": "two"}, {"id": 7, "text": "3"}
    )
    documents, _ = read(path)
    assert [(d.id, d.text) for d in documents] == [("x", "one"), ("a.jsonl:2", "two"), ("7", "3")]


def test_jsonl_gz_gives_what_jsonl_gives(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"id": "x", "text": "é"}, {"id": "y", "text": "two"})
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    texts = [(d.id, d.text) for d in read(packed)[0]]
    assert texts == [(d.id, d.text) for d in read(path)[0]] == [("x", "é"), ("y", "two")]


def test_jsonl_skips_blank_lines_and_counts_empty_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "  "}\n')
    documents, bad = read(path)
    assert [d.text for d in documents] == ["one"]
    assert bad.skipped == {"empty text": 1}


def test_jsonl_reads_another_field(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"body": "one"})
    assert [d.text for d in read(path, text_field="body")[0]] == ["one"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not valid JSON"),
        (b'["text"]', "not a JSON object but list"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"text": 3}', "field `text` is no string but int"),
        (b'{"text": null}', "field `text` is no string but NoneType"),
        (b'{"texts": "a", "id": 1}', "no field `text`.*did you mean `texts`?.*known: id, texts"),
        (b"{}", "no field `text`"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_jsonl_names_file_and_line_of_a_defect_or_skips_it(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "x", "text": "one"}\n' + line + b'\n{"text": "three"}\n')
    with pytest.raises(InvalidInput, match=rf"a\.jsonl:2: .*{reason}") as error:
        read(path)
    assert "--on-bad skip" in str(error.value.hint)
    documents, bad = read(path, "skip")
    assert [d.text for d in documents] == ["one", "three"]
    assert sum(bad.skipped.values()) == 1


def test_a_truncated_gzip_keeps_the_lines_before_the_break(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"text": f"{i} {i * 7919 % 997}"}) + "\n" for i in range(5000))
    path.write_bytes(gzip.compress(lines.encode())[:-4000])
    with pytest.raises(InvalidInput, match=r"a\.jsonl\.gz:\d+: the gzip stream is truncated"):
        read(path)
    documents, bad = read(path, "skip")
    assert 0 < len(documents) < 5000
    assert sum(bad.skipped.values()) == 1


def test_a_file_that_only_claims_to_be_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(InvalidInput, match=r"a\.jsonl\.gz:1: the gzip stream is"):
        read(path)


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


def test_a_folder_without_text_says_what_it_holds(tmp_path):
    with pytest.raises(InvalidInput, match="holds no text file$"):
        read(tmp_path)
    (tmp_path / "data.jsonl").write_text("{}")
    with pytest.raises(InvalidInput, match=r"holds no text file; it holds: 1 \.jsonl"):
        read(tmp_path)


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
