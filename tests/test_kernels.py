"""Attention kernels against float32 by the definition, and how one is chosen."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Inputs
from giraffe_cli.model.kernels import KERNELS
from giraffe_cli.model.probe import (
    AttentionShape,
    Probed,
    _error,
    _random,
    _reference,
    agreed,
    probe,
    repeatable,
    settle,
)
from giraffe_cli.model.tails import CpuTails

SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=16)
CPU = torch.device("cpu")


def test_the_check_passes_a_right_kernel_and_stops_wrong_ones():
    class Halved(KERNELS["cpu"]):
        def forward(self, *given):
            out, log_sum = super().forward(*given)
            return out / 2, log_sum

    class LosesKeyGradient(KERNELS["cpu"]):
        def backward(self, *given):
            query, key, value = super().backward(*given)
            return query, torch.zeros_like(key), value

    assert _error(KERNELS["cpu"](), SHAPE, torch.float32, CPU) < 1e-6
    assert _error(Halved(), SHAPE, torch.float32, CPU) == pytest.approx(0.5, abs=1e-3)
    assert _error(LosesKeyGradient(), SHAPE, torch.float32, CPU) == pytest.approx(1.0)


def test_the_reference_holds_the_scores_of_one_key_head_at_a_time():
    """Of all heads they are 4 GB for Llama 8B, beside weights that the device may just hold."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                self.numbers = max(self.numbers, found.numel())
            return found

    lengths = (50, 30)
    inputs = _random(SHAPE, sum(lengths), CPU)
    with Largest() as largest:
        _reference(inputs, lengths)
    assert largest.numbers == 2 * sum(lengths) ** 2, "two of four heads share a key head"


def one_token(device, dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(1, heads, 1, 64, generator=generator).to(device, dtype)
        for heads in (4, 2, 2, 4)
    )
    return Inputs(query, key, value), grad


def attends_to_itself(kernel, given, grad):
    """A token alone gets its value, whose gradient is that of all heads that share it."""
    out, log_sum = kernel.forward(given)
    query_grad, key_grad, value_grad = kernel.backward(given, out, log_sum, grad)
    assert torch.equal(out, given.value.repeat_interleave(2, 1))
    assert float(query_grad.abs().max()) < 1e-2  # rounding
    assert float(key_grad.abs().max()) < 1e-2
    shared = grad.float().unflatten(1, (2, 2)).sum(2)
    torch.testing.assert_close(value_grad.float(), shared, atol=0.05, rtol=0.01)  # bfloat16's


def test_cudnn_leaves_a_document_of_one_token_to_another_kernel(monkeypatch):
    """cuDNN: "s_q = s_kv = 1 is not supported", in the middle of a training that asked for it."""
    monkeypatch.setattr("giraffe_cli.model.cudnn.FlashKernel", KERNELS["cpu"])
    attends_to_itself(KERNELS["cudnn"](), *one_token("cpu", torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_a_token_alone_attends_to_itself(name):
    attends_to_itself(KERNELS[name](), *one_token("cuda", torch.bfloat16))


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_tails_are_the_last_queries_of_documents_with_all_their_keys(dtype, allowed):
    """Against queries for every key, of which the first 100 have no effect; bfloat16: 5e-3."""
    assert _error(CpuTails(), SHAPE, dtype, CPU, past=100) < allowed
    assert _error(CpuTails(), SHAPE, dtype, CPU) < allowed

    class UpperLeft(CpuTails):
        def forward(self, given):
            few = given.documents.lengths[0]
            kept = [*range(few), *range(few + 100, given.key.shape[2])]
            cut = Documents.tiling(given.documents.lengths, CPU)
            key, value = given.key[:, :, kept], given.value[:, :, kept]
            return super().forward(Inputs(given.query, key, value, None, cut))

    assert _error(UpperLeft(), SHAPE, dtype, CPU, past=100) > 0.1


def test_processes_go_by_the_slowest_measurement_and_any_obstacle():
    mine = [Probed("cudnn", 500.0), Probed("flash", 400.0), Probed("efficient", 100.0)]
    other = [Probed("flash", 450.0), Probed("cudnn", 390.0), Probed("efficient", obstacle="wide")]
    together = agreed([mine, other])
    assert [(one.name, one.teraflops) for one in together] == [
        ("flash", 400.0),
        ("cudnn", 390.0),
        ("efficient", 0.0),
    ]
    assert together[2].obstacle == "wide"
    assert agreed([other, mine]) == together


def test_documents_are_bounds_on_the_device():
    assert Documents.of((7,), CPU) is None
    several = Documents.of((3, 4, 1), CPU)
    assert several.cu_seqlens.tolist() == [0, 3, 7, 8]
    assert several.cu_seqlens.dtype == torch.int32
    assert (several.longest, several.lengths) == (4, (3, 4, 1))


FOUND = [Probed("cudnn", 500.0), Probed("flash", 300.0), Probed("efficient", obstacle="too wide")]


def test_auto_takes_the_fastest_and_tells_all():
    kernels, told = settle("auto", FOUND)
    assert type(kernels.one) is KERNELS["cudnn"]
    assert type(kernels.several) is KERNELS["flash"], "cuDNN's takes no documents"
    assert told == (
        "cudnn 500 TFLOP/s, flash 300 TFLOP/s; taken: cudnn, flash where a window has several "
        "documents; not efficient: too wide"
    )


def test_what_is_asked_for_is_taken():
    for name in ("cudnn", "flash"):  # train.attention_kernel
        kernels, _told = settle(name, FOUND)
        assert type(kernels.one) is KERNELS[name]
    with pytest.raises(InvalidInput, match="efficient: too wide") as failure:
        settle("efficient", FOUND)
    assert "attention_kernel=auto" in failure.value.hint


def test_a_training_that_repeats_itself_asks_no_clock():
    twice = [[Probed("cudnn", 500.0), Probed("flash", speed), Probed("efficient", 200.0)]
             for speed in (300.0, 100.0)]  # fmt: skip
    for found in twice:
        kernels, told = settle("auto", repeatable(found))
        assert type(kernels.one) is type(kernels.several) is KERNELS["flash"]
        assert "not cudnn: its backward pass adds in any order" in told
    with pytest.raises(InvalidInput, match="cudnn: its backward pass adds in any order"):
        settle("cudnn", repeatable(FOUND))


def test_a_kernel_that_is_asked_for_attends_to_several_documents_too():
    slow = [*FOUND[:2], Probed("efficient", 90.0)]
    kernels, told = settle("efficient", slow)
    assert type(kernels.one) is type(kernels.several) is KERNELS["efficient"]
    assert "taken: efficient" in told


def test_without_a_kernel_for_documents_they_are_attended_one_by_one():
    kernels, told = settle("auto", [Probed("efficient", 90.0), Probed("flash", obstacle="no")])
    assert type(kernels.several) is KERNELS["efficient"]
    assert "several" not in told


def test_every_kernel_says_whether_it_takes_documents():
    assert {name for name, kernel in KERNELS.items() if kernel.takes_documents} == {
        "flash",
        "flash4",
    }
    assert all(issubclass(kernel, AbstractKernel) for kernel in KERNELS.values())


def test_a_kernel_of_another_package_is_measured_where_it_is_asked_for(monkeypatch):
    """Not by `auto`; and where the package is missing, the refusal names it."""
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    names = {one.name for one in probe(SHAPE, torch.bfloat16, 64, CPU)}
    assert names == {"cudnn", "flash", "efficient"}
    probed = probe(SHAPE, torch.bfloat16, 64, CPU, "flash4")
    assert {one.name for one in probed} == {*names, "flash4"}
    with pytest.raises(InvalidInput, match="flash-attn-4 is not installed here"):
        settle("flash4", probed)


def test_flash4_calls_its_package_by_its_own_names(monkeypatch):
    """Rows of tokens, documents' bounds with those of their keys, scale and order; what comes back
    is put heads first."""
    heard = {}

    def forward(query, key, value, **settings):
        heard["forward"] = settings
        return query + 0, torch.zeros(query.shape[1], query.shape[0]), None, None, None

    def backward(query, key, value, out, grad, log_sum, **settings):
        heard["backward"] = settings
        return query + 1, key + 2, value + 3

    interface = SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    for name, module in (("", SimpleNamespace()), (".cute", SimpleNamespace()),
                         (".cute.interface", interface)):  # fmt: skip
        monkeypatch.setitem(sys.modules, f"flash_attn{name}", module)
    query, key = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 18, 16)
    given = Inputs(query, key, key, 0.5, Documents.tiling((5, 3), CPU, 10))
    out, log_sum = KERNELS["flash4"]().forward(given)
    assert torch.equal(out, query)
    assert log_sum.shape == (4, 8)
    grads = KERNELS["flash4"]().backward(given, out, log_sum, out)
    for found, expected in zip(grads, (query + 1, key + 2, key + 3), strict=True):
        assert torch.equal(found, expected)
    assert heard["forward"].pop("return_lse")
    for told in heard.values():
        assert told.pop("cu_seqlens_q").tolist() == [0, 5, 8]
        assert told.pop("cu_seqlens_k").tolist() == [0, 15, 18]
        assert told == {
            "softmax_scale": 0.5, "causal": True, "max_seqlen_q": 5, "max_seqlen_k": 15
        }  # fmt: skip
    one, _ = KERNELS["flash4"]().forward(Inputs(query, query, query))
    assert one.shape == query.shape
    assert heard["forward"] == {"softmax_scale": None, "causal": True, "return_lse": True}


@pytest.mark.parametrize("lengths", [(8,), (5, 3)])
@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient"])
def test_operators_of_gpus_take_what_they_are_given_and_return_its_shapes(name, lengths):
    """On torch's device without memory, which checks arguments and computes shapes."""
    meta, kernel = torch.device("meta"), KERNELS[name]()
    past = 10 if kernel.takes_documents else 0
    query, key = (
        torch.empty(1, heads, tokens, 16, device=meta, dtype=torch.bfloat16)
        for heads, tokens in ((4, 8), (2, 8 + past))
    )
    documents = Documents.tiling(lengths, meta, past) if kernel.takes_documents else None
    given = Inputs(query, key, key, None, documents)
    out, log_sum = kernel.forward(given)
    grads = kernel.backward(given, out, log_sum, out)
    assert [tuple(part.shape) for part in (out, *grads)] == [
        tuple(part.shape) for part in (query, query, key, key)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [AttentionShape(32, 8, 128), AttentionShape(9, 3, 64), SHAPE])
def test_a_gpu_attends_with_a_checked_kernel(shape, dtype, record_property):
    """Relative error of output and gradients at most 1e-2 in bfloat16 (`probe` refuses more)."""
    device = torch.device("cuda")
    probed = {one.name: one for one in probe(shape, dtype, 2048, device)}
    record_property("probed", str(probed))
    usable = {name for name, one in probed.items() if one.obstacle is None}
    expected = {"flash", "cudnn", "efficient"} if dtype == torch.bfloat16 else {"efficient"}
    assert expected <= usable, probed
    settle("auto", list(probed.values()))
    if dtype == torch.bfloat16 and importlib.util.find_spec("flash_attn"):
        for of_tails in (False, True):
            (flash4,) = [
                one
                for one in probe(shape, dtype, 2048, device, "flash4", of_tails)
                if one.name == "flash4"
            ]
            assert flash4.obstacle is None, flash4
    if dtype == torch.bfloat16:
        of_tails = {one.name: one for one in probe(shape, dtype, 2048, device, of_tails=True)}
        assert of_tails["flash"].obstacle is None, of_tails
        assert "as many keys" in of_tails["cudnn"].obstacle
