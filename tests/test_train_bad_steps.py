"""Steps whose loss or gradient is no number: nothing moves, all are counted, many end a run."""

from __future__ import annotations

import math
import re
import signal
from dataclasses import replace

import pytest
from train_runs import (
    Hooked,
    adapter_bytes,
    build_material,
    checkpoints,
    metrics,
    run,
    state_of,
    timeless,
)

from giraffe_cli.errors import GiraffeError, Interrupted
from giraffe_cli.rundir import digest_file
from giraffe_cli.train import step as step_module
from giraffe_cli.train.objective import CrossEntropy

WHOLE = CrossEntropy.of_window


def spoil_loss(told):
    return replace(told, minimised=told.minimised * math.nan, nats=told.nats * math.nan)


def spoil_gradient(told):
    """The loss stays a number, its gradient is infinite."""
    told.minimised.register_hook(lambda gradient: gradient * math.inf)
    return told


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


@pytest.fixture
def spoiled(monkeypatch):
    """`spoiled(windows, how)`: windows of the run, by number, whose loss or gradient is spoilt.
    Returns the documents of each window that was trained on."""

    def spoil(windows, how=spoil_loss):
        seeds, documents = {}, {}

        def of_window(self, model, window, device):
            number = seeds.get(window.dropout_seed)
            found = WHOLE(self, model, window, device)
            return how(found) if number in windows else found

        monkeypatch.setattr(CrossEntropy, "of_window", of_window)
        original = step_module.train_step

        def train_step(a_run, rate):
            first = a_run.state.step * 2
            for number in (first, first + 1):
                window = a_run.stream.build(number)
                seeds[window.dropout_seed], documents[number] = number, {*window.doc_ids}
            return original(a_run, rate)

        monkeypatch.setattr("giraffe_cli.train.loop.train_step", train_step)
        return documents

    return spoil


@pytest.mark.parametrize("how", [spoil_loss, spoil_gradient])
def test_a_bad_step_moves_neither_weights_nor_moments_and_the_data_move_on(
    material, spoiled, tmp_path, how
):
    spoiled({5}, how)  # the second window of step 3
    reporter = Hooked(lambda step: step == 3 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="after step 3"):
        run(material, tmp_path, reporter, checkpoint_every=1)
    files = [tmp_path / "checkpoints" / f"step-{n}" / "state.safetensors" for n in (2, 3)]
    assert digest_file(files[0]) == digest_file(files[1])
    before, after = state_of(tmp_path, 2), state_of(tmp_path, 3)
    assert after["row"] + 1000 * after["epoch"] == before["row"] + 1000 * before["epoch"] + 2
    assert after["bad_steps"] == len(after["bad_in_a_row"]) == 1
    assert after["trained_tokens"] == before["trained_tokens"]
    line = metrics(tmp_path)[2]
    assert line["skipped"] is True
    assert line["grad_norm"] is None
    assert (line["loss"] is None) == (how is spoil_loss)
    assert "skipped" not in metrics(tmp_path)[1]


def test_the_warning_names_the_documents_of_the_bad_window(material, spoiled, tmp_path):
    documents = spoiled({5})
    reporter = Hooked()
    result = run(material, tmp_path, reporter)
    told = [line for line in reporter.warnings if "skipped step 3: loss nan" in line]
    assert len(told) == 1
    assert {*re.findall("`(.+?)`", told[0])} == documents[5] != documents[4]
    assert result.bad_steps == 1
    assert result.steps == 5
    assert state_of(tmp_path, 5)["bad_in_a_row"] == []
    assert all(math.isfinite(m["loss"]) for m in metrics(tmp_path) if m["step"] != 3)


def test_more_than_enough_in_a_row_end_the_run_and_name_all_documents(material, spoiled, tmp_path):
    spoiled({4, 6, 8})  # steps 3, 4 and 5
    with pytest.raises(GiraffeError, match="3 steps in a row") as failure:
        run(material, tmp_path, max_bad_steps=2, steps=9)
    for step in (3, 4, 5):
        assert f"step {step}: loss nan" in failure.value.message
    assert failure.value.message.count("from documents `") == 3
    assert "the checkpoint of step 2 stands" in failure.value.message
    assert checkpoints(tmp_path) == {"step-2"}
    assert "train.learning_rate" in failure.value.hint


def test_good_steps_between_begin_the_count_anew(material, spoiled, tmp_path):
    spoiled({2, 4, 8})  # steps 2, 3 and 5
    result = run(material, tmp_path, max_bad_steps=2, steps=6)
    assert result.bad_steps == 3
    assert [m["step"] for m in metrics(tmp_path) if m.get("skipped")] == [2, 3, 5]


@pytest.mark.parametrize("crash_at", [2, 3, 4])
def test_a_crash_among_bad_steps_changes_no_byte_and_no_count(
    material, spoiled, tmp_path, crash_at
):
    spoiled({2, 4})
    undisturbed = run(material, tmp_path / "whole")

    def crash(step):
        if step == crash_at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(material, tmp_path / "cut", Hooked(crash))
    resumed = run(material, tmp_path / "cut")
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert resumed.bad_steps == undisturbed.bad_steps == 2


def test_a_row_of_bad_steps_is_counted_across_a_signal(material, spoiled, tmp_path):
    spoiled({4, 6, 8})
    reporter = Hooked(lambda step: step == 4 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(material, tmp_path, reporter, max_bad_steps=2, steps=9)
    with pytest.raises(GiraffeError, match="3 steps in a row") as failure:
        run(material, tmp_path, max_bad_steps=2, steps=9)
    assert "step 3: loss nan" in failure.value.message
    assert "the checkpoint of step 2 stands" in failure.value.message


@pytest.mark.slow
def test_two_processes_agree_that_steps_are_bad(material, tmp_path):
    """A rate that blows the weights up: every later loss is no number, in either process."""
    with pytest.raises(GiraffeError, match="2 steps in a row"):
        run(material, tmp_path, processes=2, learning_rate=1e30, max_bad_steps=1)
    assert [m["step"] for m in metrics(tmp_path) if m.get("skipped")] == [2, 3]
