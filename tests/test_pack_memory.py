"""Packing takes no more memory than it must, and a shard reads no more: the same bytes in parts."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
from conftest import prose
from hypothesis import given, settings
from hypothesis import strategies as st
from test_assemble import write_byte_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import duplicates, held_documents, held_out_file, text_parts, tools
from giraffe_cli.corpus.backends import HfBackend, Proven
from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.cuts import PART_CHARACTERS, WORD, Cuts, cuts_of
from giraffe_cli.corpus.duplicates import HASH_BYTES, STARTS, text_hash
from giraffe_cli.corpus.held_documents import HeldOut, held_line
from giraffe_cli.corpus.holdout import rank
from giraffe_cli.corpus.packing import merge_shards, pack_shard, pack_stage
from giraffe_cli.corpus.store import held_out
from giraffe_cli.corpus.text_parts import BATCH_CHARACTERS
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.gguf_pipelines import LLAMA_3, QWEN_2, TEKKEN
from giraffe_cli.plan import machine
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import read_json

# ── the hash of a text ───────────────────────────────────────────────────────────────────────

AWKWARD = st.text(
    st.one_of(
        st.sampled_from("ae\u0301\u0327\u0345\u1100\u1161\u11a8\uac00\u4e00\u212b\u0915\u093c"),
        st.sampled_from(" \t\n\x1c\x85\xa0\u1680\u2000\u2028\u3000\u200b\ud800\udc00"),
        st.characters(),
    ),
    max_size=40,
)


def hash_at_once(text: str) -> bytes:
    """What `text_hash` was defined as before it went through a text in chunks."""
    folded = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).digest()[:HASH_BYTES]


@settings(max_examples=500)
@given(AWKWARD, st.integers(1, 9))
def test_the_hash_is_that_of_the_text_at_once_wherever_it_is_cut(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "CHUNK_CHARACTERS", size)
        assert text_hash(text) == hash_at_once(text)


def test_a_long_text_is_hashed_in_chunks():
    text = prose(1, 40_000)
    chunks = list(duplicates._composed(text))
    assert len(chunks) > 10
    assert max(map(len, chunks)) < duplicates.CHUNK_CHARACTERS + 100
    assert text_hash(text) == hash_at_once(text)


def test_nothing_composes_with_a_character_before_which_a_text_is_cut():
    """Unicode's own table: no second half of a composition, and none that is reordered."""
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    pairs = (unicodedata.decomposition(char).split() for char in every)
    seconds = {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and "<" not in pair[0]}
    seconds |= {chr(code) for code in range(0x1161, 0x11C3)}  # Hangul, by arithmetic
    for char in filter(STARTS.fullmatch, every):
        first = unicodedata.normalize("NFD", char)[0]
        assert not unicodedata.combining(first)
        assert first not in seconds


# ── where texts are cut ──────────────────────────────────────────────────────────────────────

NORMALIZERS = {"replaces": [normalizers.Replace(" ", "▁")]}
NORMALIZERS["prepends"] = [normalizers.Prepend("▁"), *NORMALIZERS["replaces"]]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


def metaspace(scheme: str, splits: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=splits)


BYTE_LEVEL = {
    "gpt-2": GPT_2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2]),
    "llama 3": split(LLAMA_3),
    "qwen 2": split(QWEN_2),
    "tekken": split(TEKKEN),
}
SPACED = {
    "replaces": None,
    "prepends": None,
    "metaspace first": metaspace("first", splits=False),
    "metaspace always": metaspace("always", splits=False),
    "metaspace never": metaspace("never", splits=False),
    "metaspace in words": metaspace("always", splits=True),
}
PIECES = [
    *[
        "the",
        " grass",
        " is",
        "green",
        "giraffe",
        "It's",
        "we'LL",
        "7",
        "1234",
        "é",
        "ß",
        "字",
        "かな",
    ],
    *[" ", "  ", "   ", "\n", "\n\n", " \n", "\r\n", "\t", "\xa0", "\u3000", "▁", "_"],
    *[".", "!", "...", "'", "-", "{", "/", "e\u0301", "\u0301", "👍", "<s>", "</s>", "<|x|>"],
]


def trained(name: str) -> Tokenizer:
    """A BPE of 400 tokens; a sentencepiece-like one learns within words, and merges over all."""
    spaced = name in SPACED
    made = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>" if spaced else None))
    made.pre_tokenizer = metaspace("always", splits=True) if spaced else BYTE_LEVEL[name]
    alphabet = [] if spaced else pre_tokenizers.ByteLevel.alphabet()
    specials = ["<unk>", "<s>", "</s>", "<|x|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    texts = ["".join(PIECES) * 3, *(prose(i, 30) for i in range(20)), "a  b   c\n\nd ... the the"]
    made.train_from_iterator(texts, trainer)
    if spaced:
        made.pre_tokenizer = SPACED[name]
    if name in NORMALIZERS:
        made.normalizer = normalizers.Sequence(NORMALIZERS[name])
    if name == "qwen 2":
        made.normalizer = normalizers.NFC()
    return made


@pytest.fixture(scope="module", params=[*BYTE_LEVEL, *SPACED])
def tokenizer(request) -> Tokenizer:
    return trained(request.param)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.integers(1, 12))
def test_the_ids_of_the_parts_are_those_of_the_whole(tokenizer, text, least):
    cuts = cuts_of(tokenizer)
    assert cuts
    parts = [text[start:end] for start, end in cuts.spans(text, least)]
    ids = [identity for part in parts for identity in ids_of(tokenizer, part)]
    assert ids == ids_of(tokenizer, text)


def test_a_text_is_cut_as_often_as_its_length_asks_for(tokenizer):
    spans = list(cuts_of(tokenizer).spans(prose(1, 100), 50))
    assert len(spans) > 30
    assert spans[0][0] == 0
    assert all(50 <= end - start < 70 for start, end in spans[:-1])


def test_what_ends_a_word_was_a_letter_or_digit_in_unicode_3():
    ends = [char for char in map(chr, range(sys.maxunicode + 1)) if re.fullmatch(WORD, char)]
    assert len(ends) > 30_000
    assert {unicodedata.ucd_3_2_0.category(char)[0] for char in ends} == {"L", "N"}


def changed(name: str, **parts) -> Tokenizer:
    made = trained(name)
    for part, value in parts.items():
        setattr(made, part, value)
    return made


def with_token(name: str, content: str, **flags) -> Tokenizer:
    made = trained(name)
    made.add_tokens([AddedToken(content, normalized=False, **flags)])
    return made


def merging(*merges: tuple[str, str], **settings) -> Tokenizer:
    letters = [*"abc▁", *(a + b for a, b in merges)]
    vocabulary = {token: number for number, token in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), **settings))
    made.normalizer = normalizers.Replace(" ", "▁")
    return made


@pytest.mark.parametrize(
    "other",
    [
        lambda: changed("gpt-2", pre_tokenizer=pre_tokenizers.Whitespace()),
        lambda: changed("gpt-2", pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda: changed("gpt-2", pre_tokenizer=split(r"\w+ \w+|.")),
        lambda: changed("gpt-2", normalizer=normalizers.Strip()),
        lambda: changed("gpt-2", normalizer=normalizers.Replace(Regex("a b"), "ab")),
        lambda: with_token("gpt-2", "grass is"),
        lambda: with_token("gpt-2", " green", single_word=True),
        lambda: with_token("gpt-2", "MASK", rstrip=True),
        lambda: with_token("prepends", "giraffe"),
        lambda: with_token("prepends", " is"),
        lambda: merging(("a", "▁")),
        lambda: merging(("▁", "a"), dropout=0.1),
        lambda: merging(("▁", "a"), ignore_merges=True),
        lambda: merging(("▁", "a"), end_of_word_suffix="c"),
    ],
)
def test_a_tokenizer_that_may_join_what_would_be_cut_has_no_cuts(other):
    assert cuts_of(other()) is None


def test_what_the_cases_above_are_changed_from_has_cuts():
    assert cuts_of(merging(("▁", "a")))
    assert cuts_of(with_token("gpt-2", "<mask>", rstrip=True, lstrip=True, single_word=True))


# ── long texts ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def reference() -> HfBackend:
    return HfBackend(trained("smollm"))


def watched(backend, monkeypatch, method: str) -> list[list[str]]:
    """What is given to the library from now on."""
    given_texts, encode = [], getattr(backend, method)
    monkeypatch.setattr(backend, method, lambda texts: given_texts.append(texts) or encode(texts))
    return given_texts


def test_no_more_than_a_batch_of_a_long_text_is_tokenised_at_a_time(reference, monkeypatch):
    text = prose(1, 90_000)
    assert len(text) > 2 * BATCH_CHARACTERS
    texts = ["the grass", text, "", text[:-9], "is green"]
    expected = [ids_of(reference.tokenizer, each) for each in texts]
    batches = watched(reference, monkeypatch, "_encode")
    ids, offsets = reference.encode(texts)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected
    assert max(sum(map(len, batch)) for batch in batches) < BATCH_CHARACTERS + 2 * PART_CHARACTERS
    assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)


def test_the_fast_backend_is_given_the_same_parts(reference, monkeypatch):
    fast = SimpleNamespace(name="fast 1", encode=reference._encode)
    proven, text = Proven(reference, fast), prose(1, 90_000)
    parts = watched(fast, monkeypatch, "encode")
    ids, _ = proven.encode([text], [b"12345678"], ["a text"], 0)
    assert ids.tolist() == ids_of(reference.tokenizer, text)
    assert max(len(part) for batch in parts for part in batch) < PART_CHARACTERS + 100


def test_a_disagreement_deep_in_a_long_text_is_told_by_its_character(reference):
    text = prose(1, 20_000)
    assert len(text) > PART_CHARACTERS
    offsets = reference.tokenizer.encode(text, add_special_tokens=False).offsets
    tokens = [0, 9, len(offsets) * 2 // 3, len(offsets) - 1]
    assert [reference.character_of(text, token) for token in tokens] == [
        offsets[token][0] for token in tokens
    ]
    assert reference.character_of(text, len(offsets)) == len(text)


def test_a_cut_that_does_not_hold_is_not_made(reference, monkeypatch):
    text = prose(1, 20_000)
    expected = ids_of(reference.tokenizer, text)
    monkeypatch.setattr(reference, "_cuts", Cuts(re.compile("(?<=gra)(?=ss)")))
    assert reference.spans(text) == [(0, len(text))]
    assert reference.encode([text])[0].tolist() == expected


def test_a_text_that_cannot_be_cut_nor_held_is_refused(monkeypatch):
    backend = HfBackend(changed("gpt-2", pre_tokenizer=pre_tokenizers.Whitespace()))
    monkeypatch.setattr(text_parts, "UNCHECKED_CHARACTERS", 1000)
    monkeypatch.setattr(machine, "available_bytes", lambda: 10**8)
    text = prose(1, 40_000)[: 10**6]
    with pytest.raises(GiraffeError, match=r"1.0 MB takes about 0.1 GB to tokenise, 0.1 GB are"):
        backend.encode(["short", text])
    assert len(backend.encode([text[: 8 * 10**5]])[0])


# ── what a unit sets apart ───────────────────────────────────────────────────────────────────


@given(st.text(max_size=30), st.text(max_size=9), st.integers(1, 7))
def test_a_line_in_pieces_is_the_line_at_once(text, identity, size):
    value = {"id": identity, "text": text, "source": 'a"b'}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_documents, "PIECE_CHARACTERS", size)
        line = b"".join(held_line(Document(**value)))
    assert line == json.dumps(value, ensure_ascii=False).encode() + b"\n"


def test_the_candidates_are_those_of_the_lowest_hash_and_lie_in_their_file():
    lines, candidates = io.BytesIO(), io.BytesIO()
    apart = HeldOut(lines, candidates, 1e-12, None)
    documents = [Document(f"d{n % 7}", f"text {n}", "s") for n in range(20)]
    assert not any(apart.takes(document) for document in documents)
    lowest = min((document.id for document in documents), key=rank)
    expected = [document for document in documents if document.id == lowest]
    assert apart.candidate == {"id": lowest, "rank": rank(lowest)[0].hex(), "count": len(expected)}
    assert candidates.getvalue() == b"".join(
        p for document in expected for p in held_line(document)
    )
    apart._share = 1.0  # the next is held out
    assert apart.takes(Document("other", "text", "s"))
    assert (apart.candidate, candidates.getvalue()) == (None, b"")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Eight units of one text each, none of which is held out by its hash."""
    monkeypatch.chdir(tmp_path)
    folder = write_byte_tokenizer(tmp_path / "tokenizer")
    for number in range(8):
        Path(f"t{number}.txt").write_text(prose(number, 30))
    sources = [f"t{number}.txt" for number in range(8)]
    config = PackConfig(hold_out=1e-9)
    return lambda out: (sources, folder, 256, config, 0, Path(out), SilentReporter())


def test_of_many_candidates_the_first_alone_is_read(job, monkeypatch):
    pack_stage(*job("whole"))
    for number in range(8):
        pack_shard(*job("packed"), shard=(number + 1, 8))
    folders = sorted(Path("packed/.work").glob("unit-*"))
    for number, folder in enumerate(folders):
        candidate = read_json(folder / "done.json")["candidate"]
        assert (sorted(candidate), candidate["count"]) == (["count", "id", "rank"], 1)
        assert prose(number, 30) in (folder / "candidate.jsonl").read_text()
        assert prose(number, 30) not in (folder / "done.json").read_text()
    opened = []

    def watched_open(path: Path, mode: str) -> IO[bytes]:
        opened.append(path)
        return open(path, mode)

    monkeypatch.setattr(held_out_file, "open", watched_open, raising=False)
    merge_shards(*job("packed"))
    [kept] = held_out(Path("packed"))
    lowest = min((f"t{number}.txt" for number in range(8)), key=rank)
    assert (kept.id, kept.text) == (lowest, prose(int(lowest[1]), 30))
    assert [path.parent.name for path in opened if path.name == "candidate.jsonl"] == [
        f"unit-0000{lowest[1]}"
    ]
    assert Path("packed/held_out.jsonl.gz").read_bytes() == (
        Path("whole/held_out.jsonl.gz").read_bytes()
    )


def test_a_candidate_that_was_altered_fails_the_merge_by_name(job):
    pack_shard(*job("packed"), shard=(1, 1))
    path = Path("packed/.work/unit-00003/candidate.jsonl")
    path.write_bytes(path.read_bytes().replace(b"grass", b"grasp"))
    with pytest.raises(InvalidInput, match=r"1 of 8 units are missing, altered .*: t3.txt of t3"):
        merge_shards(*job("packed"))


# ── what a shard reads ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def digested(monkeypatch) -> list[str]:
    """The units whose bytes were read for their digests."""
    names: list[str] = []
    digest = tools.raw_digest
    monkeypatch.setattr(tools, "raw_digest", lambda unit: names.append(unit.name) or digest(unit))
    return names


def test_a_shard_reads_its_own_units_and_the_merge_all_of_them_once(job, digested):
    for number in range(4):
        digested.clear()
        pack_shard(*job("packed"), shard=(number + 1, 4))
        assert set(digested) == {f"t{number}.txt", f"t{number + 4}.txt"}
    digested.clear()
    merge_shards(*job("packed"))
    assert digested == [f"t{number}.txt" for number in range(8)]
    digested.clear()
    pack_stage(*job("packed"))
    assert digested == [f"t{number}.txt" for number in range(8)]


def test_a_shard_that_comes_late_knows_windows_of_other_inputs_by_files_that_are_not_its_own(job):
    pack_stage(*job("packed"))
    assert pack_shard(*job("packed"), shard=(1, 8))["finished"]
    Path("t5.txt").write_text(prose(50, 30))
    with pytest.raises(InvalidInput, match="windows of other inputs; different: sources"):
        pack_shard(*job("packed"), shard=(1, 8))


def test_the_merge_refuses_a_shard_of_what_a_file_was_before(job):
    for number in range(2):
        pack_shard(*job("packed"), shard=(number + 1, 2))
    Path("t5.txt").write_text(prose(50, 30))
    with pytest.raises(InvalidInput, match=r"1 of 8 units .* of other inputs: t5.txt of t5"):
        merge_shards(*job("packed"))
