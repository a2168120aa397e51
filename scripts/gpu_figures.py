"""What `bench_gpu.py` makes of its cells: rates, shares of the peak and of the limit, goals.

    MFU        model operations a second over 989 TF/s, the dense bfloat16 peak of an H100 and H200
    of limit   seconds that the model's operations take at the card's own ceilings, over the step's
    of reach   the same with the layers' products a second time, as every checkpointed step has them

Model operations of a step are those of `giraffe_cli/plan/operations.py` with nothing recomputed.
"""

from __future__ import annotations

import math
from typing import Any

import gpu_ceilings
from bench_cells import squared_share
from gpu_cells import PACKED, PEERS, Cell
from gpu_paths import demand_of, shape_of, train_config

PEAK = 989e12
ASSUMED = {"product": 600e12, "forward": 400e12, "backward": 350e12}
"""Operations a second on a Hopper card that has not been measured."""
STARTING = {"ours": 12.0, "hf": 8.0, "trl": 8.0}
"""Seconds until a model stands and its kernels are loaded, of a process that waited."""
SLOWER = {"ours": 1.2, "hf": 1.6, "trl": 1.6}
"""A step over what the ceilings allow, to guess whether a cell still fits."""
MASKED = 130e12
"""Operations a second of attention under a dense mask, of an H200; it computes both triangles."""
MOST_PINNED = 100
"""GiB."""
GATE = {"loss": 2e-3, "grad_norm": 2e-2}
"""Relative difference allowed between paths in the same step."""


def ceilings_of(cell: Cell, found: dict[str, Any] | None) -> dict[str, float]:
    """Measured, or what is assumed."""
    if not found or found.get("outcome") != "ok":
        return dict(ASSUMED)
    return gpu_ceilings.rates(found, shape_of(cell).head_dim, cell.length)


def operations_of(cell: Cell) -> dict[str, float]:
    """Model operations of a step, by what sustains a rate of its own."""
    from giraffe_cli.model.levers import Levers
    from giraffe_cli.plan.operations import forward_per_token, step_per_token

    share, shape = squared_share(cell.seq_lengths), shape_of(cell)
    step = step_per_token(shape, train_config(cell), cell.length, Levers("none"), share)
    forward = forward_per_token(shape, cell.length, share)
    return {
        "product": cell.length * (step.linear + step.head),
        "forward": cell.length * forward.attention,
        "backward": cell.length * (step.attention - forward.attention),
        "again": cell.length * forward.linear,
    }


def limit_of(cell: Cell, ceilings: dict[str, float]) -> tuple[float, float]:
    """Seconds of a step at the ceilings: nothing recomputed, and the layers' products once."""
    work = operations_of(cell)
    least = sum(work[name] / ceilings[name] for name in ("product", "forward", "backward"))
    return least, least + work["again"] / ceilings["product"]


def expected_seconds(cell: Cell, found: dict[str, Any] | None) -> float:
    """Of the whole cell, its process included."""
    if cell.path == "ceilings":
        return 20.0 + 8.0 * cell.settings.get("trials", "").count("b")
    ceilings = ceilings_of(cell, found)
    step = limit_of(cell, ceilings)[1] * SLOWER[cell.path]
    work = operations_of(cell)
    if cell.path in PEERS or cell.settings.get("checkpointing") == "full":
        step += work["forward"] / ceilings["forward"]
    if cell.path in PEERS and cell.documents == "packed":  # all of the mask, by a slow kernel
        step += 4.5 * 2 * PACKED * work["forward"] / MASKED
    first = step * (cell.warm / shape_of(cell).num_layers if cell.warm else 1) + 2
    return STARTING[cell.path] + _pinning(cell, found) + first + step * cell.timed


def _pinning(cell: Cell, found: dict[str, Any] | None) -> float:
    """Seconds to pin what waits in host memory: inputs and attention's outputs in 16 bits."""
    given = cell.settings
    if given.get("offload", "none") != "host" and given.get("levers") != "plan":
        return 0.0
    copies = (found or {}).get("copies") or {}
    shape = shape_of(cell)
    gib = 4 * shape.num_layers * cell.length * shape.hidden_size / 2**30
    return float(copies.get("pin_seconds_per_gib", 0.4) * min(gib, MOST_PINNED))


def figures(cell: Cell, found: dict[str, Any], ceilings: dict[str, Any] | None) -> dict[str, Any]:
    """`found` with what follows from it."""
    seconds = found.get("seconds")
    if cell.path == "ceilings":
        return found
    predicted = plan_of(cell, found, ceilings) if cell.path == "ours" else {}
    if not seconds:
        return {**found, **predicted}
    work = operations_of(cell)
    model = work["product"] + work["forward"] + work["backward"]
    least, reach = limit_of(cell, ceilings_of(cell, ceilings))
    return {
        **found,
        **predicted,
        "tokens_per_second": cell.length / seconds,
        "mfu": model / seconds / PEAK,
        "of_limit": least / seconds,
        "of_reach": reach / seconds,
    }


def plan_of(cell: Cell, found: dict[str, Any], ceilings: dict[str, Any] | None) -> dict[str, Any]:
    """What `giraffe plan` predicts of the same step: bytes on the device; seconds at the rates of
    its trial step, where the ceilings' cell made one, and at those it assumes of such a card."""
    if "levers" not in found or "allocated_bytes" not in found:
        return {}
    from giraffe_cli.model.levers import Levers
    from giraffe_cli.plan.ladder import make_rung
    from giraffe_cli.plan.machine import DEVICES, named_machine
    from giraffe_cli.plan.operations import Rates

    name = "h200" if "H200" in str((ceilings or {}).get("device", "")) else "h100"
    demand = demand_of(cell, "cuda")
    levers, machine, assumed = Levers(**found["levers"]), named_machine(name), DEVICES[name].rates
    tried = (ceilings or {}).get("trials", {}).get(cell.shape)
    rates = Rates(**tried) if tried else assumed
    rungs = [make_rung(demand, machine, one, levers) for one in (rates, assumed)]
    on_device = rungs[0].total - rungs[0].bytes["process"]
    plan = {
        "plan_bytes": on_device,
        "plan_parts": rungs[0].bytes,
        "plan_bytes_error": on_device / found["allocated_bytes"] - 1,
        "plan_seconds": rungs[0].seconds_per_step,
        "plan_seconds_assumed": rungs[1].seconds_per_step,
    }
    if found.get("seconds"):
        plan["plan_seconds_error"] = rungs[0].seconds_per_step / found["seconds"] - 1
        plan["plan_seconds_assumed_error"] = rungs[1].seconds_per_step / found["seconds"] - 1
    return plan


def gates(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences about paths whose losses or gradient norms of the same step differ."""
    told = []
    for row in rows:
        mine = next((r for r in rows if r["work"] == row["work"] and r["path"] == "ours"), None)
        if mine is None or row is mine or "loss" not in row or "loss" not in mine:
            continue
        for what, allowed in GATE.items():
            theirs, own = row[what][-1], mine[what][-1]  # the first may be of fewer layers
            if not math.isclose(theirs, own, rel_tol=allowed):
                told.append(f"{row['name']}: {what} {theirs:.6g}, of ours {own:.6g}")
    return told


def goals(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was promised of an H200, and what was found; goals without their cells are left out."""
    found: dict[str, dict[str, Any]] = {}

    def at_least(name: str, value: float | None, needed: float) -> None:
        if value is not None:
            found[name] = {"found": value, "needed": needed, "ok": value >= needed}

    def at_most(name: str, value: float | None, allowed: float) -> None:
        if value is not None:
            found[name] = {"found": value, "allowed": allowed, "ok": value <= allowed}

    for length, tokens in (("8k", 10_500), ("32k", 6_000), ("128k", 2_200)):
        at_least(f"8b_{length}_tokens_per_second", _best(rows, length, "one", "ours"), tokens)
    at_least("8b_32k_mfu", _best(rows, "32k", "one", "ours", "mfu"), 0.37)
    at_least("8b_128k_mfu", _best(rows, "128k", "one", "ours", "mfu"), 0.33)
    ours, packed = _best(rows, "32k", "one", "ours"), _best(rows, "32k", "packed", "ours")
    masked = [row for row in rows if row["settings"].get("kernel") != "flex"]
    trl, dense = _best(rows, "32k", "one", "trl"), _best(masked, "32k", "packed", "hf")
    at_least("8b_32k_over_trl", ours / trl if ours and trl else None, 1.2)
    at_least("8b_32k_packed_over_dense_mask", packed / dense if packed and dense else None, 4.0)
    for name, offload, allowed in (("128k", "none", 60e9), ("128k_offload", "host", 35e9)):
        sizes = [
            row["allocated_bytes"]
            for row in _cells(rows, "128k", "one", "ours")
            if row["levers"]["offload"] == offload and "allocated_bytes" in row
        ]
        at_most(f"8b_{name}_bytes", min(sizes, default=None), allowed)
    at_most("8b_128k_offload_cost", _offload_cost(rows), 0.03)
    ours_rows = [row for row in rows if row["path"] == "ours" and row["outcome"] == "ok"]
    for what, allowed in (("plan_bytes_error", 0.10), ("plan_seconds_error", 0.25)):
        errors = [abs(row[what]) for row in ours_rows if what in row]
        at_most(what, max(errors, default=None), allowed)
    return found


def _offload_cost(rows: list[dict[str, Any]]) -> float | None:
    """Share of a step at 128k that waiting in host memory adds, attention kept either way."""
    seconds = {
        row["levers"]["offload"]: row["seconds"]
        for row in _cells(rows, "128k", "one", "ours")
        if row["levers"]["checkpointing"] == "attention"
    }
    if not seconds.keys() >= {"none", "host"}:
        return None
    return float(seconds["host"] / seconds["none"] - 1)


def _cells(rows: list[dict[str, Any]], length: str, documents: str, path: str) -> Any:
    work = f"8b/{length}/{documents}"
    return [
        row
        for row in rows
        if row["work"] == work
        and row["path"] == path
        and row["outcome"] == "ok"
        and "layers" not in row["settings"]
    ]


def _best(
    rows: list[dict[str, Any]],
    length: str,
    documents: str,
    path: str,
    what: str = "tokens_per_second",
) -> float | None:
    return max((row[what] for row in _cells(rows, length, documents, path)), default=None)


# ── for people ───────────────────────────────────────────────────────────────────────────────


def table(rows: list[dict[str, Any]]) -> str:
    """One line a cell."""
    lines = [
        f"{'s/step':>7} {'tok/s':>6} {'MFU':>4} {'limit':>5} {'reach':>5} {'alloc':>6} {'resv':>6} "
        f"{'host':>5} {'pin':>5} {'plan':>5} {'time':>5} {'loss':>7} {'norm':>7}  cell"
    ]
    return "\n".join([*lines, *(_line(row) for row in rows if row["path"] != "ceilings")])


def _line(row: dict[str, Any]) -> str:
    if row["outcome"] != "ok":
        spent = f" after {row['spent']:.0f} s" if "spent" in row else ""
        held = f", {row['reserved_bytes'] / 1e9:.0f} GB reserved" if "reserved_bytes" in row else ""
        return f"{row['outcome']:>7}{spent}{held}  {row['name']}"

    def number(key: str, form: str, scale: float = 1.0) -> str:
        value = row.get(key)
        width = form.split(".")[0].strip("+,")
        return format("", f">{width}") if value is None else format(value * scale, f">{form}")

    last = {key: row[key][-1] if row.get(key) else None for key in ("loss", "grad_norm")}
    numbers = [
        number("seconds", "7.2f"),
        number("tokens_per_second", "6.0f"),
        number("mfu", "4.0f", 100),
        number("of_limit", "5.0f", 100),
        number("of_reach", "5.0f", 100),
        number("allocated_bytes", "6.1f", 1e-9),
        number("reserved_bytes", "6.1f", 1e-9),
        number("host_bytes", "5.0f", 1e-9),
        number("pinned_bytes", "5.0f", 1e-9),
        number("plan_bytes_error", "+5.0f", 100),
        number("plan_seconds_error", "+5.0f", 100),
        "" if last["loss"] is None else f"{last['loss']:7.4f}",
        "" if last["grad_norm"] is None else f"{last['grad_norm']:7.4g}",
    ]
    return " ".join(numbers) + f"  {row['name']}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for the docs: one line a cell."""
    lines = [
        "| cell | s a step | tokens/s | MFU | of limit | on the GPU | pinned | plan: size, time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["outcome"] != "ok":
            lines.append(f"| `{row['name']}` | {row['outcome']} | | | | | | |")
            continue
        plan = [
            f"{row[key]:+.0%}" for key in ("plan_bytes_error", "plan_seconds_error") if key in row
        ]
        on_gpu = f"{row['allocated_bytes'] / 1e9:.1f} GB" if "allocated_bytes" in row else ""
        numbers = [
            f"`{row['name']}`",
            f"{row['seconds']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['mfu']:.1%}",
            f"{row['of_limit']:.0%}",
            on_gpu,
            f"{row['pinned_bytes'] / 1e9:.1f} GB" if row.get("pinned_bytes") else "",
            ", ".join(plan),
        ]
        lines.append(f"| {' | '.join(numbers)} |")
    return "\n".join(lines)


def ceiling_lines(found: dict[str, Any]) -> str:
    """The ceilings, a line each."""
    if found.get("outcome") != "ok":
        return f"ceilings: {found.get('outcome')}"
    products = ", ".join(f"{k} {v / 1e12:.0f}" for k, v in found["products"].items())
    lines = [f"{found['device']}, torch {found['torch']}; products, TF/s: {products}"]
    for name, kernels in found["attention"].items():
        told = [
            f"{kernel} {one['forward'] / 1e12:.0f}/{one['backward'] / 1e12:.0f}"
            if "forward" in one
            else f"{kernel} ({one['error'][:60]})"
            for kernel, one in kernels.items()
        ]
        lines.append(f"attention {name}, forward/backward TF/s: {', '.join(told)}")
    for shape, rates in found.get("trials", {}).items():
        told = ", ".join(f"{k} {v / 1e12:.3g}" for k, v in rates.items() if v)
        lines.append(f"trial step of {shape}, TF/s: {told}")
    if found["copies"]:
        copies = ", ".join(f"{k} {v:.3g}" for k, v in found["copies"].items())
        lines.append(f"copies, GB/s: {copies}")
    return "\n".join(lines)
