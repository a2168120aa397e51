"""`giraffe pack-data` as people call it: exit codes, streams, JSON, the next command."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pyarrow
import pyarrow.parquet as pq
import pytest
from conftest import prose
from test_bad_input import CASES

from giraffe_cli.corpus.tokens import DocumentTokenizer


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
    following = f"giraffe extend --model {tiny_llama} --data {tmp_path / 'packed'} --target-len 256"
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
        (["--on-bad", "maybe"], 2, "--on-bad maybe: no such choice"),
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


def test_the_next_command_is_one_that_extend_takes(pack, corpus, tiny_llama, tmp_path):
    """The tiny Llama reaches 128 tokens: longer windows are a target, shorter ones are PoSE's."""
    line = f"next: giraffe extend --model {tiny_llama} --data"
    spaced = tmp_path / "two words"
    told = pack(corpus, window="256", out=spaced).stdout
    assert f"{line} '{spaced}' --target-len 256\n" in told
    told = pack(corpus, window="128").stdout
    assert f"{line} {tmp_path / 'packed'} --target-len 256 --window 128\n" in told


def test_over_a_scaled_base_the_next_command_says_what_becomes_of_its_scaling(
    giraffe, corpus, tiny_llama, tmp_path
):
    """The tiny Llama of 128 tokens under `linear` by 2 reaches 256."""
    base = shutil.copytree(tiny_llama, tmp_path / "scaled")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    (base / "config.json").write_text(json.dumps(config))
    out = tmp_path / "packed"
    told = giraffe("pack-data", corpus, "--tokenizer", base, "--window", "128", "--out", out).stdout
    command = f"giraffe extend --model {base} --data {out} --target-len 512 --window 128"
    command += " --on-existing-rope compose"
    assert f"next: {command}\n" in told
    assert giraffe(*command.split()[1:], "--dry-run", "--out", tmp_path / "run").code == 0


def test_a_source_without_text_says_why(pack, tmp_path):
    (tmp_path / "empty.txt").touch()
    assert "; skipped: 1 × empty file\n" in pack(tmp_path / "empty.txt").stderr


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


# ── bad input, through the command ───────────────────────────────────────────────────────────


@pytest.fixture(params=[name for name in CASES if name != "link-out-of-a-repository"])
def case(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CASES[request.param].build(tmp_path)
    return CASES[request.param]


LIMIT = ("--max-doc-bytes", "20KB", "--min-piece", "1", "--hold-out", "0")


def test_a_defect_ends_with_3_names_its_place_and_leaves_nothing(pack, case, tmp_path):
    result = pack(case.source, *LIMIT)
    message = " ".join(result.stderr.split())
    assert (result.code, result.stdout) == (3, "")
    assert re.search(case.fails, message), message
    assert "Traceback" not in message
    assert not (tmp_path / "packed").exists()


def test_a_defect_is_skipped_and_counted_on_request(pack, case, tmp_path):
    result = pack(case.source, *LIMIT, "--on-bad", "skip", "--json")
    if case.counted is None:
        assert result.code == 3
    elif result.code:  # nothing else lies in the file
        assert result.code == 3
        assert "no documents in" in result.stderr
        assert case.counted in result.stderr
    else:
        [(reason, count)] = json.loads(result.stdout)["skipped"].items()
        assert reason.startswith(case.counted)
        assert count == 1
        assert f"1 × {reason}" in result.stderr


def test_a_file_that_changes_while_it_is_packed(pack, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": prose(i, 9)}) + "\n" for i in range(9)))
    encode = DocumentTokenizer.encode

    def late(*arguments):
        with open(path, "a") as handle:
            handle.write('{"text": "late"}\n')
        return encode(*arguments)

    monkeypatch.setattr(DocumentTokenizer, "encode", late)
    result = pack(path)
    assert result.code == 1
    assert "changed while it was read" in result.stderr
    assert not (tmp_path / "packed").exists()


def test_of_a_damaged_parquet_only_the_row_group_is_lost(pack, tmp_path):
    table = pyarrow.table({"text": [f"{n} {prose(n, 9)}" for n in range(60)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20, compression="zstd")
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    begin = group.dictionary_page_offset or group.data_page_offset
    data[begin : begin + 60] = bytes(60)
    (tmp_path / "a.parquet").write_bytes(data)
    options = ("--hold-out", "0", "--min-piece", "1")
    result = pack(tmp_path / "a.parquet", *options, "--on-bad", "skip", "--json")
    stats = json.loads(result.stdout)
    assert (stats["documents"], list(stats["skipped"].values())) == (40, [1])
    assert "a.parquet: rows 21 to 40" in json.dumps(stats["skipped_records"])
    result = pack(tmp_path / "a.parquet", *options, out=tmp_path / "other")
    assert result.code == 3
    assert "rows 21 to 40: damaged rows of parquet" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--epochs", "1e300"), 3, "epochs"),
        (("--mix", "a=1e308", "--mix", "b=1e308"), 0, ""),
    ],
)
def test_numbers_without_an_end_are_no_traceback(pack, corpus, tmp_path, options, code, told):
    shutil.copy(corpus, tmp_path / "b.jsonl")
    result = pack(f"a={corpus}", f"b={tmp_path / 'b.jsonl'}", *options)
    assert result.code == code, result.stderr
    assert told in result.stderr


def test_a_window_of_one_token_is_refused(pack, corpus):
    result = pack(corpus, "--min-piece", "1", window="1")
    assert result.code == 2
    assert "no token has a next one to predict" in result.stderr


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_nothing_but_bad_records_is_no_corpus(pack, tmp_path, on_bad):
    (tmp_path / "a.jsonl").write_text("{\n[\n")
    result = pack(tmp_path / "a.jsonl", "--on-bad", on_bad)
    assert result.code == 3
    assert ("a.jsonl:1: not valid JSON" if on_bad == "fail" else "no documents in") in (
        " ".join(result.stderr.split())
    )
    assert not (tmp_path / "packed").exists()


# ── a disk that is full ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_any_write_leaves_no_rows(pack, corpus, tmp_path, monkeypatch, call):
    """Tokens stay once a unit is finished; the next call goes on from them."""
    real, calls, full_at = getattr(os, call), [], 0

    def refusing(*arguments):
        calls.append(1)
        if len(calls) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, call, refusing)
    assert pack(corpus, out=tmp_path / "clean").code == 0
    clean = {path.name: path.read_bytes() for path in (tmp_path / "clean").iterdir()}
    count = len(calls)
    assert count >= 8
    for full_at in range(1, count + 1):
        calls.clear()
        result = pack(corpus)
        assert result.code == 1, (full_at, result.stderr)
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        left = {path.name for path in (tmp_path / "packed").glob("*")}
        assert left <= {".work", ".lock"}
        if full_at < count or not left:
            shutil.rmtree(tmp_path / "packed", ignore_errors=True)
    full_at = 0
    assert left
    assert pack(corpus).code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()} == clean


@pytest.mark.parametrize("limit", [1_000, 10_000, 20_000])
def test_a_write_that_the_system_refuses_leaves_nothing(pack, corpus, tmp_path, limit):
    """No file may grow beyond `limit` bytes: a real error in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        result = pack(corpus, "--eos", "yes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.code == 1
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "packed").exists()


# ── options without effect ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop-tail"], "drop_tail has no effect under rule best-fit"),
        (["--drop-tail", "--rule", "concat"], "drop_tail has no effect under rule concat"),
        (["--overlap", "8", "--rule", "concat"], "overlap has no effect under rule concat"),
        (["--overlap", "128"], "overlap 128 is not shorter than the window of 128 tokens"),
        (["--min-piece", "129"], "min_piece 129 is longer than the window of 128 tokens"),
        (["--mix", "books"], "--mix books: no NAME=WEIGHT"),
        (["--mix", "a=1", "--mix", "a=2"], "--mix names a twice"),
        (["--workers", "0"], "Invalid value for '--workers'"),
        (["--shard", "2"], "--shard 2 is no part of a whole"),
    ],
)
def test_options_that_do_nothing_or_contradict_each_other(pack, corpus, tmp_path, options, message):
    result = pack(corpus, *options)
    assert (result.code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "packed").exists()


def test_a_text_field_without_fields_and_a_source_named_twice(pack, corpus, tmp_path):
    (tmp_path / "a.md").write_text(prose(1, 20))
    assert pack(tmp_path / "a.md", "--text-field", "body").code == 2
    assert pack(corpus, corpus).code == 2


# ── what it takes and what it gives ──────────────────────────────────────────────────────────


def test_it_needs_neither_torch_nor_transformers_nor_datasets(corpus, tiny_llama, tmp_path):
    for name in ("torch", "transformers", "datasets", "pandas", "matplotlib"):
        (tmp_path / "poison" / name).mkdir(parents=True)
        (tmp_path / "poison" / name / "__init__.py").write_text(f"raise SystemExit('{name}')")
    path = os.pathsep.join([str(tmp_path / "poison"), *sys.path])
    command = ["pack-data", corpus, "--tokenizer", tiny_llama, "--window", 128]
    done = subprocess.run(
        [sys.executable, "-m", "giraffe_cli", *map(str, command), "--out", tmp_path / "packed"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "windows" in done.stdout
    assert (tmp_path / "packed" / "manifest.json").exists()


def test_datasets_loads_the_rows(pack, corpus, tmp_path):
    from datasets import load_dataset

    stats = json.loads(pack(corpus, "--json").stdout)
    rows = load_dataset(
        "parquet",
        data_files=str(tmp_path / "packed" / "rows-*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(rows) == stats["windows"]
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) <= 128 for row in rows)
    assert sum(len(row["input_ids"]) for row in rows) == stats["tokens_kept"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trl_trains_a_step_on_the_rows_as_they_are(pack, corpus, tiny_llama, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import load_dataset

    assert pack(corpus).code == 0
    rows = load_dataset(
        "parquet",
        data_files=str(tmp_path / "packed" / "rows-*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=1,
        per_device_train_batch_size=2,
        max_length=128,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
    )
    trainer = trl.SFTTrainer(model=str(tiny_llama), args=settings, train_dataset=rows)
    trained = trainer.train_dataset
    assert trained[0]["input_ids"] == rows[0]["input_ids"]
    assert len(trained) == len(rows)
    # 384 tokens of a vocabulary to choose from: a random model's loss is near ln 384 = 5.95.
    assert 5 < trainer.train().training_loss < 7


# ── shards, sources and the page ─────────────────────────────────────────────────────────────


@pytest.fixture
def two(tmp_path) -> list[str]:
    """Two named sources: twelve short documents, three long ones."""
    shapes = {"short": (12, 6), "long": (3, 90)}
    for name, (documents, sentences) in shapes.items():
        lines = [{"id": f"{name}-{n}", "text": prose(n, sentences)} for n in range(documents)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return [f"{name}={tmp_path / name}.jsonl" for name in shapes]


def test_several_sources_are_told_apart_and_the_lengths_drawn(pack, two):
    result = pack(*two, "--hold-out", "0")
    assert result.code == 0, result.stderr
    assert "tokens by length of their document:" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    counts = {row[0]: row[1] for row in rows if len(row) == 5 and row[0] in ("short", "long")}
    assert counts == {"short": "12", "long": "3"}


def test_shards_and_a_merge_give_the_rows_of_one_call(pack, two, tmp_path):
    assert pack(*two, out=tmp_path / "whole").code == 0
    first = pack(*two, "--shard", "1/2", "--json", out=tmp_path / "parts")
    assert json.loads(first.stdout)["shard"] == "1/2"
    early = pack(*two, "--merge", out=tmp_path / "parts")
    assert early.code == 3
    assert "long" in early.stderr
    told = pack(*two, "--shard", "2/2", out=tmp_path / "parts")
    assert "the same command with --merge in the place of --shard" in told.stdout
    merged = pack(*two, "--merge", out=tmp_path / "parts")
    assert merged.code == 0, merged.stderr
    rows = [(tmp_path / name / "rows-00000.parquet").read_bytes() for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    late = pack(*two, "--shard", "2/2", "--json", out=tmp_path / "parts")
    assert json.loads(late.stdout)["finished"] is True
    assert json.loads(late.stdout)["units"] == []
    assert not (tmp_path / "parts" / ".work").exists()  # nothing was tokenised again
    assert (
        "every shard is done and merged"
        in pack(*two, "--shard", "1/2", out=tmp_path / "parts").stdout
    )


def test_a_page_is_written_on_request_and_packing_again_keeps_its_folder(pack, two, tmp_path):
    page = tmp_path / "packed" / "report.html"
    assert pack(*two).code == 0
    assert not page.exists()
    result = pack(*two, "--report")
    assert result.code == 0, result.stderr
    assert f"wrote {page}" in result.stderr
    assert "<title>packed: packed corpus</title>" in page.read_text(encoding="utf-8")
    assert "holds these windows already" in pack(*two).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "1/2", "--merge"], "--shard goes without --merge"),
        (["--shard", "1/2", "--report"], "--shard goes without --report"),
        (["--shard", "3/2"], "--shard 3/2 is no part of a whole"),
        (["--merge", "--workers", "2"], "--workers has no effect"),
    ],
)
def test_parts_of_a_packing_that_contradict_each_other(pack, two, tmp_path, options, message):
    result = pack(*two, *options)
    assert (result.code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    "options", [["--mix", "short=inf", "--mix", "long=1"], ["--epochs", "inf"]]
)
def test_shares_and_passes_are_finite(pack, two, tmp_path, options):
    result = pack(*two, *options)
    assert result.code == 3
    assert f"{options[0]} inf: Input should be a finite number" in result.stderr
    assert not (tmp_path / "packed").exists()
