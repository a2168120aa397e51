"""What is compiled for a GPU serves every window: dynamo gives a function up after 8 variants.

Counted on a CPU with a backend that compiles nothing: which variants there are is dynamo's part.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from test_training_gpu import SHAPES, trained, window
from torch._dynamo.backends.common import aot_autograd

from giraffe_cli.model import loss, pointwise
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.pointwise import VARIANTS
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train import opening
from giraffe_cli.train.window_loss import WindowLoss

# dynamo looks at the gradients of whatever it is given
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

LEVERS = {
    "attention": Levers("attention", mlp_tile=32, loss_chunk=24, fused=True),
    "tiles": Levers(
        "full", mlp_tile=32, projection_tile=40, head_groups=3, loss_chunk=24, fused=True
    ),
    "whole": Levers("attention", mlp_tile=0, whole_layers=1, loss_chunk=24, fused=True),
    "none": Levers("none", loss_chunk=24, fused=True),
}
LENGTHS = (96, 48, 30, 131, 70, 202)
"""The second is the hidden size, the third less than any tile."""


@pytest.fixture
def variants(monkeypatch):
    """How often each function has been compiled."""
    counts, made = Counter(), {}

    def compiled_on(device, function):
        def backend(graph, inputs):
            counts[function.__name__] += 1
            return graph.forward

        if function not in made:
            made[function] = torch.compile(function, dynamic=True, backend=backend)
        return made[function]

    torch._dynamo.reset()
    monkeypatch.setattr(pointwise, "compiled_on", compiled_on)
    monkeypatch.setattr(loss, "compiled_on", compiled_on)
    monkeypatch.setitem(SHAPES, "small", (48, 6, 3, 8))
    with torch._dynamo.config.patch(recompile_limit=VARIANTS):
        yield counts
    torch._dynamo.reset()


def passes(model, levers, length):
    """Over a window with gradients, and over one that is measured on."""
    given = (*window((length,)), (length,))
    found = WindowLoss(model, torch.bfloat16, levers)
    found(*given).backward()
    with torch.no_grad():
        found(*given)


def test_the_worst_first_length_stays_within_the_limit(variants):
    """As long as the hidden state is wide: dynamo takes the two for one number."""
    model = trained("small", torch.bfloat16, torch.device("cpu"))
    for levers in LEVERS.values():
        for length in (48, 1, *LENGTHS):
            passes(model, levers, length)
    assert 8 < max(variants.values()) < VARIANTS / 2


def test_no_length_is_compiled_for(variants):
    model = trained("small", torch.bfloat16, torch.device("cpu"))
    for levers in LEVERS.values():
        passes(model, levers, LENGTHS[0])
        first = dict(variants)
        for length in LENGTHS[1:]:
            passes(model, levers, length)
        assert dict(variants) == first
    assert {"rms_norm", "rotate", "swiglu", "_one_pass"} == set(variants)
    assert max(variants.values()) < torch._dynamo.config.recompile_limit


def heads(length):
    one = torch.randn(1, length, 4, 16, requires_grad=True)
    return one, torch.randn(1, length, 16), torch.randn(1, length, 16)


GIVEN = {
    pointwise.rms_norm: lambda n: (
        torch.randn(1, n, 64, requires_grad=True),
        torch.nn.Parameter(torch.ones(64), requires_grad=False),
        1e-5,
    ),
    pointwise.swiglu: lambda n: [torch.randn(1, n, 64, requires_grad=True) for _ in range(2)],
    pointwise.rotate: heads,
}


@pytest.mark.parametrize("function", GIVEN, ids=lambda function: function.__name__)
def test_what_a_backward_pass_was_compiled_for_is_asked_of_every_window(function):
    """Inductor counts elements in 32 bits where the first window has so few, and adds a guard: of a
    backward pass that is compiled after the guards are made it would be lost, and 512k tokens of
    4,096 numbers read and written elsewhere. Here the limit is 20,000 elements."""
    compiled = []

    def backend(graph, inputs):
        sizes = [math.prod(one.shape) for one in inputs if isinstance(one, torch.Tensor)]
        symbolic = [size.node for size in sizes if isinstance(size, torch.SymInt)]
        largest = max(symbolic, key=lambda size: size.hint)
        compiled.append(largest.hint)
        limit = largest.expr <= 20_000 if largest.hint <= 20_000 else largest.expr > 20_000
        assert largest.shape_env.guard_or_defer_runtime_assert(limit, "elements")
        return make_boxed_func(graph.forward)

    def forward(graph, inputs):
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    passes = aot_autograd(fw_compiler=forward, bw_compiler=backend)
    run = torch.compile(function, dynamic=True, backend=passes)
    for length, times in ((100, 1), (50, 1), (400, 2), (70, 2)):
        out = run(*GIVEN[function](length))
        out.backward(torch.ones_like(out))
        assert len(compiled) == times
    torch._dynamo.reset()


# ── a machine on which nothing can be compiled ───────────────────────────────────────────────────


def refuses(function):
    def called(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    return called


@pytest.mark.parametrize(
    ("has_triton", "compiled", "found"),
    [
        (False, lambda function: function, "there is no Triton for this device"),
        (True, refuses, "Failed to find C compiler."),
        (True, lambda function: function, None),
    ],
)
def test_what_a_gpu_lacks_for_compiled_passes_is_found_before_the_first_step(
    monkeypatch, has_triton, compiled, found
):
    """On the CPU, whose own passes are never compiled."""
    monkeypatch.setattr(pointwise, "has_triton", lambda: has_triton)
    monkeypatch.setattr(pointwise, "_compiled", compiled)
    assert pointwise._why_not.__wrapped__("cpu") == found


def test_a_card_that_is_full_is_no_reason_to_compile_nothing(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pointwise, "has_triton", lambda: True)
    monkeypatch.setattr(pointwise, "_compiled", lambda function: full)
    with pytest.raises(torch.OutOfMemoryError):
        pointwise._why_not.__wrapped__("cpu")


def test_a_gpu_without_compiled_passes_is_told_of(monkeypatch):
    monkeypatch.setattr(opening, "why_not_compiled", lambda device: "Failed to find C compiler.")
    reporter = SilentReporter()
    opening.warn_of_slow_passes(torch.device("cpu"), reporter)
    assert reporter.warnings == []
    opening.warn_of_slow_passes(torch.device("cuda"), reporter)
    assert "a step takes longer: Failed to find C compiler. torch.comp" in reporter.warnings[0]
