"""What each runtime reads from the RoPE fields of a `config.json`, and what it will do with them.

One file is read by several programs that look at different keys: transformers 5 at
`rope_scaling`, else `rope_parameters`; transformers 4 at `rope_scaling` and the top-level
`rope_theta` only; vLLM and llama.cpp at what transformers 5 gives them, each with gaps of its own
(transformers 5.23, 4.57; vLLM 0.33; llama.cpp of October 2026, read in their sources).

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
VLLM_TYPES = {"default", "linear", "dynamic", "yarn", "longrope", "llama3", "ntk", "proportional"}
Reading = dict[str, Any]


def _normalised(fields: Mapping[str, Any], theta: Any) -> Reading:
    """One dict per reading: `type` spelt `rope_type`, nulls dropped, `rope_theta` inside."""
    reading = {key: value for key, value in fields.items() if value is not None and key != "type"}
    reading.setdefault("rope_type", fields.get("type") or "default")
    return {**reading, "rope_theta": DEFAULT_THETA if theta is None else theta}


def read_as_transformers_5(config: Mapping[str, Any]) -> Reading:
    """`rope_scaling` wins over `rope_parameters`; θ outside counts only when none is inside."""
    fields = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = fields.get("rope_theta", config.get("rope_theta"))
    reading = _normalised(fields, theta)
    if reading["rope_type"] in {"yarn", "longrope", "llama3"}:
        reading.setdefault(ORIGINAL, config.get("max_position_embeddings"))
    return reading


def read_as_transformers_4(config: Mapping[str, Any]) -> Reading:
    """`rope_scaling` and the top-level `rope_theta`; `rope_parameters` is not looked at."""
    return _normalised(config.get("rope_scaling") or {}, config.get("rope_theta"))


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


def describe(reading: Mapping[str, Any]) -> str:
    """`yarn ×16 over 1024, θ 10000`."""
    factor = f" ×{_number(reading['factor'])}" if "factor" in reading else ""
    scaled = reading["rope_type"] != "default" and ORIGINAL in reading
    over = f" over {reading[ORIGINAL]}" if scaled else ""
    return f"{reading['rope_type']}{factor}{over}, θ {_number(reading['rope_theta'])}"


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


# ── what each runtime will do ────────────────────────────────────────────────────────────────


def runtimes(config: Mapping[str, Any], tokenizer_limit: int | None) -> dict[str, str]:
    """One sentence for each runtime about a directory with this `config.json`."""
    reading = read_as_transformers_5(config)
    return {
        "transformers": _transformers_5(config, reading),
        "transformers-v4": _transformers_4(config, reading),
        "vllm": _vllm(config, reading, tokenizer_limit),
        "llama.cpp": _llama_cpp(reading),
    }


def switches(reading: Mapping[str, Any]) -> bool:
    """True when the table changes with the length of the text; a KV cache does not survive that."""
    return reading["rope_type"] == "dynamic" or (
        reading["rope_type"] == "longrope"
        and reading.get("short_factor") != reading.get("long_factor")
    )


def _transformers_5(config: Mapping[str, Any], reading: Reading) -> str:
    window = config.get("max_position_embeddings")
    if not isinstance(window, int):
        return f"refuses max_position_embeddings {window}: not an integer"
    if switches(reading):
        return f"reads {describe(reading)}; the table changes with the length, which breaks caches"
    return f"reads {describe(reading)}, window {window}"


def _transformers_4(config: Mapping[str, Any], reading: Reading) -> str:
    old = read_as_transformers_4(config)
    if "rope_theta" not in config and reading["rope_theta"] != DEFAULT_THETA:
        lost = "loses theta and scaling" if reading["rope_type"] != "default" else "loses theta"
        return f"{lost}: reads {describe(old)} where transformers 5 reads {describe(reading)}"
    if old["rope_type"] != reading["rope_type"] or old["rope_theta"] != reading["rope_theta"]:
        return f"reads {describe(old)} where transformers 5 reads {describe(reading)}"
    return f"reads {describe(old)}, the same as transformers 5"


def _vllm(config: Mapping[str, Any], reading: Reading, tokenizer_limit: int | None) -> str:
    kind, window = reading["rope_type"], config.get("max_position_embeddings")
    if kind not in VLLM_TYPES:
        return f"refuses rope_type {kind}"
    if not isinstance(window, int):
        return f"refuses max_position_embeddings {window}: not an integer"
    if kind in {"linear", "dynamic"} and isinstance(reading.get("factor"), int | float):
        served = int(window * reading["factor"])
        return f"multiplies the length: serves {served} tokens unless --max-model-len {window}"
    limit = min(window, tokenizer_limit or window)
    if kind == "longrope":
        limit = min(config.get(ORIGINAL) or limit, limit)
        said = reading.get("long_mscale") == reading.get("short_mscale") is not None
        if not said:
            return (
                f"serves {limit} tokens but ignores attention_factor: no short_mscale/long_mscale"
            )
    return f"serves {limit} tokens with {kind} as written"


def _llama_cpp(reading: Reading) -> str:
    match reading["rope_type"]:
        case "default" | "linear" | "llama3":
            return f"stock converter writes {reading['rope_type']} exactly"
        case "longrope":
            return (
                "stock converter drops the longrope factors of a Llama: RoPE runs unscaled unless "
                "rope_freqs.weight is added to the GGUF"
            )
        case "yarn" if isinstance(reading.get("factor"), int | float):
            written = yarn_attention_factor(reading)
            computed = 0.1 * math.log(reading["factor"]) + 1
            if math.isclose(written, computed, rel_tol=1e-6):
                return "stock converter writes yarn exactly"
            return f"applies yarn, but attention factor {computed:.6g} instead of {written:.6g}"
    return f"stock converter drops {reading['rope_type']}: RoPE runs unscaled"
