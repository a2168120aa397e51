"""An evaluation that memory cannot hold is refused before anything is read or trained."""

from __future__ import annotations

import re

import pytest
from test_pipeline import settings

from giraffe_cli.config.building import build
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.evals.room import check_room
from giraffe_cli.evaluating import reading_processes
from giraffe_cli.pipeline import Options, extend
from giraffe_cli.plan.machine import Machine
from giraffe_cli.progress import SilentReporter

GIB = 1 << 30


def test_keys_and_values_of_the_longest_text_decide(tiny_llama):
    """2 layers of 2 heads of 16, keys and values: 256 bytes a token in bfloat16; 16M tokens are
    4 GiB, of 3 GiB less a tenth and what a process takes by itself."""
    machine = Machine("cuda", 1, 3 * GIB)
    check_room(tiny_llama, "bfloat16", 1 << 20, machine=machine)
    with pytest.raises(DoesNotFit) as refused:
        check_room(tiny_llama, "bfloat16", 1 << 24, machine=machine)
    assert "to read 16,777,216 tokens" in refused.value.message
    assert "4.3 GB for keys and values in bfloat16" in refused.value.message
    fits = int(refused.value.hint.split()[6].replace(",", ""))
    check_room(tiny_llama, "bfloat16", fits, machine=machine)
    with pytest.raises(DoesNotFit):
        check_room(tiny_llama, "bfloat16", fits + 256, machine=machine)


def test_processes_share_a_hosts_memory_and_have_a_gpu_each(tiny_llama):
    check_room(tiny_llama, "float32", 1 << 20, machine=Machine("cpu", 1, 2 * GIB))
    with pytest.raises(DoesNotFit, match="in each of 4 processes"):
        check_room(tiny_llama, "float32", 1 << 20, 4, machine=Machine("cpu", 1, 2 * GIB))
    check_room(tiny_llama, "float32", 1 << 20, 4, machine=Machine("cuda", 4, 2 * GIB))


def test_eval_refuses_what_has_to_be_read(giraffe, tiny_llama, monkeypatch, tmp_path):
    """Not what is kept from before, and not a length that no sample has."""
    arguments = ("--tasks", "passkey", "--lengths", "128,384", "--samples", "1", "--out", tmp_path)
    monkeypatch.setattr("giraffe_cli.plan.machine.available_bytes", lambda: GIB // 4)
    done = giraffe("eval", tiny_llama, *arguments)
    assert done.code == 4
    assert re.search(r"error: to read 3\d\d tokens, .* needs", done.stderr)
    assert "no length fits beside the model" in done.stderr
    assert not [*tmp_path.glob("cache/*")]

    monkeypatch.undo()
    assert giraffe("eval", tiny_llama, *arguments).code == 0
    monkeypatch.setattr("giraffe_cli.plan.machine.available_bytes", lambda: GIB // 4)
    assert giraffe("eval", tiny_llama, *arguments).code == 0


def test_extend_refuses_it_before_anything_is_trained(tiny_llama, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("giraffe_cli.plan.machine.available_bytes", lambda: 2 * GIB)
    config = settings(tiny_llama, corpus, eval={"lengths": [128, 1 << 24]}, train={"window": 64})
    with pytest.raises(DoesNotFit) as refused:
        extend(config, tmp_path / "run", Options(), SilentReporter())
    assert "evaluate lengths (--lengths, eval.lengths) up to" in refused.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "processes"),
    [({}, None), ({"processes": 4, "nodes": 2, "windows_per_step": 4}, 2),
     ({"processes": 2, "windows_per_step": 2, "share_devices": True}, None)],
)  # fmt: skip
def test_those_that_train_read_afterwards(train, processes):
    config = build({"target_length": 4096, "train": train})
    assert reading_processes(config) == processes
