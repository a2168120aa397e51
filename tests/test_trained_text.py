"""Trained text is known by what it says: under another id, in another file, whole or in part."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tokenizer, prose
from tokenizers import Tokenizer

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.store import held_out, open_packed
from giraffe_cli.corpus.tokens import vocabulary
from giraffe_cli.corpus.trained_text import RUN, _runs, token_numbers, trained_shares
from giraffe_cli.corpus.unseen import TRAINED_FROM, not_trained_on
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import SilentReporter
from giraffe_cli.run_files import windows_of

TRAINED = [prose(i, 60).replace(". ", ".\n") for i in range(6)]
OTHER = prose(40, 60)


def write_corpus(path: Path, texts: list[str], prefix: str) -> Path:
    lines = [json.dumps({"id": f"{prefix}{n}", "text": text}) for n, text in enumerate(texts)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def packed(tokenizer, tmp_path_factory) -> Path:
    """`TRAINED` in windows of 256 tokens, so that each is cut, and nothing held out."""
    folder = tmp_path_factory.mktemp("packed")
    corpus = write_corpus(folder / "a.jsonl", TRAINED, "a-")
    settings = PackConfig(hold_out=0)
    pack_stage([str(corpus)], tokenizer, 256, settings, 0, folder / "rows", SilentReporter())
    return folder / "rows"


def shares(tokenizer, packed, *texts) -> list[float]:
    rows = [open_packed(packed)]
    return trained_shares(texts, rows, tokenizer, SilentReporter()).tolist()


def unseen(documents, packed, tokenizers, reporter=None):
    given = [Document(identity, text, "file") for identity, text in documents]
    reporter = reporter or SilentReporter()
    return [d.id for d in not_trained_on(given, packed, tokenizers, "other text", reporter)]


def test_a_trained_text_is_known_whole_in_part_and_within_another(tokenizer, packed):
    text = TRAINED[2]
    half, tenth = text[: len(text) // 2], text[: len(text) // 10]
    whole, piece, within, stock, other = shares(
        tokenizer, packed, text, text[300:900], OTHER + " " + half, OTHER + " " + tenth, OTHER
    )
    # 31 of the runs of 256 tokens that a cut leaves are in no window
    assert whole > 0.8
    assert piece > 0.6
    assert 0.2 < within < 0.4
    assert 0 < stock < 0.12
    assert other == 0


def test_line_ends_and_blanks_after_them_hide_nothing(tokenizer, packed):
    text = TRAINED[0]
    variants = [text, text.replace("\n", " \t\r\n"), "\n\n" + text.replace("\n", "\n\n") + "\n "]
    assert len(set(shares(tokenizer, packed, *variants))) == 1


def test_a_text_shorter_than_a_run_is_compared_by_nothing(tokenizer, packed):
    assert shares(tokenizer, packed, TRAINED[0][:20], "") == [0, 0]


def test_a_text_of_one_run_is_compared_by_it(tokenizer, packed):
    """The beginning of 32 tokens that are no blanks, and that of 31 or fewer."""
    numbers = token_numbers(vocabulary(tokenizer))
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    blanks = [(text, blank.start()) for text in TRAINED for blank in re.finditer(" ", text[:300])]
    beginnings = [text[:end] for text, end in blanks]
    known = [np.count_nonzero(numbers[encode(b, add_special_tokens=False).ids]) for b in beginnings]
    run = known.index(RUN)
    assert shares(tokenizer, packed, beginnings[run], beginnings[run - 1]) == [1, 0]


def test_the_hash_of_a_run_is_a_polynomial_of_each_of_its_tokens():
    """In Python's integers: Σ n_k · M^(31 - k) modulo 2^64."""
    numbers = [(7 * n * n + 1) % 1000 for n in range(RUN + 2)]
    powers = [0x9E3779B97F4A7C15**power for power in reversed(range(RUN))]
    wanted = [
        sum(n * m for n, m in zip(numbers[begin:], powers, strict=False)) % 2**64
        for begin in range(3)
    ]
    assert _runs(np.array(numbers, dtype=np.uint64)).tolist() == wanted


def test_a_piece_of_a_run_and_a_step_is_found_wherever_it_lies(tokenizer, packed):
    """24 places of the same 12 sentences, longer than `RUN` + `STEP` tokens."""
    piece = TRAINED[1][200:700]
    texts = [OTHER[: 400 + shift] + piece + OTHER[400 + shift :] for shift in range(24)]
    assert RUN == 32
    assert min(shares(tokenizer, packed, *texts)) > 0


@pytest.mark.parametrize(
    ("tokens", "blanks"),
    [
        (["Ġsun", "sun", "Ċ", "ĠĠ", "čĊ", "sunĊ"], [2, 3, 4]),
        (["▁sun", "sun", "<0x0A>", "▁▁", "\n", "sun▁"], [2, 3, 4]),
    ],
)
def test_tokens_that_differ_in_blanks_have_one_number(tokens, blanks):
    numbers = token_numbers({token: n for n, token in enumerate([*tokens, "č", "<s>"])})
    assert [n for n, number in enumerate(numbers[:6]) if number == 0] == blanks
    assert numbers[0] == numbers[1] == numbers[5] != 0
    assert numbers[7] not in (0, numbers[0])
    # a letter, unless the vocabulary writes bytes so
    assert (numbers[6] == 0) == (tokens[0] == "Ġsun")


def test_what_is_left_out_is_told_by_id_and_by_text(tokenizer, packed):
    reporter = SilentReporter()
    documents = [("a-0", OTHER), ("b-0", TRAINED[3]), ("b-1", TRAINED[4]), ("b-2", OTHER)]
    assert unseen(documents, [packed], [tokenizer], reporter) == ["b-2"]
    assert reporter.warnings == [
        "3 of 4 documents are not evaluated: they are trained on (by id 1, by text 2)"
    ]


def test_a_passage_of_trained_text_is_told_and_evaluated(tokenizer, packed):
    reporter = SilentReporter()
    mostly = prose(40, 400) + " " + TRAINED[5]
    assert shares(tokenizer, packed, mostly)[0] < TRAINED_FROM
    assert unseen([("c", mostly), ("d", OTHER)], [packed], [tokenizer], reporter) == ["c", "d"]
    assert reporter.warnings == []
    told = [line for line in reporter.lines if "passages that are trained on" in line]
    assert len(told) == 1
    assert told[0].startswith("1 evaluated documents")
    assert told[0].endswith("of one: c")


def test_windows_of_another_tokenizer_are_compared_by_id_alone(tokenizer, packed, tmp_path):
    build_tokenizer(tmp_path, vocab_size=300)
    reporter = SilentReporter()
    documents = [("a-0", OTHER), ("b-0", TRAINED[3])]
    assert unseen(documents, [packed, packed], [tmp_path], reporter) == ["b-0"]
    told, left_out = reporter.warnings
    assert told.startswith(f"{packed}: packed with another tokenizer")
    assert "known by its id, and not by its text" in told
    assert left_out.endswith("(by id 1, by text 0)")
    # the folder of the run's own tokenizer may be any of those named
    more = [*documents, ("b-1", OTHER)]
    assert unseen(more, [packed], [tmp_path / "none", tmp_path, tokenizer]) == ["b-1"]


def test_altered_windows_are_refused(tokenizer, tmp_path):
    corpus = write_corpus(tmp_path / "a.jsonl", TRAINED, "a-")
    out = tmp_path / "rows"
    pack_stage([str(corpus)], tokenizer, 256, PackConfig(), 0, out, SilentReporter())
    shard = out / "rows-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InvalidInput, match="was altered"):
        unseen([("c", OTHER)], [out], [tokenizer])


# ── the commands ─────────────────────────────────────────────────────────────────────────────


SCORES = ("--tasks", "nll", "--lengths", "128,256", "--set", "nll.targets=32")


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    """A run of one step over `TRAINED` and a copy of what it held out, under another id."""
    from giraffe_cli.config.building import build
    from giraffe_cli.pipeline import Options, extend

    folder = tmp_path_factory.mktemp("trained")
    corpus = write_corpus(folder / "a.jsonl", TRAINED, "a-")
    values = {
        "model": str(tiny_llama),
        "data": [str(corpus)],
        "target_length": 256,
        "rope": {"strategy": "yarn"},
        "pack": {"hold_out": 0.4},
        "train": {"window": 128, "steps": 1, "warmup_steps": 0, "lora": {"rank": 2, "alpha": 4}},
    }
    extend(build(values, "test"), folder / "run", Options(evaluate=False), SilentReporter())
    return folder / "run"


def test_eval_leaves_out_trained_text_under_other_ids(giraffe, trained, tmp_path):
    kept = {d.text for d in held_out(trained / "packed")}
    assert 0 < len(kept) < len(TRAINED)
    # every text under a new id and in another order, and one that no run has read
    texts = [*reversed(TRAINED), OTHER]
    data = write_corpus(tmp_path / "b.jsonl", texts, "b-")
    scored = giraffe("eval", trained / "model", "--data", data, *SCORES, "--out", tmp_path / "s")
    assert scored.code == 0, scored.stderr
    seen = len(TRAINED) - len(kept)
    told = f"{seen} of {len(texts)} documents are not evaluated: they are trained on"
    assert f"{told} (by id 0, by text {seen})" in " ".join(scored.stderr.split())
    samples = (tmp_path / "s" / "samples.jsonl").read_text().splitlines()
    read = {texts[int(json.loads(line)["cluster"].removeprefix("b-"))] for line in samples}
    assert read == kept | {OTHER}


def test_eval_refuses_where_nothing_else_is_left(giraffe, trained, tmp_path):
    kept = {d.text for d in held_out(trained / "packed")}
    data = write_corpus(tmp_path / "b.jsonl", [t for t in TRAINED if t not in kept], "b-")
    refused = giraffe("eval", trained / "model", "--data", data, *SCORES, "--out", tmp_path / "s")
    assert refused.code == 3
    assert "every document of the evaluation is trained on" in refused.stderr


def test_extend_knows_trained_text_before_it_trains(giraffe, tiny_llama, tmp_path):
    """Evaluation data that repeats the corpus under other ids; a corpus that repeats itself trains
    on no copy of what it holds out."""
    corpus = write_corpus(tmp_path / "a.jsonl", TRAINED, "a-")
    twice = write_corpus(tmp_path / "twice.jsonl", TRAINED * 5, "a-")
    other = ("--eval-data", write_corpus(tmp_path / "b.jsonl", TRAINED, "b-"))
    for data, named, code in (
        (corpus, (*other, "--set", "pack.hold_out=0"), 3),
        (twice, ("--set", "pack.hold_out=0.05"), 0),
    ):
        run = tmp_path / f"run-{code}"
        done = giraffe(
            *("extend", "--model", tiny_llama, "--data", data, "--target-len", 256, *named),
            *("--rope", "yarn", "--window", 128, "--steps", 1, "--set", "eval.lengths=[128,256]"),
            *("--set", "eval.tasks=[nll]", "--set", "eval.knobs.nll.targets=32"),
            *("--set", "train.lora.rank=2", "--out", run),
        )
        assert done.code == code, done.stderr
        assert ("every document of the evaluation is trained on" in done.stderr) == bool(code)
        assert ("by id 0, by text" in done.stderr) == ("pack.dedupe" in done.stderr) == bool(code)
        assert (run / "adapter").exists() == (not code)


def test_the_windows_of_a_control_and_of_an_earlier_stage_are_the_runs(trained):
    run = trained
    for part in ("control", "stages/1-128", "control/stages/1-128"):
        assert windows_of(run / part) == [run / "packed"], part
    assert windows_of(run) == [run / "packed"]
    assert windows_of(run.parent) == windows_of(run / "model") == []
