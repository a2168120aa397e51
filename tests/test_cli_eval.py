"""`giraffe eval` as typed: streams, exit codes, files."""

from __future__ import annotations

import json

import pytest

QUICK = ("--lengths", "128,384", "--set", "nll.targets=16", "--set", "nll.anchors=1",
         "--set", "passkey.depths=2", "--set", "passkey.trials=1")  # fmt: skip


def test_scores_a_checkpoint_beside_its_base(giraffe, tiny_llama, corpus, tmp_path):
    arguments = ("eval", tiny_llama, "--base", tiny_llama, "--data", corpus, *QUICK)
    done = giraffe(*arguments, "--out", tmp_path / "e", "--json")
    assert done.code == 0
    results = json.loads(done.stdout)
    assert results.pop("out") == str(tmp_path / "e")
    assert results == json.loads((tmp_path / "e" / "results.json").read_text())
    assert [*results["models"]] == ["base", "checkpoint"]
    assert results["native_length"] == 128
    assert results["models"]["checkpoint"]["tasks"]["nll"]["384"]["n"] == 8
    assert results["short_context"]["delta_nll"]["mean"] == 0.0
    assert "evaluation: 19 samples of nll, passkey at 128, 384" in done.stderr

    again = giraffe(*arguments, "--out", tmp_path / "e")  # every sample is kept
    assert again.code == 0
    assert "evaluating" not in again.stderr
    for expected in (
        "nll by context length, 95% intervals",
        "+0.000 [+0.000, +0.000]",
        "384*",
        "* beyond the native window of 128",
        f"results  {tmp_path / 'e'}/results.json",
    ):
        assert expected in again.stdout


def test_one_task_alone_without_a_base(giraffe, tiny_llama, tmp_path):
    done = giraffe("eval", tiny_llama, "--tasks", "passkey", "--lengths", "384", "--set",
                   "passkey.depths=1", "--out", tmp_path, "--dtype", "bfloat16")  # fmt: skip
    assert done.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [*results["models"]] == ["checkpoint"]
    assert results["models"]["checkpoint"]["dtype"] == "bfloat16"
    said = "checkpoint none shown (nothing was scored within the native window of 128)"
    assert said in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "12q"), "`12q` is not a length in tokens"),
        (("--tasks", "nil"), "unknown evaluation task `nil`"),
        (("--set", "nll.anchor=2"), "`anchor` is no knob of `nll`"),
        (("--set", "nll.anchors=0"), "anchors is 0, must be 1 or more"),
        (("--documents", "0"), "`eval.documents`"),
        (("--dtype", "int8"), "unknown --dtype `int8`"),
        (("--lengths", "64k"), "none of 8 documents has 65536 tokens"),
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


def test_a_missing_corpus_and_a_missing_checkpoint_are_named(giraffe, tiny_llama, tmp_path):
    absent = tmp_path / "absent.jsonl"
    for arguments in (("eval", tiny_llama, "--data", absent), ("eval", absent)):
        done = giraffe(*arguments, "--out", tmp_path / "e")
        assert done.code == 3
        assert "absent.jsonl" in done.stderr
