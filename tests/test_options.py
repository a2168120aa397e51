"""Every option of every command has an effect; one without an entry here fails.

    "--steps": "--steps 3"                 added to the command's base line
    "--seed": ("--temperature 5", "--temperature 5 --seed 1")     two endings of it
    "--kv-offload": ShownBy("test_generate_gpu.py::test_...")     where a test perturbs it already

A command runs up to where it hands over to what does its work, and what it hands over is compared;
where that work takes milliseconds, what it answers.
"""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import dataclass
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import typer
from conftest import build_tiny_llama, prose
from effects import HandedOver, NoEffect, ShownBy, check_elsewhere, plain
from evaluated import build_other_llama

from giraffe_cli.cli.app import make_app
from giraffe_cli.rope.base import Head

PICKLED = ShownBy("test_pickle.py::test_allow_pickle_reads_them")
COMPARED = "test_compare.py::test_the_command_tells_as_json_as_table_and_as_page"
EXPORTED = "test_cli_export.py::test_json_is_one_object_with_the_promised_keys"
NODES = "test_nodes.py::"
REFUSED = "test_cli_plan_refusals.py::"
GENERATE = "test_cli_generate.py::"

BASES = {
    "extend": "--model {tiny} --data {corpus} --target-len 512 --window 128",
    "plan": "--shape smollm2-135m --target-len 16k --device h100 --json",
    "init": "--target-len 16k --device cpu --out {out}.yaml",
    "pack-data": "docs={corpus} --tokenizer {tiny} --window 128 --out {out}",
    "eval": "{tiny} --data {corpus} --lengths 64 --out {out}",
    "generate": "{other} --prompt-file {prompt} --max-new-tokens 3 --json",
    "verify": "{tiny}",
    "rope compare": "--model {tiny} --data {corpus} --target-len 512 --out {out}",
    "rope search": "--model {tiny} --data {corpus} --target-len 512 --out {out}",
    "rope list": "",
    "rope show": "--target-len 16k",
}
"""What every line of a command begins with."""


@dataclass(frozen=True)
class Whole:
    """Two lines that do not begin with the command's base."""

    without: str
    given: str


INFERENCE = "--inference --shape smollm2-135m --device h100 --json"

ENTRIES = {
    "extend": {
        "--target-len": "--target-len 1k",
        "--stages": ("--target-len 1k", "--target-len 1k --stages 256,1k"),
        "--model": "--model calf",
        "--data": "--data python-stdlib",
        "--out": "--out {out}",
        "--rope": "--rope ntk",
        "--factors": "--factors {factors}",
        "--on-existing-rope": "--on-existing-rope compose",
        "--steps": "--steps 3",
        "--window": "--window 64",
        "--config": "--config {config}",
        "--set": "--set train.lora.rank=3",
        "--control": "--control",
        "--eval-data": "--eval-data {corpus}",
        "--gpus": "--gpus 2",
        "--nodes": ShownBy(f"{NODES}test_the_same_command_on_two_nodes_extends_a_model"),
        "--node-rank": ShownBy(f"{NODES}test_the_same_command_on_two_nodes_extends_a_model"),
        "--rendezvous": ShownBy(f"{NODES}test_the_same_command_on_two_nodes_extends_a_model"),
        "--sequence-parallel": "--sequence-parallel 2",
        "--deterministic": "--deterministic",
        "--keep-checkpoints": "--keep-checkpoints 5",
        "--dtype": "--dtype bfloat16",
        "--seed": "--seed 1",
        "--on-bad": "--on-bad skip",
        "--no-eval": "--no-eval",
        "--finish": ShownBy(
            "test_finish.py::test_a_stopped_training_becomes_the_model_of_its_last_step"
        ),
        "--dry-run": "--dry-run",
        "--strict": "--strict",
        "--allow-pickle": PICKLED,
        "--allow-native": "--allow-native",
        "--json": "--json",
    },
    "plan": {
        "--target-len": "--target-len 32k",
        "--stages": "--stages 8k,16k",
        "--data": ShownBy(f"{REFUSED}test_packed_windows_tell_what_they_attend_to"),
        "--rope": "--rope ntk",
        "--factors": "--factors {factors}",
        "--on-existing-rope": (
            "--shape llama3.1-8b --target-len 256k",
            "--shape llama3.1-8b --target-len 256k --on-existing-rope compose",
        ),
        "--nodes": ("--set train.windows_per_step=2", "--set train.windows_per_step=2 --nodes 2"),
        "--model": ShownBy("test_cli_plan.py::test_a_config_json_without_weights"),
        "--shape": "--shape llama3.2-1b",
        "--config-json": ShownBy("test_cli_plan.py::test_a_config_json_without_weights"),
        "--steps": "--steps 3",
        "--window": "--window 2k",
        "--config": "--config {config}",
        "--set": "--set train.windows_per_step=4",
        "--sequence-parallel": "--gpus 2 --sequence-parallel 2",
        "--control": "--control",
        "--dtype": "--dtype float32",
        "--device": "--device a100",
        "--device-memory": "--device-memory 30GB",
        "--host-memory": (
            "--target-len 384k --shape llama3-8b --device h100",
            "--target-len 384k --shape llama3-8b --device h100 --host-memory 150GB",
        ),
        "--gpus": ("--set train.windows_per_step=4", "--set train.windows_per_step=4 --gpus 2"),
        "--inference": Whole(
            "--target-len 16k --shape smollm2-135m --device h100 --json", INFERENCE
        ),
        "--prompt-len": Whole(INFERENCE, f"{INFERENCE} --prompt-len 4k"),
        "--allow-pickle": PICKLED,
        "--max-new-tokens": Whole(INFERENCE, f"{INFERENCE} --max-new-tokens 9"),
        "--kv-offload": Whole(INFERENCE, f"{INFERENCE} --kv-offload --host-memory 64GB"),
        "--json": ShownBy("test_cli_plan.py::test_sharing_windows_halves_what_grows_with_them"),
    },
    "init": {
        "--target-len": "--target-len 32k",
        "--model": "--model {tiny} --data {corpus}",
        "--data": "--data {corpus}",
        "--out": "--out {out}elsewhere.yaml",
        "--window": "--window 4k",
        "--on-existing-rope": "--on-existing-rope compose",
        "--device": "--device h100",
        "--device-memory": "--device-memory 2GB",
        "--gpus": ("--device h100", "--device h100 --gpus 2"),
        "--hours": (
            "--model {tiny} --data {corpus} --target-len 256k",
            "--model {tiny} --data {corpus} --target-len 256k --hours 0.01",
        ),
        "--allow-pickle": PICKLED,
        "--json": "--json",
    },
    "pack-data": {
        "sources": "{second}",
        "--tokenizer": "--tokenizer calf",
        "--window": "--window 64",
        "--out": "--out {out}elsewhere",
        "--rule": "--rule concat",
        "--overlap": "--overlap 8",
        "--drop-tail": ("--rule one", "--rule one --drop-tail"),
        "--min-piece": "--min-piece 100",
        "--min-doc-len": "--min-doc-len 500",
        "--bos": "--bos no",
        "--eos": "--eos no",
        "--mix": (
            "second={second} --mix docs=1 --mix second=1 --tokens 1000",
            "second={second} --mix docs=1 --mix second=9 --tokens 1000",
        ),
        "--upsample": ("--tokens 2000", "--tokens 2000 --upsample long"),
        "--short-mix": ("--tokens 2000", "--tokens 2000 --short-mix 0.2"),
        "--lookups": ("--window 1k", "--window 1k --lookups 0.3"),
        "--tokens": "--tokens 2000",
        "--epochs": ("--tokens 2000 --short-mix 0.5", "--tokens 2000 --short-mix 0.5 --epochs 2"),
        "--dedupe": ("{copy}", "{copy} --dedupe"),
        "--decontaminate": "--decontaminate {copy}",
        "--hold-out": "--hold-out 0.5",
        "--on-bad": ("{broken} --on-bad fail", "{broken} --on-bad skip"),
        "--text-field": ("--min-piece 1", "--min-piece 1 --text-field id"),
        "--max-doc-bytes": ("--on-bad skip", "--on-bad skip --max-doc-bytes 1kB"),
        "--backend": NoEffect(
            "giraffe_cli/config/pack.py",
            "auto: fastokens when it is installed and shown to give equal ids",
        ),
        "--workers": NoEffect(
            "giraffe_cli/cli/pack_data.py",
            "The same command on the same input writes the same bytes, whatever the number of "
            "workers",
        ),
        "--shard": "--shard 1/2",
        "--merge": ShownBy("test_shards.py::test_shard_and_merge_on_the_command_line"),
        "--executor": ShownBy(
            "test_executors.py::test_without_sbatch_the_scripts_are_there_and_the_command_is_told"
        ),
        "--tasks": ShownBy(
            "test_executors.py::test_without_sbatch_the_scripts_are_there_and_the_command_is_told"
        ),
        "--executor-set": ShownBy(
            "test_executors.py::test_the_slurm_scripts_say_what_was_set", "partition"
        ),
        "--report": "--report",
        "--seed": "--seed 1",
        "--json": "--json",
    },
    "eval": {
        "checkpoint": Whole(
            "{tiny} --data {corpus} --lengths 64", "{other} --data {corpus} --lengths 64"
        ),
        "--base": "--base {tiny}",
        "--suite": "--suite full",
        "--tasks": "--tasks nll",
        "--lengths": "--lengths 32",
        "--samples": "--samples 1",
        "--set": "--set nll.anchors=3",
        "--data": "--data {second}",
        "--haystack": "--haystack {second}",
        "--other-data": ("--tasks short", "--tasks short --other-data {second}"),
        "--file": ("--tasks nll,lambada", "--tasks nll,lambada --file lambada={rows}"),
        "--evaluator": "--tasks longppl --evaluator {tiny}",
        "--harness": "--harness ruler",
        "--chat": "--chat",
        "--documents": "--documents 2",
        "--gate": "--gate nll@64<9",
        "--threshold": "--threshold 0.5",
        "--processes": "--processes 2",
        "--seed": "--seed 1",
        "--dtype": "--dtype bfloat16",
        "--out": "--out {out}elsewhere",
        "--allow-pickle": PICKLED,
        "--schema": "--schema",
        "--json": "--json",
    },
    "generate": {
        "checkpoint": Whole(
            "{other} --prompt-file {prompt} --max-new-tokens 3",
            "{tiny} --prompt-file {prompt} --max-new-tokens 3",
        ),
        "--prompt-file": "--prompt-file {second_prompt}",
        "--document": ShownBy(f"{GENERATE}test_questions_are_asked_about_one_document"),
        "--question": ShownBy(f"{GENERATE}test_questions_are_asked_about_one_document"),
        "--chat": ShownBy(f"{GENERATE}test_what_cannot_be_is_refused"),
        "--max-new-tokens": "--max-new-tokens 2",
        "--stop": ShownBy(f"{GENERATE}test_a_stop_string_is_left_out"),
        "--temperature": "--temperature 9",
        "--top-k": ("--temperature 9", "--temperature 9 --top-k 1"),
        "--top-p": ("--temperature 9", "--temperature 9 --top-p 0.001"),
        "--seed": ("--temperature 9", "--temperature 9 --seed 1"),
        "--dtype": "--dtype bfloat16",
        "--kv-dtype": "--kv-dtype int8",
        "--allow-pickle": PICKLED,
        "--kv-offload": ShownBy(
            "test_generate_gpu.py::test_the_hosts_memory_changes_no_bit", "offload"
        ),
        "--json": ShownBy(f"{GENERATE}test_json_tells_the_same_and_how_it_went"),
    },
    "report": {
        "runs": ShownBy(COMPARED, "runs"),
        "--out": ShownBy(COMPARED),
        "--json": ShownBy(COMPARED),
    },
    "merge": {
        "run": ShownBy("test_cli_verify.py::test_merge_writes_the_model_of_a_run"),
        "--out": ShownBy("test_cli_verify.py::test_merge_elsewhere_says_what_to_do_next"),
        "--onto": ShownBy("test_merge_onto.py::test_the_command_says_what_it_moved"),
        "--json": ShownBy("test_cli_verify.py::test_merge_writes_the_model_of_a_run"),
    },
    "export": {
        "checkpoint": ShownBy(EXPORTED, 'run / "model"'),
        "--to": ShownBy("test_export_adapter.py::test_the_command_and_its_refusals"),
        "--dtype": ShownBy("test_cli_export.py::test_a_run_in_words"),
        "--out": ShownBy(EXPORTED),
        "--base-id": ShownBy(
            "test_export_adapter.py::test_the_base_is_named_as_others_know_it", "base_id"
        ),
        "--json": ShownBy(EXPORTED),
    },
    "verify": {
        "checkpoint": Whole("{tiny}", "{other}"),
        "--adapter": ("--base {tiny}", "--base {tiny} --adapter {other}"),
        "--base": "--base {tiny}",
        "--full": "--full",
        "--json": ShownBy("test_cli_verify.py::test_json_is_one_object_with_the_promised_keys"),
    },
    "doctor": {
        "checkpoint": ShownBy("test_cli_doctor.py::test_a_checkpoint_adds_its_serve_lines"),
        "--json": ShownBy("test_cli_doctor.py::test_json_names_versions_devices_memory_and_disk"),
    },
    "rope compare": {
        "--allow-pickle": PICKLED,
        "--target-len": "--target-len 1k",
        "names": "yarn",
        "--model": "--model calf --target-len 2k",
        "--data": "--data {second}",
        "--documents": "--documents 2",
        "--minutes": "--minutes 2",
        "--all": "--all",
        "--no-needles": "--no-needles",
        "--fitness": "--fitness needle-nll",
        "--set": ("yarn", "yarn --set yarn.beta_fast=64"),
        "--on-existing-rope": "--on-existing-rope compose",
        "--seed": "--seed 1",
        "--dtype": "--dtype bfloat16",
        "--out": "--out {out}elsewhere",
        "--json": "--json",
    },
    "rope search": {
        "--allow-pickle": PICKLED,
        "--target-len": "--target-len 1k",
        "--model": "--model calf --target-len 2k",
        "--data": "--data {second}",
        "--evaluations": "--evaluations 9",
        "--documents": "--documents 2",
        "--held-out": "--held-out 2",
        "--fitness": "--fitness needle-nll",
        "--on-existing-rope": "--on-existing-rope compose",
        "--seed": "--seed 1",
        "--dtype": "--dtype bfloat16",
        "--out": "--out {out}elsewhere",
        "--json": "--json",
    },
    "rope list": {"--json": "--json"},
    "rope show": {
        "--target-len": "--target-len 32k",
        "names": "ntk",
        "--model": "--model {tiny}",
        "--head-dim": "--head-dim 64",
        "--rope-theta": "--rope-theta 500000",
        "--original-len": "--original-len 2k",
        "--on-existing-rope": ("--model {scaled}", "--model {scaled} --on-existing-rope compose"),
        "--set": ("yarn", "yarn --set beta_fast=64"),
        "--plot": "--plot {out}shown.png",
        "--json": "--json",
    },
}  # fmt: skip


def commands():
    """Every command, as the application has it."""
    found = {}

    def walk(command, path):
        for name, below in getattr(command, "commands", {}).items():
            walk(below, [*path, name])
        if not hasattr(command, "commands"):
            found[" ".join(path)] = command

    walk(typer.main.get_command(make_app()), [])
    return found


def name_of(parameter):
    return max(parameter.opts, key=len)


def test_every_option_has_an_entry_and_every_entry_an_option():
    assert {name: sorted(entries) for name, entries in ENTRIES.items()} == {
        name: sorted(map(name_of, command.params)) for name, command in commands().items()
    }


OWN_WORDS = {
    *("--data", "--documents", "--dtype", "--gpus", "--model", "--out", "--seed", "--set"),
    *("--kv-offload", "--max-new-tokens", "--tasks", "--window", "--base", "checkpoint", "names"),
}
"""Options whose help says what they are of, which differs between commands."""


def test_one_name_is_one_idea_in_the_same_words():
    told = {}
    for command in commands().values():
        for parameter in command.params:
            told.setdefault(name_of(parameter), set()).add(parameter.help)
    assert {name for name, texts in told.items() if len(texts) > 1} == OWN_WORDS


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_help_is_written_alike(name):
    """Sentences; `Default: ...` last; what may be repeated says so; examples that can be typed."""
    command = commands()[name]
    assert "--json" in map(name_of, command.params)
    for parameter in command.params:
        assert parameter.help.endswith("."), parameter.help
        assert "default:" not in parameter.help, parameter.help
        assert "(default)" not in parameter.help, parameter.help
        if parameter.multiple:
            assert "repeatable" in parameter.help, parameter.help
    title, *lines = filter(None, command.epilog.splitlines())
    assert title == "Examples:"
    assert all(line.startswith(("giraffe ", "cat notes.txt | giraffe ", "--")) for line in lines)


@pytest.fixture(scope="module")
def places(tiny_llama, corpus, tmp_path_factory):
    """What `{name}` in a line stands for."""
    root = tmp_path_factory.mktemp("options")
    files = {
        "second": ("second.jsonl", [{"id": f"s-{n}", "text": prose(n + 50, 90)} for n in range(4)]),
        "copy": ("copy.jsonl", [{"id": "copy", "text": prose(1, 160)}]),
        "broken": ("broken.jsonl", [{"id": "whole", "text": prose(3, 9)}, {"id": "no text"}]),
        "rows": ("rows.jsonl", [{"text": prose(7, 5)}]),
        "factors": ("factors.json", [{"long_factor": [1.0] * 8, "attention_factor": 1.0}]),
        "config": ("run.yaml", [{"train": {"steps": 7}}]),
    }
    for name, (file, rows) in files.items():
        (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = root / file
    for name, index in (("prompt", 1), ("second_prompt", 2)):
        (root / name).write_text(prose(index, 4))
        files[name] = root / name
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    return {
        **files,
        "tiny": tiny_llama,
        "corpus": corpus,
        "other": build_other_llama(root / "other"),
        "scaled": build_tiny_llama(root / "scaled", rope_parameters=scaled),
        "root": root,
        "numbers": itertools.count(),
    }


def stub_tuning(*arguments, **wanted):
    """In the place of opening a checkpoint: a head, and evidence of three samples."""
    return SimpleNamespace(
        reader=plain([arguments, wanted]),
        head=Head(16, 10000.0, 128, 512),
        evidence=SimpleNamespace(count=3),
    )


@pytest.fixture
def observe(giraffe, places, monkeypatch):
    """What a command line does: its exit code, stdout, what it handed over, what it wrote."""
    handed = []

    def hand_over(*arguments, **named):
        handed.append(plain([arguments, named]))
        raise HandedOver

    for seam in (
        "giraffe_cli.pipeline.extend",
        "giraffe_cli.cli.extend._show_plan",
        "giraffe_cli.evals.runner.evaluate",
        "giraffe_cli.verify.verify_directory",
        "giraffe_cli.tune.compare.compare",
        "giraffe_cli.tune.search.search",
    ):
        monkeypatch.setattr(seam, hand_over)
    monkeypatch.setattr("giraffe_cli.cli.rope_compare.open_for_tuning", stub_tuning)
    monkeypatch.setattr("giraffe_cli.cli.rope_search.open_for_tuning", stub_tuning)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)

    def run(command, line):
        out = places["root"] / f"out-{next(places['numbers'])}-"
        line = line.format(**places, out=out)
        handed.clear()
        code, stdout = 0, ""
        try:
            done = giraffe(*command.split(), *shlex.split(line))
            code, stdout = done.code, done.stdout if done.code == 0 else done.stderr
        except HandedOver:
            pass
        written = sorted(places["root"].rglob("*"))
        files = {str(p): content(p) for p in written if p.is_file() and str(out) in str(p)}
        told = json.dumps([timeless(stdout), handed, files])
        return code, told.replace(str(out), "OUT")

    return run


def content(path):
    """Rows of a shard, other files but for their names and the manifest's digests."""
    if path.suffix == ".parquet":
        return str(pq.read_table(path).to_pydict())
    return path.read_text() if path.name == "stats.json" or path.suffix == ".yaml" else ""


def timeless(stdout):
    """An answer without what the clock decides."""
    try:
        value = json.loads(stdout)
    except ValueError:
        return stdout
    for answer in value.get("answers", []) if isinstance(value, dict) else []:
        for name in [name for name in answer if "second" in name]:
            del answer[name]
    return value


HERE = [
    (command, option, entry)
    for command, entries in ENTRIES.items()
    for option, entry in entries.items()
    if isinstance(entry, str | tuple | Whole)
]


def lines(command, entry):
    """The line without an option, and the line with it."""
    if isinstance(entry, Whole):
        return entry.without, entry.given
    without, given = ("", entry) if isinstance(entry, str) else entry
    return f"{BASES[command]} {without}", f"{BASES[command]} {given}"


@pytest.fixture(scope="module")
def seen():
    """Lines that were observed before."""
    return {}


@pytest.mark.parametrize(("command", "option", "entry"), HERE, ids=[f"{c} {o}" for c, o, _ in HERE])
def test_an_option_changes_what_happens(observe, seen, command, option, entry):
    without, given = lines(command, entry)
    if (command, without) not in seen:
        seen[command, without] = observe(command, without)
    code, told = observe(command, given)
    assert code == 0, told
    assert told != seen[command, without][1]


@pytest.mark.parametrize(
    ("option", "entry"),
    [
        pytest.param(option, entry, id=f"{command} {option}")
        for command, entries in ENTRIES.items()
        for option, entry in entries.items()
        if isinstance(entry, ShownBy | NoEffect)
    ],
)
def test_what_is_shown_elsewhere_still_is(option, entry):
    check_elsewhere(entry, option)


def test_the_same_line_does_the_same(observe):
    """Else every option would have an effect."""
    for command, line in BASES.items():
        first, second = observe(command, line), observe(command, line)
        assert first == second, command
        assert first[0] == 0, first
