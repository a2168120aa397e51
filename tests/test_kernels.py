"""Attention kernels against float32 by the definition, and how one is chosen."""

from __future__ import annotations

import pytest
import torch

from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.cudnn import LONG, _long, _part, _short, lengthened
from giraffe_cli.model.kernel_base import AbstractKernel, Documents
from giraffe_cli.model.kernels import KERNELS
from giraffe_cli.model.probe import AttentionShape, Probed, _error, probe, repeatable, settle

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


def test_documents_are_bounds_on_the_device():
    assert Documents.of((7,), CPU) is None
    several = Documents.of((3, 4, 1), CPU)
    assert several.cu_seqlens.tolist() == [0, 3, 7, 8]
    assert several.cu_seqlens.dtype == torch.int32
    assert (several.longest, several.lengths) == (4, (3, 4, 1))


def test_long_documents_take_one_of_eight_lengths_an_octave():
    assert [lengthened(n) for n in (2048, 2049, 2304, 4095, 4097, 9000)] == [
        *(2048, 2304, 2304, 4096, 4608, 9216)
    ]
    every = {lengthened(n) for n in range(LONG, 65536)}
    assert len(every) == 8 * 5 + 1
    for n in range(LONG, 20000, 7):
        assert n <= lengthened(n) <= n * 1.125 + 1
    lengths = (700, 2100, 300, 5000)
    assert _long(lengths) == [(700, 2100, 2304), (3100, 5000, 5120)]
    short, places = _short(Documents.of(lengths, CPU), CPU)
    assert short.cu_seqlens.tolist() == [0, 700, 1000]
    assert places.tolist() == [*range(700), *range(2800, 3100)]
    assert _short(Documents.of((2100, 5000), CPU), CPU) == (None, None)


def test_what_stands_behind_a_document_changes_nothing():
    """The argument `model/cudnn.py` rests on, shown on a CPU: zeros behind, no gradient there."""
    kernel = KERNELS["cpu"]()
    query, key, value, grad = (torch.randn(1, h, 40, 16) for h in (4, 2, 2, 4))
    out, sums = kernel.forward(query, key, value, None, None)
    expected = kernel.backward(grad, query, key, value, out, sums, None, None)
    longer = [_part(tensor, 0, 40, 56) for tensor in (query, key, value)]
    out_, sums_ = kernel.forward(*longer, None, None)
    torch.testing.assert_close(out_[:, :, :40], out)
    known = [_part(tensor, 0, 40, 56) for tensor in (grad, query, key, value, out, sums[..., None])]
    found = kernel.backward(*known[:5], known[5][..., 0], None, None)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[:, :, :40], theirs)
        assert mine[:, :, 40:].abs().max() == 0


FOUND = [Probed("cudnn", 500.0), Probed("flash", 300.0), Probed("efficient", obstacle="too wide")]


def test_auto_takes_the_fastest_and_tells_all():
    kernels, told = settle("auto", FOUND)
    assert type(kernels.one) is KERNELS["cudnn"]
    assert type(kernels.several) is KERNELS["cudnn"]
    assert told == ("cudnn 500 TFLOP/s, flash 300 TFLOP/s; taken: cudnn; not efficient: too wide")
    slow = [Probed("efficient", 600.0), *FOUND[:2]]
    kernels, told = settle("auto", slow)
    assert type(kernels.one) is KERNELS["efficient"]
    assert type(kernels.several) is KERNELS["cudnn"], "it tells documents apart in one call"
    assert "taken: efficient, cudnn where a window has several documents" in told


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
        *("flash", "cudnn")
    }
    assert all(issubclass(kernel, AbstractKernel) for kernel in KERNELS.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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


class ShortOnCpu:
    """FlashAttention-2's part of `CudnnKernel`, document by document on a CPU."""

    cpu = KERNELS["cpu"]()

    def forward(self, query, key, value, scale, documents):
        kept = [
            self.cpu.forward(*parts, scale, None)
            for parts in self.cut(documents, query, key, value)
        ]
        return torch.cat([out for out, _ in kept], 2), torch.cat([s for _, s in kept], 2)[0]

    def backward(self, grad, query, key, value, out, log_sum, scale, documents):
        pieces = self.cut(documents, grad, query, key, value, out, log_sum[None])
        grads = [self.cpu.backward(*parts, scale, None) for parts in pieces]
        return tuple(torch.cat(parts, 2) for parts in zip(*grads, strict=True))

    def cut(self, documents, *tensors):
        split = (torch.split(tensor, documents.lengths, 2) for tensor in tensors)
        return zip(*split, strict=True)


@pytest.mark.parametrize("lengths", [(150, 2100, 106, 2500, 70), (2304, 2048), (300, 20)])
def test_long_and_short_documents_are_each_their_own(lengths, monkeypatch):
    """`CudnnKernel` with a CPU's attention in place of both GPU kernels, against each document."""
    cpu = KERNELS["cpu"]()

    def forward(query, key, value, scale):
        assert query.shape[2] == lengthened(query.shape[2]), "a shape that is prepared for"
        out, sums = cpu.forward(query, key, value, scale, None)
        return out, sums[..., None]

    def backward(grad, query, key, value, out, sums, scale):
        return cpu.backward(grad, query, key, value, out, sums[..., 0], scale, None)

    monkeypatch.setattr("giraffe_cli.model.cudnn._forward", forward)
    monkeypatch.setattr("giraffe_cli.model.cudnn._backward", backward)
    kernel = KERNELS["cudnn"]()
    kernel.flash = ShortOnCpu()
    torch.manual_seed(0)
    query, key, value, grad = (
        torch.randn(1, sum(lengths), heads, 16).transpose(1, 2) for heads in (4, 2, 2, 4)
    )
    documents = Documents.of(lengths, CPU)
    out, sums = kernel.forward(query, key, value, None, documents)
    found = out, *kernel.backward(grad, query, key, value, out, sums, None, documents)
    start = 0
    for length in lengths:
        here = (slice(None), slice(None), slice(start, start + length))
        parts = query[here], key[here], value[here]
        alone, alone_sums = cpu.forward(*parts, None, None)
        grads = cpu.backward(grad[here], *parts, alone, alone_sums, None, None)
        for mine, theirs in zip(found, (alone, *grads), strict=True):
            torch.testing.assert_close(mine[here], theirs, atol=1e-5, rtol=0)
        start += length
