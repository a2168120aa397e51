"""An evaluation that memory cannot hold is refused before anything is read or trained."""

from __future__ import annotations

import pytest
from test_pipeline import settings

from giraffe_cli.checkpoint import inspect
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.evals.room import check_room
from giraffe_cli.pipeline import Options, extend
from giraffe_cli.plan.machine import Machine
from giraffe_cli.progress import SilentReporter

GIB = 1 << 30


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return inspect(str(tiny_llama), tiny_llama)


def test_keys_and_values_of_the_longest_text_decide(tiny):
    """2 layers of 2 heads of 16, keys and values: 256 bytes a token in bfloat16; 16M tokens are
    4 GiB, of 3 GiB less a tenth and what a process takes by itself."""
    machine = Machine("cuda", 1, 3 * GIB)
    check_room(tiny, "bfloat16", 1 << 20, machine=machine)
    with pytest.raises(DoesNotFit) as refused:
        check_room(tiny, "bfloat16", 1 << 24, machine=machine)
    assert "to read 16m tokens" in refused.value.message
    assert "4.3 GB for keys and values in bfloat16" in refused.value.message
    fits = int(refused.value.hint.split()[3].replace(",", ""))
    check_room(tiny, "bfloat16", fits, machine=machine)
    with pytest.raises(DoesNotFit):
        check_room(tiny, "bfloat16", fits + 256, machine=machine)


def test_processes_share_a_hosts_memory_and_have_a_gpu_each(tiny):
    check_room(tiny, "float32", 1 << 20, machine=Machine("cpu", 1, 2 * GIB))
    with pytest.raises(DoesNotFit, match="in each of 4 processes"):
        check_room(tiny, "float32", 1 << 20, 4, machine=Machine("cpu", 1, 2 * GIB))
    check_room(tiny, "float32", 1 << 20, 4, machine=Machine("cuda", 4, 2 * GIB))


def test_eval_refuses_it_before_anything_is_read(giraffe, tiny_llama, monkeypatch, tmp_path):
    monkeypatch.setattr("giraffe_cli.plan.machine.available_bytes", lambda: GIB)
    arguments = ("--tasks", "passkey", "--lengths", "128,16m", "--out", tmp_path / "e")
    done = giraffe("eval", tiny_llama, *arguments)
    assert done.code == 4
    assert "error: to read 16m tokens" in done.stderr
    assert "hint: --lengths up to" in done.stderr
    assert not (tmp_path / "e").exists()


def test_extend_refuses_it_before_anything_is_trained(tiny_llama, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("giraffe_cli.plan.machine.available_bytes", lambda: 2 * GIB)
    config = settings(tiny_llama, corpus, eval={"lengths": [128, 1 << 24]}, train={"window": 64})
    with pytest.raises(DoesNotFit) as refused:
        extend(config, tmp_path / "run", Options(), SilentReporter())
    assert "--set eval.lengths=[...] up to" in refused.value.hint
    assert not (tmp_path / "run").exists()
