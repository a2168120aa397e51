"""PDF: pages to text, words whole again, and what has no text to read."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from books import pdf_bytes, write_book, write_pdf
from conftest import prose
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import read
from test_shards import contents

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.base import reader_for
from giraffe_cli.corpus.changes import raw_digest
from giraffe_cli.corpus.packing import merge_shards, pack_shard, pack_stage
from giraffe_cli.corpus.readers import pdf
from giraffe_cli.corpus.readers._pdf_text import joined_words, legible, without_running_lines
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import SilentReporter

pypdf = pytest.importorskip("pypdf", reason="needs giraffe-cli[pdf]")


def write_encrypted(path: Path, password: str, algorithm: str, text: str = "a") -> Path:
    writer = pypdf.PdfWriter(clone_from=write_pdf(path, text))
    writer.encrypt(password, owner_password="another", algorithm=algorithm)
    with open(path, "wb") as file:
        writer.write(file)
    return path


def texts(source: object, *options, **knobs) -> list[str]:
    return [document.text for document in read(source, *options, **knobs)[0]]


# ── from pages to a text ──────────────────────────────────────────────────────────────────────


def test_a_file_is_one_document_of_its_pages_lines(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", "Call me\nIshmael.  ", "", "Some (years)\n \nago é")
    [document], bad = read(path)
    assert (document.id, document.text) == ("a.pdf", "Call me\nIshmael.\nSome (years)\nago é")
    assert bad.skipped == {}


def test_a_folder_is_read_in_path_order_in_units_of_a_few_megabytes(tmp_path, monkeypatch):
    for name in ("b.PDF", "a/z.pdf", "a/Z.pdf", ".hidden.pdf"):
        write_pdf(tmp_path / "papers" / name, name)
    (tmp_path / "papers" / "a.md").write_text("a")
    source = f"pdf:{tmp_path / 'papers'}"
    documents, bad = read(source)
    assert [d.id for d in documents] == ["b.PDF", "a/Z.pdf", "a/z.pdf"]
    assert bad.skipped == {}
    for named in (source, str(tmp_path / "papers" / "**/*.[pP][dD][fF]")):
        assert len(resolve([named], PackConfig())) == 1
    monkeypatch.setattr(pdf.Pdf, "group_bytes", 1)
    for named in (source, str(tmp_path / "papers" / "**/*.[pP][dD][fF]")):
        assert len(resolve([named], PackConfig())) == 3


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("an exam-\nple of", "an example of"),
        ("an exam\u2010\n  ple, of", "an example, of"),
        ("an exam\xad\nple", "an example"),
        ("Jean-\nPaul, X-\nray, 19-\n20, a -\nb", "Jean-\nPaul, X-\nray, 19-\n20, a -\nb"),
        ("well-known, well-\nknown, un-\nknown", "well-known, well-known, unknown"),
        ("a-\nb-\nc", "ab-\nc"),
    ],
)
def test_a_word_that_ends_a_line_is_joined_where_it_is_one(text, joined):
    assert joined_words(text) == joined


def test_a_million_letters_without_a_space_are_no_trouble():
    run = "a" * 1_000_000
    assert joined_words(f"{run}-\n{run}") == run + run


def test_a_word_that_ends_a_page_is_joined(tmp_path):
    assert texts(write_pdf(tmp_path / "a.pdf", "an exam-", "ple")) == ["an example"]


def pages(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pages("Emma a 1", "Emma b 2", "Emma c 3", "d"), pages("a", "b", "c", "d")),
        (pages("T 1 a", "T 2 b", "T 3 c", "T 4 d", "e"), pages("a", "b", "c", "d", "e")),
        (pages("a b", "a c", "d e", "f g"), pages("a b", "a c", "d e", "f g")),  # on half of them
        (pages("T a", "T b", "T c"), pages("T a", "T b", "T c")),  # of too few
        (pages("x x x x x x a", *["x x x x x x"] * 3), pages("x x x x a", *["x x"] * 3)),
        ([[], [], [], []], [[], [], [], []]),
    ],
    ids=["title-and-number", "two-lines", "half", "few-pages", "no-more-than-two", "blank"],
)
def test_lines_at_the_edge_of_most_pages_are_left_out(before, after):
    assert without_running_lines(before) == after


def test_page_numbers_do_not_part_a_word(tmp_path):
    made = (f"{text}\n- {n} -" for n, text in enumerate(["one exam-", "ple", "two", "three"], 9))
    assert texts(write_pdf(tmp_path / "a.pdf", *made)) == ["one example\ntwo\nthree"]


def test_letters_are_legible(tmp_path):
    assert (
        legible("e\ufb03cient \ufb01sh\0\x07\ud835\udc65 \ud835")
        == "efficient fish\U0001d465 \ufffd"
    )
    assert texts(write_pdf(tmp_path / "a.pdf", "a\x01b")) == ["ab"]


WORDS = st.lists(st.text("abcXYZ019.,()\\é", min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=50)
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_lines_come_out_as_they_went_in(tmp_path_factory, lines):
    text = "\n".join(" ".join(words) for words in lines)
    assert texts(write_pdf(tmp_path_factory.mktemp("p") / "a.pdf", text)) == [text]


# ── what cannot be read ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path) -> Path:
    write_pdf(tmp_path / "good.pdf", "a good one")
    return tmp_path


DEFECTS = {
    "scan": (lambda path: write_pdf(path, "", "x", ""), r"no text layer \(scanned\?\)"),
    "stamped-scan": (lambda path: write_pdf(path, *["Digitized"] * 4), "no text layer"),
    "no-pages": (lambda path: write_pdf(path), "no text layer"),
    "password": (lambda path: write_encrypted(path, "x", "RC4-128"), "it needs a password"),
    "aes-password": (lambda path: write_encrypted(path, "x", "AES-256"), "it needs a password"),
    "too-long": (lambda path: write_pdf(path, "a" * 90, "é" * 10), "longer than 100 bytes"),
    "no-pdf": (lambda path: path.write_bytes(b"not so"), "the PDF file is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "the PDF file is damaged"),
    "cut": (lambda path: path.write_bytes(pdf_bytes("a" * 50)[:300]), "the PDF file is damaged"),
}


@pytest.mark.parametrize("case", DEFECTS)
def test_a_file_that_cannot_be_read_is_a_bad_record_and_pypdf_says_nothing(folder, case, caplog):
    write, reason = DEFECTS[case]
    write(folder / "bad.pdf")
    with pytest.raises(InvalidInput, match=rf"bad\.pdf: .*{reason}"):
        read(f"pdf:{folder}", max_doc_bytes=100)
    documents, bad = read(f"pdf:{folder}", "skip", max_doc_bytes=100)
    assert [d.text for d in documents] == ["a good one"]
    assert list(bad.skipped.values()) == [1]
    assert caplog.records == []


def test_no_page_is_read_behind_the_longest_document(folder, monkeypatch):
    read_pages = []
    monkeypatch.setattr(
        pypdf.PageObject, "extract_text", lambda page: read_pages.append(1) or "a" * 60
    )
    with pytest.raises(InvalidInput, match="longer than 100 bytes"):
        read(write_pdf(folder / "a.pdf", *"abcd"), max_doc_bytes=100)
    assert len(read_pages) == 2


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_file_that_opens_without_a_password_is_read(tmp_path, algorithm):
    assert texts(write_encrypted(tmp_path / "a.pdf", "", algorithm, "free")) == ["free"]


def test_aes_without_cryptography_says_what_to_install(tmp_path, monkeypatch):
    path = write_encrypted(tmp_path / "a.pdf", "", "AES-128")

    def fail(*_, **__):
        raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf, "PdfReader", fail)
    with pytest.raises(InvalidInput, match=r"needs cryptography: pip install 'giraffe-cli\[pdf\]'"):
        read(path)


def test_without_the_library_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(InvalidInput, match="PDF files need pypdf") as error:
        resolve([f"pdf:{folder}"], PackConfig())
    assert error.value.hint == "pip install 'giraffe-cli[pdf]'"


@pytest.mark.parametrize("kind", [KeyError, RecursionError, AssertionError])
def test_whatever_pypdf_raises_is_the_files_fault(folder, monkeypatch, kind):
    def fail(*_):
        raise kind("/Root")

    monkeypatch.setattr(pypdf.PageObject, "extract_text", fail)
    with pytest.raises(InvalidInput, match=r"damaged \('?/Root'?\)"):
        read(folder / "good.pdf")


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_but_what_is_no_fault_of_the_file(folder, monkeypatch, kind):
    def fail(*_):
        raise kind

    monkeypatch.setattr(pypdf.PageObject, "extract_text", fail)
    with pytest.raises(kind):
        read(folder / "good.pdf", "skip")


def test_what_pypdf_mends_is_not_told(tmp_path, caplog):
    """A wrong offset of the table of objects, which it finds by searching."""
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_bytes("a").replace(b"startxref\n", b"startxref\n1"))
    before = logging.getLogger("pypdf").level
    assert texts(path) == ["a"]
    assert caplog.records == []
    assert logging.getLogger("pypdf").level == before
    assert pypdf.PdfReader(path).pages[0].extract_text() == "a"
    assert "startxref" in caplog.text  # what it says otherwise


# ── identity ──────────────────────────────────────────────────────────────────────────────────


def test_pypdf_and_the_rules_are_part_of_a_units_digest(folder, monkeypatch):
    source = str(folder / "good.pdf")
    [unit] = reader_for(source).units(source, "mine")
    found = {raw_digest(unit)}
    monkeypatch.setattr(pdf, "RULES", pdf.RULES + 1)
    found.add(raw_digest(unit))
    monkeypatch.setattr(pypdf, "__version__", "6.0")
    found.add(raw_digest(unit))
    assert len(found) == 3


# ── the command ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pack(giraffe, tiny_llama, tmp_path):
    def run(*arguments):
        options = ("--tokenizer", tiny_llama, "--window", "64", "--out", tmp_path / "packed")
        return giraffe("pack-data", *arguments, *options)

    return run


def test_pack_data_stops_at_a_scan_or_counts_it(pack, folder):
    write_pdf(folder / "paper.pdf", *(prose(n, 5).replace(". ", ".\n") for n in range(3)))
    write_pdf(folder / "scan.pdf", "", "")
    done = pack(f"pdf:{folder}")
    assert done.code == 3
    assert "scan.pdf: no text layer (scanned?)" in done.stderr
    done = pack(f"pdf:{folder}", "--on-bad", "skip", "--hold-out", "0")
    assert done.code == 0, done.stderr
    assert "1 × no text layer (scanned?)" in done.stdout
    assert "2, of them 0 held out" in done.stdout


def test_workers_and_shards_pack_the_same_bytes(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(5):
        write_pdf(Path(f"pile/{number}.pdf"), prose(number, 9).replace(". ", ".\n"))
        write_book(Path(f"pile/{number}.epub"), f"<p>{prose(number, 9)}</p>")
    sources, config = ["pdf:pile", "epub:pile"], PackConfig(block_bytes=2000)

    def job(out: str) -> tuple:
        return sources, tiny_llama, 64, config, 0, Path(out), SilentReporter()

    assert len(resolve(sources, config)) > 4
    pack_stage(*job("one"))
    pack_stage(*job("two"), workers=2)
    for shard in ((2, 2), (1, 2)):
        pack_shard(*job("shards"), shard=shard)
    merge_shards(*job("shards"))
    assert contents("one") == contents("two") == contents("shards")
