"""The whole path on a tiny model: what is written, what resumes, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import build_tiny_llama, prose
from safetensors.numpy import load_file

from giraffe_cli.checkpoint import inspect
from giraffe_cli.claim import claim
from giraffe_cli.config.building import build, resolve_dtype
from giraffe_cli.corpus.packed_facts import num_rows
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.samples import default_lengths
from giraffe_cli.pipeline import Options, evaluate_models, extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.facts_training import training_rows
from giraffe_cli.stages import Timings, check_sources, verified
from giraffe_cli.verify_files import check

TARGET = 512


def settings(model, data, **changes):
    values = {
        "model": str(model),
        "data": [str(data)],
        "target_length": TARGET,
        "rope": {"strategy": "yarn"},
        "pack": {"hold_out": 0.3},
        "train": {
            "steps": 3,
            "window": 128,
            "checkpoint_every": 2,
            "warmup_steps": 1,
            "lora": {"rank": 4, "alpha": 8},
        },
        "eval": {
            "lengths": [128, TARGET],
            "knobs": {"nll": {"anchors": 2, "targets": 32}, "passkey": {"depths": 2, "trials": 1}},
        },
    }
    return build({**values, **changes})


@pytest.fixture(scope="module")
def finished(tiny_llama, corpus, tmp_path_factory):
    """One complete run, shared by the tests that only look at it."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    reporter = SilentReporter()
    report = extend(settings(tiny_llama, corpus), run_dir, Options(), reporter)
    return run_dir, report, reporter


def test_the_run_folder_holds_what_the_design_promises(finished):
    run_dir, _, _ = finished
    for name in (
        "run.yaml plan.json rope.json packed/manifest.json packed/stats.json metrics.jsonl "
        "adapter/manifest.json adapter/rope.json model/manifest.json model/config.json "
        "model/model.safetensors model/rope.json model/README.md eval/results.json "
        "eval/samples.jsonl report.json report.html"
    ).split():
        assert (run_dir / name).is_file(), name
    assert not list(run_dir.rglob("*.partial"))


def test_the_report_keeps_every_promised_key(finished):
    run_dir, report, _ = finished
    for key in (
        "run_dir model_dir strategy native_length target_length steps trained_tokens seconds "
        "peak_memory_bytes verify nll passkey short_context gates"
    ).split():
        assert key in report, key
    written = json.loads((run_dir / "report.json").read_text())
    assert written.pop("verdicts")
    assert written.pop("giraffe_seal")
    assert written == json.loads(json.dumps(report))
    assert report["native_length"] == 128
    assert report["strategy"] == "yarn"
    assert report["verify"]["ok"] is True
    assert set(report["nll"]) == set(report["passkey"]) == {"base", "extended"}
    for side in ("base", "extended"):
        assert set(report["nll"][side]) == {"128", "512"}
        score = report["nll"][side]["512"]
        assert score["ci_low"] <= score["mean"] <= score["ci_high"]
        assert score["n"] > 0
    assert set(report["short_context"]["delta_nll"]) >= {"mean", "ci_low", "ci_high", "n"}
    assert {"pack", "train", "merge", "verify", "eval", "total"} <= set(report["seconds"])


def test_passes_over_the_windows_are_told_and_too_many_warned_of(
    finished, tiny_llama, corpus, tmp_path
):
    run_dir, report, first = finished
    windows = num_rows(run_dir / "packed")
    assert report["stages"][0]["passes"] == 3 / windows < 1
    assert any(f"{windows} windows in" in line for line in first.lines)
    assert not [line for line in first.warnings if "passes over the same text" in line]
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"text": prose(1, 20)}) + "\n")
    reporter = SilentReporter()
    train = {"steps": 10, "window": 256, "windows_per_step": 2, "warmup_steps": 1}
    config = settings(tiny_llama, few, pack={"hold_out": 0}, train=train)
    again = extend(config, tmp_path / "run", Options(evaluate=False), reporter)
    windows = num_rows(tmp_path / "run" / "packed")
    assert again["stages"][0]["passes"] == 20 / windows
    told = f"{windows} window{'s' * (windows > 1)} make {20 / windows:.3g} passes"
    (warned,) = [line for line in reporter.warnings if "passes over the same text" in line]
    assert warned.startswith(told)
    assert warned.endswith(f"or at most {4 * windows // 2} --steps")
    assert dict(training_rows(again))["passes over the windows"] == f"{20 / windows:.3g}"


def test_training_changes_weights_and_nothing_else_in_the_layout(finished, tiny_llama):
    run_dir, report, _ = finished
    before, after = (load_file(d / "model.safetensors") for d in (tiny_llama, run_dir / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert len(changed) == 2 * 7, "two layers of seven adapted projections"
    assert report["trained_tokens"] > 0


def test_the_same_command_again_redoes_nothing(finished, tiny_llama, corpus):
    run_dir, report, _ = finished
    stamps = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")}
    again = extend(settings(tiny_llama, corpus), run_dir, Options(), SilentReporter())
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")} == stamps
    assert again["nll"] == report["nll"]
    assert again["seconds"]["train"] == report["seconds"]["train"]


def test_another_config_in_the_same_folder_is_refused_by_key(finished, tiny_llama, corpus):
    run_dir, _, _ = finished
    changed = settings(tiny_llama, corpus, seed=7, rope={"strategy": "ntk"})
    with pytest.raises(InvalidInput, match=r"different: rope.strategy, seed") as caught:
        extend(changed, run_dir, Options(), SilentReporter())
    assert "--out" in caught.value.hint


def test_zero_steps_write_the_base_weights_under_the_new_table(tiny_llama, corpus, tmp_path):
    config = settings(tiny_llama, corpus, train={"steps": 0, "window": 128})
    report = extend(config, tmp_path / "zero", Options(evaluate=False), SilentReporter())
    before, after = (
        load_file(d / "model.safetensors") for d in (tiny_llama, tmp_path / "zero" / "model")
    )
    assert all((before[name] == after[name]).all() for name in before)
    assert report["steps"] == 0
    assert report["verify"]["ok"]
    written = json.loads((tmp_path / "zero" / "model" / "config.json").read_text())
    assert written["max_position_embeddings"] == TARGET
    assert written["rope_parameters"]["rope_type"] == written["rope_scaling"]["rope_type"] == "yarn"


def test_a_packed_directory_is_taken_and_a_foreign_one_refused(
    finished, tiny_llama, corpus, tmp_path
):
    packed = tmp_path / "packed"
    shutil.copytree(finished[0] / "packed", packed)
    config = settings(tiny_llama, packed, pack={"hold_out": 0.3, "lookups": 0.2})
    reporter = SilentReporter()
    report = extend(config, tmp_path / "a", Options(evaluate=False), reporter)
    late = f"pack.lookups without effect: {packed} is packed already, with lookups none"
    assert [line for line in reporter.warnings if "packed already" in line] == [late]
    assert report["steps"] == 3
    mixed = build({**config.model_dump(), "data": [str(packed), "more.jsonl"]})
    with pytest.raises(InvalidInput, match="mixes the packed directory .*packed with other"):
        check_sources(mixed, inspect(str(tiny_llama), tmp_path))
    check_sources(mixed, None)  # whose tokenizer is not known
    longer = settings(tiny_llama, packed, train={"steps": 3, "window": 256})
    with pytest.raises(InvalidInput, match="windows of 128 tokens, 256 were asked for"):
        extend(longer, tmp_path / "b", Options(), SilentReporter())
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_llama, foreign)
    text = (foreign / "tokenizer.json").read_text(encoding="utf-8")
    (foreign / "tokenizer.json").write_text(text.replace("</s>", "</t>"), encoding="utf-8")
    with pytest.raises(InvalidInput, match="another tokenizer"):
        extend(settings(foreign, packed), tmp_path / "c", Options(), SilentReporter())


def test_a_base_that_reaches_the_target_is_refused_or_allowed(tiny_llama, corpus, tmp_path):
    config = settings(tiny_llama, corpus, target_length=128)
    with pytest.raises(InvalidInput, match="already reaches 128 tokens, the target is 128"):
        extend(config, tmp_path / "run", Options(), SilentReporter())
    answer = extend(config, tmp_path / "run", Options(allow_native=True), SilentReporter())
    assert answer["native_length"] == 128
    assert not (tmp_path / "run").exists()


def test_held_out_documents_too_short_are_refused_before_training(tiny_llama, tmp_path):
    data = tmp_path / "short.jsonl"
    lines = [json.dumps({"id": f"d{i}", "text": prose(i, 4)}) for i in range(20)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="documents has 512 tokens"):
        extend(settings(tiny_llama, data), tmp_path / "run", Options(), SilentReporter())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_lengths_grow_fourfold_from_native_to_target():
    assert default_lengths(128, 700) == [128, 512, 700]
    assert default_lengths(128, 512) == [128, 512]


def test_a_misspelt_task_is_refused_before_training(tiny_llama, corpus, tmp_path):
    config = settings(tiny_llama, corpus, eval={"tasks": ["nll", "passkeys"]})
    with pytest.raises(InvalidInput, match="unknown evaluation task `passkeys`"):
        extend(config, tmp_path / "run", Options(), SilentReporter())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_evaluator_of_the_config_chooses_the_tokens_of_longppl(
    tiny_llama, corpus, tmp_path_factory, tmp_path
):
    evaluator = build_tiny_llama(tmp_path_factory.mktemp("evaluator"), num_hidden_layers=1)
    knobs = {"longppl": {"anchors": 1, "targets": 16, "alpha": 1e-4, "beta": 9.0}}
    asked = {"tasks": ["longppl"], "lengths": [128, TARGET], "knobs": knobs}
    config = settings(tiny_llama, corpus, train={"steps": 0},
                      eval={**asked, "evaluator": str(evaluator)})  # fmt: skip
    extend(config, tmp_path / "run", Options(), SilentReporter())
    results = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())
    assert results["settings"]["reference"]["subject"] == "evaluator"
    assert results["settings"]["reference"]["sha256"] != results["models"]["base"]["sha256"]
    assert [*results["models"]] == ["base", "checkpoint"]


def test_an_evaluator_that_is_none_is_refused_before_training(tiny_llama, corpus, tmp_path):
    asked = {"tasks": ["longppl"], "evaluator": str(tmp_path / "absent")}
    with pytest.raises(InvalidInput, match="absent"):
        extend(settings(tiny_llama, corpus, eval=asked), tmp_path / "run", Options(),
               SilentReporter())  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_refused_input_leaves_no_folder_that_would_refuse_its_mended_form(tiny_llama, tmp_path):
    data = tmp_path / "docs.jsonl"
    data.write_text('{"id": "a", "text": "cut off', encoding="utf-8")
    with pytest.raises(InvalidInput, match="docs.jsonl:1"):
        extend(settings(tiny_llama, data), tmp_path / "run", Options(), SilentReporter())
    assert not (tmp_path / "run").exists()


def test_auto_computes_in_the_stored_width():
    assert resolve_dtype("auto", "float32") == "float32"
    assert resolve_dtype("auto", "float16") == resolve_dtype("auto", "bfloat16") == "bfloat16"
    assert resolve_dtype("float32", "bfloat16") == "float32"


def test_claim_needs_a_folder(tiny_llama, corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="is not a directory"):
        claim(settings(tiny_llama, corpus), tmp_path / "file")


def test_a_model_that_is_not_what_was_trained_is_an_error_and_no_proof(
    tiny_llama, tmp_path, monkeypatch
):
    """The proof is kept for the very model and base that it is of."""
    wrong = {"checks": {"dtype": check(True, 3, 3), "inv_freq": check(False, 1, 2)}}
    right = {"checks": {"inv_freq": check(True, 2, 2)}}
    proofs = [wrong, right, wrong]
    monkeypatch.setattr("giraffe_cli.stages.verify_directory", lambda *_, **__: proofs.pop(0))
    model = tmp_path / "model"
    model.mkdir()
    (model / "manifest.json").write_text("{}")
    given = (inspect(str(tiny_llama), tmp_path), None, None, model, SilentReporter())
    said = r"model is not what was trained\n  - inv_freq: found 1, expected 2$"
    with pytest.raises(GiraffeError, match=said):
        verified(*given)
    assert [verified(*given), verified(*given)] == [right, right]
    assert proofs == [wrong]
    (model / "manifest.json").write_text('{"another": 1}')
    with pytest.raises(GiraffeError, match=said):
        verified(*given)
    proofs.append({"checks": {"finite_logits": check(False, "not finite in far", "finite")}})
    with pytest.raises(GiraffeError, match="as after a training that diverged") as caught:
        verified(*given)
    assert "lower train.learning_rate" in caught.value.hint


def test_several_runs_may_share_the_folder_of_scored_samples(
    tiny_llama, corpus, tmp_path, monkeypatch
):
    taken = {}
    monkeypatch.setattr("giraffe_cli.pipeline.evaluate", lambda *_, **named: taken.update(named))
    for cache in (None, str(tmp_path / "shared")):
        work = SimpleNamespace(
            config=settings(tiny_llama, corpus, eval={"cache": cache}),
            checkpoint=inspect(str(tiny_llama), tmp_path),
            start=SimpleNamespace(evaluation=None),
            run_dir=tmp_path / "run",
            lengths=[128],
            native_length=128,
            timings=Timings(tmp_path / "timings.json"),
            reporter=SilentReporter(),
        )
        evaluate_models(work, {}, None)
        assert taken["cache"] == Path(cache or tmp_path / "run" / "eval" / "cache")
