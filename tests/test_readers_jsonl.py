"""JSON lines, plain and compressed: what a record needs, where a defect is, cut files."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_readers import read, write_lines

from giraffe_cli.corpus.readers import jsonl
from giraffe_cli.corpus.readers._records import Defect, identity_of, text_of
from giraffe_cli.corpus.readers.jsonl import Jsonl
from giraffe_cli.errors import InvalidInput


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
        (b'{"messages": []}', "no field `text`.*rendered to one text first: tokenizer.apply_chat"),
        (
            b'{"input_ids": [1, 2]}',
            r"no field `text`.*tokenizer\.decode\(input_ids, skip_special_tokens=True\)",
        ),
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
