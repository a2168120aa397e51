"""The control run: same text and tokens, no length; and what the report makes of it."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file
from test_stages import staged

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.building import build
from giraffe_cli.control import control_config, control_stages, windows_per_step
from giraffe_cli.corpus.store import document_ids, held_out
from giraffe_cli.errors import InvalidInput
from giraffe_cli.pipeline import Options, extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdicts_loss import beyond_domain
from giraffe_cli.rundir import finish_stage
from giraffe_cli.training import training_stages

TRAIN = {
    "steps": 2,
    "checkpoint_every": 2,
    "warmup_steps": 1,
    "lora": {"rank": 4, "alpha": 8},
    "control": True,
}


@pytest.fixture(scope="module")
def run(tiny_llama, corpus, tmp_path_factory):
    """Native 128: full windows of 256, then windows of 64 of 512."""
    stages = [{"target_length": 256, "learning_rate": 3e-2}, {"target_length": 512, "window": 64}]
    evaluated = {"lengths": [128, 512], "tasks": ["nll"], "documents": 4}
    config = staged(
        tiny_llama,
        corpus,
        stages,
        train=TRAIN,
        eval={**evaluated, "knobs": {"nll": {"anchors": 2, "targets": 32}}},
    )
    run_dir = tmp_path_factory.mktemp("control") / "run"
    return config, run_dir, extend(config, run_dir, Options(), SilentReporter())


def test_the_control_reads_as_many_tokens_in_windows_the_base_knows(run, tiny_llama):
    config, run_dir, report = run
    stages = training_stages(config, inspect(str(tiny_llama), run_dir), run_dir)
    controls = control_stages(stages, inspect(str(tiny_llama), run_dir), run_dir)
    shapes = [(c.config.window, c.config.train.windows_per_step) for c in controls]
    assert shapes == [(128, 2), (64, 1)]
    assert {c.config.positions for c in controls} == {"plain"}
    assert [c.config.train.learning_rate for c in controls] == [3e-2, 2e-4]
    assert report["control"]["steps"] == report["steps"] == 4
    # four windows of 128 and two of 64; best fit leaves single windows a few tokens short
    assert report["control"]["trained_tokens"] == pytest.approx(4 * 128 + 2 * 64, rel=0.05)
    assert report["trained_tokens"] == pytest.approx(2 * 256 + 2 * 64, rel=0.05)


def test_windows_that_fit_are_the_runs_own(run):
    _, run_dir, _ = run
    control = run_dir / "control"
    assert (control / "stages" / "1-256" / "packed" / "rows-00000.parquet").exists()
    assert not (control / "packed").exists(), "windows of 64 are those of the run"
    held = {document.id for document in held_out(run_dir / "packed")}
    assert held
    for packed in run_dir.rglob("packed"):
        assert not held & document_ids(packed)


def test_the_control_keeps_the_bases_table_and_changes_its_weights(run, tiny_llama):
    _, run_dir, report = run
    assert report["control"]["model_dir"] == str(run_dir / "control" / "model")
    written = json.loads((run_dir / "control" / "model" / "config.json").read_text())
    assert written["max_position_embeddings"] == 128
    assert written["rope_parameters"]["rope_type"] == "default"
    assert "rope_scaling" not in written
    base, extended, control = (
        load_file(folder / "model.safetensors")
        for folder in (tiny_llama, run_dir / "model", run_dir / "control" / "model")
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (base[name] != control[name]).any()
    assert (extended[name] != control[name]).any()


def test_it_is_scored_within_its_window_alone(run):
    _, run_dir, report = run
    assert set(report["nll"]["control"]) == {"128"}
    assert set(report["nll"]["extended"]) == {"128", "512"}
    lines = (run_dir / "eval" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert {s["length"] for s in samples if s["subject"] == "control"} == {128}


def test_domain_and_length_add_up_to_the_gain(run):
    """Differences over the same targets, so their means add up to float rounding."""
    _, _, report = run
    paired = report["evaluation"]["paired"]["nll"]
    domain = paired["control_minus_base"]["128"]["mean"]
    length = paired["checkpoint_minus_native_control"]["512"]["mean"]
    gain = paired["checkpoint_minus_native_base"]["512"]["mean"]
    assert domain != 0
    assert gain == pytest.approx(domain + length, abs=1e-9)
    scores = report["nll"]
    assert gain == pytest.approx(
        scores["extended"]["512"]["mean"] - scores["base"]["128"]["mean"], abs=1e-9
    )
    here = scores["extended"]["128"]["mean"] - scores["control"]["128"]["mean"]
    assert paired["checkpoint_minus_control"]["128"]["mean"] == pytest.approx(here, abs=1e-9)
    assert set(paired["checkpoint_minus_control"]) == {"128"}


def test_page_card_and_console_show_it(run, giraffe, tiny_llama):
    _, run_dir, report = run
    assert "beyond the text" in beyond_domain(Scored.of_run(report)).claim
    page = (run_dir / "report.html").read_text()
    assert "extended − control" in page
    assert "without scaling, as many tokens; beyond that window it is not defined" in page
    assert "Stages of training" in page
    card = (run_dir / "model" / "README.md").read_text()
    assert "| loss control |" in card
    assert "to 256, then 512" in card


def test_the_same_command_again_redoes_nothing(run):
    config, run_dir, report = run
    stamps = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")}
    again = extend(config, run_dir, Options(), SilentReporter())
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")} == stamps
    assert again["nll"] == report["nll"]
    assert again["control"] == report["control"]


@pytest.mark.parametrize(
    ("window", "windows", "processes", "shorter", "expected"),
    [
        (2048, 1, (4, 4), 1024, 2),  # four processes share each window
        (2048, 2, (4, 2), 1024, 4),
        (16384, 1, None, 1024, 16),
        (2048, 4, None, 2048, 4),
        (20480, 1, None, 8192, 3),  # 2.5, half up
        (1500, 1, None, 1024, 1),
        (16384, 2, 2, 8192, 4),
        (2560, 2, 2, 1024, 6),  # 5 cannot be shared by two processes
    ],
)
def test_windows_per_step(window, windows, processes, shorter, expected):
    processes, share = processes if isinstance(processes, tuple) else (processes, 1)
    values = {
        "windows_per_step": windows,
        "processes": processes,
        "sequence_parallel": share,
    }
    config = build({"target_length": window, "train": values})
    assert windows_per_step(config.train, window, shorter) == expected


@pytest.mark.parametrize(
    ("begun", "is_over", "expected"),
    [
        (3, True, 3),  # by one process, and done
        (3, False, 4),  # cannot be shared by two processes
        (4, False, 4),
        (7, True, 4),  # of another run
        (None, False, 4),
    ],
)
def test_a_control_goes_on_with_the_windows_it_began_with(
    tiny_llama, corpus, tmp_path, begun, is_over, expected
):
    """2 windows of 192 are 3 of 128 or, for two processes, 4."""
    train = {**TRAIN, "window": 192, "windows_per_step": 2, "processes": 2}
    config = staged(tiny_llama, corpus, [512], train=train)
    checkpoint = inspect(str(tiny_llama), tmp_path)
    stages = training_stages(config, checkpoint, tmp_path)
    if begun:
        folder = tmp_path / "control" / ("adapter" if is_over else "checkpoints/step-1")
        folder.mkdir(parents=True)
        finish_stage(folder, {"train": {"windows_per_step": begun}})
    (control,) = control_stages(stages, checkpoint, tmp_path)
    assert control.config.train.windows_per_step == expected


@pytest.mark.parametrize(
    ("interval", "answer"),
    [((-0.3, -0.1), "yes"), ((-0.1, 0.1), "not shown"), ((0.1, 0.3), "no")],
)
def test_the_verdict_goes_by_the_bounds(interval, answer, run):
    low, high = interval
    score = {"mean": (low + high) / 2, "ci_low": low, "ci_high": high, "n": 8}
    report = json.loads(json.dumps(run[2]))
    report["evaluation"]["paired"]["nll"]["checkpoint_minus_native_control"]["512"] = score
    assert beyond_domain(Scored.of_run(report)).answer == answer


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (1.0, None),
        (1.04, None),
        (1.5, "trained on 1.5 times as many tokens, so what is told as domain may be too much."),
        (0.5, "trained on 0.5 times as many tokens, so what is told as domain may be too little."),
    ],
)
def test_a_control_of_other_tokens_is_told_as_that(times, words, run):
    """As where a run was ended before its last step, which its control is not."""
    report = json.loads(json.dumps(run[2]))
    report["control"]["trained_tokens"] = times * report["trained_tokens"]
    meaning = beyond_domain(Scored.of_run(report)).meaning
    assert meaning.endswith(words or "inside the native window.")


def test_a_control_of_no_step_or_beyond_reach_is_refused(tiny_llama, corpus, tmp_path):
    with pytest.raises(InvalidInput, match=r"train.control needs train.steps"):
        build({"target_length": 512, "train": {"steps": 0, "control": True}})
    config = staged(tiny_llama, corpus, [512], train={**TRAIN, "window": 64})
    beyond = config.model_copy(
        update={"eval": config.eval.model_copy(update={"lengths": [256, 512]})}
    )
    with pytest.raises(InvalidInput, match="scored up to 128, eval.lengths begins at 256"):
        extend(beyond, tmp_path / "run", Options(), SilentReporter())


def test_packed_windows_longer_than_native_cannot_be_cut_again(run, tiny_llama, tmp_path):
    _, run_dir, _ = run
    packed = run_dir / "stages" / "1-256" / "packed"
    config = staged(tiny_llama, packed, [256], train=TRAIN)
    with pytest.raises(InvalidInput, match="control run needs windows of 128"):
        control_config(config.stage_configs()[0], inspect(str(tiny_llama), tmp_path))
