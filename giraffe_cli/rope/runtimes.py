"""What each runtime will do with the RoPE fields of a `config.json`: one sentence, one short word.

transformers 5 and 4 as `readings.py` reads them; vLLM and llama.cpp take what transformers 5 gives
them, each with gaps of its own (vLLM 0.33; llama.cpp and its converter of October 2026, read in
their sources):

    rope_type  vLLM                                      llama.cpp's stock converter
    default    exact                                     exact, any θ
    linear     serves factor times the length            exact
    dynamic    serves factor times the length, by the    dropped: runs unscaled
               table of that length from the start
    yarn       exact; before 0.33 attention factor       attention factor 0.1 ln s + 1, ramp ends
               0.1 ln s + 1, times an attn_factor        rounded, whatever the config says
    llama3     exact                                     exact
    longrope   short_mscale/long_mscale, not             factors dropped: runs unscaled
               attention_factor
    su         longrope, with a warning                  dropped: runs unscaled

That vLLM before 0.33 drops a yarn's attention_factor, and its mscale: vllm issue 48621, pull
requests 46280 and 48351.

Where the stock converter is wrong, `giraffe export --to gguf` writes the table itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from giraffe_cli.rope.malformed import is_known_type, is_length, is_number, rope_problems
from giraffe_cli.rope.readings import (
    DEFAULT_THETA,
    ORIGINAL,
    Reading,
    describe,
    names_theta,
    read_as_transformers_4,
    read_as_transformers_5,
    served_length,
    switches,
    yarn_attention_factor,
)

VLLM_TYPES = {"default", "linear", "dynamic", "yarn", "longrope", "llama3", "ntk", "proportional"}
LEGACY_LONGROPE = "su"
"""What Phi-3 first called `longrope`."""
VLLM_WITH_YARN_FACTORS = "exact from vLLM 0.33 on"
"""The short word for a yarn whose attention factor older ones drop."""
RUNTIMES = ("transformers", "transformers-v4", "vllm", "llama.cpp")
EXPORT = "giraffe export --to gguf"


@dataclass(frozen=True)
class Outlook:
    """What one runtime does with a config, in a few words and as a sentence."""

    short: str
    sentence: str


def runtimes(config: Mapping[str, Any], tokenizer_limit: int | None) -> dict[str, str]:
    """One sentence for each runtime about a directory with this `config.json`; never raises."""
    return {name: o.sentence for name, o in _outlooks(config, tokenizer_limit).items()}


def portability(config: Mapping[str, Any]) -> dict[str, str]:
    """A few words for each runtime: `exact`, `exact with --max-model-len 16384`, ...; never raises.

    `config` is what `config.json` says of the RoPE fields and the window; sizes are not needed.
    """
    return {name: o.short for name, o in _outlooks(config, None).items()}


def _outlooks(config: Mapping[str, Any], tokenizer_limit: int | None) -> dict[str, Outlook]:
    reading = read_as_transformers_5(config)
    if not is_known_type(reading["rope_type"]):
        return dict(zip(RUNTIMES, _unknown_type(reading["rope_type"]), strict=True))
    problems = rope_problems(config)
    if problems:
        useless = Outlook("malformed", f"not to be relied on: {problems[0]}")
        return dict.fromkeys(RUNTIMES, useless)
    found = (
        _transformers_5(config, reading),
        _transformers_4(config, reading),
        _vllm(config, reading, tokenizer_limit),
        _llama_cpp(reading),
    )
    return dict(zip(RUNTIMES, found, strict=True))


def _unknown_type(kind: Any) -> tuple[Outlook, ...]:
    """The four outlooks of a `rope_type` that is no Llama's; `proportional` half works."""
    refuses = Outlook("refused", f"refuses rope_type {kind}")
    newer = Outlook("another table", f"reads rope_type {kind}, which not every runtime computes")
    drops = Outlook("unscaled", f"stock converter drops {kind}: RoPE runs unscaled")
    served = isinstance(kind, str) and kind in VLLM_TYPES
    renamed = Outlook(
        "as longrope, with a warning", f"reads rope_type {kind} as longrope, with a warning"
    )
    return (
        newer if kind == "proportional" else refuses,
        refuses,
        renamed if kind == LEGACY_LONGROPE else newer if served else refuses,
        drops,
    )


def _transformers_5(config: Mapping[str, Any], reading: Reading) -> Outlook:
    window = config.get("max_position_embeddings")
    if not is_length(window):
        return Outlook("refused", f"refuses max_position_embeddings {window}: not an integer")
    if switches(reading):
        return Outlook(
            "the table changes with the length",
            f"reads {describe(reading)}; the table changes with the length, which breaks caches",
        )
    guess = "" if names_theta(config) else " (its default: no key in force names it)"
    return Outlook("exact", f"reads {describe(reading)}{guess}, window {window}")


def _transformers_4(config: Mapping[str, Any], reading: Reading) -> Outlook:
    old = read_as_transformers_4(config)
    readings = f"reads {describe(old)} where transformers 5 reads {describe(reading)}"
    if "rope_theta" not in config and reading["rope_theta"] != DEFAULT_THETA:
        both = reading["rope_type"] != "default" and old["rope_type"] == "default"
        lost = "loses theta and scaling" if both else "loses theta"
        return Outlook(lost, f"{lost}: {readings}")
    if old["rope_type"] != reading["rope_type"] or old["rope_theta"] != reading["rope_theta"]:
        return Outlook("another table", readings)
    if old["rope_type"] == "longrope" and not {"factor", "attention_factor"} & {*old}:
        return Outlook("refused", "refuses longrope without factor or attention_factor")
    return Outlook("exact", f"reads {describe(old)}, the same as transformers 5")


def _vllm(config: Mapping[str, Any], reading: Reading, tokenizer_limit: int | None) -> Outlook:
    kind, window = reading["rope_type"], config.get("max_position_embeddings")
    if not is_length(window):
        return Outlook("refused", f"refuses max_position_embeddings {window}: not an integer")
    promised = served_length(config, reading)
    limit = min(promised, tokenizer_limit or promised)
    if kind in {"linear", "dynamic"}:
        served = int(window * reading["factor"])
        multiplied = _vllm_multiplied(kind, min(served, tokenizer_limit or served), limit)
        return multiplied if kind == "linear" else _vllm_dynamic(multiplied, served, window)
    if kind == "yarn":
        return _vllm_yarn(reading, limit)
    if kind != "longrope":
        return Outlook("exact", f"serves {limit} tokens with {kind} as written")
    limit = min(config.get(ORIGINAL) or limit, limit)
    if reading.get("long_mscale") == reading.get("short_mscale") is not None:
        return Outlook("exact", f"serves {limit} tokens with longrope as written")
    return Outlook(
        "ignores attention_factor",
        f"serves {limit} tokens but ignores attention_factor: no short_mscale/long_mscale",
    )


def _vllm_multiplied(kind: str, served: int, limit: int) -> Outlook:
    if served == limit:
        return Outlook("exact", f"serves {limit} tokens with {kind} as written")
    return Outlook(
        f"exact with --max-model-len {limit}",
        f"multiplies the length: serves {served} tokens unless --max-model-len {limit}",
    )


def _vllm_dynamic(length: Outlook, reach: int, window: int) -> Outlook:
    """One table is made, from max_position_embeddings times the factor."""
    return Outlook(
        "one table for all lengths",
        f"{length.sentence}; turns every text by the table of {reach} tokens, where transformers "
        f"leaves one of up to {window} unscaled",
    )


def older_yarn_factor(reading: Reading) -> float:
    """What vLLM before 0.33 and SGLang multiply cos and sin by: 0.1 ln s + 1 whatever
    `attention_factor` says, times `attn_factor`, the YaRN authors' spelling, which transformers
    does not read."""
    own = reading.get("attn_factor")
    return yarn_attention_factor({"factor": reading["factor"]}) * (own if is_number(own) else 1)


def _vllm_yarn(reading: Reading, limit: int) -> Outlook:
    written, older = yarn_attention_factor(reading), older_yarn_factor(reading)
    if math.isclose(written, older, rel_tol=1e-6):
        return Outlook("exact", f"serves {limit} tokens with yarn as written")
    return Outlook(
        VLLM_WITH_YARN_FACTORS,
        f"serves {limit} tokens with yarn as written from 0.33 on; older ones have attention "
        f"factor {older:.6g} instead of {written:.6g}",
    )


def _llama_cpp(reading: Reading) -> Outlook:
    kind = reading["rope_type"]
    if kind in {"default", "linear", "llama3"}:
        return Outlook("exact", f"stock converter writes {kind} exactly")
    if kind == "yarn":
        return _llama_cpp_yarn(reading)
    dropped = f"stock converter drops {kind}: RoPE runs unscaled"
    if switches(reading):
        return Outlook("unscaled", dropped)
    return Outlook(
        "factors dropped by the stock converter; exact through giraffe export",
        "stock converter drops the longrope factors of a Llama: RoPE runs unscaled; "
        f"{EXPORT} writes them exactly",
    )


def _llama_cpp_yarn(reading: Reading) -> Outlook:
    written = yarn_attention_factor(reading)
    computed = yarn_attention_factor({"factor": reading["factor"]})
    if not math.isclose(written, computed, rel_tol=1e-6):
        return Outlook(
            "attention factor recomputed by the runtime; exact through giraffe export",
            f"applies the stock converter's yarn with attention factor {computed:.6g} instead of "
            f"{written:.6g}; {EXPORT} writes it exactly",
        )
    if not reading.get("truncate", True):
        return Outlook(
            "ramp ends rounded by the runtime; exact through giraffe export",
            "applies the stock converter's yarn with the ramp's ends rounded, which truncate "
            f"forbids; {EXPORT} writes it exactly",
        )
    return Outlook("exact", "stock converter writes yarn exactly")
