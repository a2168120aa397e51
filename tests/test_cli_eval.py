"""`giraffe eval` as typed: streams, exit codes, files."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
from conftest import prose

from giraffe_cli.corpus.store import held_out
from giraffe_cli.rundir import read_json

QUICK = ("--tasks", "nll,passkey", "--lengths", "128,384", "--set", "nll.targets=16",
         "--set", "nll.anchors=1", "--set", "passkey.depths=2", "--samples", "1")  # fmt: skip


@pytest.fixture(scope="module")
def lambada(tmp_path_factory):
    """Six passages."""
    path = tmp_path_factory.mktemp("lambada") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": prose(i, 3)[:-1]}) + "\n" for i in range(6)))
    return path


@pytest.fixture(scope="module")
def hellaswag(tmp_path_factory):
    """Six items, gzipped."""
    path = tmp_path_factory.mktemp("hellaswag") / "rows.jsonl.gz"
    with gzip.open(path, "wt") as handle:
        for i in range(6):
            endings = [prose(i + k, 1) for k in range(4)]
            item = {"ind": i, "ctx": prose(i, 2), "label": i % 4, "endings": endings}
            handle.write(json.dumps(item) + "\n")
    return path


def test_scores_a_checkpoint_beside_its_base(giraffe, tiny_llama, corpus, tmp_path):
    arguments = ("eval", tiny_llama, "--base", tiny_llama, "--data", corpus, *QUICK)
    done = giraffe(*arguments, "--out", tmp_path / "e", "--json")
    assert done.code == 0
    results = json.loads(done.stdout)
    assert results.pop("out") == str(tmp_path / "e")
    assert results == read_json(tmp_path / "e" / "results.json")
    assert [*results["models"]] == ["base", "checkpoint"]
    assert results["native_length"] == 128
    assert results["models"]["checkpoint"]["tasks"]["nll"]["384"]["n"] == 8
    assert results["short_context"]["delta_nll"]["mean"] == 0.0
    assert "of nll, passkey at 128, 384" in done.stderr

    again = giraffe(*arguments, "--out", tmp_path / "e")  # every sample is kept
    assert again.code == 0
    assert "evaluating" not in again.stderr
    for expected in (
        "nll by context length, 95% intervals",
        "+0.000 [+0.000, +0.000]",
        "384*",
        "difference: checkpoint - base, paired; *: beyond the native window of 128",
        "short context, up to 128: checkpoint - base, 95% intervals",
        f"results  {tmp_path / 'e'}/results.json",
        f"report   {tmp_path / 'e'}/report.html",
    ):
        assert expected in again.stdout
    tables = [line for line in again.stdout.splitlines() if "effective" not in line][:-2]
    assert max(map(len, tables)) <= 80


def test_one_task_alone_without_a_base(giraffe, tiny_llama, tmp_path):
    done = giraffe("eval", tiny_llama, "--tasks", "passkey", "--lengths", "384", "--set",
                   "passkey.depths=1", "--out", tmp_path, "--dtype", "bfloat16")  # fmt: skip
    assert done.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [*results["models"]] == ["checkpoint"]
    assert results["models"]["checkpoint"]["dtype"] == "bfloat16"
    said = "checkpoint none shown (nothing was scored within the native window of 128)"
    assert said in done.stdout
    assert "difference" not in done.stdout


def test_what_short_context_cost_and_an_evaluator(
    giraffe, tiny_llama, corpus, lambada, hellaswag, tmp_path
):
    done = giraffe(
        *("eval", tiny_llama, "--base", tiny_llama, "--evaluator", tiny_llama, "--data", corpus),
        *("--tasks", "short,lambada,hellaswag,longppl", "--lengths", "128,256"),
        *("--file", f"lambada={lambada}", "--file", f"hellaswag={hellaswag}", "--samples", "5"),
        *("--set", "hellaswag.samples=4", "--set", "short.targets=16"),
        *("--set", "longppl.targets=16", "--set", "longppl.alpha=0.001"),
        *("--set", "longppl.beta=9.0", "--documents", "8", "--out", tmp_path),
    )
    assert done.code == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    counts = {task: [s["n"] for s in lengths.values()]
              for task, lengths in results["models"]["base"]["tasks"].items()}  # fmt: skip
    assert counts["lambada"] == [5]  # --samples
    assert counts["hellaswag"] == [4]  # --set stands over it
    assert {*results["short_context"]} == {
        "delta_nll", "delta_nll_other", "lambada", "hellaswag", "kl_mean", "kl_p99"
    }  # fmt: skip
    p99 = results["short_context"]["kl_p99"]
    assert p99 == {"mean": 0.0, "ci_low": 0.0, "ci_high": 0.0, "n": 32, "clusters": 8}
    assert [*results["models"]] == ["base", "checkpoint"]
    assert results["settings"]["reference"]["subject"] == "evaluator"
    assert results["settings"]["reference"]["tokens"] == 128
    assert results["settings"]["reference"]["sha256"] == results["models"]["base"]["sha256"]
    assert "evaluating evaluator" in done.stderr
    assert "KL(base || checkpoint), 99th percentile, nats" in done.stdout


def test_needles_are_hidden_in_the_corpus_that_is_named(giraffe, tiny_llama, corpus, tmp_path):
    done = giraffe("eval", tiny_llama, "--tasks", "niah", "--lengths", "512", "--haystack", corpus,
                   "--set", "niah.depths=1", "--samples", "1", "--out", tmp_path)  # fmt: skip
    assert done.code == 0, done.stderr
    with gzip.open(tmp_path / "prompts.jsonl.gz", "rt") as handle:
        (prompt,) = map(json.loads, handle)
    from giraffe_cli.model.loading import load_tokenizer

    text = load_tokenizer(tiny_llama).decode(prompt["token_ids"])
    assert "giraffe eats" in text.lower()
    assert "special magic number" in text


@pytest.mark.parametrize("blank", [[], ["", "  \n"]])
@pytest.mark.parametrize(
    ("option", "task"), [("--haystack", "niah"), ("--other-data", "short"), ("--data", "nll")]
)
def test_a_corpus_without_text_is_refused_not_replaced(
    giraffe, tiny_llama, tmp_path, option, task, blank
):
    path = tmp_path / "blank.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in blank))
    done = giraffe("eval", tiny_llama, "--tasks", task, "--lengths", "128",
                   option, path, "--out", tmp_path / "e")  # fmt: skip
    assert done.code == 3
    assert f"{option}: no text in {path}" in done.stderr
    assert not (tmp_path / "e" / "results.json").exists()


def test_needles_and_other_text_come_from_what_a_packed_folder_holds_out(
    giraffe, tiny_llama, corpus, tmp_path
):
    packed = tmp_path / "packed"
    done = giraffe("pack-data", corpus, "--tokenizer", tiny_llama, "--window", "128",
                   "--hold-out", "0.5", "--out", packed)  # fmt: skip
    assert done.code == 0, done.stderr
    with gzip.open(packed / "held_out.jsonl.gz", "rt") as lines:
        held_out = {json.loads(line)["id"] for line in lines}
    done = giraffe("eval", tiny_llama, "--tasks", "niah,short", "--lengths", "128,512",
                   "--data", corpus, "--haystack", packed, "--other-data", packed, "--samples", "1",
                   "--set", "short.targets=16", "--out", tmp_path / "e")  # fmt: skip
    assert done.code == 0, done.stderr
    read = json.loads((tmp_path / "e" / "results.json").read_text())["settings"]["other_text"]
    assert {*read} <= held_out
    assert len(read) == min(8, len(held_out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "12q"), "`12q` is not a length in tokens"),
        (("--set", "nll.anchor=2"), "`anchor` is no knob of `nll`"),
        (("--set", "nll.anchors=0"), "anchors is 0, must be 1 or more"),
        (("--tasks", "niah", "--documents", "3"), "--documents 3 has no effect on niah"),
        (("--lengths", "64k"), "none of 8 documents has 65536 tokens"),
        (("--tasks", "nll", "--samples", "3"), "--samples 3 has no effect on nll"),
        (("--tasks", "lambada"), "task `lambada` needs the data file `lambada`"),
        (("--tasks", "lambada"), "--file lambada=PATH"),
        (("--file", "lambada"), "--file lambada: no `NAME=PATH`"),
        (("--file", "lambda=x"), "no task reads a data file `lambda`"),
        (("--file", "lambda=x"), "did you mean `lambada`?"),
        (("--file", "lambada=x"), "data file `lambada`: no evaluated task reads it"),
        (("--file", "lambada=x", "--file", "lambada=y"), "--file lambada is given twice: x and y"),
        (("--tasks", "nll", "--haystack", "x"), "--haystack has no effect"),
        (("--tasks", "nll", "--other-data", "python-stdlib"), "--other-data has no effect"),
        (("--tasks", "vt", "--lengths", "2k"), "--data has no effect"),
        (("--tasks", "nll", "--lengths", "512", "--chat"), "has a chat template"),
        (("--tasks", "short", "--lengths", "512"), "beyond the native window of 128 tokens"),
    ],
)
def test_bad_input_ends_with_3_and_writes_nothing(
    giraffe, tiny_llama, corpus, tmp_path, arguments, message
):
    out = tmp_path / "e"
    done = giraffe("eval", tiny_llama, "--data", corpus, "--out", out, *arguments)
    assert done.code == 3
    assert message in done.stderr
    assert done.stdout == ""
    assert not (out / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "slow"), "--suite slow: no such choice"),
        (("--dtype", "int8"), "--dtype int8: no such choice"),
        (("--documents", "-1"), "Invalid value for '--documents'"),
        (("--documents", "0"), "Invalid value for '--documents'"),
        (("--samples", "0"), "Invalid value for '--samples'"),
    ],
)
def test_a_value_that_no_option_takes_ends_with_2(giraffe, tiny_llama, arguments, message):
    done = giraffe("eval", tiny_llama, *arguments)
    assert (done.code, done.stdout) == (2, "")
    assert message in done.stderr


def test_an_evaluator_without_anything_to_choose(giraffe, tiny_llama, corpus, tmp_path):
    done = giraffe("eval", tiny_llama, "--data", corpus, *QUICK, "--evaluator", tiny_llama,
                   "--out", tmp_path)  # fmt: skip
    assert done.code == 3
    assert "an evaluator has no effect" in done.stderr


def test_a_missing_corpus_and_a_missing_checkpoint_are_named(giraffe, tiny_llama, tmp_path):
    absent = tmp_path / "absent.jsonl"
    for arguments in (
        ("eval", tiny_llama, "--data", absent),
        ("eval", absent),
        ("eval", tiny_llama, "--tasks", "longppl", "--evaluator", absent),
        ("eval", tiny_llama, "--tasks", "lambada", "--file", f"lambada={absent}"),
    ):
        done = giraffe(*arguments, "--out", tmp_path / "e")
        assert done.code == 3
        assert "absent.jsonl" in done.stderr


def test_what_a_run_was_trained_on_is_not_scored(giraffe, tiny_llama, corpus, tmp_path):
    """The corpus of the training given once more: what it held out of it is read, no more."""
    run = tmp_path / "run"
    done = giraffe(
        *("extend", "--model", tiny_llama, "--data", corpus, "--target-len", "384"),
        *("--rope", "yarn", "--window", "128", "--steps", 1, "--no-eval", "--out", run),
        *("--set", "train.lora.rank=2", "--set", "pack.hold_out=0.4"),
    )
    assert done.code == 0, done.stderr
    kept = {document.id for document in held_out(run / "packed")}
    trained = len(corpus.read_text().splitlines()) - len(kept)
    scored = giraffe(
        *("eval", run / "model", "--data", corpus, "--tasks", "nll", "--lengths", "128,384"),
        *("--set", "nll.targets=32", "--out", tmp_path / "scores"),
    )
    assert scored.code == 0, scored.stderr
    assert f"{trained} of {trained + len(kept)} documents are not evaluated" in scored.stderr
    samples = (tmp_path / "scores" / "samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["cluster"] for line in samples} <= kept
    (tmp_path / "seen.jsonl").write_text(
        "".join(
            f"{line}\n"
            for line in corpus.read_text().splitlines()
            if json.loads(line)["id"] not in kept
        )
    )
    refused = giraffe(
        *("eval", run / "model", "--data", tmp_path / "seen.jsonl", "--tasks", "nll"),
        *("--lengths", "128", "--out", tmp_path / "none"),
    )
    assert refused.code == 3
    assert "every document of the evaluation is trained on" in refused.stderr
    assert "held-out documents" in refused.stderr


def test_a_run_that_was_given_packed_windows_is_scored_on_what_they_hold_out(
    giraffe, tiny_llama, corpus, tmp_path
):
    windows, run = tmp_path / "windows", tmp_path / "run"
    done = giraffe(
        *("pack-data", corpus, "--tokenizer", tiny_llama, "--window", 128, "--hold-out", 0.4),
        *("--out", windows),
    )
    assert done.code == 0, done.stderr
    done = giraffe(
        *("extend", "--model", tiny_llama, "--data", windows, "--target-len", 384, "--window", 128),
        *("--rope", "yarn", "--steps", 1, "--no-eval", "--set", "train.lora.rank=2", "--out", run),
    )
    assert done.code == 0, done.stderr
    settings = ("--tasks", "nll", "--lengths", "128,384", "--set", "nll.targets=32")
    scored = giraffe("eval", run / "model", *settings, "--out", tmp_path / "scores")
    assert scored.code == 0, scored.stderr
    samples = (tmp_path / "scores" / "samples.jsonl").read_text().splitlines()
    kept = {document.id for document in held_out(windows)}
    assert {json.loads(line)["cluster"] for line in samples} <= kept
    again = giraffe("eval", run / "model", *settings, "--data", corpus, "--out", tmp_path / "again")
    assert "documents are not evaluated: they are trained on" in again.stderr
    moved = shutil.copytree(run / "model", tmp_path / "moved")
    alone = giraffe("eval", moved, *settings, "--data", corpus, "--out", tmp_path / "alone")
    assert f"{moved} was trained by giraffe, and its run is not beside it" in alone.stderr
    windows.rename(tmp_path / "elsewhere")
    for data, named in (((), "python-stdlib"), (("--data", corpus), corpus)):
        lost = giraffe("eval", run / "model", *settings, *data, "--out", tmp_path / "lost")
        assert f"the windows that {run} was trained on are not found" in lost.stderr
        assert f"whether it read {named} cannot be told" in lost.stderr
