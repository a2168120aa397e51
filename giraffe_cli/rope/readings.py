"""What is read from the RoPE fields of a `config.json`, and the table that reading claims.

One file is read by several programs that look at different keys: transformers 5 at
`rope_scaling`, else `rope_parameters`; transformers 4 at `rope_scaling` and the top-level
`rope_theta` only; vLLM and llama.cpp's converter at what transformers 5 gives them (transformers
5.23, 4.57, read in their sources and run). A reading never raises: what is no mapping reads as
absent, and `rope/malformed.py` names it.

    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, ...}}
    transformers 5 → yarn, θ 500000        transformers 4 → default, θ 10000: silently wrong
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from giraffe_cli.rope.base import FloatArray

DEFAULT_THETA = 10000.0
ORIGINAL = "original_max_position_embeddings"
TYPES_WITH_ORIGINAL = ("yarn", "longrope", "llama3")
"""The `rope_type`s whose table depends on the native window."""
TOLERANCE, BLEND_TOLERANCE = 1e-6, 2e-5
"""Relative, between a table in float64 and a runtime's in float32: θ^(-2i/d) is within 6e-7 (a
head_dim that is no power of two has inexact exponents). `llama3` and a `yarn` without rounded ramp
subtract nearly equal numbers where a pair is just divided whole, which counts against θ/factor: of
12,000 shapes, the worst was 4.3e-6 off up to factor 32, and 1.2e-5 up to 128, a sixth of them more
than 1e-6. A table rounded to 16 bits is 5e-4 off and more."""
Reading = dict[str, Any]


def fields_of(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The first of `keys` that holds a mapping with something in it; empty without one."""
    found = (config.get(key) for key in keys)
    return next((value for value in found if value and isinstance(value, Mapping)), {})


def _normalised(fields: Mapping[str, Any], kind: Any, theta: Any) -> Reading:
    """One dict per reading: `type` spelt `rope_type`, nulls dropped, `rope_theta` inside."""
    reading = {key: value for key, value in fields.items() if value is not None and key != "type"}
    theta = DEFAULT_THETA if theta is None else theta
    return {**reading, "rope_type": kind or "default", "rope_theta": theta}


def read_as_transformers_5(config: Mapping[str, Any]) -> Reading:
    """`rope_scaling` wins over `rope_parameters`, `rope_type` over `type`; θ outside counts only
    when none is inside, and so does the native window."""
    fields = fields_of(config, "rope_scaling", "rope_parameters")
    theta = fields.get("rope_theta", config.get("rope_theta"))
    reading = _normalised(fields, fields.get("rope_type") or fields.get("type"), theta)
    if reading["rope_type"] in TYPES_WITH_ORIGINAL:
        native = config.get(ORIGINAL) or config.get("max_position_embeddings")
        reading.setdefault(ORIGINAL, native)
    return reading


def read_as_transformers_4(config: Mapping[str, Any]) -> Reading:
    """`rope_scaling` and the top-level `rope_theta`, `type` over `rope_type`; `rope_parameters` is
    not looked at."""
    fields = fields_of(config, "rope_scaling")
    kind = fields.get("type") or fields.get("rope_type")
    return _normalised(fields, kind, config.get("rope_theta"))


def names_theta(config: Mapping[str, Any]) -> bool:
    """False where transformers 5 takes its default, 10000, because no key in force names θ."""
    fields = fields_of(config, "rope_scaling", "rope_parameters")
    return fields.get("rope_theta", config.get("rope_theta")) is not None


def switches(reading: Mapping[str, Any]) -> bool:
    """True when the table changes with the length of the text; a KV cache does not survive that."""
    return reading["rope_type"] == "dynamic" or (
        reading["rope_type"] == "longrope"
        and reading.get("short_factor") != reading.get("long_factor")
    )


def table_tolerance(reading: Mapping[str, Any]) -> float:
    """How far, relative, a runtime's float32 evaluation of these fields may be from the exact."""
    kind = reading.get("rope_type")
    blends = kind == "llama3" or (kind == "yarn" and not reading.get("truncate", True))
    return BLEND_TOLERANCE if blends else TOLERANCE


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Each key whose values differ: `factor: 4.0 against 8.0`; of lists, the first entry."""
    found = []
    for key in sorted({*first, *second}):
        a, b = first.get(key), second.get(key)
        if a == b:
            continue
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            index = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            found.append(f"{key}[{index}]: {a[index]} against {b[index]}")
        else:
            found.append(f"{key}: {_brief(a)} against {_brief(b)}")
    return found


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} numbers"
    return "absent" if value is None else str(value)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def served_length(config: Mapping[str, Any], reading: Reading) -> int:
    """Tokens the config promises: `linear` and `dynamic` name the native window beside a factor, so
    does `yarn` without an original one below it."""
    window: int = config["max_position_embeddings"]
    kind, native = reading["rope_type"], reading.get(ORIGINAL)
    names_native = kind in {"linear", "dynamic"} and not native
    if kind == "yarn" and (not native or native >= window):
        window, names_native = native or window, True
    return int(window * reading["factor"]) if names_native else window


def describe(reading: Mapping[str, Any]) -> str:
    """`yarn ×16 over 1024, θ 10000`; a null is as absent, what is no number stands as it is."""
    factor, original = reading.get("factor"), reading.get(ORIGINAL)
    times = "" if factor is None else f" ×{_number(factor)}"
    scaled = reading["rope_type"] != "default" and original is not None
    over = f" over {original}" if scaled else ""
    return f"{reading['rope_type']}{times}{over}, θ {_number(reading['rope_theta'])}"


# ── the table a config claims ────────────────────────────────────────────────────────────────


def yarn_attention_factor(reading: Mapping[str, Any]) -> float:
    """0.1 ln s + 1 unless written out (YaRN eq. 22, as transformers spells it)."""

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(reading["factor"]) + 1.0 if reading["factor"] > 1 else 1.0

    if reading.get("attention_factor") is not None:
        return float(reading["attention_factor"])
    if reading.get("mscale") and reading.get("mscale_all_dim"):
        return scale(reading["mscale"]) / scale(reading["mscale_all_dim"])
    return scale(1.0)


def claimed_table(config: Mapping[str, Any]) -> tuple[FloatArray, float] | None:
    """`([head_dim/2] inv_freq, attention factor)` at the full length, computed in float64 here.

    None for a type whose table is no constant (`dynamic`) or that is not known here.

    Raises:
        KeyError, TypeError, ValueError, ZeroDivisionError: the fields are incomplete or no numbers.
    """
    reading = read_as_transformers_5(config)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    plain = reading["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    match reading["rope_type"]:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / reading["factor"], 1.0
        case "yarn":
            return _yarn(reading, plain), yarn_attention_factor(reading)
        case "llama3":
            return _llama3(reading, plain), 1.0
        case "longrope":
            factors = np.array(reading["long_factor"], dtype=np.float64)
            return plain / factors, longrope_attention_factor(reading, config)
    return None


def longrope_attention_factor(reading: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """sqrt(1 + ln s / ln L) unless written out (LongRoPE, as transformers spells it)."""
    if reading.get("attention_factor") is not None:
        return float(reading["attention_factor"])
    original = reading[ORIGINAL]
    factor = reading.get("factor") or config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _yarn(reading: Mapping[str, Any], plain: FloatArray) -> FloatArray:
    """NTK by parts: pairs that turn more than beta_fast times in the window stay as they are."""
    theta, half = reading["rope_theta"], len(plain)

    def pair_of(rotations: float) -> float:
        return half * math.log(reading[ORIGINAL] / (rotations * 2 * math.pi)) / math.log(theta)

    low = pair_of(reading.get("beta_fast") or 32)
    high = pair_of(reading.get("beta_slow") or 1)
    if reading.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = np.clip((np.arange(half) - low) / ((high - low) or 0.001), 0, 1)
    mixed: FloatArray = plain / reading["factor"] * ramp + plain * (1 - ramp)
    return mixed


def _llama3(reading: Mapping[str, Any], plain: FloatArray) -> FloatArray:
    """Llama 3.1: long wavelengths divided by the factor, short ones kept, smooth between."""
    turns = reading[ORIGINAL] * plain / (2 * math.pi)
    low, high = reading["low_freq_factor"], reading["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    mixed: FloatArray = (1 - kept) * plain / reading["factor"] + kept * plain
    return mixed
