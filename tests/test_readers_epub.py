"""EPUB: chapters in the order of the spine, their markup to text, and what is no book to read."""

from __future__ import annotations

import html
import json
import tracemalloc
from pathlib import Path

import pytest
from books import CONTAINER, item, package, page, reference, write_book
from conftest import prose
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import read

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.base import BadRecords, reader_for, readers
from giraffe_cli.corpus.changes import raw_digest
from giraffe_cli.corpus.readers import _xhtml, epub
from giraffe_cli.corpus.readers._books import AbstractBooks
from giraffe_cli.corpus.readers._records import Defect
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.errors import InvalidInput, UsageError

DRM = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"
FONTS = "http://www.idpf.org/2008/embedding"


def encryption(*names: str, algorithm: str = DRM) -> str:
    entries = (
        f'<e:EncryptedData><e:EncryptionMethod Algorithm="{algorithm}"/><e:CipherData>'
        f'<e:CipherReference URI="{name}"/></e:CipherData></e:EncryptedData>'
        for name in names
    )
    return f'<c xmlns:e="http://www.w3.org/2001/04/xmlenc#">{"".join(entries)}</c>'


def text_of(body: str) -> str:
    return _xhtml.text_of_page(page(body), 10**6, 10**6)


# ── the spine ─────────────────────────────────────────────────────────────────────────────────


def test_a_book_is_one_document_in_the_order_of_its_spine(tmp_path):
    items = [item("b.xhtml"), item("a%20a.xhtml"), item("cover.svg", "image/svg+xml")]
    items += [item("note.xhtml"), item("toc.ncx", "application/x-dtbncx+xml")]
    items += [item("nav.xhtml", properties="scripted nav")]
    spine = [*map(reference, ("cover.svg", "nav.xhtml", "b.xhtml")), reference("note.xhtml", "no")]
    spine += map(reference, ("a%20a.xhtml", "toc.ncx"))
    files = {"OEBPS/book.opf": package("".join(items), "".join(spine))}
    for name, text in {"b": "first", "a a": "second", "note": "no", "nav": "no"}.items():
        files[f"OEBPS/{name}.xhtml"] = page(f"<p>{text}</p>")
    path = write_book(tmp_path / "book.epub", **files)
    [document], bad = read(path)
    assert (document.id, document.text) == ("book.epub", "first\n\nsecond")
    assert bad.skipped == {}


def test_a_folder_is_read_in_path_order_without_hidden_files(tmp_path):
    for name in ("b.EPUB", "a/z.epub", "a/Z.epub", ".hidden.epub", "a/._z.epub", ".in/a.epub"):
        write_book(tmp_path / "shelf" / name, name)
    (tmp_path / "shelf" / "cover.jpg").write_bytes(b"")
    documents, bad = read(f"epub:{tmp_path / 'shelf'}")
    assert [(d.id, d.text) for d in documents] == [
        ("b.EPUB", "b.EPUB"),
        ("a/Z.epub", "a/Z.epub"),
        ("a/z.epub", "a/z.epub"),
    ]
    assert bad.skipped == {}


def test_links_stay_inside_the_folder(tmp_path):
    write_book(tmp_path / "secret.epub", "no")
    write_book(tmp_path / "shelf" / "in" / "a.epub", "a")
    (tmp_path / "shelf" / "b.epub").symlink_to("in/a.epub")
    (tmp_path / "shelf" / "again").symlink_to("in")
    source = f"epub:{tmp_path / 'shelf'}"
    documents, bad = read(source)
    assert [d.id for d in documents] == ["in/a.epub"]
    links = ("link to a folder of the same source", "link to a file of the same source")
    assert bad.skipped == dict.fromkeys(links, 1)
    (tmp_path / "shelf" / "c.epub").symlink_to("../secret.epub")
    with pytest.raises(InvalidInput, match=r"c\.epub: a link that leads out of the folder"):
        read(source)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("epub:gone", "`gone` does not exist"),
        ("gone.epub", "`gone.epub` does not exist"),
        ("epub:a.epub", "`a.epub` is no folder"),
        ("epub:notes", r"notes holds no \.epub file; it holds: 1 \.md"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, source, found):
    monkeypatch.chdir(tmp_path)
    write_book(Path("a.epub"), "a")
    Path("notes").mkdir()
    Path("notes/a.md").write_text("a")
    with pytest.raises(InvalidInput, match=found):
        read(source)


# ── markup ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<h1>One</h1><p>Call me <i>Ish</i>mael.</p>", "One\n\nCall me Ishmael."),
        ("<p>a\n  b\t<b> c</b> d </p>", "a b c d"),
        ("<p>a<br/>b<br/><br/>c</p>", "a\nb\n\nc"),
        ("<div>a<div>b</div></div><div>c</div>", "a\nb\nc"),
        ("<p>a</p><p>&nbsp;</p><p>b&#160;c</p>", "a\n\nb c"),
        ("<p>caf&eacute; &lt;&amp;&gt; &#8212; &mdash;</p>", "café <&> — —"),
        ("<p>ex&shy;am\xadple</p>", "example"),
        ("<ul><li>a</li><li><p>b</p></li></ul>c", "a\n\nb\n\nc"),
        ("<p>a</p><hr/><script>x()</script><style>p{}</style><p>b</p>", "a\n\nb"),
        ("<p>a<svg><text>no</text></svg>b</p>", "ab"),
        ("<p><ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby>字</p>", "漢字"),
        ("<p>one<span role='doc-pagebreak'>12</span> two</p>", "one two"),
        ("<p>a</p><pre>\nif x:\n    y\n</pre><p>b</p>", "a\n\nif x:\n    y\n\nb"),
        ("<p><![CDATA[a < b]]> &lt;&amp; &eacute;</p>", "a < b <& é"),  # XML alone knows CDATA
        ("a<!-- no --><?no no?>b", "ab"),
    ],
)
def test_blocks_become_lines_and_what_stands_in_a_line_is_joined(body, text):
    assert text_of(body) == text


@pytest.mark.parametrize(
    "table",
    [
        "<tr><th>a</th><th>b</th></tr> <tr><td>c </td> <td> d</td></tr>",
        "<tbody><tr><td><p>a</p></td><td><div>b</div></td></tr><tr><td><p>c</p></td>"
        "<td></td><td>d<br/></td></tr></tbody>",
        "<tr><td>a<td>b<tr><td></td><td>c<td>d",  # HTML, whose ends are left away
    ],
    ids=["plain", "blocks-in-cells", "unended"],
)
def test_a_row_of_a_table_is_a_line(table):
    assert text_of(f"x<table>{table}</table>y") == "x\n\na\tb\nc\td\n\ny"


def test_paragraphs_of_a_cell_that_lays_out_a_page_stay_apart():
    assert text_of("<table><tr><td><p>a</p><p>b</p></td></tr></table>") == "a\n\nb"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<html><head><title>no<body><p>a<p>b & c</b>", "a\n\nb & c"),
        ("<p>a &nbsp;&bogus; <b>b</p><p>c", "a &bogus; b\n\nc"),
        ("<p>a<br>b<img src=x>c</p><script/><p>d</p>", "a\nbc\n\nd"),
        ("<p><b>a</p></b>b<ul><li>c<li>d</ul>", "a\n\nb\n\nc\nd"),
        ("<ruby>漢<rt>kan</ruby><ruby>字<rp>(<rt>ji<rp>)</ruby>!", "漢字!"),
        ("<dl><dt>a<dd>b<dt>c</dl>", "a\nb\nc"),
    ],
)
def test_broken_markup_is_read_as_html(markup, text):
    assert _xhtml.text_of_page(markup, 100, 100) == text


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(st.lists(TEXT, min_size=1), min_size=1), st.sampled_from(["", "<br>"]))
def test_words_and_paragraphs_come_out_as_they_went_in(paragraphs, broken):
    """Broken or not: the two parsers agree."""
    bodies = (f"<p>{html.escape('  '.join(words))}</p>" for words in paragraphs)
    assert text_of("".join(bodies) + broken) == "\n\n".join(" ".join(words) for words in paragraphs)


@pytest.mark.parametrize(
    "data",
    [
        "<?xml version='1.0' encoding='windows-1251'?><p>Война &amp; мир</p>".encode("cp1251"),
        "<?xml version='1.0' encoding='Shift_JIS'?><p>Война &amp; мир</p>".encode("shift_jis"),
        "\ufeff<?xml version='1.0' encoding='utf-16'?><p>Война &amp; мир</p>".encode("utf-16-le"),
        "\ufeff<p>Война &amp; мир</p>".encode(),
        "<p>Война &amp; мир</p>".encode(),
        '<meta charset="koi8-r"/><p>Война & мир'.encode("koi8-r"),
        "<meta charset=koi8-r><p>Война & мир".encode(),  # what it says is not so
    ],
)
def test_a_chapter_is_read_by_the_encoding_it_declares(tmp_path, data):
    path = write_book(tmp_path / "a.epub", "", **{"OEBPS/0.xhtml": data})
    assert [d.text for d in read(path)[0]] == ["Война & мир"]


def test_a_page_is_read_no_further_than_there_is_room():
    assert _xhtml.text_of_page("<p>abc</p>", 3, 9) == "abc"
    with pytest.raises(Defect, match="longer than 9 bytes"):
        _xhtml.text_of_page("<p>abc</p><p>d</p>", 3, 9)


# ── what is no book to read ───────────────────────────────────────────────────────────────────

NO_TYPE = CONTAINER.replace(' media-type="application/oebps-package+xml"', "")
DEFECTS = {
    "no-text": ({"OEBPS/0.xhtml": page("<img/>")}, "no text"),
    "nothing-in-the-spine": ({"OEBPS/book.opf": package("", "")}, "no text"),
    "no-container": ({"META-INF/container.xml": None}, "no package document"),
    "container-of-nothing": ({"META-INF/container.xml": "<a/>"}, "no package document"),
    "no-package": ({"OEBPS/book.opf": None}, r"no package document \(OPF\): OEBPS/book\.opf"),
    "missing-file": ({"OEBPS/0.xhtml": None}, "spine is missing: OEBPS/0.xhtml"),
    "missing-item": ({"OEBPS/book.opf": package("", reference("x"))}, "spine is missing: x"),
    "drm": (
        {"META-INF/encryption.xml": encryption("OEBPS/font.otf", "OEBPS/0.xhtml")},
        r"encrypted \(DRM\): OEBPS/0\.xhtml",
    ),
    "drm-of-all": (
        {"META-INF/encryption.xml": encryption("OEBPS/book.opf"), "OEBPS/book.opf": b"\xff\x80"},
        r"encrypted \(DRM\): OEBPS/book\.opf",
    ),
    "encoding": ({"OEBPS/0.xhtml": b"<p>\xff"}, r"declares: utf-8, in OEBPS/0\.xhtml"),
    "no-such-encoding": (
        {"OEBPS/0.xhtml": "<?xml version='1.0' encoding='zip'?><p>a</p>"},
        "declares: zip",
    ),
    "nul": ({"OEBPS/0.xhtml": page("a\0b")}, "the text holds a NUL"),
    "too-long": ({"OEBPS/0.xhtml": page("a" * 4000)}, r"longer than 3,000 bytes"),
    "too-long-by-entities": (
        {"OEBPS/0.xhtml": f"<!DOCTYPE p [<!ENTITY a '{'a' * 99}'>]><p>{'&a;' * 40}</p>"},
        "longer than 3,000 bytes",
    ),
}


@pytest.mark.parametrize("case", DEFECTS)
def test_a_book_that_cannot_be_read_is_a_bad_record(tmp_path, case):
    files, reason = DEFECTS[case]
    write_book(tmp_path / "bad.epub", "a", **files)
    write_book(tmp_path / "good.epub", "a good one")
    source = f"epub:{tmp_path}"
    with pytest.raises(InvalidInput, match=rf"bad\.epub: .*{reason}"):
        read(source, max_doc_bytes=3000)
    documents, bad = read(source, "skip", max_doc_bytes=3000)
    assert [d.text for d in documents] == ["a good one"]
    assert list(bad.skipped.values()) == [1]


@pytest.mark.parametrize("names", [["OEBPS/0.xhtml"], ["OEBPS/font.otf"]])
def test_hidden_fonts_are_no_drm(tmp_path, names):
    algorithm = DRM if names == ["OEBPS/font.otf"] else FONTS
    files = {"META-INF/encryption.xml": encryption(*names, algorithm=algorithm)}
    assert [d.text for d in read(write_book(tmp_path / "a.epub", "a", **files))[0]] == ["a"]


def test_a_package_without_a_type_is_taken(tmp_path):
    path = write_book(tmp_path / "a.epub", "a", **{"META-INF/container.xml": NO_TYPE})
    assert [d.text for d in read(path)[0]] == ["a"]


def test_what_is_no_archive_or_has_a_password(tmp_path):
    path = tmp_path / "a.epub"
    path.write_text("a")
    with pytest.raises(InvalidInput, match=r"a\.epub: not a zip archive"):
        read(path)
    data = bytearray(write_book(path, "a" * 500).read_bytes())
    path.write_bytes(data[:-30])  # the directory is at the end
    with pytest.raises(InvalidInput, match=r"a\.epub: not a zip archive"):
        read(path)
    for begin, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # the flag in both headers of a file
        for place in range(len(data)):
            if data[place : place + 4] == begin:
                data[place + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="zip archive has a password"):
        read(path)


@settings(max_examples=200)
@given(st.data())
def test_an_archive_with_any_byte_changed_is_read_or_is_a_bad_record(tmp_path_factory, data):
    path = write_book(tmp_path_factory.mktemp("book") / "a.epub", "a" * 40, "<p>b</p>")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    documents, bad = read(path, "skip")
    assert len(documents) + sum(bad.skipped.values()) == 1


def test_a_zip_bomb_costs_no_more_than_the_longest_document(tmp_path):
    """64 MB in 64 KB: of chapters that are longer together than one may be."""
    page = b" " * (32 << 20)
    path = write_book(tmp_path / "a.epub", "", "", **{"OEBPS/0.xhtml": page, "OEBPS/1.xhtml": page})
    assert path.stat().st_size < 1 << 17
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="longer than 1,000,000 bytes"):
        read(path, max_doc_bytes=1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()
    with pytest.raises(InvalidInput, match="longer than 40,000,000 bytes"):
        read(path, max_doc_bytes=40_000_000)


# ── identity ──────────────────────────────────────────────────────────────────────────────────


def test_books_of_two_kinds_and_texts_of_one_folder_do_not_overlap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_book(Path("shelf/a.epub"), "a")
    Path("shelf/a.md").write_text("a")
    units = resolve(["shelf", "epub:shelf"], PackConfig())
    assert [unit.reader for unit in units] == ["text-tree", "epub"]
    units = resolve([".", "epub:shelf"], PackConfig())
    assert [unit.reader for unit in units] == ["text-tree", "epub"]
    for sources, found in (
        (["epub:shelf", "x=epub:./shelf"], "named twice"),
        (["epub:shelf", "epub:."], "`epub:.` and `epub:shelf` overlap"),
        (["shelf/a.epub", "epub:shelf"], "both hold shelf/a.epub"),
    ):
        with pytest.raises(UsageError, match=found):
            resolve(sources, PackConfig())


def test_the_rules_of_reading_are_part_of_a_units_digest(tmp_path, monkeypatch):
    source = str(write_book(tmp_path / "a.epub", "a"))
    [unit] = reader_for(source).units(source, "mine")
    before = raw_digest(unit)
    monkeypatch.setattr(epub, "RULES", epub.RULES + 1)
    assert raw_digest(unit) != before


def test_a_glob_reads_books_and_small_ones_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_book(Path(f"shelf/{name}.epub"), name)
    [unit] = resolve(["shelf/*.epub"], PackConfig())
    assert [d.id for d in epub.Epub().documents(unit, BadRecords())] == ["a.epub", "b.epub"]


# ── the command ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pack(giraffe, tiny_llama, tmp_path):
    def run(*arguments, out="packed"):
        options = ("--tokenizer", tiny_llama, "--window", "64", "--hold-out", "0")
        return giraffe("pack-data", *arguments, *options, "--out", tmp_path / out)

    return run


def test_pack_data_makes_windows_of_a_book(pack, tmp_path):
    path = write_book(tmp_path / "book.epub", *(f"<p>{prose(n, 20)}</p>" for n in range(3)))
    done = pack(path, "--json")
    assert done.code == 0, done.stderr
    stats = json.loads(done.stdout)
    assert (stats["documents"], stats["documents_longer_than_window"]) == (1, 1)
    assert stats["windows"] > 5


def test_pack_data_stops_at_drm_or_counts_it(pack, tmp_path):
    write_book(tmp_path / "shelf" / "a.epub", prose(0, 20))
    locked = {"META-INF/encryption.xml": encryption("OEBPS/0.xhtml")}
    write_book(tmp_path / "shelf" / "b.epub", "x", **locked)
    done = pack(f"epub:{tmp_path / 'shelf'}")
    assert done.code == 3
    assert "b.epub: encrypted (DRM): OEBPS/0.xhtml" in done.stderr
    assert "--on-bad skip" in done.stderr
    done = pack(f"epub:{tmp_path / 'shelf'}", "--on-bad", "skip")
    assert done.code == 0
    assert "1 × encrypted (DRM)" in done.stdout


def test_a_folder_of_books_and_nothing_else_names_what_reads_it(pack, tmp_path):
    write_book(tmp_path / "shelf" / "a.epub", "a")
    done = pack(tmp_path / "shelf")
    assert done.code == 3
    assert "holds no text file; it holds: 1 .epub" in done.stderr
    assert f"to read the books in it, name epub:{tmp_path / 'shelf'}; readable" in done.stderr
    (tmp_path / "shelf" / "b.PDF").touch()
    assert f"name epub:{tmp_path / 'shelf'} and pdf:" in pack(tmp_path / "shelf").stderr
    (tmp_path / "shelf" / "a.md").write_text(prose(0, 20))
    done = pack(tmp_path / "shelf")
    assert done.code == 0
    assert "1 × not a text suffix: .epub, 1 × not a text suffix: .pdf" in done.stdout


def test_readers_of_books_are_named_where_sources_are(giraffe):
    told = giraffe("pack-data", "--help").stdout
    listed = giraffe("pack-data", "nothing", "--tokenizer", "calf", "--window", "64", "--out", "x")
    kinds = [kind for kind in readers().values() if issubclass(kind, AbstractBooks)]
    assert len(kinds) > 1
    for kind in kinds:
        assert f"`{kind.kind}:DIR`" in told
        assert f"{kind.kind}: {kind.summary}" in " ".join(listed.stderr.split())
