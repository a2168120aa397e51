"""Readers: the contract that every registered one meets."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from giraffe_cli.corpus.base import BadRecords, Document, make_reader, reader_for, readers
from giraffe_cli.corpus.unit import BLOCK_BYTES, Unit
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


@pytest.fixture(params=NAMES)
def reader(request, tmp_path, monkeypatch):
    """Each registered reader; on standard input lie two records."""
    if request.param == "pdf":
        pytest.importorskip("pypdf", reason="needs giraffe-cli[pdf]")
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
    path = Path(re.sub(r"^(?!hf:)\w+:", "", source))
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
