"""Everything that can be wrong with a corpus: named with file and line, or skipped and counted.

Each case is a folder with one defect among records or texts that are fine. Under `fail` the first
defect is an error that names its place; under `skip` the rest is read and the defect is counted.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet as pq
import pytest

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.base import BadRecords
from giraffe_cli.corpus.sources import read_source
from giraffe_cli.errors import GiraffeError, InvalidInput

GOOD = ["one " * 30, "two " * 30]
LINES = "".join(json.dumps({"text": f"{i} {i * 7919 % 997}"}) + "\n" for i in range(50_000))


class Case(NamedTuple):
    """What lies in the folder, and what is said of it."""

    build: Callable[[Path], None]
    """Writes the defect into the folder; a good file lies there already."""
    source: str
    """What is named, below the folder."""
    fails: str
    """Pattern of the error under `fail`."""
    counted: str | None
    """Reason counted under `skip`, as it begins; None when `skip` fails too."""


def jsonl(line: bytes) -> Callable[[Path], None]:
    """A file of records with `line` as its second."""

    def build(root: Path) -> None:
        good = [json.dumps({"text": text}).encode() for text in GOOD]
        (root / "a.jsonl").write_bytes(b"\n".join([good[0], line, good[1]]) + b"\n")

    return build


def text(name: str, data: bytes) -> Callable[[Path], None]:
    """A folder of texts with `data` in `name`."""

    def build(root: Path) -> None:
        _texts(root)
        (root / "docs" / name).write_bytes(data)

    return build


def link(name: str, target: str) -> Callable[[Path], None]:
    """A folder of texts with a link in it."""

    def build(root: Path) -> None:
        _texts(root)
        (root / "secret.md").write_text("not for training")
        (root / "elsewhere").mkdir()
        (root / "elsewhere" / "x.md").write_text("not for training")
        (root / "docs" / name).symlink_to(target)

    return build


def _texts(root: Path) -> None:
    (root / "docs").mkdir()
    for name, good in zip(("a.md", "c.md"), GOOD, strict=True):
        (root / "docs" / name).write_text(good)


def truncated_gzip(root: Path) -> None:
    (root / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-4000])


def truncated_zst(root: Path) -> None:
    (root / "a.jsonl.zst").write_bytes(
        pyarrow.compress(LINES.encode(), "zstd", asbytes=True)[:-4000]
    )


def truncated_parquet(root: Path) -> None:
    pq.write_table(pyarrow.table({"text": GOOD}), root / "a.parquet")
    (root / "a.parquet").write_bytes((root / "a.parquet").read_bytes()[:-9])


def damaged_parquet(root: Path) -> None:
    pq.write_table(pyarrow.table({"text": GOOD}), root / "a.parquet", compression="zstd")
    data = bytearray((root / "a.parquet").read_bytes())
    data[8:60] = bytes(52)
    (root / "a.parquet").write_bytes(data)


def arrow_without_an_end(root: Path) -> None:
    table = pyarrow.table({"text": GOOD})
    with pyarrow.ipc.new_stream(str(root / "a.arrow"), table.schema) as sink:
        sink.write_table(table)
    (root / "a.arrow").write_bytes((root / "a.arrow").read_bytes()[:-8])


CASES = {
    "truncated-gzip": Case(
        truncated_gzip,
        "a.jsonl.gz",
        r"a\.jsonl\.gz:4\d{4}: the gzip stream is truncated",
        "the gzip stream is truncated",
    ),
    "truncated-zst": Case(
        truncated_zst,
        "a.jsonl.zst",
        r"a\.jsonl\.zst:[34]\d{4}: the zst stream is truncated",
        "the zst stream is truncated",
    ),
    "no-gzip": Case(
        lambda root: (root / "a.jsonl.gz").write_bytes(b'{"text": "plain"}\n') and None,
        "a.jsonl.gz",
        r"a\.jsonl\.gz:1: the gzip stream is",
        "the gzip stream is",
    ),
    "empty-gzip": Case(
        lambda root: (root / "a.jsonl.gz").write_bytes(b"") and None,
        "a.jsonl.gz",
        r"a\.jsonl\.gz:1: the gzip stream is truncated",
        "the gzip stream is",
    ),
    "no-zst": Case(
        lambda root: (root / "a.jsonl.zst").write_bytes(b'{"text": "plain"}\n') and None,
        "a.jsonl.zst",
        r"a\.jsonl\.zst:1: the zst stream is",
        "the zst stream is",
    ),
    "truncated-parquet": Case(
        truncated_parquet, "a.parquet", r"a\.parquet: no parquet file", "no parquet file"
    ),
    "damaged-parquet": Case(
        damaged_parquet, "a.parquet", r"a\.parquet: rows 1 to .*: damaged rows", "damaged rows of"
    ),
    "arrow-without-an-end": Case(
        arrow_without_an_end, "a.arrow", r"a\.arrow: the Arrow file is damaged", "the Arrow file"
    ),
    "no-utf8-in-a-record": Case(
        jsonl(b'{"text": "caf\xe9"}'), "a.jsonl", r"a\.jsonl:2: not valid UTF-8", "not valid UTF-8"
    ),
    "no-utf8-in-a-text": Case(
        text("b.md", b"one\ntwo\ncaf\xe9\n"), "docs", r"b\.md:3: not valid UTF-8", "not valid UTF-8"
    ),
    "no-json": Case(
        jsonl(b'{"text": "cut'), "a.jsonl", r"a\.jsonl:2: not valid JSON.*column 10", "not valid"
    ),
    "no-object": Case(jsonl(b"[1]"), "a.jsonl", r"a\.jsonl:2: not a JSON object", "not a JSON"),
    "missing-field": Case(
        jsonl(b'{"texts": "a"}'),
        "a.jsonl",
        r"a\.jsonl:2: no field `text`.*did you mean `texts`",
        "no field `text`",
    ),
    "nul-in-a-record": Case(
        jsonl(b'{"text": "a\\u0000b"}'), "a.jsonl", r"a\.jsonl:2: .* holds a NUL", "field `text`"
    ),
    "nul-byte-in-a-record": Case(
        jsonl(b'{"text": "a\0b"}'), "a.jsonl", r"a\.jsonl:2: .*the line holds NUL", "not valid JSON"
    ),
    "nul-in-a-text": Case(
        text("b.md", b"line\n" * 2000 + b"a\0b\n"),
        "docs",
        r"b\.md:2001: holds a NUL",
        "holds a NUL",
    ),
    "lone-surrogate": Case(
        jsonl(b'{"text": "\\ud83e"}'), "a.jsonl", r"a\.jsonl:2: .*half a surrogate", "field `text`"
    ),
    "lone-surrogate-in-an-id": Case(
        jsonl(b'{"id": "\\udd92", "text": "a"}'), "a.jsonl", r"a\.jsonl:2: field `id`", "field `id`"
    ),
    "link-to-itself": Case(
        link("b.md", "b.md"),
        "docs",
        r"b\.md: a link that leads in a circle",
        "a link that leads in",
    ),
    "link-to-the-folder-above": Case(
        link("again", "."),
        "docs",
        r"docs/again: a link that leads in a circle",
        "a link that leads",
    ),
    "link-to-nothing": Case(
        link("b.md", "gone.md"), "docs", r"b\.md: a link that leads nowhere", "a link that leads no"
    ),
    "link-to-a-file-outside": Case(
        link("b.md", "../secret.md"),
        "docs",
        r"b\.md: a link that leads out of",
        "a link that leads",
    ),
    "link-to-a-folder-outside": Case(
        link("in", "../elsewhere"),
        "docs",
        r"docs/in: a link that leads out of",
        "a link that leads",
    ),
    "link-out-of-a-repository": Case(
        link("b.md", "../secret.md"), "repo:docs", r"b\.md: a link that leads out", "a link that"
    ),
    "too-long-a-record": Case(
        jsonl(b'{"text": "' + b"x" * 30_000 + b'"}'),
        "a.jsonl",
        r"a\.jsonl:2: longer than 20,000 bytes",
        "longer than 20,000 bytes",
    ),
    "too-long-a-text": Case(
        text("b.md", b"x" * 30_000),
        "docs",
        r"b\.md: longer than 20,000 bytes",
        "longer than 20,000 bytes",
    ),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path, monkeypatch) -> Case:
    monkeypatch.chdir(tmp_path)
    chosen = CASES[request.param]
    chosen.build(tmp_path)
    return chosen


def read(source: str, on_bad: str) -> tuple[list[str], dict[str, int]]:
    bad = BadRecords(on_bad)
    config = PackConfig(on_bad=on_bad, max_doc_bytes=20_000)
    return [document.text for document in read_source(source, bad, config)], bad.skipped


def test_a_defect_is_an_error_that_names_its_place(case):
    with pytest.raises(InvalidInput, match=case.fails) as error:
        read(case.source, "fail")
    assert case.counted is None or "--on-bad skip" in str(error.value.hint)


def test_a_defect_is_skipped_and_counted(case):
    if case.counted is None:
        with pytest.raises(InvalidInput, match=case.fails):
            read(case.source, "skip")
        return
    texts, skipped = read(case.source, "skip")
    [(reason, count)] = skipped.items()
    assert reason.startswith(case.counted)
    assert count == 1
    assert "not for training" not in "".join(texts)
    if case.source == "a.jsonl" or case.source == "docs":
        assert texts == GOOD


@pytest.mark.parametrize("name", ["truncated-gzip", "truncated-zst"])
def test_lines_before_a_break_are_kept(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    CASES[name].build(tmp_path)
    texts, _ = read(CASES[name].source, "skip")
    assert 30_000 < len(texts) < 50_000
    assert texts == [json.loads(line)["text"] for line in LINES.splitlines()[: len(texts)]]


def test_empty_documents_are_counted_and_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(b'{"text": " \\n"}')(tmp_path)
    assert read("a.jsonl", "fail") == (GOOD, {"empty text": 1})
    text("b.md", b" \n")(tmp_path)
    assert read("docs", "fail") == (GOOD, {"empty file": 1})


def test_binary_files_are_counted_and_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text("b.md", b"PK\3\4\0\0")(tmp_path)
    assert read("docs", "fail") == (GOOD, {"binary file": 1})


def test_a_link_inside_the_folder_is_read_or_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link("b.md", "a.md")(tmp_path)
    (tmp_path / "docs" / "in").mkdir()
    (tmp_path / "docs" / "in2").symlink_to("in")
    texts, skipped = read("docs", "fail")
    assert texts == [GOOD[0], GOOD[1]]
    assert skipped == {
        "link to a file of the same source": 1,
        "link to a folder of the same source": 1,
    }


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    documents = read_source("a.jsonl", BadRecords("skip"), PackConfig(on_bad="skip"))
    next(documents)
    with open(path, "a") as handle:
        handle.write('{"text": "late"}\n')
    with pytest.raises(GiraffeError, match=r"a\.jsonl changed while it was read") as error:
        list(documents)
    assert error.value.exit_code == 1


def test_a_mapped_file_that_is_cut_short_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, table = tmp_path / "a.arrow", pyarrow.table({"text": ["x" * 9000] * 4000})
    with pyarrow.ipc.new_stream(str(path), table.schema) as sink:
        sink.write_table(table)
    documents = read_source("a.arrow", BadRecords(), PackConfig())
    next(documents)
    with open(path, "r+b") as handle:
        handle.truncate(20 << 20)  # behind the 8 MB that are mapped in now
    with pytest.raises(GiraffeError, match=r"a\.arrow changed while it was read"):
        list(documents)
