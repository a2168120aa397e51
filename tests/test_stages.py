"""Progressive stages: one adapter goes on through rising targets, and every kill resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import prose
from safetensors.numpy import load_file
from test_pipeline import settings
from test_resume import forked

from giraffe_cli.checkpoint import inspect
from giraffe_cli.claim import claim
from giraffe_cli.config.building import build
from giraffe_cli.corpus.holdout import rank
from giraffe_cli.corpus.store import document_ids, held_out
from giraffe_cli.errors import InvalidInput
from giraffe_cli.pipeline import Options, extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import digest_file, read_json
from giraffe_cli.stages import Timings
from giraffe_cli.training import pack_stages, train_stages, training_stages

TRAIN = {
    "steps": 3,
    "window": 128,
    "checkpoint_every": 2,
    "warmup_steps": 1,
    "lora": {"rank": 4, "alpha": 8},
}
BLIND = Options(evaluate=False)


def staged(model, data, stages, **changes):
    values = {
        "model": str(model),
        "data": [str(data)],
        "pack": {"hold_out": 0.3},
        "train": TRAIN,
        "stages": stages,
        "eval": {
            "tasks": ["nll"],
            "lengths": [128],
            "knobs": {"nll": {"anchors": 1, "targets": 32}},
        },
    }
    return build({**values, **changes})


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def run(tiny_llama, corpus, tmp_path_factory):
    """128 → 256 with a higher rate, then 512 with a rate too small to move a float32."""
    run_dir = tmp_path_factory.mktemp("staged") / "run"
    stages = [{"target_length": 256, "steps": 4}, {"target_length": 512, "learning_rate": 1e-30}]
    config = staged(tiny_llama, corpus, stages)
    return run_dir, extend(config, run_dir, Options(), SilentReporter())


def test_the_last_stage_lies_where_a_run_of_one_stage_does(run):
    run_dir, _ = run
    stage = run_dir / "stages" / "1-256"
    for folder in (run_dir, stage):
        for name in "rope.json metrics.jsonl training.json adapter/manifest.json".split():
            assert (folder / name).is_file(), folder / name
    tables = [read_json(folder / "rope.json") for folder in (stage, run_dir)]
    assert [table["target_length"] for table in tables] == [256, 512]
    assert [table["original_max_position_embeddings"] for table in tables] == [128, 128]


def test_a_stage_starts_from_the_weights_the_stage_before_ended_with(run):
    run_dir, _ = run
    first, last = adapter_of(run_dir / "stages" / "1-256"), adapter_of(run_dir)
    assert any(np.abs(first[name]).max() > 0 for name in first if "lora_B" in name), "it trained"
    for name in first:
        np.testing.assert_array_equal(first[name], last[name], err_msg=name)


def test_equal_windows_are_packed_once_and_longer_ones_apart(run, tiny_llama, corpus, tmp_path):
    run_dir, _ = run
    assert not (run_dir / "stages" / "1-256" / "packed").exists()
    stages = [{"target_length": 256, "window": 64}, {"target_length": 384, "window": 64}, 512]
    config = staged(tiny_llama, corpus, stages, train={**TRAIN, "steps": 1})
    extend(config, tmp_path / "run", BLIND, SilentReporter())
    packed = sorted(p.parent.relative_to(tmp_path / "run") for p in tmp_path.rglob("stats.json"))
    assert [str(path) for path in packed] == ["packed", "stages/1-256/packed"]


def test_the_report_tells_of_every_stage(run):
    run_dir, report = run
    assert [(s["target_length"], s["steps"]) for s in report["stages"]] == [(256, 4), (512, 3)]
    assert report["steps"] == 7
    assert report["trained_tokens"] == sum(s["trained_tokens"] for s in report["stages"])
    assert all(s["seconds"] > 0 and s["final_loss"] > 0 for s in report["stages"])
    plan = read_json(run_dir / "plan.json")
    assert [(s["target_length"], s["steps"]) for s in plan["stages"]] == [(256, 4), (512, 3)]
    assert (plan["steps"], plan["target_length"]) == (7, 512)


def test_the_same_command_again_redoes_no_stage(run, tiny_llama, corpus):
    run_dir, report = run
    stamps = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")}
    stages = [{"target_length": 256, "steps": 4}, {"target_length": 512, "learning_rate": 1e-30}]
    again = extend(staged(tiny_llama, corpus, stages), run_dir, Options(), SilentReporter())
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")} == stamps
    assert again["stages"] == report["stages"]


def test_one_stage_in_the_list_is_the_run_without_a_list(tiny_llama, corpus, tmp_path):
    plain = settings(tiny_llama, corpus)
    listed = build({**plain.model_dump(exclude={"target_length", "stages"}), "stages": [512]})
    for name, config in (("plain", plain), ("listed", listed)):
        extend(config, tmp_path / name, BLIND, SilentReporter())
    files = ["adapter_model.safetensors", "manifest.json"]
    digests = [
        [digest_file(tmp_path / n / "adapter" / f) for f in files] for n in ("plain", "listed")
    ]
    assert digests[0] == digests[1]
    assert not (tmp_path / "listed" / "stages").exists()
    assert not (tmp_path / "listed" / "weights.safetensors").exists()


def test_a_document_that_an_earlier_stage_trains_on_is_not_evaluated(tiny_llama, tmp_path):
    """Two documents, the lower hash held out; beside a third of a hash yet lower both train."""
    texts = {f"doc-{i}": prose(i, 60) for i in range(3)}
    lowest, middle, highest = sorted(texts, key=rank)
    for name, ids in (("all", [lowest, middle, highest]), ("two", [middle, highest])):
        lines = [json.dumps({"id": i, "text": texts[i]}) + "\n" for i in ids]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    stages = [{"target_length": 256, "data": [str(tmp_path / "all.jsonl")]}, 512]
    config = staged(
        tiny_llama,
        tmp_path / "two.jsonl",
        stages,
        pack={"hold_out": 1e-9},
        train={**TRAIN, "steps": 1},
    )
    with pytest.raises(InvalidInput, match="every document of the evaluation") as caught:
        extend(config, tmp_path / "run", Options(), SilentReporter())
    assert "--eval-data" in caught.value.hint
    run_dir = tmp_path / "blind"
    extend(config, run_dir, BLIND, SilentReporter())
    assert [d.id for d in held_out(run_dir / "packed")] == [middle]
    assert document_ids(run_dir / "stages" / "1-256" / "packed") == {middle, highest}


@pytest.mark.parametrize(
    ("stages", "changes", "said"),
    [
        ([512, 256], {}, r"targets must rise, found \[512, 256\]"),
        ([256, 512], {"target_length": 1024}, "stages end at 512, target_length is 1024"),
        ([{"target_length": 256, "window": 512}, 512], {}, "stages.0.window 512 is longer"),
        ([{"target_length": 256, "windw": 64}, 512], {}, "unknown key `stages.0.windw`"),
        ([256, 512], {"train": {"steps": 0}}, "a stage of 0 steps trains nothing"),
        (
            [{"target_length": 256, "steps": 2}, {"target_length": 512, "steps": 2}],
            {"train": {"steps": 0}},
            "stages: they train, and train.steps is 0; leave one of them out",
        ),
        ([256, {"steps": 3}], {}, "`stages.1.target_length` is required"),
        (
            [{"target_length": 256, "knobs": {"beta_fast": 16}}, 512],
            {"rope": {"strategy": "auto"}},
            "stages: knobs beside rope.strategy auto, which finds them itself",
        ),
    ],
)
def test_stages_that_make_no_run_are_refused(stages, changes, said, tiny_llama, corpus):
    with pytest.raises(InvalidInput, match=said):
        staged(tiny_llama, corpus, stages, **changes)


def test_a_stage_within_the_native_window_is_refused(tiny_llama, corpus, tmp_path):
    with pytest.raises(InvalidInput, match="already reaches 128 tokens, the target is 128"):
        extend(staged(tiny_llama, corpus, [128, 512]), tmp_path / "r", BLIND, SilentReporter())


def test_what_a_stage_leaves_out_is_the_runs_own(tiny_llama, corpus):
    config = staged(
        tiny_llama,
        corpus,
        ["256", {"target_length": 512, "strategy": "ntk", "schedule": "constant", "window": 512}],
        rope={"strategy": "yarn", "knobs": {"beta_fast": 16}},
        train={**TRAIN, "window": 300, "schedule": "wsd", "decay_steps": 2},
    )
    first, last = config.stage_configs()
    assert (first.window, first.positions, first.rope.knobs) == (256, "plain", {"beta_fast": 16})
    assert (first.train.schedule, first.train.decay_steps) == ("wsd", 2)
    assert (last.window, last.rope.strategy, last.rope.knobs) == (512, "ntk", {})
    assert (last.train.schedule, last.train.decay_steps) == ("constant", None)


def test_windows_that_a_stage_cannot_train_on_are_refused_before_the_first(
    tiny_llama, corpus, tmp_path
):
    """Nothing is held out to measure on; LongCE has documents of 60 tokens and compares 100."""
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"text": prose(i, 8)}) + "\n" for i in range(24)))
    measured = {**TRAIN, "held_out_every": 1}
    weighed = {**TRAIN, "loss": "longce", "short_context": 100}
    for name, data, train, changes, said in (
        ("blind", corpus, measured, {"pack": {"hold_out": 0}}, "held_out_every measures on"),
        ("weighed", short, weighed, {}, "more than 100 tokens of their own document before"),
    ):
        config = staged(tiny_llama, data, ["256", "512"], train=train, **changes)
        with pytest.raises(InvalidInput, match=said):
            extend(config, tmp_path / name, BLIND, SilentReporter())
        assert not list((tmp_path / name).rglob("levers.json"))
    mended = staged(tiny_llama, short, ["256", "512"], train={**TRAIN, "steps": 1})
    extend(mended, tmp_path / "weighed", BLIND, SilentReporter())


def test_a_corpus_that_changed_after_training_is_refused(tiny_llama, corpus, tmp_path):
    """Its windows would be packed anew, and all that was trained on the others removed."""
    data = tmp_path / "docs.jsonl"
    data.write_bytes(corpus.read_bytes())
    config = staged(tiny_llama, data, [], target_length="256", train={**TRAIN, "steps": 1})
    extend(config, tmp_path / "run", BLIND, SilentReporter())
    before = adapter_of(tmp_path / "run")
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:12]))
    with pytest.raises(InvalidInput, match="windows of other inputs; different: sources") as caught:
        extend(config, tmp_path / "run", BLIND, SilentReporter())
    assert "put back what changed" in (caught.value.hint or "")
    after = adapter_of(tmp_path / "run")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    data.write_text("".join(lines))
    extend(config, tmp_path / "run", BLIND, SilentReporter())


# ── killed ───────────────────────────────────────────────────────────────────────────────────


def story(config, run_dir):
    """pack → train, all stages: what decides the adapter."""
    reporter = SilentReporter()
    checkpoint = inspect(config.model, run_dir)
    claim(config, run_dir)
    stages = training_stages(config, checkpoint, run_dir)
    packed = pack_stages(stages, checkpoint, reporter)
    timings = Timings.kept(run_dir / "timings.json")
    train_stages(stages, packed, checkpoint, timings, reporter)


def result(run_dir):
    return {
        str(path.relative_to(run_dir)): digest_file(path)
        for folder in ("packed", "adapter", "stages/1-256/packed", "stages/1-256/adapter")
        for path in sorted((run_dir / folder).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def killable(tiny_llama, corpus, tmp_path_factory):
    """A config of two stages with windows of their own, its files, and its number of writes."""
    train = {**TRAIN, "steps": 2, "window": None, "lora": {"rank": 4, "dropout": 0.1}}
    config = staged(tiny_llama, corpus, [256, 512], train=train)
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    killed, calls = forked(lambda: story(config, run_dir))
    assert not killed
    expected = result(run_dir)
    assert {"adapter/manifest.json", "stages/1-256/packed/manifest.json"} <= set(expected)
    return config, expected, calls


def resumes(killable, run_dir, kill_at):
    config, expected, _ = killable
    assert forked(lambda: story(config, run_dir), kill_at=kill_at)[0]
    forked(lambda: story(config, run_dir))
    assert result(run_dir) == expected, f"killed at write {kill_at}"
    assert not list(run_dir.rglob("*.partial"))


def test_killed_at_some_writes(killable, tmp_path):
    calls = killable[2]
    for kill_at in range(5, calls + 1, calls // 6):
        resumes(killable, tmp_path / str(kill_at), kill_at)


@pytest.mark.slow
def test_killed_at_every_write(killable, tmp_path):
    for kill_at in range(1, killable[2] + 1):
        resumes(killable, tmp_path / str(kill_at), kill_at)
