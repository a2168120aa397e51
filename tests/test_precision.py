"""What is computed in where nobody says: on a CPU without units for bfloat16, float32."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import build_tiny_llama
from safetensors import safe_open
from test_pipeline import settings
from transformers import LlamaForCausalLM

from giraffe_cli.model import precision
from giraffe_cli.model.precision import computed_in, cpu_multiplies_bfloat16
from giraffe_cli.pipeline import Options, extend
from giraffe_cli.plan.machine import named_machine, this_machine
from giraffe_cli.progress import SilentReporter

NLL_ALONE = {"tasks": ["nll"], "lengths": [128], "knobs": {"nll": {"anchors": 1, "targets": 32}}}


@pytest.fixture
def cpu(monkeypatch):
    """`cpu(has_bfloat16=False)`: this machine has no GPU and such a CPU."""

    def be(*, has_bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: has_bfloat16)

    return be


@pytest.fixture(scope="module")
def llama_in_bfloat16(tmp_path_factory):
    folder = build_tiny_llama(tmp_path_factory.mktemp("bf16") / "tiny")
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("requested", "stored", "has_bfloat16", "chosen", "lines", "warnings"),
    [
        ("auto", "bfloat16", True, "bfloat16", 0, 0),
        ("auto", "float16", True, "bfloat16", 0, 0),
        ("auto", "float32", True, "float32", 0, 0),
        ("auto", "bfloat16", False, "float32", 1, 0),
        ("auto", "float16", False, "float32", 1, 0),
        ("auto", "float32", False, "float32", 0, 0),
        ("bfloat16", "bfloat16", False, "bfloat16", 0, 1),
        ("float32", "bfloat16", False, "float32", 0, 0),
    ],
)
def test_what_is_computed_in_and_what_is_told(
    cpu, requested, stored, has_bfloat16, chosen, lines, warnings
):
    cpu(has_bfloat16=has_bfloat16)
    reporter = SilentReporter()
    assert computed_in(requested, stored, reporter) == chosen
    assert (len(reporter.lines), len(reporter.warnings)) == (lines, warnings)
    assert all("no units for bfloat16" in told for told in reporter.lines + reporter.warnings)


def test_onednn_is_asked_and_a_torch_without_it_has_none(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda answer=answer: answer
        )
        assert cpu_multiplies_bfloat16() is answer
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert cpu_multiplies_bfloat16() is False


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ([(8, 0), (9, 0)], "bfloat16"),
        ([(7, 5)], "float32"),
        ([(8, 6), (7, 0)], "float32"),
    ],
)
def test_with_gpus_they_decide_whatever_the_cpu(monkeypatch, capabilities, chosen):
    """A Turing or Volta has no units for it, and processes on several GPUs compute alike."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    for cpu_has in (True, False):
        monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda has=cpu_has: has)
        assert computed_in("auto", "bfloat16") == chosen


def test_machines_say_whether_they_have_it(cpu):
    """The CPU that may be named has AVX2 alone, as its speeds say."""
    assert named_machine("h100").has_bfloat16
    assert not named_machine("cpu").has_bfloat16
    for has_bfloat16 in (True, False):
        cpu(has_bfloat16=has_bfloat16)
        assert this_machine().has_bfloat16 is has_bfloat16


def test_a_plan_for_a_gpu_computes_in_bfloat16_though_it_is_made_without_one(
    cpu, giraffe, llama_in_bfloat16
):
    cpu(has_bfloat16=False)
    asked = ("plan", "--model", llama_in_bfloat16, "--target-len", "256", "--json")
    found = {
        device: json.loads(giraffe(*asked, *named).stdout)["stages"][0]["estimate"]["dtype"]
        for device, named in {
            "a GPU": ("--device", "h100"),
            "a CPU": ("--device", "cpu"),
            "here": (),
        }.items()
    }
    assert found == {"a GPU": "bfloat16", "a CPU": "float32", "here": "float32"}


def test_a_run_computes_in_float32_and_writes_what_was_stored(
    cpu, llama_in_bfloat16, corpus, tmp_path
):
    cpu(has_bfloat16=False)
    reporter = SilentReporter()
    config = settings(llama_in_bfloat16, corpus, eval=NLL_ALONE)
    report = extend(config, tmp_path / "run", Options(), reporter)
    assert report["dtype"] == "float32"
    assert report["evaluation"]["models"]["base"]["dtype"] == "float32"
    assert sum("computing in float32" in line for line in reporter.lines) == 1
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", "pt") as stored:
        assert stored.get_tensor("model.norm.weight").dtype == torch.bfloat16


def test_a_run_that_began_elsewhere_goes_on_in_what_it_began_with(
    cpu, llama_in_bfloat16, corpus, tmp_path
):
    run, config = tmp_path / "run", settings(llama_in_bfloat16, corpus, eval=NLL_ALONE)
    cpu(has_bfloat16=True)
    assert extend(config, run, Options(evaluate=False), SilentReporter())["dtype"] == "bfloat16"
    trained = (run / "metrics.jsonl").read_bytes()
    cpu(has_bfloat16=False)
    reporter = SilentReporter()
    assert extend(config, run, Options(), reporter)["dtype"] == "bfloat16"
    assert (run / "metrics.jsonl").read_bytes() == trained
    assert any("no units for bfloat16" in told for told in reporter.warnings)


def test_an_evaluator_is_computed_in_what_suits_its_own_weights(
    cpu, llama_in_bfloat16, tiny_llama, corpus, tmp_path
):
    """The base is stored in bfloat16, the evaluator in float32."""
    cpu(has_bfloat16=True)
    knobs = {"longppl": {"anchors": 1, "targets": 16, "alpha": 1e-4, "beta": 9.0}}
    asked = {"tasks": ["longppl"], "lengths": [128, 512], "knobs": knobs}
    config = settings(
        llama_in_bfloat16,
        corpus,
        train={"steps": 0},
        eval={**asked, "evaluator": str(tiny_llama)},
    )
    results = extend(config, tmp_path / "run", Options(), SilentReporter())["evaluation"]
    assert results["models"]["base"]["dtype"] == "bfloat16"
    assert results["settings"]["reference"]["dtype"] == "float32"
