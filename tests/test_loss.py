"""The chunked loss against torch's own cross entropy in float64, and by finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from giraffe_cli.model.loss import _one_pass, chunked_nll, token_nll, weighted_nll


def inputs(n: int = 7, d: int = 5, vocabulary: int = 11, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, d, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, vocabulary, (n,), generator=generator)
    labels[n // 2] = -100
    return hidden, weight, labels


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), chunk=st.integers(1, 12), trains_head=st.booleans())
def test_value_and_gradients_equal_cross_entropy(n, chunk, trains_head):
    hidden, weight, labels = inputs(n)
    ours = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains_head)
    theirs = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains_head)
    loss = chunked_nll(*ours, labels, chunk)
    expected = functional.cross_entropy(theirs[0] @ theirs[1].t(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, atol=1e-12, rtol=1e-12)
    if trains_head:
        torch.testing.assert_close(ours[1].grad, theirs[1].grad, atol=1e-12, rtol=1e-12)
    else:
        assert ours[1].grad is None


@pytest.mark.parametrize("trains_hidden", [True, False])
@pytest.mark.parametrize("trains_head", [True, False])
def test_gradcheck(trains_hidden, trains_head):
    if not (trains_hidden or trains_head):
        return
    hidden, weight, labels = inputs()
    hidden.requires_grad_(trains_hidden)
    weight.requires_grad_(trains_head)
    assert torch.autograd.gradcheck(lambda h, w: chunked_nll(h, w, labels, 3), (hidden, weight))


def test_the_pass_that_a_gpu_compiles_is_cross_entropy_too():
    """Not compiled here; the slope is rounded to the 8 bits of bfloat16, 2^-9 of at most 1."""
    hidden, weight, labels = inputs(dtype=torch.bfloat16)
    logits = (4 * hidden @ weight.t()).requires_grad_()
    expected = functional.cross_entropy(logits.float(), labels, reduction="none")
    expected.sum().backward()
    nll, slope = _one_pass(logits.detach(), labels)
    torch.testing.assert_close(nll, expected.detach(), atol=1e-5, rtol=1e-5)
    assert slope.dtype == torch.bfloat16
    torch.testing.assert_close(slope, logits.grad, atol=2**-9, rtol=2**-8)
    assert nll[3] == 0
    assert not slope[3].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("trains_head", [True, False])
def test_weights_scale_value_and_gradients_and_are_told(dtype, trains_head):
    """bfloat16 keeps 8 bits of a gradient, and one more rounding is the weight's."""
    tolerance = (
        {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 0.05, "rtol": 0.02}
    )
    hidden, weight, labels = inputs(dtype=dtype)
    counts = torch.linspace(0.25, 5, len(labels), dtype=torch.float64)
    ours = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains_head)
    seen = []

    def weigh(nats, start):
        seen.append(nats)
        return counts[start : start + len(nats)].to(nats.dtype)

    total, told = weighted_nll(*ours, labels, 3, weigh)
    (2 * total).backward()
    theirs = hidden.double().requires_grad_(), weight.double().requires_grad_()
    each = functional.cross_entropy(theirs[0] @ theirs[1].t(), labels, reduction="none")
    (2 * (counts * each).sum()).backward()
    torch.testing.assert_close(total.double(), (counts * each).sum(), **tolerance)
    torch.testing.assert_close(torch.cat(seen).double(), each.detach(), **tolerance)
    torch.testing.assert_close(told[0], each.sum().detach(), **tolerance)
    assert told[1].item() == pytest.approx((counts[labels != -100]).sum().item())
    assert not told.requires_grad
    torch.testing.assert_close(ours[0].grad.double(), theirs[0].grad, **tolerance)
    if trains_head:
        torch.testing.assert_close(ours[1].grad.double(), theirs[1].grad, **tolerance)


def test_named_end_points():
    hidden, weight = torch.zeros(2, 3), torch.zeros(8, 3)
    uniform = chunked_nll(hidden, weight, torch.tensor([0, 7]), chunk=1)
    assert uniform.item() == pytest.approx(2 * torch.tensor(8.0).log().item())
    assert chunked_nll(hidden, weight, torch.tensor([-100, -100]), chunk=4).item() == 0.0


def test_ignored_tokens_get_no_gradient_even_with_infinite_logits():
    hidden, weight, labels = inputs()
    hidden[3] = float("inf")
    hidden.requires_grad_()
    labels[3] = -100
    chunked_nll(hidden, weight, labels, 2).backward()
    assert torch.equal(hidden.grad[3], torch.zeros(5, dtype=torch.float64))
    assert bool(hidden.grad.isfinite().all())


def test_tokens_one_by_one_sum_to_the_loss_and_need_no_gradient():
    hidden, weight, labels = inputs(dtype=torch.float32)
    hidden.requires_grad_()
    each = token_nll(hidden, weight, labels, 2)
    assert each.dtype == torch.float32
    assert not each.requires_grad
    assert each[3].item() == 0.0
    assert each.sum().item() == pytest.approx(chunked_nll(hidden, weight, labels, 2).item())


def test_bfloat16_head_gives_a_float32_loss_and_bfloat16_gradients():
    hidden, weight, labels = inputs(dtype=torch.bfloat16)
    hidden.requires_grad_()
    loss = chunked_nll(hidden, weight, labels, 3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16
    exact = chunked_nll(hidden.detach().double(), weight.double(), labels, 3)
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)  # bf16 keeps 8 bits of a logit


def test_a_mean_over_targets_scales_a_bfloat16_gradient_by_itself():
    """1/6141 in bfloat16 is 0.15 % too large: then many of the numbers round elsewhere."""
    hidden, weight, labels = inputs(dtype=torch.bfloat16)
    hidden.requires_grad_()
    chunked_nll(hidden, weight, labels, 3).backward()
    summed, hidden.grad = hidden.grad, None
    (chunked_nll(hidden, weight, labels, 3) / 6141).backward()
    assert torch.equal(hidden.grad, (summed.float() / 6141).bfloat16())


def test_memory_grows_with_the_chunk_not_with_the_window():
    """Largest tensor the forward makes: chunk · V, never n · V."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    hidden, weight, labels = inputs(n=64, d=4, vocabulary=100, dtype=torch.float32)
    hidden.requires_grad_()
    with Largest() as seen:
        chunked_nll(hidden, weight, labels, 8).backward()
    assert seen.largest == 8 * 100
    with Largest() as seen:
        token_nll(hidden, weight, labels, 8)
    assert seen.largest == 8 * 100
