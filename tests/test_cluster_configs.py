"""configs/clusters: one GPU, eight, two nodes; each plans as its header says, and Slurm's script
starts one run on two nodes."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_yaml
from giraffe_cli.plan.estimate import estimate
from giraffe_cli.plan.machine import named_machine
from giraffe_cli.plan.shapes import named_shape
from giraffe_cli.train.sharing import check_heads

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "configs" / "clusters"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
SCRIPT = FOLDER / "two-nodes.sh"
SHAPES = {"Meta-Llama-3-8B": "llama3-8b", "Meta-Llama-3-70B": "llama3-70b"}

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def header(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def test_there_is_one_for_each_kind_of_place():
    kinds = {"one-gpu", "eight-gpus", "eight-gpus-full", "eight-small-gpus", "two-nodes"}
    assert {path.stem for path in CONFIGS} == kinds


@each_config
def test_it_fits_where_its_header_says_with_the_memory_it_names(path):
    config, text = build(read_yaml(path)), header(path)
    shape = named_shape(SHAPES[config.model.rpartition("/")[2]])
    nodes, gpus, device = re.search(r"On:\s+(\d) nodes? of (\d) (\w+)", text).groups()
    found = estimate(shape, config, named_machine(device, int(gpus)))
    assert config.train.nodes == int(nodes)
    assert found["processes"] == int(nodes) * int(gpus)
    assert found["fits"]
    predicted = re.search(r"memory about ([\d.]+) GB", text).group(1)
    assert f"{found['bytes']['total'] / 1e9:.1f}" == predicted
    check_heads(shape.num_attention_heads, config.train)
    for entry in ("Purpose:", "Run:", "Expected:", "Measured:", f"configs/clusters/{path.stem}"):
        assert entry in text


@each_config
def test_its_command_is_real(path, giraffe):
    lines = [line for line in header(path).splitlines() if "giraffe extend" in line]
    assert lines
    for line in lines:
        words = shlex.split(line[line.index("giraffe extend") :])
        assert giraffe(*words[1:], "--help").code == 0


def test_the_script_asks_slurm_for_what_the_config_needs():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    config, text = build(read_yaml(FOLDER / "two-nodes.yaml")), SCRIPT.read_text()
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
    assert int(asked["nodes"]) == config.train.nodes
    gpus = int(asked["gpus-per-node"])
    assert gpus * config.train.nodes == config.train.processes
    assert asked["ntasks-per-node"] == "1", "giraffe starts a node's processes itself"
    assert asked["signal"] == "USR1@120"
    assert SCRIPT.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (1, ""), (130, "42"), (143, "42")])
def test_the_script_requeues_what_was_stopped_and_nothing_else(tmp_path, code, requeued):
    told = tmp_path / "requeued"
    told.touch()
    for name, line in (
        ("srun", f'test "$SRUN_CPUS_PER_TASK" = 7 && exit {code}; exit 9'),
        ("scontrol", f'test "$1" = requeue && printf "$2" > {told}'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    slurm = {"PATH": path, "SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "7"}
    assert subprocess.run(["bash", SCRIPT], env={**os.environ, **slurm}).returncode == code
    assert told.read_text() == requeued


@pytest.mark.slow
def test_the_script_trains_on_two_nodes(tiny_llama, corpus, tmp_path):
    """Under a stand-in for srun, which starts the command twice and numbers the nodes."""
    tools, out = tmp_path / "tools", tmp_path / "run"
    tools.mkdir()
    (tools / "giraffe").write_text(f'#!/bin/bash\nexec {sys.executable} -m giraffe_cli "$@"\n')
    (tools / "srun").write_text(
        '#!/bin/bash\nSLURM_NODEID=1 "$@" &\nSLURM_NODEID=0 "$@"; code=$?\nwait $! && exit $code\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    small = [
        *("--model", tiny_llama, "--data", corpus, "--target-len", "512", "--window", "64"),
        *("--steps", "2", "--no-eval", "--rendezvous", "127.0.0.1", "--out", out),
        *("--set", "train.processes=2", "--set", "train.shard_base=auto"),
        *("--set", "train.windows_per_step=2", "--set", "train.lora.rank=2"),
    ]
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", SCRIPT, *map(str, small)],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "node 1: the training is over" in done.stdout
    assert json.loads((out / "report.json").read_text())["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "told"),
    [
        ("one-gpu", 1, "loss by"),
        ("eight-gpus", 2, "starting 2 processes"),
        ("eight-gpus-full", 2, "base shared out over the processes"),
        ("eight-small-gpus", 2, "base shared out over the processes"),
    ],
)
def test_it_trains_a_small_model_on_fewer_processes(
    giraffe, tiny_llama, corpus, tmp_path, name, processes, told
):
    share = 2 if name in ("eight-gpus", "eight-small-gpus") else 1
    done = giraffe(
        *("extend", "--config", FOLDER / f"{name}.yaml", "--model", tiny_llama, "--data", corpus),
        *("--target-len", "512", "--window", "64", "--steps", "2", "--no-eval"),
        *("--out", tmp_path / "run", "--set", f"train.processes={processes}"),
        *("--set", "train.windows_per_step=2", "--set", "train.warmup_steps=0"),
        *("--set", f"train.sequence_parallel={share}", "--set", "pack.short_mix=null"),
    )
    assert done.code == 0, done.stderr
    assert told in done.stderr
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 2
