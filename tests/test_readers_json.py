"""`.json` files that are not JSON lines: arrays of records and lone objects."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_readers import read

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.readers import json_values
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.errors import InvalidInput

TWO = [{"id": "one", "text": "a text"}, {"text": 'another\n[1, 2] {"é"}', "n": 1.5}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \r\n"], ids=["", "mark", "blank"])
def test_an_array_is_a_record_an_element(tmp_path, indent, start):
    (tmp_path / "a.json").write_bytes(start + json.dumps(TWO, indent=indent).encode())
    documents, _ = read(tmp_path / "a.json")
    assert [(d.id, d.text) for d in documents] == [
        ("one", "a text"),
        ("a.json[1]", TWO[1]["text"]),
    ]


def test_an_object_over_several_lines_is_one_document(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "a text"}, indent=2) + "\n")
    assert [(d.id, d.text) for d in read(tmp_path / "a.json")[0]] == [("a.json", "a text")]


def test_a_compressed_array_is_read_and_a_cut_one_named(tmp_path):
    path = tmp_path / "a.json.gz"
    data = gzip.compress(json.dumps([{"text": f"{i} " * 900} for i in range(4000)]).encode())
    path.write_bytes(data)
    assert len(read(path)[0]) == 4000
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidInput, match=r"a\.json\.gz: the gzip stream is truncated"):
        read(path)
    assert 0 < len(read(path, "skip")[0]) < 4000


def test_json_lines_stay_json_lines(tmp_path):
    lines = '{"text": "a"}\n{"text": "b"}\n'
    (tmp_path / "a.json").write_text(lines)
    (tmp_path / "b.jsonl").write_text("[\n")
    assert [d.id for d in read(tmp_path / "a.json")[0]] == ["a.json:1", "a.json:2"]
    with pytest.raises(InvalidInput, match=r"b\.jsonl:1: not valid JSON"):
        read(tmp_path / "b.jsonl")


def test_a_folder_of_such_files_is_those_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": name}, indent=1))
    (tmp_path / "c.jsonl").write_text('{"text": "c"}\n')
    units = resolve([str(tmp_path / "*.json")], PackConfig())
    assert [(unit.reader, unit.name) for unit in units] == [("json-values", "a.json..b.json")]
    (tmp_path / "c.jsonl").unlink()
    assert resolve([str(tmp_path)], PackConfig())[0].reader == "json-values"


@pytest.mark.parametrize(
    ("text", "told", "kept"),
    [
        ('[{"text": "a"}, 7, {"text": "b"}]', r"\[1\]: not a JSON object but int", 2),
        ('[{"text": "a"}, {"txt": "b"}]', r"\[1\]: no field `text`", 1),
        ('[{"text": "a"},\n{"text": b}]', r":2: not valid JSON \(Expecting value\); nothing", 1),
        ('[{"text": "a"}\n{"text": "b"}]', r":2: not valid JSON \('\{' where a comma", 1),
        ('[{"text": "a"},\n{"text": "b"}', r":2: not valid JSON \(the array has no end\)", 2),
        ('[{"text": "a"},\n{"text": "b', r":2: not valid JSON \(Unterminated string", 1),
        ('[{"text": "a"}]\n[', r":2: not valid JSON \('\[' behind the value\)", 1),
        # how deep the library goes depends on Python: 3.14 sees no end of it
        ("[" * 100_000, r":1: (not valid JSON \(nested too deeply\)|longer than 4,000)", 0),
        ('[{"text": "a"}, ' + "7" * 5000 + "]", r":1: not valid JSON \(Exceeds the limit", 1),
        ('[{"text": "' + "é" * 2500 + '"}, {"text": "b"}]', r"\[0\]: longer than 4,000 bytes", 1),
        ('[{"text": "' + "a" * 20_000 + '"}]', r":1: longer than 4,000 bytes .*nothing behind", 0),
    ],
    ids=[
        "number",
        "field",
        "value",
        "comma",
        "end",
        "string",
        "behind",
        "deep",
        "digits",
        "long",
        "longer",
    ],
)
def test_what_is_wrong_is_named_and_what_was_read_is_kept(tmp_path, monkeypatch, text, told, kept):
    monkeypatch.setattr(json_values, "CHUNK", 64)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"a\.json" + told):
        read(tmp_path / "a.json", max_doc_bytes=4000)
    documents, bad = read(tmp_path / "a.json", "skip", max_doc_bytes=4000)
    assert len(documents) == kept
    assert sum(bad.skipped.values()) == 1


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_bytes_that_are_no_utf8_are_named_and_what_stands_before_them_is_kept(
    tmp_path, monkeypatch, chunk
):
    monkeypatch.setattr(json_values, "CHUNK", chunk)
    lines = [b'\xef\xbb\xbf[{"text": "one"}', b'{"text": "tw\xc3\xb6"}', b'{"text": "caf\xe9"}]']
    (tmp_path / "a.json").write_bytes(b",\n".join(lines))
    with pytest.raises(InvalidInput, match=r"a\.json:3: not valid UTF-8; nothing behind it"):
        read(tmp_path / "a.json")
    documents, bad = read(tmp_path / "a.json", "skip")
    assert [d.text for d in documents] == ["one", "twö"]
    assert bad.skipped == {"not valid UTF-8": 1}


def test_an_empty_array_holds_nothing(tmp_path):
    (tmp_path / "a.json").write_text("[ ]\n")
    assert read(tmp_path / "a.json")[0] == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(VALUES, max_size=5), chunk=st.integers(1, 20), ascii_only=st.booleans())
def test_wherever_reading_stops_the_values_are_those_of_json(
    tmp_path_factory, values, chunk, ascii_only
):
    data = json.dumps(values, ensure_ascii=ascii_only).encode("utf-8", "replace")
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as stream:
        patch.setattr(json_values, "CHUNK", chunk)
        found = [value for _, value in json_values._Values(stream, 1 << 20)]
    assert found == json.loads(data)
