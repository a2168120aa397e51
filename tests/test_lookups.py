"""Look-ups in training windows: no token lost, every fact before its question, told in the end."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_report import make_report
from synthetic_results import make_results
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

import giraffe_cli
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import lookups
from giraffe_cli.corpus.lookup_forms import WRITTEN, Form, Sentence
from giraffe_cli.corpus.lookup_places import Places
from giraffe_cli.corpus.lookup_words import Vocabulary, frequent_words
from giraffe_cli.corpus.lookups import Lookup, LookupHider, drawn_lookups, room_for_lookups
from giraffe_cli.corpus.packed_facts import lookup_share
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.rows import RowGroup
from giraffe_cli.corpus.stats import warnings_of
from giraffe_cli.corpus.store import open_packed
from giraffe_cli.corpus.tokens import DocumentTokenizer
from giraffe_cli.errors import UsageError
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.card import write_card
from giraffe_cli.report.facts_training import training_rows
from giraffe_cli.report.pack_page import account
from giraffe_cli.report.verdicts import run_verdicts
from giraffe_cli.rundir import MANIFEST, read_json

CALF = Path(giraffe_cli.__file__).parent / "calf"
SHARE, WINDOW = 0.2, 1000
TEXT_ROOM = WINDOW - room_for_lookups(SHARE, WINDOW)
LONG = " ".join(f"On day {n} the ship lay at {n * 7} degrees, all in fog." for n in range(440))


@pytest.fixture(scope="module")
def tokenize() -> DocumentTokenizer:
    return DocumentTokenizer(CALF)


def hider(tokenize: DocumentTokenizer, seed: int = 0) -> LookupHider:
    return LookupHider(tokenize, SHARE, WINDOW, seed)


def group_of(rows: list[list[np.ndarray]]) -> RowGroup:
    """Windows of pieces, as `row_groups` gives them; sources and ids are not looked at."""
    pieces = [piece for row in rows for piece in row]
    return RowGroup(
        np.concatenate(pieces).astype(np.int32),
        np.array([sum(map(len, row)) for row in rows], np.int32),
        np.array([len(piece) for piece in pieces], np.int32),
        np.array([len(row) for row in rows], np.int32),
        None,
        None,
    )


def pieces_of(group: RowGroup) -> list[np.ndarray]:
    return np.split(group.input_ids, np.cumsum(group.seq_lengths)[:-1])


def windows_of(tokenize: DocumentTokenizer, text: str = LONG) -> list[list[np.ndarray]]:
    """A document cut into windows, as packing cuts it."""
    ids, _ = tokenize.encode([text])
    return [[ids[at : at + TEXT_ROOM]] for at in range(0, len(ids), TEXT_ROOM)]


@pytest.fixture
def drawn(monkeypatch) -> list[list[Lookup]]:
    """What is drawn for each window, hidden or too long."""
    found: list[list[Lookup]] = []

    def recorded(g, vocabulary):
        found.append([])
        for look in drawn_lookups(g, vocabulary):
            found[-1].append(look)
            yield look

    monkeypatch.setattr(lookups, "drawn_lookups", recorded)
    return found


# ── what windows hold ────────────────────────────────────────────────────────────────────────


def test_every_fact_stands_before_its_question_in_its_window(tokenize, drawn):
    made = hider(tokenize)
    (hidden,) = made.hide([group_of(windows_of(tokenize))])
    texts = [tokenize.tokenizer.decode(piece.tolist()) for piece in pieces_of(hidden)]
    found = 0
    for text, looks in zip(texts, drawn, strict=True):
        assert len({look.fact for look in looks}) == len(looks)
        whole = [look for look in looks if f"\n\n{look.question.strip()}\n\n" in text]
        found += len(whole)
        for look in whole:
            assert 0 <= text.find(look.fact) < text.rfind(look.question.strip())
    assert found == made.count > 20


def test_a_full_window_stays_full_and_the_last_gets_its_part(tokenize):
    rows = windows_of(tokenize)
    made = hider(tokenize)
    (hidden,) = made.hide([group_of(rows)])
    *full, last = hidden.row_lengths.tolist()
    assert set(full) == {WINDOW}
    before = len(rows[-1][0])
    assert before < last <= before + before * SHARE / (1 - SHARE)
    added = int(hidden.row_lengths.sum()) - sum(len(row[0]) for row in rows)
    assert made.report() == {"share": SHARE, "count": made.count, "tokens": added}


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(
        st.lists(st.integers(1, TEXT_ROOM), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    seed=st.integers(0, 5),
)
def test_every_piece_keeps_its_tokens_its_ends_and_no_more_than_its_share(lengths, seed):
    tokenize = DocumentTokenizer(CALF)
    ids, _ = tokenize.encode([LONG])
    rows = [[ids[:length] for length in row] for row in lengths]
    rows[0][0] = np.append(rows[0][0][:-1], tokenize.eos)
    (hidden,) = hider(tokenize, seed).hide([group_of(rows)])
    assert hidden.row_lengths.sum() == hidden.seq_lengths.sum() == len(hidden.input_ids)
    for before, after in zip(itertools.chain(*rows), pieces_of(hidden), strict=True):
        left = iter(after.tolist())
        assert all(token in left for token in before.tolist())
        assert len(after) - len(before) <= len(before) * SHARE / (1 - SHARE) + 1e-9
        assert after[0] == before[0]
    assert pieces_of(hidden)[0][-1] == tokenize.eos


def test_what_is_hidden_hangs_on_seed_and_window_alone(tokenize):
    rows = windows_of(tokenize)
    (together,) = hider(tokenize).hide([group_of(rows)])
    apart = list(hider(tokenize).hide(group_of([row]) for row in rows))
    assert (together.input_ids == np.concatenate([one.input_ids for one in apart])).all()
    (other,) = hider(tokenize, seed=1).hide([group_of(rows)])
    assert (together.input_ids[:WINDOW] != other.input_ids[:WINDOW]).any()
    (again,) = hider(tokenize).hide([group_of([rows[0], rows[0]])])
    assert (again.input_ids[:WINDOW] != again.input_ids[WINDOW:]).any()


def test_a_piece_without_room_for_one_stays_as_it_is(tokenize):
    short = tokenize.encode(["A short note. It ends here."])[0]
    made = hider(tokenize)
    (hidden,) = made.hide([group_of([[short, short]])])
    assert (hidden.input_ids == np.concatenate([short, short])).all()
    assert made.report() == {"share": SHARE, "count": 0, "tokens": 0}


def test_a_look_up_that_is_no_token_is_none(tmp_path):
    """A vocabulary without the letters of look-ups, and without a token for what it lacks."""
    made = Tokenizer(models.BPE({"あ": 0, "。": 1}, []))
    made.save(str(tmp_path / "tokenizer.json"))
    made = LookupHider(DocumentTokenizer(tmp_path), SHARE, WINDOW, 0)
    ids = np.array([0, 0, 1] * 200, np.int32)
    (hidden,) = made.hide([group_of([[ids]])])
    assert (hidden.input_ids.tolist(), made.count) == (ids.tolist(), 0)


def test_questions_stand_near_and_far_and_three_of_ten_at_the_end(tokenize, drawn):
    (hidden,) = LookupHider(tokenize, SHARE, 8000, 0).hide([group_of(windows_of(tokenize))])
    ends = asked = 0
    for piece, looks in zip(pieces_of(hidden), drawn, strict=True):
        text = tokenize.tokenizer.decode(piece.tolist())
        last = max(text.rfind("all in fog"), text.rfind("the ship lay"))
        places = [text.rfind(f"\n\n{look.question.strip()}\n\n") for look in looks]
        asked += sum(place >= 0 for place in places)
        ends += sum(place > last for place in places)
    assert asked > 50
    assert 0.15 < ends / asked < 0.6


# ── forms ────────────────────────────────────────────────────────────────────────────────────

SENTENCE = re.compile(r"(The|My|A|Her) .* (is|was|has|says|shows) \d+\.")
TEMPLATES = ("pass key", "special magic", "register_content", "corresponding value", "quiz you")


def test_no_form_is_that_of_an_evaluation():
    looks = itertools.islice(drawn_lookups(np.random.default_rng(0), Vocabulary([])), 2000)
    found = " ".join(look.fact + look.question for look in looks).lower()
    assert not [words for words in TEMPLATES if words in found]


def test_an_answer_is_its_facts_value_and_four_facts_share_a_form():
    g = np.random.default_rng(1)
    for form in (Sentence(g, Vocabulary(["boat"])), Form(g, Vocabulary([]), 4)):
        assert "VALUE" in form.fact("KEY", "VALUE")
        asked, answer, _ = form.question("KEY", "VALUE")
        assert "KEY" in asked
        assert answer.strip() == "VALUE"
    assert len(WRITTEN) == 18
    facts = [look.fact for look in itertools.islice(drawn_lookups(g, Vocabulary([])), 400)]
    told = [found.groups() if (found := SENTENCE.fullmatch(fact)) else fact for fact in facts]
    alike = [len(list(run)) for form, run in itertools.groupby(told) if isinstance(form, tuple)]
    assert len(alike) > 30
    assert np.median(alike) == 4


def test_no_key_has_two_values():
    g = np.random.default_rng(2)
    asked = [look.question for look in itertools.islice(drawn_lookups(g, Vocabulary([])), 4000)]
    keys = re.findall(r"where does (\w+) lead\?", "\n".join(asked))
    assert len(keys) > 20
    assert len(set(keys)) == len(keys)


def test_words_are_the_texts_own_or_made_up():
    words = frequent_words(["the boat and the boat, a sea. Boats"])
    assert words == ["the", "boat", "and", "sea"]
    g = np.random.default_rng(0)
    assert {Vocabulary(["boat"]).word(g) for _ in range(50)} > {"boat"}
    assert all(Vocabulary([]).word(g).isalpha() for _ in range(50))


# ── places ───────────────────────────────────────────────────────────────────────────────────


def places_in(tokenize: DocumentTokenizer, text: str) -> list[str]:
    """The text before each place."""
    ids = np.array(tokenize.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    return [tokenize.tokenizer.decode(ids[:place].tolist()) for place in Places(tokenize).of(ids)]


def test_places_are_ends_of_sentences_and_lines(tokenize):
    text = 'It is 3.14 at 6.30 here. "Is it?" So\nit is, e.g. this'
    ends = ["It is 3.14 at 6.30 here.", 'It is 3.14 at 6.30 here. "Is it?"']
    ends += ['It is 3.14 at 6.30 here. "Is it?" So\n', text.removesuffix(" this"), text]
    assert places_in(tokenize, text) == ends


def test_without_sentences_places_are_before_words_and_else_anywhere(tokenize):
    assert places_in(tokenize, "one two three")[-2:] == ["one two", "one two three"]
    digits = places_in(tokenize, "7777")
    assert digits[-1] == "7777"
    assert len(digits) > 1
    assert Places(tokenize).of(np.array([5], np.int32)) == []


@pytest.fixture
def of_sentencepiece(tmp_path) -> DocumentTokenizer:
    """One token a character, `▁` for a space and one before the text, as Llama 2 has it."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3}
    for letter in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.。?":
        vocabulary[letter] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(specials))
    return DocumentTokenizer(tmp_path)


def test_sentencepiece_puts_one_space_before_a_sentence(of_sentencepiece):
    assert places_in(of_sentencepiece, "It is. So\nit is") == [
        " It is.",
        " It is. So\n",
        " It is. So\nit is",
    ]
    ids = np.array(of_sentencepiece.tokenizer.encode("It is. So\nit").ids, np.int32)
    places = Places(of_sentencepiece)
    behind_sentence, behind_line, _ = places.of(ids)
    decode = of_sentencepiece.tokenizer.decode
    assert decode(places.encode("The hut.", ids, behind_sentence)) == " The hut."
    assert decode(places.encode("The hut.", ids, behind_line)).endswith("The hut.\n")


def test_parts_of_words_are_known_where_they_are_marked(tmp_path):
    """As WordPiece writes them."""
    words = ["[UNK]", "on", "day", "##s", "it", "is", ".", "7"]
    made = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.save(str(tmp_path / "tokenizer.json"))
    found = places_in(DocumentTokenizer(tmp_path), "on days it is. on day 7")
    assert found == ["on days it is.", "on days it is. on day 7"]
    assert places_in(DocumentTokenizer(tmp_path), "on days it") == ["on", "on days", "on days it"]


def test_no_place_lies_before_the_first_token_or_behind_the_last(tokenize):
    inner = tokenize.tokenizer.encode("a b. c", add_special_tokens=False).ids
    ids = np.array([tokenize.bos, *inner, tokenize.eos], np.int32)
    assert max(Places(tokenize).of(ids)) == len(ids) - 1
    without_sentence = np.array([tokenize.bos, *inner[:2], tokenize.eos], np.int32)
    assert min(Places(tokenize).of(without_sentence)) > 1


def test_full_width_ends_need_no_space(of_sentencepiece):
    assert places_in(of_sentencepiece, "ab。cd") == [" ab。", " ab。cd"]


# ── packing ──────────────────────────────────────────────────────────────────────────────────


def packed(folder: Path, seed: int = 0, **knobs) -> Path:
    data = folder / "books.jsonl"
    if not data.exists():
        rows = [{"id": f"d{n}", "text": f"Book {n}. {LONG}"} for n in range(4)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / f"packed-{seed}-{len(list(folder.iterdir()))}"
    config = PackConfig(hold_out=0.3, **knobs)
    pack_stage([str(data)], CALF, WINDOW, config, seed, out, SilentReporter())
    return out


def test_a_packing_counts_what_it_hides_and_leaves_held_out_text_alone(tmp_path):
    plain, hidden = packed(tmp_path), packed(tmp_path, lookups=SHARE)
    stats, before = (open_packed(folder).stats for folder in (hidden, plain))
    assert before["lookups"] is None
    assert stats["lookups"]["share"] == SHARE
    assert stats["lookups"]["count"] > 50
    assert stats["tokens_kept"] == before["tokens_kept"]
    rows = open_packed(hidden)
    stored = sum(len(rows.row(n).input_ids) for n in range(len(rows)))
    assert stored == stats["tokens_kept"] + stats["lookups"]["tokens"]
    assert stats["padding"] == len(rows) * WINDOW - stored
    assert stats["fill"] == pytest.approx(stored / (len(rows) * WINDOW))
    assert (hidden / "held_out.jsonl.gz").read_bytes() == (plain / "held_out.jsonl.gz").read_bytes()
    share = stats["lookups"]["tokens"] / stored
    assert lookup_share([plain, hidden]) == pytest.approx(share)
    assert share == pytest.approx(SHARE, abs=0.005)
    assert lookup_share([plain]) is None
    lines = account(stats)
    assert lines[-1].tokens == stored
    assert lines[-1].tokens == lines[0].tokens + sum(
        line.tokens if line.kind == "more" else -line.tokens for line in lines[1:-1]
    )


def test_windows_without_look_ups_are_those_of_a_giraffe_that_had_none(tmp_path):
    plain, hidden = packed(tmp_path), packed(tmp_path, lookups=SHARE)
    assert "lookups" not in read_json(plain / MANIFEST)["inputs"]["config"]
    assert read_json(hidden / MANIFEST)["inputs"]["config"]["lookups"] == SHARE


def test_documents_that_are_too_short_hold_none_and_that_is_said(tmp_path):
    data = tmp_path / "notes.jsonl"
    lines = [json.dumps({"id": f"n{n}", "text": f"Note {n}. It is short."}) for n in range(60)]
    data.write_text("\n".join(lines))
    config = PackConfig(hold_out=0, lookups=SHARE, min_piece=1)
    reporter = SilentReporter()
    pack_stage([str(data)], CALF, WINDOW, config, 0, tmp_path / "out", reporter)
    assert open_packed(tmp_path / "out").stats["lookups"]["count"] == 0
    assert lookup_share([tmp_path / "out"]) is None
    told = "look-ups make up 0.0% of the tokens, 20.0% was asked for"
    assert [line for line in reporter.warnings if line.startswith(told)]


def test_documents_are_long_that_fill_what_is_left_of_a_window(tmp_path):
    folder = packed(tmp_path, lookups=SHARE)
    stats = open_packed(folder).stats
    assert stats["long_share"] == 1
    assert not [w for w in warnings_of({**stats, "longest_document": TEXT_ROOM}) if "reach" in w]
    with pytest.raises(UsageError, match="window of 800 tokens that look-ups leave of 1000"):
        packed(tmp_path, lookups=SHARE, min_piece=900)


@pytest.mark.parametrize("rule", ["best-fit", "concat", "one"])
def test_every_rule_takes_them(tmp_path, rule):
    overlap = {} if rule == "concat" else {"overlap": 50}
    rows = open_packed(packed(tmp_path, lookups=SHARE, rule=rule, **overlap))
    lengths = [len(rows.row(n).input_ids) for n in range(len(rows))]
    assert max(lengths) == WINDOW
    assert sum(length == WINDOW for length in lengths) > len(lengths) / 2
    assert rows.stats["lookups"]["count"] > 50


def test_the_command_says_what_was_hidden_and_refuses_windows_without_room(giraffe, tmp_path):
    data = tmp_path / "books.jsonl"
    data.write_text(json.dumps({"text": LONG}) + "\n")
    command = ["pack-data", str(data), "--tokenizer", "calf", "--out", str(tmp_path / "out")]
    command += ["--hold-out", "0", "--lookups", "0.06", "--window"]
    refused = giraffe(*command, "1k")
    assert refused.code == 2
    assert "lookups 0.06 leaves 61 tokens of a window of 1024 tokens for look-ups" in refused.stderr
    assert "--lookups" in refused.stderr
    extend = ["extend", "--model", "calf", "--data", str(data), "--target-len", "2k"]
    extend += ["--dry-run", "--no-eval", "--set"]
    foreseen = giraffe(*extend, "pack.lookups=0.01")
    assert foreseen.code == 2
    assert "2k: lookups 0.01 leaves 20 tokens of a window of 2048 tokens" in foreseen.stderr
    control = giraffe(*extend, "pack.lookups=0.05", "--control")
    assert "control of 2k: lookups 0.05 leaves 51 tokens of a window of 1024" in control.stderr
    told = giraffe(*command, "2k")
    assert told.code == 0
    assert re.search(r"look-ups\s+│ \d+, \d+\.\d a window; \d+ tokens", told.stdout)


# ── what a reader is told ────────────────────────────────────────────────────────────────────


def test_a_retrieval_verdict_says_that_the_task_was_practised(tmp_path, tiny_llama):
    shutil.copy(tiny_llama / "config.json", tmp_path)
    report = make_report(tmp_path, make_results())
    finds = [verdict for verdict in run_verdicts(report) if "passkey" in verdict.claim]
    assert "practised" not in finds[0].meaning
    report["lookups"] = 0.06
    finds = [verdict for verdict in run_verdicts(report) if "passkey" in verdict.claim]
    assert "6% of the trained tokens were look-ups in other words" in finds[0].meaning
    assert dict(training_rows(report))["look-ups"].startswith("6% of the windows' tokens")
    write_card(report, tmp_path, {})
    card = (tmp_path / "README.md").read_text()
    assert "- look-ups: 6% of the windows' tokens" in card
    assert "practised" in card
