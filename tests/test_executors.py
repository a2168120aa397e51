"""Packing by tasks: whatever runs them, the bytes are those of one process.

Those marked `cluster` need the extra `[cluster]`. No Slurm is needed: `sbatch`, `scontrol` are
scripts here that run what they are given at once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus import executor as tasks_module
from giraffe_cli.corpus.executor import (
    AbstractExecutor,
    PackJob,
    ShardTask,
    executors,
    make_executor,
    pack_with,
)
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.corpus.store import open_packed
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError
from giraffe_cli.progress import SilentReporter

WINDOW = 128


class OneByOne(AbstractExecutor):
    """Every task here, the last first: what an executor promises, without one."""

    def run(self, job, tasks, units):
        for rank in reversed(range(tasks or units)):
            ShardTask(job)(None, rank, tasks or units)


@pytest.fixture
def sources(corpus, tmp_path, monkeypatch) -> list[str]:
    """The corpus in four files of six documents, named relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    lines = corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    for part in range(4):
        Path(f"part-{part}.jsonl").write_text("".join(lines[part::4]), encoding="utf-8")
    return [f"part-{part}.jsonl" for part in range(4)]


@pytest.fixture
def job(sources, tiny_llama, tmp_path) -> PackJob:
    out = tmp_path / "packed" / "tasks"
    return PackJob(sources, tiny_llama, WINDOW, PackConfig(), 0, out, str(tmp_path))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def expected(job, tmp_path) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path / "one"
    arguments = (job.sources, job.tokenizer, WINDOW, job.config, job.seed, out, SilentReporter())
    pack_stage(*arguments)
    return contents(out)


# ── without a cluster ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 3, 7, None])
def test_tasks_in_any_order_write_the_bytes_of_one_process(job, expected, count):
    stats = pack_with(OneByOne(), job, count, SilentReporter())
    assert contents(job.out) == expected
    assert stats["windows"] == len(open_packed(job.out))


def test_tasks_run_in_the_folder_of_the_command(job, expected, tmp_path, monkeypatch):
    class Elsewhere(OneByOne):
        def run(self, job, tasks, units):
            (tmp_path / "elsewhere").mkdir()
            with monkeypatch.context() as there:
                there.chdir(tmp_path / "elsewhere")
                super().run(job, tasks, units)

    pack_with(Elsewhere(), job, 2, SilentReporter())
    assert contents(job.out) == expected


def test_what_a_task_raised_is_raised_here_and_the_rest_is_kept(job):
    Path("part-2.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(InvalidInput, match=r"part-2\.jsonl:1: ") as raised:
        pack_with(OneByOne(), job, 4, SilentReporter())
    assert "--on-bad skip" in raised.value.hint
    assert len(list(job.work.glob("unit-*/done.json"))) == 3
    assert not (job.out / "manifest.json").exists()


def test_a_task_that_was_killed_is_found_by_the_merge(job):
    class Lossy(OneByOne):
        def run(self, job, tasks, units):
            for rank in (0, 2, 3):
                ShardTask(job)(None, rank, 4)

    with pytest.raises(InvalidInput, match=r"part-1\.jsonl"):
        pack_with(Lossy(), job, 4, SilentReporter())


def test_a_record_of_an_earlier_run_does_not_count(job):
    good = Path("part-2.jsonl").read_text()
    Path("part-2.jsonl").write_text("{\n")
    with pytest.raises(InvalidInput):
        pack_with(OneByOne(), job, 4, SilentReporter())
    Path("part-2.jsonl").write_text(good)
    assert pack_with(OneByOne(), job, 2, SilentReporter())["documents"] == 24


def test_rows_that_are_there_are_kept_or_refused_without_a_task(job):
    class Never(AbstractExecutor):
        def run(self, job, tasks, units):
            raise AssertionError

    pack_with(OneByOne(), job, 2, SilentReporter())
    reporter = SilentReporter()
    pack_with(Never(), job, 2, reporter)
    assert "holds these windows already" in reporter.lines[0]
    with pytest.raises(InvalidInput, match="different: seed"):
        pack_with(Never(), PackJob(**{**vars(job), "seed": 1}), 2, SilentReporter())


def test_standard_input_is_refused(job):
    with pytest.raises(UsageError, match="standard input"):
        pack_with(OneByOne(), PackJob(**{**vars(job), "sources": ["-"]}), 2, SilentReporter())


def test_every_executor_has_a_summary_and_defaults():
    assert set(executors()) == {"local", "ray", "slurm"}
    for name, kind in executors().items():
        assert kind.summary
        assert make_executor(name) == kind()


def test_settings_take_the_type_of_their_default():
    slurm = make_executor("slurm", ["cpus-per-task=4", "partition=cpu", "env_command=a=b"])
    assert (slurm.cpus_per_task, slurm.partition, slurm.env_command) == (4, "cpu", "a=b")


@pytest.mark.parametrize(
    ("name", "setting", "text"),
    [
        ("slurm", "partiton=cpu", "partition"),
        ("slurm", "partition", "no such setting"),
        ("ray", "cpus_per_task=many", "int expected"),
        ("rai", "", "unknown executor"),
    ],
)
def test_a_wrong_setting_is_named(name, setting, text):
    with pytest.raises(InvalidInput) as raised:
        make_executor(name, [setting] if setting else [])
    assert text in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize("name", ["local", "ray", "slurm"])
def test_a_missing_package_names_the_extra(job, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(InvalidInput, match="not installed") as raised:
        make_executor(name).run(job, 2, 4)
    assert raised.value.hint == "pip install 'giraffe-cli[cluster]'"


def test_a_tokenizer_in_a_temporary_folder_is_copied_where_tasks_see_it(job, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_module.tempfile, "gettempdir", lambda: str(tmp_path))
    inside = tmp_path / "scratch"
    shutil.copytree(job.tokenizer, inside)
    assert tasks_module._lasting(inside, job.work) == job.work / "tokenizer"
    assert (job.work / "tokenizer" / "tokenizer.json").exists()
    monkeypatch.setattr(tasks_module.tempfile, "gettempdir", lambda: str(tmp_path / "other"))
    assert tasks_module._lasting(inside, job.work) == inside


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tasks", "2"], "--tasks has no effect"),
        (["--executor-set", "a=b"], "--executor-set has no effect"),
        (["--executor", "local", "--tasks", "0"], "Invalid value for '--tasks'"),
        (["--executor", "local", "--shard", "1/2"], "--shard goes without"),
        (["--executor", "local", "--merge"], "--merge goes without"),
        (["--executor", "local", "--workers", "2"], "--workers goes without"),
        (["--executor", "slurm", "--report"], "--report needs the rows"),
    ],
)
def test_options_that_contradict_are_refused(giraffe, sources, tiny_llama, options, text):
    where = ("--tokenizer", tiny_llama, "--window", WINDOW, "--out", "packed")
    result = giraffe("pack-data", *sources, *where, *options)
    assert (result.code, Path("packed").exists()) == (2, False)
    assert text in result.stderr


# ── with datatrove ────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # datatrove's and Ray's own
def test_local_processes(job, expected):
    pack_with(make_executor("local"), job, 3, SilentReporter())
    assert contents(job.out) == expected


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_of_two_workers(job, expected, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(tasks_module.__file__).parents[2]))
    memory = 2 << 30
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": memory})
    try:
        cluster.add_node(num_cpus=1, memory=memory)
        cluster.wait_for_nodes()
        ray = make_executor("ray", [f"address={cluster.address}"])
        pack_with(ray, job, 4, SilentReporter())
        assert contents(job.out) == expected
        # What a task raises arrives, and a task that no node holds is refused, not waited for.
        broken = PackJob(**{**vars(job), "out": job.out.parent / "broken"})
        Path("part-1.jsonl").write_text("{\n")
        with pytest.raises(InvalidInput, match=r"part-1\.jsonl:1"):
            pack_with(ray, broken, 2, SilentReporter())
        large = make_executor("ray", [f"address={cluster.address}", "mem_per_cpu_gb=3"])
        with pytest.raises(InvalidInput, match="no node of the Ray cluster holds"):
            pack_with(large, broken, 2, SilentReporter())
    finally:
        cluster.shutdown()


def script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """`sbatch` that runs every task of the array at once, and keeps how it was called."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NODELIST", "here")
    monkeypatch.setenv("PYTHONPATH", str(Path(tasks_module.__file__).parents[2]))
    script(tmp_path / "bin" / "scontrol", "echo here\n")
    script(
        tmp_path / "bin" / "sbatch",
        f"""echo "$@" >> {tmp_path}/calls
        for last; do :; done
        range=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$last")
        cd /
        for i in $(seq 0 ${{range:-0}}); do
            [ -n "$range" ] && export SLURM_ARRAY_TASK_ID=$i
            bash "$last" >> {tmp_path}/log 2>&1 || {{ echo failed >&2; exit 1; }}
        done
        echo "$((40 + $(wc -l < {tmp_path}/calls)));somewhere"
        """,
    )
    return tmp_path


@pytest.mark.cluster
def test_slurm_runs_the_array_and_then_the_merge(job, expected, slurm):
    submitted = pack_with(make_executor("slurm"), job, 3, SilentReporter())
    assert submitted.jobs == ["41", "42"], (slurm / "log").read_text()
    assert contents(job.out) == expected
    first, second = (slurm / "calls").read_text().splitlines()
    assert first.endswith("tasks.slurm")
    assert "--dependency" not in first
    assert "--dependency=afterok:41 " in second


@pytest.mark.cluster
def test_a_task_that_fails_fails_its_slurm_job(job, slurm):
    Path("part-1.jsonl").write_text("{\n")
    with pytest.raises(GiraffeError, match="sbatch refused"):
        pack_with(make_executor("slurm"), job, 2, SilentReporter())
    assert "part-1.jsonl:1" in (slurm / "log").read_text()
    assert len((slurm / "calls").read_text().splitlines()) == 1  # the merge was not handed in


@pytest.mark.parametrize("taken", [0, 1])
def test_what_sbatch_refuses_is_told_with_the_job_that_it_took(job, tmp_path, monkeypatch, taken):
    """The array may have been taken before the merge was refused."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    calls = tmp_path / "calls"
    refused = f"[ $(wc -l < {calls}) -gt {taken} ] && {{ echo full >&2; exit 1; }}"
    script(tmp_path / "bin" / "sbatch", f"echo x >> {calls}\n{refused}\necho 41")
    slurm = make_executor("slurm")
    scripts = [tmp_path / "tasks.slurm", tmp_path / "a merge.slurm"]
    monkeypatch.setattr(type(slurm), "write", lambda *_: scripts)
    monkeypatch.setattr("giraffe_cli.corpus.executors.slurm.needed", lambda *_: None)
    with pytest.raises(GiraffeError, match="sbatch refused .*: full") as caught:
        slurm.run(job, 2, 2)
    assert ("job 41" in str(caught.value)) == bool(taken)
    merge = f"sbatch --dependency=afterok:41 '{scripts[1]}', or scancel 41"
    assert caught.value.hint == (merge if taken else "see --executor-set")


def directives(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH --")]
    parts = [line.removeprefix("#SBATCH --").partition("=") for line in lines]
    return {name: value for name, _, value in parts}


@pytest.mark.cluster
def test_the_slurm_scripts_say_what_was_set(job, tmp_path):
    settings = ["partition=cpu", "time=01:30:00", "cpus_per_task=2", "mem_per_cpu_gb=3"]
    more = ["account=me", "workers=5", "env_command=module load python", "python=/my env/python"]
    array, merge = make_executor("slurm", settings + more).write(job, 12)
    assert array.parent == merge.parent == job.out / ".work" / "slurm"
    both = {"partition": "cpu", "time": "01:30:00", "cpus-per-task": "2", "mem-per-cpu": "3G"}
    both |= {"account": "me", "nodes": "1", "requeue": ""}
    logs = f"{array.parent}/slurm_logs/%A_%a.out"
    named = {"job-name": "giraffe-pack", "array": "0-11%5", "output": logs, "error": logs}
    assert directives(array) == both | named
    logs = f"{job.out}.merge-%j.out"
    named = {"job-name": "giraffe-merge", "kill-on-invalid-dep": "yes"}
    assert directives(merge) == both | named | {"output": logs, "error": logs}
    launch = "'/my env/python' -m datatrove.tools.launch_pickled_pipeline"
    for path, pickled in ((array, "executor.pik"), (merge, "merge.pik")):
        lines = path.read_text().splitlines()
        assert lines.index("module load python") < lines.index(f"{launch} {path.parent / pickled}")
        assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.mark.cluster
def test_slurm_options_that_are_not_set_are_left_to_the_cluster(job):
    array, _ = make_executor("slurm").write(job, 2500)
    given = directives(array)
    assert {"partition", "qos", "account"}.isdisjoint(given)
    assert given["array"] == "0-833"  # three shards a job: MaxArraySize is 1001
    assert len(json.loads((array.parent / "ranks_to_run.json").read_text())) == 2500


@pytest.mark.cluster
def test_without_sbatch_the_scripts_are_there_and_the_command_is_told(
    giraffe, sources, tiny_llama, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    where = ("--tokenizer", tiny_llama, "--window", WINDOW, "--out", "packed")
    result = giraffe("pack-data", *sources, *where, "--executor", "slurm", "--tasks", "2")
    folder = tmp_path / "packed" / ".work" / "slurm"
    assert (result.code, result.stdout) == (3, "")
    assert f"wrote {folder / 'tasks.slurm'} and {folder / 'merge.slurm'}" in result.stderr
    command = f"job=$(sbatch --parsable {folder / 'tasks.slurm'}) && "
    assert command + f"sbatch --dependency=afterok:$job {folder / 'merge.slurm'}" in result.stderr
    assert all((folder / name).exists() for name in ("tasks.slurm", "merge.slurm", "merge.pik"))


@pytest.mark.cluster
def test_submitted_jobs_are_one_json_object(giraffe, sources, tiny_llama, slurm):
    where = ("--tokenizer", tiny_llama, "--window", WINDOW, "--out", "packed", "--json")
    result = giraffe("pack-data", *sources, *where, "--executor", "slurm")
    assert result.code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert (shown["jobs"], shown["out"]) == (["41", "42"], "packed")
    assert len(open_packed(Path("packed"))) > 0


def test_the_documented_settings_exist():
    docs = Path(tasks_module.__file__).parents[2] / "docs" / "packing.md"
    text = docs.read_text(encoding="utf-8").partition("`--executor-set KEY=VALUE` sets ")[2]
    named = text.partition("\n")[0]
    for entry in fields(executors()["slurm"]):
        assert f"`{entry.name}`" in named
