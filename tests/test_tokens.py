"""Texts → ids: the policy about BOS and EOS, the backends, and when the fast one is trusted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tokenizer, prose
from hypothesis import given, settings
from hypothesis import strategies as st
from test_assemble import write_byte_tokenizer

from giraffe_cli.corpus import backends
from giraffe_cli.corpus.backends import (
    EDGES,
    ONE_IN,
    PIECE_CHARACTERS,
    Disagreement,
    HfBackend,
    Proven,
    pieces,
)
from giraffe_cli.corpus.tokens import DocumentTokenizer
from giraffe_cli.errors import InvalidInput

fastokens = pytest.mark.skipif(not backends.is_installed(), reason="needs giraffe-cli[fast]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    build_tokenizer(path)
    return path


def as_lists(ids: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.mark.parametrize(
    ("options", "policy", "around"),
    [
        ({}, "BOS <s> (0), text, EOS </s> (1)", ([0], [1])),
        ({"bos": "no"}, "text, EOS </s> (1)", ([], [1])),
        ({"eos": "no"}, "BOS <s> (0), text", ([0], [])),
        ({"bos": "no", "eos": "no"}, "text", ([], [])),
    ],
)
def test_bos_and_eos_are_put_around_every_text(folder, options, policy, around):
    tokenizer = DocumentTokenizer(folder, "tokenizers", **options)
    plain = HfBackend(tokenizer._backend.tokenizer)
    before, after = around
    texts = ["ab", "", "abc"]
    expected = [before + ids + after for ids in as_lists(*plain.encode(texts))]
    ids, offsets = tokenizer.encode(texts)
    assert as_lists(ids, offsets) == expected
    assert (tokenizer.policy, ids.dtype, offsets.dtype) == (policy, np.uint16, np.int64)
    assert [len(e) - len(before) - len(after) for e in expected] == [2, 0, 3]


def test_a_tokenizer_that_adds_no_bos_gets_none_unless_asked(tmp_path):
    folder = write_byte_tokenizer(tmp_path)
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert DocumentTokenizer(folder, "tokenizers").bos is None
    assert DocumentTokenizer(folder, "tokenizers", bos="yes").bos == 0


def test_yes_to_a_token_that_is_not_named_is_refused(tmp_path):
    folder = write_byte_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(InvalidInput, match="--bos yes: .* names no bos_token"):
        DocumentTokenizer(folder, "tokenizers", bos="yes")


@pytest.mark.parametrize(("size", "dtype"), [(384, np.uint16), (70_000, np.uint32)])
def test_ids_take_two_bytes_where_the_vocabulary_fits(tmp_path, size, dtype):
    folder = write_byte_tokenizer(tmp_path)
    saved = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary |= {f"filler{i}": i for i in range(len(vocabulary), size)}
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    ids, _ = DocumentTokenizer(folder, "tokenizers").encode(["text"])
    assert ids.dtype == dtype


@fastokens
@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=60), max_size=5))
def test_both_backends_give_equal_ids(trained, texts):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    fast, slow = (DocumentTokenizer(trained, name) for name in ("fastokens", "tokenizers"))
    assert fast.backend.startswith("fastokens")
    assert slow.backend.startswith("tokenizers")
    assert as_lists(*fast.encode(texts)) == as_lists(*slow.encode(texts))


# ── the proof ────────────────────────────────────────────────────────────────────────────────


class Wrong:
    """The reference, but for one id at a place in every text that holds `marker`."""

    name = "wrong 1"

    def __init__(self, reference: HfBackend, marker: str) -> None:
        self._reference, self.marker = reference, marker

    def encode(self, texts: list[str]):
        ids, offsets = self._reference.encode(texts)
        for number, text in enumerate(texts):
            if self.marker in text:
                ids[offsets[number] + text.index(self.marker)] += 1  # a token is a byte here
        return ids, offsets


@pytest.fixture
def reference(folder) -> HfBackend:
    return HfBackend(DocumentTokenizer(folder, "tokenizers")._backend.tokenizer)


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize("number", [n for n, text in enumerate(EDGES) if text.strip()][:6])
def test_every_fixed_text_counts(reference, number):
    with pytest.raises(Disagreement, match="wrong 1 gives other ids than tokenizers .* at char"):
        Proven(reference, Wrong(reference, EDGES[number].strip()[:3]))


def test_first_documents_are_compared_and_the_place_is_named(reference):
    proven = Proven(reference, Wrong(reference, "Zebra"))
    texts = [prose(1, 9), prose(2, 5) + " Zebra"]
    with pytest.raises(Disagreement, match=r"at character \d+ \('Zebra'\) of document b") as error:
        proven.encode(texts, [key(text) for text in texts], ["document a", "document b"], 0)
    assert f"character {texts[1].index('Zebra')} " in str(error.value)


def test_about_one_piece_in_a_hundred_is_compared_later(reference):
    proven = Proven(reference, Wrong(reference, "Zebra"))
    texts = [f"{prose(n, 3)} Zebra" for n in range(1000)]
    found = 0
    for text in texts:
        try:
            proven.encode([text], [key(text)], ["document"], 100)
        except Disagreement:
            found += 1
    assert 3 <= found <= 25  # 10 are expected; Poisson


def test_inside_a_long_document_the_picked_pieces_are_compared(reference):
    # 50 characters into the 101st piece: the first 16 tokens of a cut piece may differ.
    text = "x" * (PIECE_CHARACTERS * 100 + 50) + "Zebra" + "y" * (PIECE_CHARACTERS * 120)
    at = next(n for n in range(200) if 100 in pieces_of(len(text), n))
    proven = Proven(reference, Wrong(reference, "Zebra"))
    with pytest.raises(Disagreement, match="'Zebrayyy"):
        proven.encode([text], [at.to_bytes(8, "big")], ["document"], 100)
    proven.encode([text], [(at + 1).to_bytes(8, "big")], ["document"], 100)


def pieces_of(characters: int, number: int) -> list[int]:
    starts = pieces(characters, number.to_bytes(8, "big"), first=False)
    return [start // PIECE_CHARACTERS for start in starts]


@given(st.integers(0, 10**7), st.binary(min_size=8, max_size=8), st.booleans())
def test_one_piece_in_a_hundred_is_picked_wherever_the_key_begins(characters, digest, first):
    picked = list(pieces(characters, digest, first))
    count = max(1, -(-characters // PIECE_CHARACTERS))
    assert all(start % PIECE_CHARACTERS == 0 and start < max(1, characters) for start in picked)
    assert len(set(picked)) == len(picked)
    assert count // ONE_IN <= len(picked) <= -(-count // ONE_IN) + first
    assert not first or 0 in picked
