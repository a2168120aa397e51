"""`giraffe plan` tells what `giraffe extend` would refuse, and plans for no GPUs that are not."""

from __future__ import annotations

import json

import pytest

from giraffe_cli.corpus.packed_facts import attention_share

SMOL = ("plan", "--shape", "smollm2-135m", "--target-len", "16k", "--window", "2k")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("--set", "train.lora.targets=[q_prj]"),
            "`q_prj` is no linear layer that LoRA takes; did",
        ),
        (("--set", "rope.strategy=foo"), "foo"),
        (("--set", "train.positions=foo"), "foo"),
        (("--gpus", "2", "--sequence-parallel", "2"), "9 attention heads cannot be shared by 2"),
    ],
)
def test_what_extend_would_refuse_is_a_warning(giraffe, options, told):
    done = giraffe(*SMOL, "--device", "h100", *options)
    assert done.code == 0, done.stderr
    assert "warning: giraffe extend would refuse this: " in done.stderr
    assert told in done.stderr


@pytest.mark.parametrize(
    ("options", "told", "hint"),
    [
        (
            ("--sequence-parallel", "8"),
            "8 processes need as many GPUs, the plan is for 1",
            "--gpus 8",
        ),
        (
            ("--set", "train.processes=4", "--set", "train.windows_per_step=4"),
            "4 processes need as many GPUs, the plan is for 1",
            "--gpus 4",
        ),
        (
            ("--gpus", "4", "--set", "train.processes=3", "--set", "train.windows_per_step=2"),
            "2 windows per step cannot be shared by 3 processes",
            "train.windows_per_step=3",
        ),
    ],
)
def test_processes_without_gpus_are_refused(giraffe, options, told, hint):
    done = giraffe(
        "plan", "--shape", "llama3-8b", "--target-len", "1m", "--device", "h100", *options
    )
    assert done.code == 2, done.stderr
    assert told in done.stderr
    assert hint in done.stderr


def test_gpus_that_idle_are_counted_over_all_nodes(giraffe):
    options = ("--set", "train.nodes=2", "--set", "train.windows_per_step=8", "--gpus", "8")
    done = giraffe("plan", "--shape", "llama3-8b", "--target-len", "16k", *options)
    assert "training on 8 of 16 GPUs" in done.stderr
    assert "train.windows_per_step=16 uses 16" in done.stderr


def test_nothing_trained_needs_no_memory(giraffe, tiny_llama, corpus, tmp_path):
    shape = ("--shape", "llama3-8b", "--device", "h100")
    done = giraffe("plan", *shape, "--target-len", "1m", "--steps", "0")
    assert done.code == 0, done.stderr
    assert "nothing is trained" in done.stdout
    tiny = ("--model", tiny_llama, "--target-len", "1k", "--steps", "0", "--json")
    (stage,) = json.loads(giraffe("plan", *tiny).stdout)["stages"]  # and no trial step
    assert stage["estimate"]["pace"]["is_measured"] is False
    options = ("--data", corpus, "--target-len", "64m", "--rope", "yarn", "--no-eval")
    done = giraffe("extend", "--model", tiny_llama, *options, "--steps", "0", "--dry-run")
    assert done.code == 0, done.stderr
    done = giraffe("extend", "--model", tiny_llama, *options, "--steps", "1", "--dry-run")
    assert done.code == 4


class TestHostMemory:
    ASKED = ("plan", "--shape", "llama3-8b", "--target-len", "384k", "--device", "h100", "--json")

    def pinned(self, giraffe, *options):
        done = giraffe(*self.ASKED, *options)
        assert done.code == 0, done.stderr
        estimate = json.loads(done.stdout)["stages"][0]["estimate"]
        return estimate["pinned_bytes"], estimate["levers"]["offload"], estimate["machine"]

    def test_what_a_machine_pins_is_that_of_all_its_processes(self, giraffe):
        one, offload, _ = self.pinned(giraffe)
        eight = ("--gpus", "8", "--set", "train.windows_per_step=8")
        assert offload == "host"
        assert self.pinned(giraffe, *eight)[0] == 8 * one
        done = giraffe(*self.ASKED[:-1])
        assert f"host memory pinned on each machine: {one / 1e9:.1f} GB" in done.stdout

    def test_less_of_it_pins_less(self, giraffe):
        pinned, _, machine = self.pinned(giraffe, "--host-memory", "150GB")
        assert 0 < pinned <= 0.8 * 150e9
        assert machine["host_bytes"] == 150 * 10**9

    def test_of_a_cpu_it_is_refused(self, giraffe):
        done = giraffe(*SMOL, "--device", "cpu", "--host-memory", "64GB")
        assert done.code == 2
        assert "--host-memory of a CPU, whose memory it is" in done.stderr


def test_float32_is_not_timed_as_bfloat16(giraffe):
    """67 of 989 TFLOP/s."""
    seconds = []
    for dtype in ("bfloat16", "float32"):
        done = giraffe(*SMOL, "--device", "h100", "--dtype", dtype, "--json")
        seconds.append(json.loads(done.stdout)["stages"][0]["estimate"]["seconds_per_step"])
    assert seconds[1] == pytest.approx(seconds[0] * 989 / 67, rel=0.2)  # levers may differ


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        # beyond the base's 8k, 8k is no extension
        (("--target-len", "16k", "--device-memory", "12GB"), None),
        # a window that is given would be longer than that target
        (("--target-len", "256k", "--window", "256k", "--device-memory", "24GB"), None),
        (("--target-len", "256k", "--device-memory", "24GB"), "choose a shorter target, such as"),
    ],
)
def test_a_shorter_target_is_named_where_it_fits_and_extends(giraffe, options, hint):
    done = giraffe("plan", "--shape", "llama3-8b", "--device", "rtx4090", *options)
    assert done.code == 4
    assert ("choose a shorter target" in done.stderr) is bool(hint)
    assert (hint or "choose a smaller model") in done.stderr


def test_packed_windows_tell_what_they_attend_to(giraffe, tiny_llama, corpus, tmp_path):
    packed, longer = tmp_path / "packed", tmp_path / "longer"
    for out, window in ((packed, "512"), (longer, "1k")):
        done = giraffe(
            *("pack-data", corpus, "--tokenizer", tiny_llama, "--window", window, "--out", out)
        )
        assert done.code == 0, done.stderr
    options = ("plan", "--model", tiny_llama, "--target-len", "512", "--device", "h100")
    whole = json.loads(giraffe(*options, "--json").stdout)["stages"][0]["estimate"]
    given = json.loads(giraffe(*options, "--data", packed, "--json").stdout)
    estimate, share = given["stages"][0]["estimate"], attention_share(packed)
    assert (whole["attention_share"], estimate["attention_share"]) == (1.0, share)
    assert 0 < share < 1
    assert estimate["flops_per_step"] < whole["flops_per_step"]
    assert given["refusals"] == []
    shown = giraffe(*options, "--data", packed).stdout
    assert f"documents attend to {share:.1%} of what whole windows would" in shown
    together = giraffe(*options, "--data", packed, "--set", "train.across_documents=true")
    assert "documents attend to" not in together.stdout
    # the run's own plan knows them too
    dry = giraffe("extend", *options[1:-2], "--data", packed, "--rope", "yarn", "--dry-run")
    assert f"documents attend to {share:.1%}" in dry.stdout
    # and what they cannot be trained on is told, of a tokenizer where there is one
    other = giraffe(*options, "--data", longer)
    assert "would refuse this: " in other.stderr
    assert "holds windows of 1024 tokens, 512 were asked for: pass --window 1024" in other.stderr
    shape = ("plan", "--shape", "smollm2-135m", "--target-len", "16k", "--device", "h100")
    assert "extend would refuse" not in giraffe(*shape, "--window", "512", "--data", packed).stderr
    of_calf = giraffe(*options[:1], "--model", "calf", *options[3:], "--data", packed).stderr
    assert "was packed with another tokenizer than calf has: run giraffe pack-data" in of_calf


def test_a_corpus_is_no_part_of_a_plan(giraffe, corpus):
    done = giraffe(*SMOL, "--data", corpus)
    assert done.code == 2
    assert f"--data {corpus}: a plan reads packed windows alone" in done.stderr
    assert "hint: leave it out" in done.stderr


def test_a_table_that_cannot_be_is_told_with_what_to_do(giraffe):
    options = ("plan", "--shape", "llama3.1-8b", "--target-len", "256k", "--device", "h200")
    done = giraffe(*options)
    assert "is already scaled" in done.stderr
    assert "--on-existing-rope" in done.stderr
    assert "would refuse" not in giraffe(*options, "--on-existing-rope", "compose").stderr
