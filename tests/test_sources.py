"""From what the user names to units: names, globs, folders, refusals; digests and changes."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest

from giraffe_cli.config.files import write_sealed_yaml
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import changes
from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.changes import check_unchanged, raw_digest, stamps, unchanged
from giraffe_cli.corpus.readers import jsonl
from giraffe_cli.corpus.source_names import Source, check_distinct, parse_source
from giraffe_cli.corpus.sources import read_source, reader_of, resolve
from giraffe_cli.corpus.unit import FileSpan, Unit
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError
from giraffe_cli.rundir import make_folder, write_sealed


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Every test names its sources relative to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, data: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def records(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def read(*sources: str, **config) -> list[Document]:
    settings = PackConfig(**config)
    bad = BadRecords(settings.on_bad)
    units = resolve(list(sources), settings)
    return [d for unit in units for d in reader_of(unit, settings).documents(unit, bad)]


def found(*sources: str, **config) -> list[tuple[str, str]]:
    return [(document.id, document.text) for document in read(*sources, **config)]


# ── names ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("books=data/*.jsonl", Source("books", "data/*.jsonl")),
        ("a.b-2=x", Source("a.b-2", "x")),
        ("data/books.jsonl", Source("data/books.jsonl", "data/books.jsonl")),
        ("data/lang=en/*.jsonl", Source("data/lang=en/*.jsonl", "data/lang=en/*.jsonl")),
        ("books=", Source("books=", "books=")),
        ("-", Source("-", "-")),
        ("pipe=-", Source("pipe", "-")),
        ("web=hf:allenai/c4:en:train", Source("web", "hf:allenai/c4:en:train")),
    ],
)
def test_a_name_is_taken_off(named, expected):
    assert parse_source(named) == expected


def test_a_path_that_exists_is_not_taken_apart():
    write("lang=en/a.jsonl", records("one"))
    assert parse_source("lang=en/a.jsonl") == Source("lang=en/a.jsonl", "lang=en/a.jsonl")


def test_a_glob_that_matches_as_it_stands_is_not_taken_apart():
    """Partitions are folders like `lang=en`: taken apart it read another corpus, or none."""
    write("lang=en/a.jsonl", records("one"))
    write("other/a.jsonl", records("two"))
    for named in ("lang=*/*.jsonl", "lang=en/*.jsonl", "lang=en/*.gone"):
        assert parse_source(named) == Source(named, named)
    assert parse_source("en=*/*.jsonl") == Source("en", "*/*.jsonl")
    assert parse_source("en=x/**b") == Source("en", "x/**b")


def test_a_glob_below_a_folder_with_a_colon_is_one():
    write("d:e/a.jsonl", records("one"))
    assert [document.text for document in read("d:e/*.jsonl")] == ["one"]


def test_a_name_that_is_no_utf8_is_escaped():
    assert parse_source("bad\udcff.jsonl") == Source("bad\\xff.jsonl", "bad\udcff.jsonl")


def test_documents_carry_the_name_and_units_come_in_order():
    write("b.jsonl", records("b"))
    write("a.jsonl", records("a"))
    documents = read("second=b.jsonl", "a.jsonl")
    assert [(d.source, d.id, d.text) for d in documents] == [
        ("second", "b.jsonl:1", "b"),
        ("a.jsonl", "a.jsonl:1", "a"),
    ]


# ── globs and folders ─────────────────────────────────────────────────────────────────────────


def test_a_glob_is_its_files_in_order_with_ids_below_its_fixed_part():
    for name in ("data/b.jsonl", "data/a.jsonl", "data/in/c.jsonl", "data/.hidden.jsonl"):
        write(name, records(name))
    write("data/B.jsonl.gz", gzip.compress(records("gz").encode()))
    assert [i for i, _ in found("data/*.jsonl*")] == ["B.jsonl.gz:1", "a.jsonl:1", "b.jsonl:1"]
    names = ["a.jsonl:1", "b.jsonl:1", "in/c.jsonl:1"]
    assert [i for i, _ in found("data/**/*.jsonl")] == names
    [unit] = resolve(["x=data/**/*.jsonl"], PackConfig())
    assert (unit.name, unit.source) == ("a.jsonl..in/c.jsonl", "x")


def test_a_glob_of_texts_and_one_that_matches_folders():
    write("docs/b.md", "b")
    write("docs/a.md", "a")
    write("docs/in/c.md", "c")
    bad = BadRecords()
    texts = [(d.id, d.text) for d in read_source("docs/*", bad)]
    assert texts == [("a.md", "a"), ("b.md", "b")]
    assert bad.skipped == {"folder that a glob matched": 1}


def test_what_giraffe_wrote_below_a_corpus_is_no_part_of_it():
    """Nor in a glob of any depth; where it is named it is read."""
    write("a.md", "a text")
    write("mine/run.yaml", "seal: none")
    write_sealed_yaml(make_folder(Path("runs/one")) / "run.yaml", {"model": "m"})
    write("runs/one/model/README.md", "a card")
    write_sealed(make_folder(Path("scores")) / "results.json", {"schema_version": 1})
    write("scores/report.html", "a page")
    left = [("a.md", "a text"), ("mine/run.yaml", "seal: none")]
    assert found(".") == left
    assert found("**/*.md") == left[:1]
    assert found("runs/*/model/README.md") == [("one/model/README.md", "a card")]
    assert found("runs/one/model") == [("README.md", "a card")]


def test_a_name_with_brackets_that_exists_is_no_glob():
    write("a[1].jsonl", records("one"))
    assert found("a[1].jsonl") == [("a[1].jsonl:1", "one")]


def test_a_glob_under_a_link_that_leads_in_a_circle_ends():
    write("data/a.jsonl", records("one"))
    Path("data/again").symlink_to(".")
    assert found("data/**/*.jsonl") == [("a.jsonl:1", "one")]


def test_a_folder_of_records_is_its_files_beside_readmes():
    write("set/README.md", "# about")
    write("set/LICENSE", "free")
    write("set/info.json", '{\n"rows": 2}')
    write("set/data/b.jsonl", records("b"))
    write("set/data/a.jsonl.gz", gzip.compress(records("a").encode()))
    bad = BadRecords()
    texts = [(d.id, d.text) for d in read_source("set", bad)]
    assert texts == [("data/a.jsonl.gz:1", "a"), ("data/b.jsonl:1", "b")]
    assert bad.skipped == {
        "beside records: .json": 1,
        "beside records: .md": 1,
        "beside records: no suffix": 1,
    }


def test_a_folder_of_json_files_is_records_but_json_beside_texts_is_not():
    write("only/a.json", records("a"))
    assert found("only") == [("a.json:1", "a")]
    write("site/a.json", records("a" * 1000))
    write("site/b.md", "b")
    assert found("site") == [("b.md", "b")]


def test_a_folder_of_texts_with_a_few_records_is_a_tree():
    write("repo/long.md", "a" * 1000)
    write("repo/tests/x.jsonl", records("x"))
    bad = BadRecords()
    assert [d.id for d in read_source("repo", bad)] == ["long.md"]
    assert bad.skipped == {"not a text suffix: .jsonl": 1}


def test_a_folder_that_is_both_is_refused_with_globs_to_choose_from():
    write("set/data/a.jsonl", records("a" * 1000))
    write("set/load.py", "print()")
    with pytest.raises(InvalidInput, match=r"set holds records \(1 \.jsonl\) and texts") as error:
        resolve(["set"], PackConfig())
    assert "'set/**/*.jsonl'" in str(error.value.hint)


def test_small_files_share_a_unit_and_large_ones_are_cut():
    for index in range(6):
        write(f"data/{index}.jsonl", records("x" * 80))  # 93 bytes each
    write("data/9.jsonl", records(*["y" * 80] * 30))
    units = resolve(["data"], PackConfig(block_bytes=1000))
    assert [unit.name for unit in units] == [
        "0.jsonl..5.jsonl",
        "9.jsonl:0-1000",
        "9.jsonl:1000-2000",
        "9.jsonl:2000-2790",
    ]
    assert sum(unit.size for unit in units) == 6 * 93 + 2790
    assert found("data", block_bytes=1000) == found("data")


def test_standard_input_is_stored_where_it_is_told_and_cut_like_a_file(folder, monkeypatch):
    data = records("one", "two", "three").encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    units = resolve(["pipe=-"], PackConfig(block_bytes=20), folder / "work")
    bad, config = BadRecords(), PackConfig()
    documents = [d for unit in units for d in reader_of(unit, config).documents(unit, bad)]
    assert len(units) == 3
    assert [(d.source, d.id, d.text) for d in documents] == [
        ("pipe", "stdin.jsonl:1", "one"),
        ("pipe", "stdin.jsonl:2", "two"),
        ("pipe", "stdin.jsonl:3", "three"),
    ]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (["a.jsonl", "a.jsonl"], "`a.jsonl` is named twice"),
        (["a.jsonl", "./a.jsonl"], "`./a.jsonl` is named twice"),
        (["x=a.jsonl", "x=docs"], "`x` is named twice"),
        (["x=a.jsonl", "y=a.jsonl"], "`a.jsonl` is named twice"),
        (["docs", "docs/in"], "`docs/in` and `docs` overlap"),
        (["repo:docs", "docs"], "`docs` is named twice"),
        (["docs", "docs/*.md"], "`docs/\\*.md` and `docs` overlap"),
        (["*.jsonl", "x=?.jsonl"], "`\\*.jsonl` and `x` overlap: both hold a.jsonl"),
        (["a.jsonl", "link.jsonl"], "is named twice"),
    ],
)
def test_a_corpus_that_would_be_read_twice_is_refused(sources, found):
    write("a.jsonl", records("a"))
    write("docs/a.md", "a")
    write("docs/in/b.md", "b")
    Path("link.jsonl").symlink_to("a.jsonl")
    with pytest.raises(UsageError, match=found):
        resolve(sources, PackConfig())


def test_names_alone_tell_most_of_it():
    check_distinct(["a.jsonl", "b.jsonl", "x=docs"])
    with pytest.raises(UsageError, match="named twice"):
        check_distinct(["-", "-"])


@pytest.mark.parametrize(
    ("source", "found", "hint"),
    [
        ("boks.jsonl", "`boks.jsonl` does not exist", "did you mean `books.jsonl`"),
        ("in/boks.jsonl", "`in/boks.jsonl` does not exist", "check the path; readable sources: "),
        ("docz/", "`docz/` does not exist", "did you mean `docs`"),
        ("data/*.jsonl", r"no file matches `data/\*.jsonl`", "check the pattern"),
        ("doc*", r"no file matches `doc\*`; 1 folders do", "check the pattern"),
        ("x/**b", r"`x/\*\*b` is no pattern", "between two /"),
        ("nothing", "`nothing` does not exist", ".jsonl"),
        ("photo.png", "no reader for `photo.png`", ".jsonl"),
        ("python-stdlb", "`python-stdlb` does not exist", "python-stdlib"),
        ("empty", "empty holds no text file", "readable here"),
        ("pipe.jsonl", "pipe.jsonl is no regular file", "giraffe pack-data -"),
        ("-", "standard input .* can only be packed", "store it in a file"),
    ],
)
def test_what_cannot_be_read_says_what_was_found_and_what_helps(source, found, hint):
    write("books.jsonl", records("a"))
    write("docs/a.md", "a")
    write("photo.png", "x")
    Path("empty").mkdir()
    os.mkfifo("pipe.jsonl")
    with pytest.raises(InvalidInput, match=found) as error:
        resolve([source], PackConfig())
    assert hint in str(error.value.hint)


def test_a_text_field_without_any_use_is_refused():
    write("a.md", "a")
    write("a.jsonl", '{"body": "b"}\n')
    with pytest.raises(UsageError, match="text field `body` has no effect"):
        resolve(["a.md"], PackConfig(text_field="body"))
    assert found("a.md", "a.jsonl", text_field="body") == [("a.md", "a"), ("a.jsonl:1", "b")]


def test_a_link_out_of_a_folder_of_records_is_refused_or_counted():
    write("elsewhere.jsonl", records("no"))
    write("set/a.jsonl", records("a"))
    Path("set/b.jsonl").symlink_to("../elsewhere.jsonl")
    with pytest.raises(InvalidInput, match="set/b.jsonl: a link that leads out of the folder"):
        resolve(["set"], PackConfig())
    bad = BadRecords("skip")
    assert [d.text for d in read_source("set", bad, PackConfig(on_bad="skip"))] == ["a"]
    assert bad.skipped == {"a link that leads out of the folder": 1}
    assert found("set/*.jsonl") == [("a.jsonl:1", "a"), ("b.jsonl:1", "no")]  # named by the user


# ── digests and changes ───────────────────────────────────────────────────────────────────────


def digests(*sources: str, **config) -> list[str]:
    return [raw_digest(unit) for unit in resolve(list(sources), PackConfig(**config))]


def test_a_digest_is_of_bytes_and_names_not_of_time_or_place():
    write("one/a.jsonl", records("a", "b"))
    write("two/a.jsonl", records("a", "b"))
    os.utime("two/a.jsonl", (1, 1))
    assert digests("one") == digests("two")
    write("two/a.jsonl", records("a", "c"))
    assert digests("one") != digests("two")
    write("three/b.jsonl", records("a", "b"))
    assert digests("one") != digests("three")  # ids are made of file names


def test_the_digest_of_a_part_covers_the_line_that_runs_over_its_end(monkeypatch):
    monkeypatch.setattr(changes, "BLOCK_BYTES", 1)  # as in files of more than 32 MB
    write("a.jsonl", records("a" * 50, *["z"] * 9))
    before = digests("a.jsonl", block_bytes=40)
    write("a.jsonl", records("a" * 49 + "b", *["z"] * 9))  # byte 59, read with the part 0 to 40
    after = digests("a.jsonl", block_bytes=40)
    assert [old == new for old, new in zip(before, after, strict=True)][:3] == [False, False, True]


def test_the_digest_of_a_part_of_parquet_covers_its_directory(monkeypatch):
    monkeypatch.setattr(changes, "BLOCK_BYTES", 1)
    table = pyarrow.table({"text": ["a", "b", "c"]})
    pq.write_table(table, "a.parquet", row_group_size=1)
    before = digests("a.parquet", block_bytes=1)
    data = bytearray(Path("a.parquet").read_bytes())
    data[-12] ^= 1
    write("a.parquet", bytes(data))
    span = FileSpan("a.parquet", 4, 9, len(data))
    unit = Unit("a", "parquet", "a", ".", (span,), 5)
    data[-12] ^= 1
    changed = raw_digest(unit)
    write("a.parquet", bytes(data))
    assert raw_digest(unit) != changed
    assert digests("a.parquet", block_bytes=1) == before
    assert len(set(before)) == 3


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("block_bytes", [15, 16])  # 15: a part begins where a line does
def test_every_byte_that_a_part_depends_on_is_in_its_digest(monkeypatch, block_bytes, large):
    """Whichever byte is changed, parts whose documents change have another digest."""
    for module in (changes, jsonl) if large else ():
        monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # as in files of more than 32 MB
    original = records("ab", "c", "", "defg", "h").encode()

    def state() -> tuple[list[str], list[list[Document]]]:
        config, units = PackConfig(on_bad="skip"), []
        documents = []
        for unit in resolve(["a.jsonl"], PackConfig(block_bytes=block_bytes)):
            units.append(raw_digest(unit))
            documents.append(list(reader_of(unit, config).documents(unit, BadRecords("skip"))))
        return units, documents

    write("a.jsonl", original)
    before, documents = state()
    for index in range(len(original)):
        write("a.jsonl", original[:index] + b"%c" % (original[index] ^ 1) + original[index + 1 :])
        after, now = state()
        for n in range(len(documents)):
            assert documents[n] == now[n] or before[n] != after[n]


def test_a_tree_has_a_digest_with_its_defective_links():
    write("docs/a.md", "a")
    Path("docs/b.md").symlink_to("nowhere.md")
    Path("docs/again").symlink_to(".")
    assert len(digests("docs")) == 1


@pytest.mark.parametrize("change", ["longer", "other", "touched", "replaced", "gone"])
def test_a_file_that_changes_while_it_is_read_is_told(change):
    path = write("a.jsonl", records("a", "b"))
    units = resolve(["a.jsonl"], PackConfig())
    with (
        pytest.raises(GiraffeError, match=r"a\.jsonl changed while it was read") as error,
        unchanged(units),
    ):
        _change(path, change)
    assert error.value.exit_code == 1


def _change(path: Path, change: str) -> None:
    before = path.stat()
    if change == "gone":
        path.unlink()
    elif change == "replaced":
        write("b.jsonl", path.read_bytes())
        os.utime("b.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace("b.jsonl", path)
    else:
        path.write_text(
            {"longer": records("a", "b", "c"), "other": records("a", "c")}.get(
                change, records("a", "b")
            )
        )
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_a_change_is_told_in_the_place_of_the_error_it_causes():
    path = write("a.jsonl", records("a", "b"))
    documents = read_source("a.jsonl", BadRecords())
    assert next(documents).text == "a"
    path.write_text('{"half')
    with pytest.raises(GiraffeError, match="changed while it was read"):
        list(documents)
    with pytest.raises(InvalidInput, match="not valid JSON"):
        list(read_source("a.jsonl", BadRecords()))


def test_a_file_that_changed_since_it_was_listed_is_told():
    write("a.jsonl", records("a"))
    units = resolve(["a.jsonl"], PackConfig())
    write("a.jsonl", records("a", "b"))
    with pytest.raises(GiraffeError, match="changed while it was read"):
        stamps(units)
    check_unchanged(stamps(resolve(["a.jsonl"], PackConfig())))


def test_a_dataset_of_the_hub_counts_by_its_address():
    def unit(commit: str) -> Unit:
        files = [{"path": f"hf://datasets/o/n@{commit}/a.parquet", "start": 0, "end": 0, "size": 0}]
        return Unit.from_json(
            {
                "source": "n",
                "reader": "hub",
                "name": "train",
                "root": "hf:o/n",
                "files": files,
                "size": 0,
                "passed_over": [],
                "walked": False,
            }
        )

    assert raw_digest(unit("a" * 40)) != raw_digest(unit("b" * 40))
    assert stamps([unit("a" * 40)]) == {}
