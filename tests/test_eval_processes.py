"""Several processes share the reading; scores are those of one."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import prose
from evaluated import build_other_llama, subject

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.errors import GiraffeError, Interrupted
from giraffe_cli.evals.base import Example
from giraffe_cli.evals.cache import OutcomeCache, sample_key
from giraffe_cli.evals.order import reading_plan
from giraffe_cli.evals.parts import LAUNCHERS, Part, launched_part
from giraffe_cli.evals.reading import missing_of, read_part
from giraffe_cli.evals.runner import evaluate
from giraffe_cli.evals.samples import Texts
from giraffe_cli.evals.subject import Subject
from giraffe_cli.evals.worker import _example, request_of
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.parallel import launch

DOCUMENTS = [Document(f"doc-{i}", prose(i, 160), "prose") for i in range(8)]
KNOBS = {
    "nll": {"anchors": 1, "targets": 16},
    "passkey": {"depths": 2, "trials": 1},
}


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory):
    return build_other_llama(tmp_path_factory.mktemp("other-llama"))


def run(folder, out, processes):
    reporter = SilentReporter()
    results = evaluate(
        [subject("checkpoint", folder)],
        EvalConfig(tasks=["nll", "passkey"], knobs=KNOBS, processes=processes),
        lengths=[128, 1024],
        native_length=128,
        seed=0,
        texts=Texts(DOCUMENTS),
        out=out,
        cache=out / "cache",
        reporter=reporter,
    )
    return results, reporter


def means(results):
    return [
        (measure, length, score["mean"])
        for measure, by_length in results["models"]["checkpoint"]["tasks"].items()
        for length, score in by_length.items()
    ]


def test_two_processes_give_the_scores_of_one(other_llama, tmp_path):
    one, _ = run(other_llama, tmp_path / "one", None)
    two, reporter = run(other_llama, tmp_path / "two", 2)
    for (measure, length, expected), found in zip(means(one), means(two), strict=True):
        allowed = 1e-4 if measure.startswith("nll") else 0
        assert found == (measure, length, pytest.approx(expected, abs=allowed))
    files = {path.name.split("-", 2)[2] for path in (tmp_path / "two" / "cache").iterdir()}
    assert files == {"nll.jsonl", "nll.1.jsonl", "passkey.jsonl", "passkey.1.jsonl"}
    assert any("tokens to read by the first of 2 processes" in line for line in reporter.lines)
    first, second = (tmp_path / n / "prompts.jsonl.gz" for n in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()

    again, reporter = run(other_llama, tmp_path / "two", 2)  # every file of every process is read
    assert {**again, "seconds": 0} == {**two, "seconds": 0}
    assert not any("starting" in line for line in reporter.lines)


def test_what_a_worker_says_of_its_error_is_told(other_llama, tmp_path):
    broken = Subject("checkpoint", tmp_path / "gone", "0" * 64, "float32")
    entries = [("nll", Example("k", "c", 9, np.arange(9, dtype=np.int32) + n, 2)) for n in range(2)]
    request = request_of(broken, entries, 0, tmp_path)
    with pytest.raises(GiraffeError, match="gone is not a directory"):
        launch(request, tmp_path, 2, SilentReporter(), "giraffe_cli.evals.worker", "evaluation")


def test_a_stop_comes_between_two_readings(tiny_llama, tmp_path):
    tested, stop = subject("checkpoint", tiny_llama), tmp_path / "stop"
    plan = reading_plan([("nll", Example("k", "c", 9, np.arange(9, dtype=np.int32), 2))], 0)
    read_part(tested, plan, tmp_path, SilentReporter(), stop=stop)
    assert OutcomeCache(tmp_path, tested, "nll").known
    stop.touch()
    with pytest.raises(Interrupted, match="the evaluation was stopped"):
        read_part(tested, plan, tmp_path, SilentReporter(), stop=stop)


def test_a_request_keeps_what_decides_an_outcome(tiny_llama, tmp_path):
    asked = Example(
        "k",
        "c",
        99,
        np.arange(9, dtype=np.int32),
        num_targets=4,
        max_new_tokens=5,
        answers=("a", "b"),
        stops_when_found=True,
        candidates=((1, 2), (3,)),
        compared=True,
        details={"depth": 1.0},
    )
    tested = subject("base", tiny_llama)
    request = json.loads(json.dumps(request_of(tested, [("t", asked)], 7, tmp_path)))
    (entry,) = request["entries"]
    task = entry.pop("task")
    assert sample_key(tested, task, _example(entry)) == sample_key(tested, "t", asked)
    assert _example(entry).cluster == "c"
    assert Subject(**{**request["subject"], "path": tiny_llama}) == tested


def test_a_task_whose_name_begins_with_anothers_has_files_of_its_own(tiny_llama, tmp_path):
    tested = subject("base", tiny_llama)
    (tmp_path / OutcomeCache(tmp_path, tested, "niah-single-1", 1).path).write_text(
        '{"key": "x", "nll": [], "text": "", "candidate_nll": [], "candidate_greedy": []}\n'
    )
    assert OutcomeCache(tmp_path, tested, "niah").get("x") is None
    assert OutcomeCache(tmp_path, tested, "niah-single-1").get("x") is not None


@pytest.mark.slow
def test_under_torchs_launcher_the_first_process_tells(other_llama, tmp_path):
    arguments = [
        *("-m", "giraffe_cli", "eval", str(other_llama), "--json"),
        *("--tasks", "passkey", "--lengths", "384", "--set", "passkey.depths=3"),
    ]
    printed = {}
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    ):
        command = [sys.executable, *launcher, *arguments, "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        printed[name] = {**json.loads(done.stdout), "seconds": 0, "out": ""}
    assert printed["one"] == printed["two"]
    assert len([*(tmp_path / "two" / "cache").iterdir()]) == 2


def test_what_is_stored_is_read_once_a_task_however_many_samples_there_are(
    tiny_llama, tmp_path, monkeypatch
):
    tested = subject("checkpoint", tiny_llama)
    entries = [
        (task, Example(f"{n}", "c", 9, np.arange(9, dtype=np.int32) + n, 2))
        for task in ("nll", "longppl")
        for n in range(5)
    ]
    read_part(tested, reading_plan(entries[:3], 0), tmp_path, SilentReporter())
    opened, remember = list[bytes](), OutcomeCache._remember
    monkeypatch.setattr(
        OutcomeCache, "_remember", lambda c, at: opened.append(at) or remember(c, at)
    )
    assert missing_of(tested, entries, tmp_path) == entries[3:]
    assert len(opened) == 3


# ── what is no launcher ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ({}, (0, 1)),
        ({"RANK": "1"}, (0, 1)),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x"}, (0, 1)),
        ({"RANK": "abc", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, (1, 2)),
    ],
)
def test_leftovers_of_a_batch_system_are_no_launcher(monkeypatch, said, part):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert launched_part() == Part(*part)


def test_a_stray_rank_is_left_out_aloud(giraffe, monkeypatch, tiny_llama, tmp_path):
    """The evaluation went without a word, and exit code 0, to a first process that is not there."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "9")
    data = tmp_path / "docs.jsonl"
    data.write_text(json.dumps({"id": "a", "text": prose(1, 60)}) + "\n")
    done = giraffe("eval", tiny_llama, "--data", data, "--lengths", "128", "--tasks", "nll",
                   "--set", "nll.targets=16", "--out", tmp_path / "scores")  # fmt: skip
    assert done.code == 0, done.stderr
    assert "RANK, LOCAL_RANK of the environment left out" in " ".join(done.stderr.split())
    assert (tmp_path / "scores" / "results.json").exists()
