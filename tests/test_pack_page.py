"""The page about a packed corpus: needs nothing, hides nothing, and its account adds up."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_report import Page

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.store import open_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.pack_page import account, asked, write_page
from giraffe_cli.report.pack_windows import ENDS, fills, segments_of, show_windows, visible

HOSTILE = "<script>alert(1)</script>"
WINDOW = 128


@pytest.fixture(scope="module")
def sources(tmp_path_factory, corpus) -> list[str]:
    """The corpus with a repetition, and five documents whose ids and texts are hostile."""
    folder = tmp_path_factory.mktemp("sources")
    lines = corpus.read_text().splitlines()
    (folder / "books.jsonl").write_text(
        "\n".join([*lines, lines[1].replace("doc-1", "again")]) + "\n"
    )
    documents = [
        {"id": f"{HOSTILE}{n}", "text": f"<b>{n}</b> \u202etest\x01 " * 60} for n in range(5)
    ]
    (folder / "evil.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    return [f"books={folder / 'books.jsonl'}", f"evil={folder / 'evil.jsonl'}"]


def packed(sources, tokenizer: Path, out: Path, **knobs) -> dict:
    config = PackConfig(hold_out=0, **knobs)
    return pack_stage(sources, tokenizer, WINDOW, config, 0, out, SilentReporter())


@pytest.fixture(scope="module")
def written(sources, tiny_llama, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("packed") / "mixed"
    knobs = {"mix": {"books": 3, "evil": 1}, "epochs": 2, "dedupe": True, "overlap": 16}
    stats = packed(sources, tiny_llama, out, **knobs)
    assert write_page(out, tiny_llama, stats) == out / "report.html"
    return out, stats


def html_of(written) -> str:
    return (written[0] / "report.html").read_text(encoding="utf-8")


def text_of(written) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html_of(written)))


def test_the_page_needs_no_network_and_no_script(written):
    html = html_of(written)
    tags = Page(html).tags
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in tags)
    pictures = [a["src"] for _, a in tags if "src" in a]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in pictures)
    assert not [a for _, a in tags if "style" in a or any(name.startswith("on") for name in a)]
    assert "http://" not in html
    assert "https://" not in html


def test_the_policy_allows_exactly_the_stylesheet(written):
    style = re.search(r"<style>(.*?)</style>", html_of(written), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in html_of(written)


def test_a_hostile_corpus_is_shown_as_it_is_and_runs_nothing(sources, tiny_llama, tmp_path):
    out = tmp_path / "evil"
    stats = packed([sources[1]], tiny_llama, out)
    page = write_page(out, tiny_llama, stats).read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "\\u202e" in page


def test_a_name_that_matplotlib_would_read_as_a_formula(sources, tiny_llama, tmp_path):
    out = tmp_path / "named"
    stats = packed(sources[:1], tiny_llama, out)
    stats["sources"] = {"_$\\bad": stats["sources"]["books"], "b": stats["sources"]["books"]}
    stats["mixture"]["sources"] = dict.fromkeys(
        stats["sources"], stats["mixture"]["sources"]["books"]
    )
    assert "_$\\bad" in write_page(out, tiny_llama, stats).read_text(encoding="utf-8")


def test_it_names_the_mixture_asked_and_reached(written):
    text = text_of(written)
    assert "Asked for: books 3, evil 1; at most 2 passes over a document" in text
    assert "75.00%" in text
    assert f"{written[1]['windows']:,} windows" in text


def test_without_a_mixture_none_is_claimed(corpus, tiny_llama, tmp_path):
    stats = packed([str(corpus)], tiny_llama, tmp_path / "plain")
    text = write_page(tmp_path / "plain", tiny_llama, stats).read_text(encoding="utf-8")
    assert "Asked for" not in text
    assert "The mixture" not in text
    assert asked(PackConfig().model_dump()) == []


def test_a_short_corpus_is_warned_about(corpus, tiny_llama, tmp_path):
    config = PackConfig(hold_out=0)
    out = tmp_path / "long-window"
    stats = pack_stage([str(corpus)], tiny_llama, 4096, config, 0, out, SilentReporter())
    text = write_page(out, tiny_llama, stats).read_text(encoding="utf-8")
    assert "no document reaches the window of 4096 tokens" in text


def test_the_same_rows_give_the_same_page_and_stay_what_they_are(written, tiny_llama):
    before = html_of(written)
    write_page(written[0], tiny_llama, written[1])
    assert html_of(written) == before
    assert len(open_packed(written[0])) == written[1]["windows"]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"dedupe": True, "min_doc_len": 90},
        {"mix": {"books": 1, "evil": 4}, "dedupe": True},
        {"mix": {"books": 9, "evil": 1}, "epochs": 3, "overlap": 16},
        {"rule": "one", "drop_tail": True},
        {"rule": "concat", "token_budget": 2000},
    ],
)
def test_the_account_adds_up_from_documents_to_windows(sources, tiny_llama, tmp_path, knobs):
    stats = packed(sources, tiny_llama, tmp_path / "out", **knobs)
    lines = account(stats)
    sign = {"total": 0, "less": -1, "more": 1}
    assert lines[0].tokens + sum(sign[e.kind] * e.tokens for e in lines) == lines[-1].tokens
    tokens, _ = fills(open_packed(tmp_path / "out"))
    assert lines[-1].tokens == tokens.sum()


def test_fills_are_those_of_the_rows(written):
    rows = open_packed(written[0])
    tokens, pieces = fills(rows)
    every = [rows.row(n) for n in range(len(rows))]
    assert tokens.tolist() == [len(row.input_ids) for row in every]
    assert pieces.tolist() == [len(row.seq_lengths) for row in every]


def test_windows_show_their_ends_and_count_the_rest(written, tiny_llama):
    from tokenizers import Tokenizer

    rows = open_packed(written[0])
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    shown = show_windows(rows, tiny_llama)
    assert [window.number for window in shown] == [0, (len(rows) - 1) // 2, len(rows) - 1]
    for window in shown:
        row = rows.row(window.number)
        piece = window.pieces[0]
        assert (piece.document, piece.tokens) == (row.doc_ids[0], row.seq_lengths[0])
        assert piece.hidden == max(0, piece.tokens - 2 * ENDS)
        head = tokenizer.decode(row.input_ids[: min(ENDS, piece.tokens)].tolist(), False)
        assert piece.head.startswith(visible(head.rstrip("\ufffd"))[:40])
        assert len(window.pieces) + window.more == len(row.doc_ids)


def test_one_window_is_shown_once(tiny_llama, tmp_path):
    (tmp_path / "a.txt").write_text("the grass is green " * 20)
    out = tmp_path / "out"
    stats = pack_stage(
        [str(tmp_path / "a.txt")], tiny_llama, 512, PackConfig(hold_out=0), 0, out, SilentReporter()
    )
    assert stats["windows"] == 1
    page = write_page(out, tiny_llama, stats).read_text(encoding="utf-8")
    assert page.count("<article") == 1


def test_a_tokenizer_that_is_gone_is_named(written, tmp_path):
    with pytest.raises(InvalidInput, match=r"tokenizer\.json cannot be read"):
        write_page(written[0], tmp_path, written[1])


def test_segments_at_sizes_checked_by_eye():
    assert segments_of([300, 100], 400) == [(0, 75), (75, 25)]
    assert segments_of([400], 400) == [(0, 100)]
    assert segments_of([200], 400) == [(0, 50)]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_segments_tile_what_is_filled(lengths):
    window = 2 * sum(lengths)
    segments = np.array(segments_of(lengths, window))
    # A border is rounded to a thousandth of the window: 0.05 % at the most.
    assert segments[:, 1].sum() == pytest.approx(50, abs=0.051)
    assert (segments[:, 1] > 0).all()
    np.testing.assert_allclose(segments[1:, 0], segments[:-1].sum(axis=1), atol=1e-9)


@given(st.text())
def test_visible_keeps_what_can_be_seen(text):
    shown = visible(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    if text.isascii() and text.isprintable():
        assert shown == text
