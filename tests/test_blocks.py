"""The first phase of packing: units are done once, half-done ones go on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import prose
from test_assemble import write_byte_tokenizer

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import pace, tokens, tools, workers
from giraffe_cli.corpus.backends import HfBackend
from giraffe_cli.corpus.holdout import choose_held_out
from giraffe_cli.corpus.packing import merge_shards, pack_shard, pack_stage
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.corpus.store import held_out, is_packed, open_packed
from giraffe_cli.corpus.tokenising import tokenise_unit
from giraffe_cli.corpus.tools import Tools
from giraffe_cli.corpus.unit_files import read_done
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.progress import SilentReporter

CONFIG = PackConfig(block_bytes=4096, backend="tokenizers", hold_out=0.2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, texts: dict[str, str]) -> Path:
    """Records; a name that ends in `.gz` is compressed, so it is one unit of several blocks."""
    lines = "".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in texts.items()).encode()
    Path(name).write_bytes(gzip.compress(lines, 0, mtime=0) if name.endswith(".gz") else lines)
    return Path(name)


def texts(count: int, sentences: int = 15) -> dict[str, str]:
    return {f"d{i}": prose(i, sentences) for i in range(count)}


class Counter:
    """Stands in for a tokenizer's `encode`: counts, and does something before each call."""

    def __init__(self, tools: Tools, before=lambda call: None) -> None:
        self.calls, self.before, self.encode = 0, before, tools.tokenize.encode
        tools.tokenize.encode = self

    def __call__(self, *arguments):
        self.calls += 1
        self.before(self.calls)
        return self.encode(*arguments)


@pytest.fixture
def tokenise(tokenizer):
    """`tokenise(source, folder, before=...)` → (`done.json`, calls of the tokenizer)."""

    def run(source="a.jsonl.gz", out="unit", before=lambda call: None, config=CONFIG):
        [unit] = resolve([source], config)
        tools = Tools.of(tokenizer, config)
        counter = Counter(tools, before)
        try:
            return tokenise_unit(unit, Path(out), tools), counter.calls
        except KeyboardInterrupt:
            return None, counter.calls

    return run


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def stop_at(number: int):
    def before(call: int) -> None:
        if call == number:
            raise KeyboardInterrupt

    return before


def pack(*sources: str, tokenizer: Path, out="packed", reporter=None, **config):
    settings = PackConfig(**{"min_piece": 1, **config})
    reporter = reporter or SilentReporter()
    stats = pack_stage([*sources], tokenizer, 128, settings, 0, Path(out), reporter)
    return stats, reporter


# ── done once ────────────────────────────────────────────────────────────────────────────────


def test_blocks_hold_whole_documents_end_to_end(tokenise):
    write("a.jsonl.gz", texts(40))
    done, calls = tokenise()
    assert calls == len(done["blocks"]) == 4
    assert done["documents"] + done["held"] == 40
    assert set(done["files"]) == set(contents("unit")) - {"done.json"} - {
        f"block-{n:04d}.json" for n in range(calls)
    }
    held = choose_held_out(texts(40), 0.2)
    expected = [texts(40)[f"d{i}"] for i in range(40) if f"d{i}" not in held]
    ids = [
        np.frombuffer(Path(f"unit/block-{n:04d}.tokens").read_bytes(), "<u2") for n in range(calls)
    ]
    assert [len(part) for part in ids] == [block["tokens"] for block in done["blocks"]]
    # One token a byte, BOS before and EOS after each document.
    assert sum(map(len, ids)) == sum(len(text) + 2 for text in expected) == done["tokens"]
    with np.load("unit/block-0001.npz") as index:
        assert index["lengths"].sum() == len(ids[1])
        assert (ids[1] == 0).sum() == (ids[1] == 1).sum() == len(index["lengths"])


def test_a_unit_that_is_done_is_not_tokenised_again(tokenise):
    write("a.jsonl.gz", texts(20))
    first, calls = tokenise()
    assert calls > 1
    before = {path: path.stat().st_mtime_ns for path in Path("unit").iterdir()}
    assert tokenise() == (first, 0)
    assert {path: path.stat().st_mtime_ns for path in Path("unit").iterdir()} == before


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_half_done_unit_goes_on_after_its_finished_blocks(tokenise, finished):
    write("a.jsonl.gz", texts(40))
    _, calls = tokenise(out="clean")
    assert tokenise(before=stop_at(finished + 1)) == (None, finished + 1)
    assert "done.json" not in contents("unit")
    assert not [name for name in contents("unit") if name.endswith(".partial")]
    assert tokenise()[1] == calls - finished
    assert contents("unit") == contents("clean")


@pytest.mark.parametrize("suffix", ["tokens", "npz", "json"])
@pytest.mark.parametrize("damage", [b"", b"x"])
def test_blocks_from_the_first_damaged_one_on_are_redone(tokenise, suffix, damage):
    write("a.jsonl.gz", texts(40))
    _, calls = tokenise(out="clean")
    tokenise()
    Path(f"unit/block-0002.{suffix}").write_bytes(damage)
    Path("unit/done.json").unlink()
    assert tokenise()[1] == calls - 2
    assert contents("unit") == contents("clean")


def test_other_options_and_other_bytes_do_everything_again(tokenise):
    write("a.jsonl.gz", texts(20))
    _, calls = tokenise()
    assert tokenise(config=CONFIG.model_copy(update={"eos": "no"}))[1] == calls
    assert tokenise(config=CONFIG.model_copy(update={"window": 1, "seed": 5}))[1] == calls
    write("a.jsonl.gz", {**texts(20), "d19": "other"})
    done, again = tokenise()
    assert again == calls
    tokenise(out="clean")
    assert {name: contents("unit")[name] for name in contents("clean")} == contents("clean")


def test_other_text_under_the_same_digest_is_noticed(tokenise, monkeypatch):
    """As of a stream without bytes of its own, which counts by its name."""
    monkeypatch.setattr(tools, "raw_digest", lambda unit: "the same")
    write("a.jsonl.gz", texts(40))
    tokenise(before=stop_at(3))
    write("a.jsonl.gz", {**texts(40), "d2": prose(2, 15)[::-1]})
    with pytest.raises(InvalidInput, match="unit holds tokens of other texts") as error:
        tokenise()
    assert error.value.hint == "remove unit"


def test_the_last_block_and_a_document_longer_than_a_block(tokenise):
    write("a.jsonl.gz", {"long": "x" * 20_000, "short": "y", "exact": "z" * 4095, "end": "e"})
    done, _ = tokenise(config=CONFIG.model_copy(update={"hold_out": 0.0}))
    assert [block["documents"] for block in done["blocks"]] == [1, 2, 1]


# ── files that change ────────────────────────────────────────────────────────────────────────


def test_a_file_that_grows_while_it_is_read_is_told(tokenise):
    path = write("a.jsonl.gz", texts(40))

    def grow(call: int) -> None:
        with open(path, "ab") as handle:
            handle.write(b" ")

    with pytest.raises(GiraffeError, match=r"a\.jsonl\.gz changed while it was read") as error:
        tokenise(before=grow)
    assert error.value.exit_code == 1
    assert "done.json" not in contents("unit")
    write("a.jsonl.gz", texts(40))
    done, _ = tokenise()
    tokenise(out="clean")
    assert {name: contents("unit")[name] for name in contents("clean")} == contents("clean")


def test_a_file_that_changes_between_listing_and_reading_is_told(tokenizer, monkeypatch):
    path = write("a.jsonl", texts(4))
    original = workers.tokenise_unit

    def later(*arguments):
        path.write_text(path.read_text().replace("giraffe", "gazelle").replace("sky", "sea"))
        return original(*arguments)

    monkeypatch.setattr(workers, "tokenise_unit", later)
    with pytest.raises(GiraffeError, match=r"a\.jsonl.* changed while it was read"):
        pack("a.jsonl", tokenizer=tokenizer)
    assert not is_packed(Path("packed"))


# ── what is held out ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999])
@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_the_split_is_that_of_the_whole_list_of_ids(tokenizer, count, share):
    names = list(texts(count))
    write("a.jsonl", {name: prose(n, 3) for n, name in enumerate(names[: count // 2])})
    write("b.jsonl", {name: prose(50 + n, 3) for n, name in enumerate(names[count // 2 :])})
    sources = ["a.jsonl", "b.jsonl"] if count > 1 else ["b.jsonl"]
    stats, _ = pack(*sources, tokenizer=tokenizer, hold_out=share, block_bytes=300)
    held = {document.id for document in held_out(Path("packed"))}
    rows = open_packed(Path("packed"))
    trained = {name for n in range(len(rows)) for name in rows.row(n).doc_ids}
    assert held == choose_held_out(names, share)
    assert trained == set(names) - held
    assert stats["documents_held_out"] == len(held)


def test_both_documents_of_the_one_id_that_is_held_out_are(tokenizer):
    write("a.jsonl", {"x": "one", "y": "two"})
    write("b.jsonl", {"x": "three", "y": "four"})
    pack("a.jsonl", "b.jsonl", tokenizer=tokenizer, hold_out=0.0001)
    [expected] = choose_held_out(["x", "y"], 0.0001)
    held = [document.id for document in held_out(Path("packed"))]
    assert held == [f"a.jsonl:{expected}", f"b.jsonl:{expected}"]


def test_a_corpus_of_one_document_is_trained_on_and_said_so(tokenizer):
    write("a.jsonl", {"only": prose(0, 30)})
    for share in (0.0001, 0.999):
        stats, reporter = pack("a.jsonl", tokenizer=tokenizer, hold_out=share, out=f"p{share}")
        assert (stats["documents"], stats["documents_held_out"]) == (1, 0)
        assert "the corpus is one document: none is held out for evaluation" in reporter.warnings


def test_documents_of_one_id_are_not_called_one_document(tokenizer):
    lines = [json.dumps({"id": "b", "text": prose(n, 9)}) for n in range(5)]
    Path("a.jsonl").write_text("\n".join(lines) + "\n")
    _, reporter = pack("a.jsonl", tokenizer=tokenizer, hold_out=0.5)
    told = "all 5 documents have one `id`, or one text: none is held out for evaluation"
    assert told in reporter.warnings


def test_shards_cannot_tell_that_everything_is_held_out_but_the_merge_does(tokenizer):
    """It keeps the one of the highest hash, as one process does."""
    write("a.jsonl", texts(2))
    arguments = (["a.jsonl"], tokenizer, 128, PackConfig(hold_out=0.999), 0, Path("packed"))
    pack_shard(*arguments, SilentReporter(), shard=(1, 1))
    stats = merge_shards(*arguments, SilentReporter())
    assert (stats["documents"], stats["documents_held_out"]) == (2, 1)


# ── a fast backend that disagrees ────────────────────────────────────────────────────────────


class FakeFast:
    """Gives the reference's ids, but for texts that begin with `poison`."""

    name = "fastokens 0.0"
    poison = "poison"

    def __init__(self, path: Path) -> None:
        self._reference = HfBackend(tokens._load(path.parent))

    def encode(self, given: list[str]):
        ids, offsets = self._reference.encode(given)
        for number, text in enumerate(given):
            if text.startswith(self.poison):
                ids[offsets[number]] += 1
        return ids, offsets


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(tokens, "FastBackend", FakeFast)
    monkeypatch.setattr(tokens, "is_installed", lambda: True)


def folder_bytes(out: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path(out).iterdir()) if p.is_file()}


def moved(files: dict[str, bytes]) -> dict[str, bytes]:
    return {Path(name).name: data for name, data in files.items()}


@pytest.mark.parametrize("poisoned", ["a", "b"])
def test_after_a_disagreement_everything_is_tokenised_by_the_reference(tokenizer, fake, poisoned):
    for name in "ab":
        write(f"{name}.jsonl", {f"{name}{i}": prose(i, 9) for i in range(10)})
    stats, _ = pack("a.jsonl", "b.jsonl", tokenizer=tokenizer, out="agrees")
    assert stats["tokenizer_backend"] == "fastokens 0.0"
    bad = {f"{poisoned}{i}": ("poison " if i == 4 else "") + prose(i, 9) for i in range(10)}
    write(f"{poisoned}.jsonl", bad)
    stats, reporter = pack("a.jsonl", "b.jsonl", tokenizer=tokenizer, out="fast")
    assert stats["tokenizer_backend"].startswith("tokenizers")
    [warning] = [line for line in reporter.warnings if "fastokens" in line]
    assert "at character 0 ('poison" in warning
    assert warning.endswith("everything is tokenised again by tokenizers")
    pack("a.jsonl", "b.jsonl", tokenizer=tokenizer, out="slow", backend="tokenizers")
    assert moved(folder_bytes("fast")) == moved(folder_bytes("slow"))


def test_a_disagreement_in_the_only_unit_is_told_too(tokenizer, fake):
    write("a.jsonl", {"x": "poison", "y": "b"})
    stats, reporter = pack("a.jsonl", tokenizer=tokenizer, hold_out=0)
    assert stats["tokenizer_backend"].startswith("tokenizers")
    assert any("fastokens 0.0 gives other ids" in line for line in reporter.warnings)


def test_a_packing_cut_off_while_it_falls_back_ends_with_the_reference_everywhere(
    tokenizer, fake, monkeypatch
):
    for name in "abc":
        write(f"{name}.jsonl", {f"{name}{i}": prose(i, 9) for i in range(10)})
    write("a.jsonl", {"a": "poison " + prose(1, 9)})
    sources = ["a.jsonl", "b.jsonl", "c.jsonl"]
    pack(*sources, tokenizer=tokenizer, out="slow", backend="tokenizers", hold_out=0)
    original, calls = workers.tokenise_unit, []

    def until_the_fifth(*arguments):
        calls.append(1)
        if len(calls) == 5:  # three, then all again: one is done
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "tokenise_unit", until_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            pack(*sources, tokenizer=tokenizer, out="fast", hold_out=0)
    assert read_done(Path("fast/.work/unit-00000"))["backend"].startswith("tokenizers")
    pack(*sources, tokenizer=tokenizer, out="fast", hold_out=0)
    assert moved(folder_bytes("fast")) == moved(folder_bytes("slow"))


def test_shards_that_fell_back_alone_are_not_merged_with_the_others(tokenizer, fake):
    write("a.jsonl", {"x": "poison " + prose(1, 9)})
    write("b.jsonl", {"y": prose(2, 9)})
    sources = ["a.jsonl", "b.jsonl"]

    def job(out, backend="auto"):
        config = PackConfig(hold_out=0, backend=backend)
        return sources, tokenizer, 128, config, 0, Path(out), SilentReporter()

    for shard in ((1, 2), (2, 2)):
        pack_shard(*job("packed"), shard=shard)
    with pytest.raises(InvalidInput, match="b.jsonl of b.jsonl by fastokens 0.0") as error:
        merge_shards(*job("packed"))
    assert "--backend tokenizers" in str(error.value.hint)
    for shard in ((1, 2), (2, 2)):
        pack_shard(*job("packed", "tokenizers"), shard=shard)
    merge_shards(*job("packed"))
    pack_stage(*job("slow", "tokenizers"))
    assert moved(folder_bytes("packed")) == moved(folder_bytes("slow"))


def test_a_backend_that_disagrees_on_the_fixed_texts_is_never_used(tokenizer, fake, monkeypatch):
    monkeypatch.setattr(FakeFast, "poison", "</")
    write("a.jsonl", texts(4))
    stats, reporter = pack("a.jsonl", tokenizer=tokenizer)
    assert stats["tokenizer_backend"].startswith("tokenizers")
    [warning] = [line for line in reporter.warnings if "fastokens" in line]
    assert warning.endswith("; tokenizers is used")
    with pytest.raises(InvalidInput, match="fastokens 0.0 gives other ids"):
        pack("a.jsonl", tokenizer=tokenizer, backend="fastokens", out="other")


def test_the_bar_tells_megabytes_and_tokens_a_second(monkeypatch):
    """2 MB and 600,000 tokens in two seconds."""

    told: list[tuple[float, dict[str, str]]] = []

    class Bar:
        def advance(self, amount: float = 1, **fields: str) -> None:
            told.append((amount, fields))

    clock = iter([10.0, 12.0])
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(clock))
    pace.Pace(Bar()).advance(2.0, 600_000)
    assert told == [(2.0, {"MB/s": "1.0", "tokens/s": "300,000"})]
