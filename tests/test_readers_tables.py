"""Parquet, Arrow and data sets of the hub."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from test_readers import read

from giraffe_cli.corpus.readers.parquet import Parquet
from giraffe_cli.errors import InvalidInput

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


def test_row_groups_of_no_rows_are_of_no_span(tmp_path):
    """Their first byte is said to be 0: the last span would be all of the file again."""
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for texts in (["a", "b"], ["c"], [], ["d"], []):
            writer.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())}))
    for block_bytes in (1, 60, 1 << 20):
        documents, _ = read(tmp_path / "a.parquet", block_bytes=block_bytes)
        assert [(d.id, d.text) for d in documents] == [
            (f"a.parquet:{n}", text) for n, text in enumerate("abcd", start=1)
        ]


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


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_columns_that_are_there_twice_and_ids_of_no_text_are_told(tmp_path, name):
    def write(names: list[str], *columns: pyarrow.Array) -> Path:
        table = pyarrow.Table.from_arrays(list(columns), names=names)
        if name.endswith(".parquet"):
            pq.write_table(table, tmp_path / name)
            return tmp_path / name
        with pyarrow.ipc.new_file(str(tmp_path / name), table.schema) as sink:
            sink.write_table(table)
        return tmp_path / name

    one = pyarrow.array(["one"])
    for names, told in ((["text", "text"], "text"), (["text", "id", "id"], "id")):
        with pytest.raises(InvalidInput, match=f"two columns `{told}`"):
            read(write(names, *[one] * len(names)))
    offsets = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0")
    ids = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"\xffb")]
    )
    documents, bad = read(write(["text", "id"], pyarrow.array(["a", "b"]), ids), "skip")
    assert [(d.id, d.text) for d in documents] == [("b", "b")]
    assert bad.skipped == {"an `id` that is not valid UTF-8": 1}


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
