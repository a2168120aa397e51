"""Tables that lie in the files: `rotary_emb.inv_freq` tensors and the one in `rope.json`.

Checkpoints saved by transformers before 4.32 hold a copy of `inv_freq` in every layer. Today's
transformers ignores it, older ones and some converters load it, and a model once cast with
`.to(bfloat16)` has it rounded: at θ 5·10⁵ up to 15 rad wrong at position 16384. A stored copy is
right when it is the table the config claims, or, under `linear` and `dynamic`, the unscaled one:
those scaled positions or the base at run time and left the copy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.rope.base import FloatArray, RopeTable
from giraffe_cli.rope.malformed import num_pairs
from giraffe_cli.rope.readings import (
    TOLERANCE,
    claimed_table,
    read_as_transformers_5,
    table_tolerance,
)
from giraffe_cli.verify_files import Check, check
from giraffe_cli.weights import STORED_TABLE, weight_files

MOST_PAIRS = 65536
"""A head_dim beyond twice this is a typing error, and its table would fill the memory."""
LOAD_IN_FLOAT32 = "write it again from a model loaded with dtype=..., never cast with .to(dtype)"


def rounding_of(found: FloatArray, exact: FloatArray) -> str | None:
    """`bfloat16` or `float16` when `found` is `exact` rounded to it; None for any other table."""
    halves = exact.astype(np.float16).astype(np.float64)
    narrow = {"bfloat16": _to_bfloat16(exact), "float16": halves}
    same = (name for name, t in narrow.items() if np.allclose(found, t, TOLERANCE, atol=0))
    return next(same, None)


def _to_bfloat16(values: FloatArray) -> FloatArray:
    """Round to nearest, ties to even, by the upper 16 bits of a float32."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(np.float64)


def compare_tables(found: FloatArray, exact: FloatArray, tolerance: float = TOLERANCE) -> Check:
    """`[head_dim/2]` against `[head_dim/2]`, relative; says so when one is the other rounded."""
    if found.shape != exact.shape:
        return check(False, f"{found.size} pairs", f"{exact.size} pairs")
    with np.errstate(all="ignore"):
        apart = np.abs(found / exact - 1)
    worst = int(np.argmax(np.where(np.isfinite(apart), apart, np.inf)))
    if apart[worst] <= tolerance:
        return check(True, f"largest relative difference {apart[worst]:.1e}", tolerance)
    rounding = rounding_of(found, exact)
    words = f", the whole table rounded to {rounding}" if rounding else ""
    hint = LOAD_IN_FLOAT32 if rounding else None
    return check(False, f"pair {worst}: {found[worst]:.9g}{words}", f"{exact[worst]:.9g}", hint)


def claim_of(config: Mapping[str, Any]) -> tuple[FloatArray, float] | None:
    """`claimed_table`, and None also where fields are missing or no numbers: others name them."""
    if not 0 < (num_pairs(config) or 0) <= MOST_PAIRS:
        return None
    try:
        with np.errstate(all="ignore"):
            return claimed_table(config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def check_tables_in_files(
    folder: Path, config: Mapping[str, Any], written: RopeTable | None
) -> dict[str, Check]:
    """`stored_inv_freq` where the weights hold tables, `rope_json_table` beside a `rope.json`.

    The files must be whole; a table the config does not determine (`dynamic`) is not compared.
    """
    claim = claim_of(config)
    checks = {}
    if written and claim:
        found = compare_tables(np.array(written.inv_freq), claim[0])
        checks["rope_json_table"] = {**found, "found": f"rope.json: {found['found']}"}
    stored = list(_stored_tables(folder))
    unscaled = claim_of({**config, **_unscaled(config)})
    if not stored or unscaled is None:
        return checks
    reading = read_as_transformers_5(config)
    scaled_at_run_time = reading["rope_type"] in {"linear", "dynamic"}
    right = [t[0] for t in (claim, unscaled if scaled_at_run_time else None) if t]
    return {**checks, "stored_inv_freq": _check_stored(stored, right, table_tolerance(reading))}


def _unscaled(config: Mapping[str, Any]) -> dict[str, Any]:
    theta = read_as_transformers_5(config)["rope_theta"]
    plain = {"rope_type": "default", "rope_theta": theta}
    return {"rope_scaling": None, "rope_parameters": plain}


def _check_stored(
    stored: list[tuple[str, FloatArray]], right: list[FloatArray], tolerance: float
) -> Check:
    for name, values in stored:
        found = [compare_tables(values, table, tolerance) for table in right]
        if not any(entry["ok"] for entry in found):
            hint = "drop the stored tables: save the model again with transformers 5"
            return {"hint": hint, **found[0], "found": f"{name}: {found[0]['found']}"}
    return check(True, f"{len(stored)} tables as claimed", "the table that the config claims")


def _stored_tables(folder: Path) -> Iterator[tuple[str, FloatArray]]:
    """Each `inv_freq` in the weight files, one file open at a time."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                if name.endswith(STORED_TABLE):
                    yield name, tensors.get_tensor(name).double().numpy()
