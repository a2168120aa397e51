"""Readers: the contract that every registered one meets, then each one's own defects."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.corpus.base import (
    BLOCK_BYTES,
    BadRecords,
    Document,
    Unit,
    make_reader,
    reader_for,
    readers,
)
from giraffe_cli.corpus.readers import jsonl
from giraffe_cli.corpus.readers._records import Defect, identity_of, text_of
from giraffe_cli.corpus.readers.code_repo import dependencies_first
from giraffe_cli.corpus.readers.jsonl import Jsonl
from giraffe_cli.corpus.readers.parquet import Parquet
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
    assert hash(reader) == hash(dataclasses.replace(reader))  # frozen: knobs only, no state


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


LINE = st.one_of(
    st.builds(
        lambda text, own: json.dumps({"text": text, **({"id": own} if own else {})}),
        st.text(max_size=12),
        st.sampled_from(["", "x", "y"]),
    ),
    st.sampled_from(["", "  ", "{", "[1]", '{"text": "é"}', '{"text": 1}', "\\ud800", "a" * 30]),
)


@given(st.lists(LINE, max_size=12), st.integers(1, 80), st.booleans(), st.booleans())
def test_a_file_cut_anywhere_gives_the_same_documents_and_faults(
    tmp_path_factory, lines, block_bytes, ends, large
):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n" * ends)
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(jsonl, "BLOCK_BYTES", 1)  # ids by byte offset, as in files of 32 MB
        whole, bad = read(path, "skip")
        cut, bad_when_cut = read(path, "skip", block_bytes)
    assert cut == whole
    assert bad_when_cut.skipped == bad.skipped
    if not large:
        numbered = [f"a.jsonl:{n}" for n, line in enumerate(lines, start=1)]
        assert all(d.id in {*numbered, "x", "y"} for d in whole)


def test_a_line_number_is_right_in_a_unit_that_begins_in_the_middle(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"text": "one"} for _ in range(9)), {"texts": ""})
    for block_bytes in (1, 15, 16, 17, 40, 1000):  # a line is 16 bytes long
        with pytest.raises(InvalidInput, match=r"a\.jsonl:10: no field `text`"):
            read(path, block_bytes=block_bytes)


def test_compressed_files_are_one_unit(tmp_path):
    lines = write_lines(tmp_path / "a.jsonl", *({"text": f"{i}"} for i in range(100))).read_bytes()
    texts = [f"{i}" for i in range(100)]
    for name, data in {
        "a.jsonl.gz": gzip.compress(lines[:500]) + gzip.compress(lines[500:]) + b"\0" * 9,
        "a.ndjson.zst": bytes(pyarrow.compress(lines, "zstd", asbytes=True)),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert len(Jsonl().units(str(tmp_path / name), "mine", 10)) == 1
        documents, _ = read(tmp_path / name)
        assert [d.text for d in documents] == texts
        assert documents[3].id == f"{name}:4"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
EDGES = [
    b'{"id": 123456789012345678901234567890, "text": "beyond 64 bits"}',
    b'{"id": -9223372036854775809}',
    b'{"id": 1e5, "text": "a float is no id"}',
    b'{"text": "\\ud83e\\udd92", "lone": "\\ud83e"}',
    b'\xef\xbb\xbf{"text": "byte order mark"}',
    b'{"a": NaN, "b": -Infinity, "c": 1E400}',
    b'{"a": 1, "a": 2}',
    b'{"a": "\\u0000"}',
    b'{"a": "\x00"}',
    b'{"a": "\x1f"}',
    b'{"a": "\xed\xa0\x80"}',
    b'{"a": 01}',
    b' {"a": "spaces"} \r\n',
    b'{"a": 1} {"b": 2}',
    b"[1]",
    b"1e400",
    b"",
]


def taken(line: bytes) -> object:
    """Id and text of a record, or what is wrong with it."""
    try:
        record = jsonl.parse(line)
        return identity_of(record), text_of(record, "text")
    except Defect as defect:
        return defect.reason, defect.detail


@pytest.mark.skipif(jsonl._ORJSON is None, reason="needs orjson")
@pytest.mark.parametrize("line", EDGES)
def test_orjson_and_json_agree_on_edges(monkeypatch, line):
    fast = taken(line)
    monkeypatch.setattr(jsonl, "_ORJSON", None)
    assert taken(line) == fast


@pytest.mark.skipif(jsonl._ORJSON is None, reason="needs orjson")
@given(st.dictionaries(st.sampled_from(["id", "text", "a"]), JSON_VALUES), st.booleans())
def test_orjson_and_json_agree(record, ascii_only):
    line = json.dumps(record, ensure_ascii=ascii_only).encode("utf-8", "replace")
    fast = taken(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_ORJSON", None)
        assert taken(line) == fast


# ── parquet and Arrow ─────────────────────────────────────────────────────────────────────────


def write_parquet(path: Path, rows_in_group: int = 2, **columns: list) -> Path:
    pq.write_table(pyarrow.table(columns), path, row_group_size=rows_in_group)
    return path


def write_arrow(path: Path, kind: str, **columns: list) -> Path:
    table = pyarrow.table(columns)
    new = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
    with new(str(path), table.schema) as sink:
        sink.write_table(table, max_chunksize=2)
    return path


def test_parquet_rows_have_their_id_or_their_number(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=["a", "b", "c", "d", "e"], other=[1] * 5)
    assert len(Parquet().units(str(path), "mine", 1)) == 3  # row groups
    for block_bytes in (1, 300, 1 << 20):
        documents, _ = read(path, block_bytes=block_bytes)
        assert [(d.id, d.text) for d in documents] == [
            (f"a.parquet:{n}", text) for n, text in enumerate("abcde", start=1)
        ]
    path = write_parquet(tmp_path / "b.parquet", text=["a", "b"], id=[7, 8])
    assert [d.id for d in read(path)[0]] == ["7", "8"]


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_and_streams(tmp_path, kind):
    path = write_arrow(tmp_path / "a.arrow", kind, text=["a", "b", "c"], id=["x", None, "z"])
    documents, _ = read(path)
    assert [(d.id, d.text) for d in documents] == [("x", "a"), ("a.arrow:2", "b"), ("z", "c")]


def test_a_saved_dataset_is_read_in_the_order_of_its_state(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"text {i}" for i in range(7)]}
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_dict(rows).select([4, 2, 6])
    saved.save_to_disk(tmp_path / "saved", num_shards=2)
    assert [d.text for d in read(tmp_path / "saved")[0]] == ["text 4", "text 2", "text 6"]
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InvalidInput, match="holds the splits train, test") as error:
        read(tmp_path / "splits")
    assert "splits/train or" in str(error.value.hint)


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_an_arrow_file_whose_offsets_lead_out_of_it_is_refused(tmp_path, kind):
    """Arrow follows them: to other bytes of the process, or out of its memory."""
    texts = pyarrow.array(["aaaa", "bbbb", "cccc"], getattr(pyarrow, kind)())
    path = write_arrow(tmp_path / "a.arrow", "stream", text=texts)
    data = bytearray(path.read_bytes())
    width = 4 if kind == "string" else 8
    offsets = b"".join(n.to_bytes(width, "little") for n in (0, 4, 8))  # of the first batch
    place = data.index(offsets) + width
    data[place : place + width] = (10**9).to_bytes(width, "little")
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="the Arrow file is damaged"):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_what_a_column_or_a_row_lacks_is_told(tmp_path, name):
    def write(**columns):
        if name.endswith(".parquet"):
            return write_parquet(tmp_path / name, **columns)
        return write_arrow(tmp_path / name, "stream", **columns)

    path = write(texts=["a"], id=["x"])
    with pytest.raises(InvalidInput, match="no column `text`.*did you mean `texts`"):
        read(path)
    assert [d.text for d in read(path, text_field="texts")[0]] == ["a"]
    with pytest.raises(InvalidInput, match="column `n` is no string but int64"):
        read(write(n=[1]), text_field="n")
    path = write(text=["a", None, " ", "nul\0", "b"])
    with pytest.raises(InvalidInput, match=rf"{name}: row 2: field `text` is no string but None"):
        read(path)
    documents, bad = read(path, "skip")
    assert [(d.id, d.text) for d in documents] == [(f"{name}:1", "a"), (f"{name}:5", "b")]
    assert sum(bad.skipped.values()) == 3
    assert bad.skipped["empty text"] == 1


# ── hub ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def dataset(tmp_path) -> Path:
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000.parquet", text=["a", "b"], id=["x", ""])
    write_parquet(tmp_path / "data" / "test-00000.parquet", text=["c"], id=["z"])
    return tmp_path


def test_a_dataset_is_streamed_by_split(dataset):
    documents, _ = read(f"hf:{dataset}")
    assert [(d.id, d.text) for d in documents] == [("x", "a"), ("train:2", "b")]
    assert [d.text for d in read(f"hf:{dataset}::test")[0]] == ["c"]
    assert [d.text for d in read(f"hf:{dataset}:default:test")[0]] == ["c"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("hf:{}::tset", "has no split `tset`"),
        ("hf:{}:other", "cannot open hf:.*'other' not found"),
        ("hf:", "names no dataset"),
        ("hf:a:b:c:d", "names no dataset"),
    ],
)
def test_a_config_or_split_that_is_not_there(dataset, source, found):
    with pytest.raises(InvalidInput, match=found):
        read(source.format(dataset))


def test_offline_the_hub_is_an_error_that_says_so(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="cannot open hf:nobody/nothing") as error:
        read("hf:nobody/nothing")
    assert "HF_HUB_OFFLINE" in str(error.value.hint)


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
    ],
    ids=["records", "byte-order-mark", "blank-line", "gzip", "text"],
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


# ── repositories ──────────────────────────────────────────────────────────────────────────────


def write_files(root: Path, **files: str) -> Path:
    """`{"a__b_py": text}` → `a/b.py`."""
    for name, text in files.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def order(source: str, **knobs) -> list[str]:
    headers = re.compile(r"^# (\S+\.\w+)$", re.MULTILINE)
    return [name for d in read(source, **knobs)[0] for name in headers.findall(d.text)]


def test_a_repository_is_one_document_dependencies_first(tmp_path):
    root = write_files(
        tmp_path / "tool",
        a_py="from tool.core import x\nimport json\n",
        src__tool__core_py="from . import util\nfrom .deep.er import y\n",
        src__tool__util_py="z = 1\n",
        src__tool__deep__er_py="y = 1\n",
        tests__test_a_py="import a\n",
        README_md="# tool\n",
        b_md="notes",
    )
    (root / ".git").mkdir()
    write_files(root, node_modules__x_js="no", photo_png="no")
    [document], bad = read(f"repo:{root}")
    assert document.id == "tool"
    assert document.text.startswith("# README.md\n# tool\n\n# src/tool/util.py\nz = 1\n\n# src")
    assert order(f"repo:{root}") == [
        "README.md",
        "src/tool/util.py",
        "src/tool/deep/er.py",
        "src/tool/core.py",
        "a.py",
        "b.md",
        "tests/test_a.py",
    ]
    assert bad.skipped == {"not a text suffix: .png": 1}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a_c": '#include "z.h"\n#include <stdio.h>\n', "z_h": ""}, ["z.h", "a.c"]),
        ({"a_ts": "import { q } from './in/q';", "in__q_ts": "1"}, ["in/q.ts", "a.ts"]),
        ({"a_js": "const q = require('../z/i')", "z__i_js": "1"}, ["a.js", "z/i.js"]),
        ({"src__lib_rs": "pub mod zoo;", "src__zoo_rs": "1"}, ["src/zoo.rs", "src/lib.rs"]),
        ({"src__a_rs": "use crate::b::C;", "src__b_rs": "1"}, ["src/b.rs", "src/a.rs"]),
        ({"A_java": "import org.z.B;", "x__org__z__B_java": "1"}, ["x/org/z/B.java", "A.java"]),
        ({"a_go": 'import "host/m/z"', "z__q_go": "1"}, ["z/q.go", "a.go"]),
        ({"a_rb": "require_relative 'z'", "z_rb": "1"}, ["z.rb", "a.rb"]),
        ({"a_py": "import b", "b_py": "import c", "c_py": "import a"}, ["c.py", "b.py", "a.py"]),
    ],
    ids=["c", "ts", "js-outside", "rust-mod", "rust-use", "java", "go", "ruby", "circle"],
)
def test_a_file_stands_behind_what_it_imports(tmp_path, files, expected):
    files = {name: text or "x" for name, text in files.items()}
    assert order(f"repo:{write_files(tmp_path, **files)}") == expected


IGNORE = """# made by tools
*.tmp.py
!kept.tmp.py
/gen
logs/
inner/out.py
"""


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("a.py", True),
        ("a.tmp.py", False),
        ("inner/a.tmp.py", False),
        ("kept.tmp.py", True),
        ("gen/a.py", False),
        ("inner/gen/a.py", True),
        ("inner/logs/a.py", False),
        ("logs.md", True),
        ("inner/out.py", False),
        ("out.py", True),
        ("vendor/a.py", False),
        ("inner/build/a.py", False),
        ("build.py", True),
        ("a.min.js", False),
        (".hidden/a.py", False),
    ],
)
def test_ignored_vendored_and_built_files_are_left_out(tmp_path, path, taken):
    files = {"README.md": "# r", ".gitignore": IGNORE, path: "x = 1"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    [document], bad = read(f"repo:{tmp_path}")
    assert document.text == "# README.md\n# r\n" + f"# {path}\nx = 1\n" * taken
    assert bad.skipped == {}


def test_a_folder_of_repositories_is_a_document_each(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / ".git").mkdir(parents=True)
        (tmp_path / name / "a.py").write_text(f"NAME = '{name}'")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "a.py").write_text("no repository")
    documents, bad = read(f"repo:{tmp_path}")
    assert [(d.id, d.text) for d in documents] == [
        ("one", "# a.py\nNAME = 'one'\n"),
        ("two", "# a.py\nNAME = 'two'\n"),
    ]
    assert bad.skipped == {"beside the repositories": 1}
    assert [u.name for u in reader_for("repo:x").units(f"repo:{tmp_path}", "r")] == ["one", "two"]
    (tmp_path / ".git").mkdir()  # now the folder is the repository
    [document], _ = read(f"repo:{tmp_path}")
    assert "# three/a.py\n" in document.text


def test_a_repository_beyond_the_longest_document_is_cut_between_files(tmp_path):
    root = write_files(tmp_path / "r", a_md="a" * 30, b_md="b" * 30, c_md="c" * 30, d_md="d" * 99)
    documents, bad = read(f"repo:{root}", "skip", max_doc_bytes=80)
    assert [(d.id, len(d.text)) for d in documents] == [("r", 76), ("r:2", 38)]
    assert bad.skipped == {"longer than 80 bytes (--max-doc-bytes)": 1}
    with pytest.raises(InvalidInput, match=r"d\.md: longer than 80 bytes"):
        read(f"repo:{root}", max_doc_bytes=80)


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=6, max_size=6))
def test_every_file_once_and_behind_its_needs_unless_in_a_circle(edges):
    names = [f"f{n}" for n in range(6)]
    needs = {name: [names[n] for n in found] for name, found in zip(names, edges, strict=True)}
    ordered = dependencies_first(names, needs)
    assert sorted(ordered) == names
    reach = {name: {name} for name in names}
    for _ in names:
        reach = {n: reach[n].union(*(reach[m] for m in needs[n])) for n in names}
    for name in names:
        for need in needs[name]:
            if name not in reach[need]:
                assert ordered.index(need) < ordered.index(name)


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
