"""What adapters add to a layer's tensors: read off PEFT's LoRA layers, and held against what
autograd saves in `tests/test_plan_adapters.py`.

Of each adapted projection from `in` to `out` channels, for T tokens and b bytes a number:

    dropout    2·T·b·in       the mask (a byte a number on a GPU) and what it leaves of the input,
               - T·b·in       of each input that nothing else saves, once for those who share it
    DoRA       2·T·b·out      the product without and with the adapter's
               b·in²          the identity that PEFT sends through the factors for their product,
               2·b·in·out     and that product in two copies while it is weighed, of one at a time
               4·T·b·out      and, in 16 bits, what goes back through the weighing

The product of the factors has the base's size, so DoRA of Llama-3.1-8B keeps 1.2 GB a layer in 16
bits whatever the window is.
"""

from __future__ import annotations

from collections.abc import Sequence

from giraffe_cli.plan.demand import Demand, Tensors
from giraffe_cli.plan.operations import linear_shapes

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",))
"""Those of the output projection are kept by attention."""


def adapted(demand: Demand, names: Sequence[str], tokens: int) -> Tensors:
    """What the adapters of the projections `names` save of `tokens` beside what plain ones do."""
    lora, shapes = demand.train.lora, linear_shapes(demand.shape)
    targets = [name for name in names if name in lora.targets]
    if demand.train.method != "lora" or not targets:
        return []
    row = float(tokens * demand.width)
    found = _dropped(demand, targets, tokens) if lora.dropout else []
    if lora.use_dora:
        found += [(2, row * shapes[name][1]) for name in targets]
        found += [(1, float(demand.width * shapes[name][0] ** 2)) for name in targets]
    return found


def _dropped(demand: Demand, targets: Sequence[str], tokens: int) -> Tensors:
    inputs = {name: tokens * size for name, (size, _) in linear_shapes(demand.shape).items()}
    mask = 1 if demand.kind == "cuda" else demand.width
    unsaved = [group[0] for group in _SHARED_INPUTS if set(group) & set(targets)]
    return [
        *((1, float(inputs[name] * (mask + demand.width))) for name in targets),
        *((-1, float(inputs[name] * demand.width)) for name in unsaved),
    ]


def weighed(demand: Demand, names: Sequence[str], tokens: int) -> Tensors:
    """What DoRA makes and drops while it weighs the largest of the projections `names`."""
    lora, shapes = demand.train.lora, linear_shapes(demand.shape)
    sizes = [shapes[name] for name in names if name in lora.targets]
    if demand.train.method != "lora" or not lora.use_dora or not sizes:
        return []
    width, passing = float(demand.width), 4 if demand.width == 2 else 0
    return [
        (2, width * max(size * out for size, out in sizes)),
        (passing, width * tokens * max(out for _, out in sizes)),
    ]
