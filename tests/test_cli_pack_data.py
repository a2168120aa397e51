"""`giraffe pack-data` as people call it: exit codes, streams, JSON, the next command."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def pack(giraffe, tiny_llama, tmp_path):
    def run(*arguments, window="128", out=tmp_path / "packed"):
        options = ("--tokenizer", tiny_llama, "--window", window, "--out", out)
        return giraffe("pack-data", *arguments, *options)

    return run


def test_it_packs_shows_a_table_and_the_next_command(pack, corpus, tiny_llama, tmp_path):
    result = pack(corpus)
    assert result.code == 0, result.stderr
    assert "24, of them" in result.stdout
    assert "windows" in result.stdout
    following = f"giraffe extend --model {tiny_llama} --data {tmp_path / 'packed'} --target-len 128"
    assert following in result.stdout
    assert (tmp_path / "packed" / "manifest.json").exists()


def test_json_is_one_object_with_the_promised_keys(pack, corpus, tmp_path):
    result = pack(corpus, "--json", "--hold-out", "0")
    stats = json.loads(result.stdout)
    assert stats.items() >= json.loads((tmp_path / "packed" / "stats.json").read_text()).items()
    assert (stats["documents"], stats["documents_held_out"], stats["window"]) == (24, 0, 128)
    assert stats["tokens_kept"] + stats["tokens_dropped"] == stats["tokens_in"]
    assert 0 < stats["long_share"] <= 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere.jsonl"], 3, "`nowhere.jsonl` does not exist"),
        (["--on-bad", "maybe"], 3, "--on-bad maybe: Input should be 'fail' or 'skip'"),
        (["--hold-out", "1"], 3, "--hold-out 1.0: Input should be less than 1"),
        (["--text-field", "txt"], 3, "no field `txt`"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(
    pack, corpus, tmp_path, arguments, code, text
):
    source = [] if arguments[0] == "nowhere.jsonl" else [corpus]
    result = pack(*source, *arguments)
    assert (result.code, result.stdout) == (code, "")
    assert text in result.stderr
    assert not (tmp_path / "packed").exists()


def test_an_odd_window_is_named(pack, corpus):
    result = pack(corpus, window="lots")
    assert result.code == 3
    assert "`lots` is not a length in tokens" in result.stderr


def test_no_source_is_a_usage_error(pack):
    assert pack().code == 2


def test_the_same_command_again_keeps_and_another_is_refused_with_the_keys(pack, corpus):
    assert pack(corpus).code == 0
    assert "holds these windows already" in pack(corpus).stderr
    result = pack(corpus, "--seed", "1", window="64")
    assert result.code == 3
    assert "different: seed, window" in result.stderr


def test_an_output_that_cannot_be_a_folder(pack, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    result = pack(corpus, out=tmp_path / "file" / "packed")
    assert result.code == 3
    assert "is not a directory" in result.stderr


def test_a_tokenizer_that_is_a_file_is_refused(giraffe, corpus, tiny_llama, tmp_path):
    options = (
        "--tokenizer",
        tiny_llama / "tokenizer.json",
        "--window",
        64,
        "--out",
        tmp_path / "p",
    )
    result = giraffe("pack-data", corpus, *options)
    assert result.code == 3
    assert "is a file" in result.stderr


def test_help_shows_examples(giraffe):
    result = giraffe("pack-data", "--help")
    assert result.code == 0
    assert "--min-piece" in result.stdout
    assert "giraffe pack-data books.jsonl.gz" in result.stdout
