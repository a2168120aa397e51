"""Shards and workers: the same bytes whoever tokenised, and units that do not hold are named."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import prose
from test_assemble import write_byte_tokenizer

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import assemble, blocks, workers
from giraffe_cli.corpus.packing import merge_shards, pack_shard, pack_stage
from giraffe_cli.corpus.tokenising import tokenise_unit
from giraffe_cli.corpus.tokens import DocumentTokenizer
from giraffe_cli.corpus.unit_files import read_done
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import read_kept, write_sealed

WINDOW = 256
BLOCK_BYTES = 4096
OTHERS = {"mix": {"books": 3, "notes": 1}, "epochs": 4, "dedupe": True, "rule": "one"}
"""Options of the second phase, which must not matter to who did the first."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def sources(tmp_path, monkeypatch) -> list[str]:
    """60 records cut into 9 units, 12 notes in 2; 4 texts and 12 ids are there twice."""
    monkeypatch.chdir(tmp_path)
    texts = {f"n{i}.md": prose(i, 1 + i * i % 37) for i in range(56)}
    texts |= {f"again{i}": texts[f"n{i}.md"] for i in range(4)}
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    Path("books.jsonl").write_text("\n".join(lines) + "\n")
    Path("notes").mkdir()
    for i in range(12):
        Path("notes", f"n{i}.md").write_text(prose(80 + i, 15))
    return ["books=books.jsonl", "notes"]


@pytest.fixture
def job(sources, tokenizer):
    """The arguments that all three stages share."""

    def arguments(out: str, **config) -> tuple:
        settings = PackConfig(**{"block_bytes": BLOCK_BYTES, **config})
        return sources, tokenizer, WINDOW, settings, 0, Path(out), SilentReporter()

    return arguments


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too."""
    paths = sorted(Path(folder).rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.is_file()}


def shard_and_merge(arguments: tuple, order: list[tuple[int, int]], workers: int = 1) -> dict:
    for shard in order:
        pack_shard(*arguments, shard=shard, workers=workers)
    return merge_shards(*arguments)


def shards(count: int) -> list[tuple[int, int]]:
    return [(number, count) for number in range(1, count + 1)]


# ── the same bytes ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", [{}, OTHERS], ids=["defaults", "others"])
def test_any_number_of_shards_in_any_order_gives_the_same_bytes(job, config):
    whole = pack_stage(*job("whole", **config))
    assert whole["windows"] > 50
    expected = contents("whole")
    assert not [name for name in expected if name.startswith(".work")]
    for count, order in ((1, shards(1)), (2, shards(2)[::-1]), (7, shards(7)[3:] + shards(7)[:3])):
        assert shard_and_merge(job(f"by-{count}", **config), order) == whole
        assert contents(f"by-{count}") == expected


def test_two_workers_give_the_bytes_of_one(job):
    pack_stage(*job("whole"))
    pack_stage(*job("workers"), workers=2)
    shard_and_merge(job("both"), shards(2), workers=2)
    assert contents("workers") == contents("both") == contents("whole")


def test_the_size_of_blocks_changes_no_row(job):
    pack_stage(*job("small"))
    pack_stage(*job("large", block_bytes=32 << 20))
    small, large = contents("small"), contents("large")
    del small["manifest.json"], large["manifest.json"]  # it names block_bytes
    assert small == large


def test_shards_share_the_units_evenly_and_say_which(job):
    done = [pack_shard(*job("packed"), shard=shard) for shard in shards(3)]
    names = [name for entry in done for name in entry["units"]]
    assert len(names) == len(set(names)) == done[0]["units_in_all"] == 11
    assert [len(entry["units"]) for entry in done] == [4, 4, 3]
    assert names[0] == f"books: books.jsonl:0-{BLOCK_BYTES}"
    assert sum(entry["documents"] for entry in done) == 72


def test_more_shards_than_units_leave_some_without_work(job):
    done = [pack_shard(*job("packed", block_bytes=32 << 20), shard=shard) for shard in shards(3)]
    assert [entry["documents"] for entry in done] == [60, 12, 0]
    assert done[2]["units"] == []
    merge_shards(*job("packed", block_bytes=32 << 20))


def test_merging_twice_changes_nothing_and_leaves_nothing(job):
    stats = shard_and_merge(job("packed"), shards(2))
    before = {path.name: path.stat().st_mtime_ns for path in Path("packed").iterdir()}
    assert merge_shards(*job("packed")) == stats
    assert {path.name: path.stat().st_mtime_ns for path in Path("packed").iterdir()} == before


def test_a_shard_run_again_does_nothing_and_one_that_comes_late_leaves_nothing(job):
    arguments = job("packed")
    first = pack_shard(*arguments, shard=(1, 2))
    before = {p: p.stat().st_mtime_ns for p in Path("packed").rglob("*") if p.is_file()}
    assert pack_shard(*arguments, shard=(1, 2)) == first
    assert {p: p.stat().st_mtime_ns for p in Path("packed").rglob("*") if p.is_file()} == before
    shard_and_merge(arguments, shards(2))
    expected = contents("packed")
    assert shard_and_merge(arguments, shards(2)[:1])
    assert contents("packed") == expected


def test_the_whole_command_goes_on_from_what_shards_did(job, monkeypatch):
    pack_stage(*job("whole"))
    pack_shard(*job("packed"), shard=(1, 2))
    tokenised = []

    def watched(unit, folder, *rest):
        before = read_done(folder)
        done = tokenise_unit(unit, folder, *rest)
        tokenised.append(before is None)
        return done

    monkeypatch.setattr(workers, "tokenise_unit", watched)
    pack_stage(*job("packed"))
    assert tokenised == [False, True] * 5 + [False]
    assert contents("packed") == contents("whole")


def test_a_disk_that_fills_while_merging_keeps_the_shards_work(job, monkeypatch):
    pack_stage(*job("whole"))
    for shard in shards(2):
        pack_shard(*job("packed"), shard=shard)

    def full(*_):
        raise GiraffeError("no space left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "write_rows", full)
        with pytest.raises(GiraffeError, match="no space left"):
            merge_shards(*job("packed"))
    assert not Path("packed/manifest.json").exists()
    merge_shards(*job("packed"))
    assert contents("packed") == contents("whole")


# ── what does not hold is named ──────────────────────────────────────────────────────────────


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def _alter(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _alter, _remove])
@pytest.mark.parametrize("name", ["done.json", "block-0000.tokens", "block-0000.npz", "held.jsonl"])
def test_a_damaged_unit_fails_the_merge_by_name_and_its_shard_mends_it(job, name, damage):
    pack_stage(*job("whole", hold_out=0.2))
    for shard in shards(2):
        pack_shard(*job("packed", hold_out=0.2), shard=shard)
    damage(Path("packed/.work/unit-00002", name))
    unit = f"books.jsonl:{2 * BLOCK_BYTES}-{3 * BLOCK_BYTES} of books"
    with pytest.raises(InvalidInput, match=f"1 of 11 units are missing.*: {unit}$") as error:
        merge_shards(*job("packed", hold_out=0.2))
    assert "--shard" in str(error.value.hint)
    assert not Path("packed/manifest.json").exists()
    pack_shard(*job("packed", hold_out=0.2), shard=(1, 2))
    merge_shards(*job("packed", hold_out=0.2))
    assert contents("packed") == contents("whole")


def test_a_missing_shard_is_named_unit_by_unit(job):
    pack_shard(*job("packed"), shard=(1, 2))
    with pytest.raises(InvalidInput, match="5 of 11 units are missing") as error:
        merge_shards(*job("packed"))
    begins = range(BLOCK_BYTES, 9 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    for begin in [*begins][:-1]:
        assert f"books.jsonl:{begin}-{begin + BLOCK_BYTES} of books" in str(error.value)


@pytest.mark.parametrize(
    "options", [{"hold_out": 0.3}, {"on_bad": "skip"}, {"eos": "no"}, {"max_doc_bytes": 10_000}]
)
def test_a_shard_of_other_options_is_named(job, options):
    pack_shard(*job("packed"), shard=(1, 7))
    for shard in shards(7)[1:]:
        pack_shard(*job("packed", **options), shard=shard)
    with pytest.raises(InvalidInput, match="9 of 11 units are missing, altered or of other"):
        merge_shards(*job("packed"))


def test_options_of_the_second_phase_are_the_merges_own(job):
    for shard in shards(2):
        pack_shard(*job("packed"), shard=shard)
    merge_shards(*job("packed", **OTHERS))
    pack_stage(*job("whole", **OTHERS))
    assert contents("packed") == contents("whole")


def test_a_source_that_changed_between_its_shard_and_the_merge_is_named(job):
    for shard in shards(2):
        pack_shard(*job("packed"), shard=shard)
    path = Path("books.jsonl")
    path.write_text(path.read_text().replace('"n7.md"', '"m7.md"'))
    with pytest.raises(InvalidInput, match="9 of 11 units are missing, altered"):
        merge_shards(*job("packed"))


# ── the command ──────────────────────────────────────────────────────────────────────────────


def test_shard_and_merge_on_the_command_line(giraffe, sources, tokenizer):
    common = (*sources, "--tokenizer", tokenizer, "--window", WINDOW)
    assert giraffe("pack-data", *common, "--out", "whole").code == 0
    for shard in ("2/2", "1/2"):
        result = giraffe("pack-data", *common, "--out", "packed", "--shard", shard)
        assert result.code == 0, result.stderr
        assert f"shard {shard}:" in result.stdout
    Path("packed/.work/unit-00001/done.json").rename("kept.json")
    result = giraffe("pack-data", *common, "--out", "packed", "--merge")
    assert result.code == 3
    assert "1 of 2 units are missing" in result.stderr
    Path("kept.json").rename("packed/.work/unit-00001/done.json")
    assert giraffe("pack-data", *common, "--out", "packed", "--merge").code == 0
    assert contents("packed") == contents("whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/2"], "is no part of a whole"),
        (["--shard", "0/2"], "is no part of a whole"),
        (["--shard", "1/2", "--merge"], "--shard goes without --merge"),
        (["--shard", "1/2", "--report"], "--shard goes without --report"),
        (["--merge", "--workers", "2"], "--workers has no effect"),
        (["--workers", "0"], "Invalid value for '--workers'"),
    ],
)
def test_options_about_shards_that_mean_nothing_are_usage_errors(
    giraffe, sources, tokenizer, options, message
):
    common = (*sources, "--tokenizer", tokenizer, "--window", WINDOW, "--out", "packed")
    result = giraffe("pack-data", *common, *options)
    assert result.code == 2
    assert message in result.stderr
    assert not Path("packed").exists()


# ── what shards may not differ in ────────────────────────────────────────────────────────────────


def test_shards_by_two_backends_are_refused(job):
    """One was done again by tokenizers, and its units no longer tell why."""
    for number in (1, 2):
        pack_shard(*job("packed"), shard=(number, 2))
    path = Path("packed/.work")
    done = sorted(path.rglob("done.json"))[0]
    value = read_kept(done)
    other = "fastokens" if value["backend"].startswith("tokenizers") else "tokenizers"
    write_sealed(done, {**value, "backend": f"{other} 9"})
    with pytest.raises(InvalidInput, match="units are by fastokens .* and tokenizers .* tokenised"):
        merge_shards(*job("packed"))


def test_who_writes_the_first_token_is_part_of_what_shards_share(job, tokenizer, tmp_path):
    folder = Path(shutil.copytree(tokenizer, tmp_path / "tokenizer"))
    path = folder / "tokenizer_config.json"

    def arguments() -> tuple:
        sources, _, *others = job("packed")
        return sources, folder, *others

    pack_shard(*arguments(), shard=(1, 2))
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": False}))
    pack_shard(*arguments(), shard=(2, 2))
    with pytest.raises(InvalidInput, match="missing, altered or of other inputs"):
        merge_shards(*arguments())


def test_a_hold_out_that_takes_all_leaves_one_to_a_merge_too(job):
    settings = {"hold_out": 0.9999}
    whole = pack_stage(*job("whole", **settings))
    pack_shard(*job("merged", **settings), shard=(1, 1))
    assert merge_shards(*job("merged", **settings)) == whole
    assert contents("merged") == contents("whole")


def test_a_worker_that_is_killed_is_told(job, monkeypatch):
    monkeypatch.setattr(workers, "_work", _killed)
    with pytest.raises(GiraffeError, match="a worker process was killed") as caught:
        pack_stage(*job("packed"), workers=2)
    assert "fewer --workers" in (caught.value.hint or "")


def test_a_refusal_of_one_worker_ends_the_others(job, monkeypatch):
    """The second unit would take a minute more."""
    monkeypatch.setattr(workers, "_work", _refused_or_long)
    started = time.monotonic()
    with pytest.raises(InvalidInput, match="no use"):
        pack_stage(*job("packed"), workers=2)
    assert time.monotonic() - started < 50


def _refused_or_long(unit, folder, *_):
    if not folder.endswith("00000"):
        time.sleep(60)
    return "InvalidInput", ("no use", None)


def test_workers_end_with_their_parent():
    """Killed, it cannot tell them."""
    script = (
        "import multiprocessing, signal\n"
        "from giraffe_cli.corpus.workers import _end_with\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    ending, end = context.Pipe(duplex=False)\n"
        "    def work():\n"
        "        end.close()\n"
        "        _end_with(ending)\n"
        "        print('at work', flush=True)\n"
        "        signal.pause()\n"
        "    context.Process(target=work).start()\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        assert parent.stdout.read() == ""  # the worker holds it open until it ends


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("stage", [partial(pack_shard, shard=(1, 1)), merge_shards])
def test_shards_leave_windows_of_other_inputs_alone(job, stage):
    pack_stage(*job("packed"))
    before = contents("packed")
    with pytest.raises(InvalidInput, match="holds windows of other inputs; different: config"):
        stage(*job("packed", min_piece=8))
    assert contents("packed") == before


def test_a_refused_packing_keeps_nothing_of_standard_input(job, monkeypatch):
    pack_stage(*job("packed"))
    before = contents("packed")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a text"}\n')))
    with pytest.raises(InvalidInput, match="holds windows of other inputs; different: sources"):
        pack_stage(["-"], *job("packed")[1:], replace=False)
    assert contents("packed") == before


def test_finished_blocks_of_a_unit_outlive_an_error(job, monkeypatch):
    """A `.gz` is one unit of any size: a disk that fills at its end must not cost all of it."""
    _, *rest = job("packed", block_bytes=2048)
    Path("books.jsonl.gz").write_bytes(gzip.compress(Path("books.jsonl").read_bytes()))
    arguments = (["books.jsonl.gz"], *rest)
    written = blocks.write_index

    def full(path, block):
        if path.name == "block-0003.npz":
            raise GiraffeError("cannot write it: No space left on device")
        return written(path, block)

    monkeypatch.setattr(blocks, "write_index", full)
    with pytest.raises(GiraffeError, match="No space left"):
        pack_stage(*arguments)
    unit = Path("packed", ".work", "unit-00000")
    assert sorted(p.name for p in unit.glob("block-*.json")) == [
        f"block-000{n}.json" for n in range(3)
    ]
    encoded, encode = [], DocumentTokenizer.encode
    monkeypatch.setattr(blocks, "write_index", written)
    monkeypatch.setattr(DocumentTokenizer, "encode", lambda *a: encoded.append(1) or encode(*a))
    pack_stage(*arguments)
    again = len(encoded)
    pack_stage(*arguments[:-2], Path("fresh"), SilentReporter())
    assert again < len(encoded) - again
    assert contents("packed") == contents("fresh")


def test_windows_that_are_there_stay_when_others_are_refused(job):
    pack_stage(*job("packed"))
    before = contents("packed")
    with pytest.raises(InvalidInput, match="--short-mix"):
        pack_stage(*job("packed", short_mix=0.4, min_doc_len=1000))
    after = contents("packed")
    assert {name: after[name] for name in before} == before
    assert any(name.startswith(".work") for name in after)
    pack_stage(*job("packed"))
    assert contents("packed") == before
