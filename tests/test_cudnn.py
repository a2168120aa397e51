"""What cuDNN is given: one layout for all that its prepared backward pass is looked up by.

torch keeps a backward pass under the strides of query, key and value, and makes it for the strides
of the output and of its gradient that it saw first.
"""

from __future__ import annotations

import pytest
import torch
from test_stack import CLOSE, CPU, EXACT, trained, window
from test_stack import base as base  # the fixture
from torch import Tensor

from giraffe_cli.model.cudnn import CudnnKernel, like
from giraffe_cli.model.kernel_base import Inputs
from giraffe_cli.model.kernels import CpuKernel, Kernels
from giraffe_cli.train.setup import window_nats
from giraffe_cli.train.window_loss import WindowLoss


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Of the axes that have any."""
    return tuple(s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)


class Recording(CpuKernel):
    """Under shapes and strides of query, key and value: those of output and gradient."""

    def __init__(self) -> None:
        self.seen: dict[tuple, set[tuple]] = {}

    def backward(self, given, out, log_sum, grad):
        key = tuple((part.shape, part.stride()) for part in given)
        self.seen.setdefault(key, set()).add((strides(out), strides(grad)))
        return super().backward(given, out, log_sum, grad)


@pytest.mark.parametrize("levers", EXACT + CLOSE, ids=str)
def test_every_lever_hands_on_one_layout(base, levers, tmp_path):
    """Layer by layer from a file, from memory, or recomputed."""
    loss = WindowLoss(trained(base), torch.float32, levers, folder=tmp_path)
    kernel = Recording()
    loss.kernels = Kernels(kernel, kernel)
    window_nats(loss, window(lengths=(24,)), CPU).backward()
    assert kernel.seen
    assert all(len(layouts) == 1 for layouts in kernel.seen.values()), kernel.seen


def test_another_layout_is_copied_and_the_same_is_not():
    query = torch.randn(1, 9, 4, 8).transpose(1, 2)
    out = torch.randn(1, 9, 4, 8).transpose(1, 2)
    assert like(query, out) is out
    assert like(query, out.as_strided(out.shape, (7, *out.stride()[1:]))).stride()[0] == 7, (
        "a batch of one has any stride"
    )
    other = torch.randn(1, 4, 9, 8)
    copied = like(query, other)
    assert torch.equal(copied, other)
    assert copied.stride() == query.stride()
    assert like(other, out).stride() == other.stride()
    part = torch.randn(1, 9, 12, 8)[:, :, 4:8].transpose(1, 2)  # of queries, keys and values in one
    assert like(part, out) is out, "the output has no gaps"


def test_the_backward_pass_gets_what_it_was_prepared_for(monkeypatch):
    given = {}

    def backward(grad, query, key, value, out, *rest, scale):
        given.update(grad=grad.stride(), out=out.stride())
        return query, key, value

    name = "_scaled_dot_product_cudnn_attention_backward"
    monkeypatch.setattr(torch.ops.aten, name, backward)
    query = torch.randn(1, 9, 4, 8).transpose(1, 2)
    out, grad = torch.randn(2, 1, 4, 9, 8)
    CudnnKernel().backward(Inputs(query, query, query), out, torch.zeros(1, 4, 9), grad)
    assert given == {"grad": query.stride(), "out": query.stride()}
