"""The state file: whatever an optimiser keeps comes back, and nothing is held twice."""

from __future__ import annotations

import os
import resource

import pytest
import torch
from safetensors.torch import load_file

from giraffe_cli.train.checkpoints import (
    clear_leftovers,
    restore,
    save_checkpoint,
    saved_steps,
    sound_steps,
)
from giraffe_cli.train.state import TrainState
from giraffe_cli.train.state_file import DTYPES, read_tensors, write_tensors


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_every_type_comes_back_bit_by_bit(tmp_path, dtype):
    bits = torch.arange(48, dtype=torch.uint8)
    tensor = (bits % 2).bool() if dtype == torch.bool else bits.view(dtype)
    write_tensors(tmp_path / "a", {"x": tensor, "scalar": tensor[:1].reshape(())})
    found = dict(read_tensors(tmp_path / "a"))
    assert found["x"].dtype == found["scalar"].dtype == dtype
    assert found["scalar"].shape == ()
    assert torch.equal(found["x"].view(torch.uint8), tensor.view(torch.uint8))


def test_the_file_is_what_safetensors_reads_whatever_lies_beside_it(tmp_path):
    """An odd number of bytes comes last, so that floats stay aligned; transposed is no obstacle."""
    tensors = {
        "a": torch.arange(7, dtype=torch.uint8),
        "b": torch.randn(3, 5).t(),
        "c": torch.empty(0, dtype=torch.bfloat16),
        "d": torch.tensor(3.5, dtype=torch.float64),
    }
    write_tensors(tmp_path / "file", tensors)
    found = load_file(tmp_path / "file")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


class EightBits(torch.optim.Optimizer):
    """Keeps what bitsandbytes' 8-bit AdamW keeps: codes, tables, block maxima, a count, a flag."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            count = state.get("step", 0) + 1
            state.update(
                step=count,
                state1=torch.full(parameter.shape, count, dtype=torch.uint8),
                qmap1=torch.linspace(-1, 1, 256) * count,
                absmax1=torch.tensor([0.5 * count]),
                is_paged=False,
            )


def test_any_optimizer_state_is_saved_and_restored(tmp_path):
    def fresh():
        parameters = {"a": torch.zeros(3, requires_grad=True), "b": torch.ones(2).half()}
        return parameters, EightBits(list(parameters.values()))

    parameters, optimizer = fresh()
    optimizer.step()
    optimizer.step()
    state = TrainState(step=2, bad_in_a_row=["step 2: loss nan"], best_nll=1.5, best_step=1)
    save_checkpoint(tmp_path, state, parameters, optimizer, {"run": 1}, keep=2)
    again, empty = fresh()
    assert restore(tmp_path, 2, again, empty) == state
    for name, parameter in parameters.items():
        old, new = optimizer.state[parameter], empty.state[again[name]]
        assert set(old) == set(new)
        for key, value in old.items():
            assert type(value) is type(new[key])
            same = torch.equal(value, new[key]) if torch.is_tensor(value) else value == new[key]
            assert same, key
            assert not torch.is_tensor(value) or value.dtype == new[key].dtype


def test_an_optimizer_that_has_not_stepped_is_restored_as_such(tmp_path):
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    save_checkpoint(tmp_path, TrainState(step=1), {"w": weight}, optimizer, {}, keep=1)
    assert restore(tmp_path, 1, {"w": weight}, optimizer).step == 1
    weight.grad = torch.ones(2)
    optimizer.step()  # fails on a state that is there but empty of moments
    assert weight.tolist() != [0.0, 0.0]


def test_checkpoints_that_name_a_lost_best_are_leftovers_only_if_it_is_wanted(tmp_path):
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    for step, best in ((1, None), (2, 2), (3, 2)):
        state = TrainState(step=step, best_step=best)
        save_checkpoint(tmp_path, state, {"w": weight}, optimizer, {}, keep=9)
    (tmp_path / "step-2" / "state.safetensors").write_bytes(b"")
    sound = sound_steps(tmp_path, lambda step: [{}])
    assert sound == [3, 1]
    assert clear_leftovers(tmp_path, sound) == 1
    assert saved_steps(tmp_path) == [3, 1]
    sound = sound_steps(tmp_path, lambda step: [{}], keep_best=True)
    assert clear_leftovers(tmp_path, sound) == 1
    assert saved_steps(tmp_path) == [1]


def test_the_best_of_every_checkpoint_that_is_kept_is_kept(tmp_path):
    """The last step is measured out of turn and may be the best: a run that is lengthened goes on
    from the one before it, which knows another."""
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    for step, best in ((2, None), (3, 3), (4, 3), (5, 5)):
        state = TrainState(step=step, best_step=best)
        save_checkpoint(tmp_path, state, {"w": weight}, optimizer, {}, keep=2, keep_best=True)
    assert saved_steps(tmp_path) == [5, 4, 3]
    save_checkpoint(
        tmp_path, TrainState(step=6, best_step=5), {"w": weight}, optimizer, {}, 2, keep_best=True
    )
    assert saved_steps(tmp_path) == [6, 5]


def test_saving_and_restoring_hold_one_tensor_beside_the_state(tmp_path):
    """Twenty tensors of 8 MB: safetensors' own `save` would need 160 MB more."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            parameters = {f"p{n}": torch.full((2**21,), float(n)) for n in range(20)}
            optimizer = torch.optim.SGD(list(parameters.values()))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            save_checkpoint(tmp_path, TrainState(step=1), parameters, optimizer, {}, keep=1)
            restore(tmp_path, 1, parameters, optimizer)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(write_end, str(grown // 1024).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    grown_mb = int(os.read(read_end, 20))
    assert grown_mb < 40
