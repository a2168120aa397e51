"""Two nodes on one machine: each has its launcher, the run folder is all they share."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from train_runs import Hooked, build_material, checkpoints, metrics, run

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import GiraffeError, Interrupted, InvalidInput, UsageError
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import make_folder, read_json, write_json
from giraffe_cli.train import joining, nodes, parallel
from giraffe_cli.train.crew import crew_of
from giraffe_cli.train.joining import join
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.nodes import own_rank

LORA = {"lora": {"rank": 2}}
FULL = {"method": "full", "lora": {}, "steps": 2}


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(nodes, "BEAT", 0.1)
    monkeypatch.setattr(nodes, "PATIENCE", 1.0)


@contextlib.contextmanager
def another_node(run_dir, rank=1):
    """`join` beside this thread; what it raised is in the list that is given."""
    raised = []

    def node():
        try:
            join(run_dir, rank, SilentReporter())
        except GiraffeError as error:
            raised.append(error)

    thread = threading.Thread(target=node)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(60)
        assert not thread.is_alive()


def test_two_nodes_repeat_the_losses_of_one_process(material, tmp_path):
    """Equal to the order of a float32 sum: 1e-5."""
    shared, one, settings = tmp_path / "shared", tmp_path / "one", {"steps": 3, **LORA}
    reporter = SilentReporter()
    with another_node(shared) as raised, crew_of(shared, 2, "127.0.0.1", reporter) as crew:
        folder = shared / "stages" / "first"
        run(material, folder, reporter, processes=2, nodes=2, crew=crew, **settings)
    assert not raised
    assert any("on 2 nodes" in line and "--nnodes 2" in line for line in reporter.lines)
    assert (folder / "workers" / "log-1.txt").exists()
    run(material, one, **settings)
    for ours, theirs in zip(metrics(folder), metrics(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["tokens"] == theirs["tokens"]


def led_by_this_one(material, run_dir, reporter=None, **settings):
    """A training on two nodes, of which this is the first."""
    with crew_of(run_dir, 2, "127.0.0.1", SilentReporter()) as crew:
        run(material, run_dir, reporter, processes=2, nodes=2, crew=crew, **LORA, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["full", "nodes"])
@pytest.mark.parametrize("trained", [LORA, FULL], ids=["adapter", "every weight"])
def test_two_nodes_of_two_processes_share_the_base_out(material, tmp_path, trained, over):
    """On each of them, or over both."""
    shared = tmp_path / "shared"
    settings = {"windows_per_step": 4, **trained}
    with another_node(shared) as raised, crew_of(shared, 2, "127.0.0.1", SilentReporter()) as crew:
        several = {"processes": 4, "nodes": 2, "shard_base": over, "crew": crew}
        run(material, shared, **several, **settings)
    assert not raised
    run(material, tmp_path / "one", **settings)
    for ours, theirs in zip(metrics(shared), metrics(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_a_signal_on_the_first_node_saves_and_ends_both(material, tmp_path):
    reporter = Hooked(lambda step: step == 2 and signal.raise_signal(signal.SIGTERM))
    with another_node(tmp_path) as raised, pytest.raises(Interrupted, match="is saved"):
        led_by_this_one(material, tmp_path, reporter, steps=200)
    assert checkpoints(tmp_path)
    assert [type(error) for error in raised] == [Interrupted]


def test_a_worker_that_fails_on_another_node_ends_the_run_with_its_error(
    material, tmp_path, monkeypatch
):
    """Its workers die of a launcher that ends at once: nobody meets the first node's worker."""
    monkeypatch.setattr("giraffe_cli.train.launcher.GRACE", 1.0)

    told = {"kind": "InvalidInput", "message": "no such file here", "hint": "share it"}

    def broken(*arguments, **settings):
        write_json(tmp_path / "workers" / "error-1.json", told)
        return 1

    monkeypatch.setattr(joining, "run_launcher", broken)
    with another_node(tmp_path) as raised, pytest.raises(InvalidInput, match="no such file here"):
        led_by_this_one(material, tmp_path)
    assert "the first node failed: no such file here" in raised[0].message


def test_a_node_that_does_not_come_is_named(tmp_path, impatient):
    reporter = SilentReporter()
    named = pytest.raises(GiraffeError, match="node 1, 2 of 3 did not join")
    with crew_of(tmp_path, 3, "", reporter) as crew, named as failure:
        crew.call(tmp_path / "workers", 1, "worker", {})
    assert "--node-rank 1" in failure.value.hint
    assert "waiting for node 1, 2 of 3" in reporter.lines


def test_without_a_first_node_another_gives_up(tmp_path, impatient):
    with another_node(tmp_path) as raised:
        pass
    assert "no sign of the first node" in raised[0].message


def test_what_an_earlier_run_left_calls_nobody(tmp_path, impatient):
    folder = make_folder(tmp_path / "nodes")
    old = {"tokens": ["of an earlier node"], "number": 1, "error": None}
    write_json(folder / "call.json", old)
    write_json(folder / "ended.json", old)
    with another_node(tmp_path) as raised:
        pass
    assert "no sign of the first node" in raised[0].message


def met(run_dir, error=None):
    """A run whose other node has come, which ends, or fails with `error`."""
    with crew_of(run_dir, 2, "", SilentReporter()) as crew:
        given_up = time.monotonic() + 30
        while not crew._tokens() and time.monotonic() < given_up:
            time.sleep(0.02)
        if error:
            raise error


def test_a_run_that_ends_lets_the_others_go_and_tells_them_why(tmp_path, impatient):
    with another_node(tmp_path) as raised:
        met(tmp_path)
    assert not raised
    with another_node(tmp_path) as raised, pytest.raises(InvalidInput):
        met(tmp_path, InvalidInput("bad corpus"))
    assert raised[0].message == "the first node failed: bad corpus"


def test_a_run_of_one_node_has_no_crew(tmp_path):
    with crew_of(tmp_path, 1, "", SilentReporter()) as crew:
        assert crew is None
    assert not list(tmp_path.iterdir())


def test_a_node_knows_which_it_is(monkeypatch):
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    assert own_rank(2, 1) == 1
    with pytest.raises(UsageError, match="which of them is this one"):
        own_rank(2, None)
    with pytest.raises(UsageError, match="node 2 of 2"):
        own_rank(2, 2)
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert own_rank(2, None) == 1


def test_every_node_has_as_many_processes():
    settings = {"windows_per_step": 4, "nodes": 2}
    assert parallel.choose_processes(TrainConfig(**settings), 4, SilentReporter()) == 4
    with pytest.raises(UsageError, match="1 processes cannot be spread over 2 nodes"):
        parallel.choose_processes(TrainConfig(**settings), 0, SilentReporter())


def test_a_base_is_shared_out_on_each_node():
    layouts = [Layout(rank, 4, nodes=2) for rank in range(4)]
    assert [at.base_rank for at in layouts] == [0, 1, 0, 1]
    assert {at.base_processes for at in layouts} == {2}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--node-rank", 1), "--node-rank and --rendezvous are of a run on several --nodes"),
        (("--rendezvous", "here"), "--node-rank and --rendezvous are of a run on several --nodes"),
        (("--nodes", 2), "which of them is this one?"),
        (("--nodes", 2, "--node-rank", 2), "node 2 of 2"),
    ],
)
def test_options_of_nodes_that_say_nothing_are_refused(
    giraffe, monkeypatch, tmp_path, options, text
):
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    refused = giraffe("extend", "--target-len", "2k", "--out", tmp_path / "run", *options)
    assert refused.code == 2
    assert text in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_command_on_two_nodes_extends_a_model(tiny_llama, corpus, tmp_path):
    """With stages and a control: four trainings. The second node does nothing else."""
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "giraffe_cli", "extend", "--model", tiny_llama, "--data", corpus),
        *("--stages", "256,512", "--window", "64", "--steps", "2", "--rope", "yarn", "--control"),
        *("--set", "train.lora.rank=2", "--set", "train.windows_per_step=2", "--no-eval"),
        *("--set", "train.processes=2", "--nodes", "2", "--rendezvous", "127.0.0.1"),
        *("--out", out, "--json"),
    ]
    started = [
        subprocess.Popen(
            [*map(str, command), "--node-rank", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    told = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert '"node": 1' in told[0][0]
    assert read_json(out / "report.json")["steps"] == 4
    assert (out / "control" / "model" / "config.json").exists()
