"""What is wrong with the RoPE fields of a `config.json` by themselves, in words.

Only what no runtime can use, or what two runtimes must read differently, is malformed: a wrong
kind of value, a number out of its range, a list of another length, an unknown type. Whether
well-formed fields fit the window, the weights or the tokenizer is `verify_scaling.py`'s question.

    {"rope_scaling": {"type": "yarn", "factor": "4"}}
    → ["factor is '4', needs a number of at least 1"]

transformers itself mostly warns: it builds a model from a factor of 0.5, a fractional native window
or a list of NaN (5.23 and 4.57, run).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from giraffe_cli.rope.readings import ORIGINAL

SPELLINGS = ("rope_scaling", "rope_parameters")
REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""The `rope_type`s that all stock Llama runtimes know, with the keys none can do without."""
_PARTIAL = "partial_rotary_factor"
_POSITIVE = (
    "attention_factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "short_mscale",
    "long_mscale",
)
_NOT_NEGATIVE = ("mscale", "mscale_all_dim")
_LONGEST = 2**63
"""Beyond any position a runtime can count to, and short of any float's overflow."""


def is_number(value: Any) -> TypeGuard[int | float]:
    """A finite int or float; True is no number here, nor is an integer beyond any float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_known_type(kind: Any) -> bool:
    """A `rope_type` that every stock Llama runtime computes."""
    return isinstance(kind, str) and kind in REQUIRED


def is_length(value: Any) -> TypeGuard[int]:
    """A positive number of tokens, spelt as a JSON integer."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LONGEST


def rope_problems(config: Mapping[str, Any]) -> list[str]:
    """A phrase for each malformed RoPE field, in either spelling; empty for usable fields."""
    problems = [*_theta_problems(config), *_original_problems(config.get(ORIGINAL))]
    for spelling in SPELLINGS:
        fields = config.get(spelling)
        if isinstance(fields, Mapping):
            problems += _fields_problems(spelling, fields, num_pairs(config))
        elif fields is not None:
            problems.append(
                f"{spelling} is a {type(fields).__name__} ({_shown(fields)}), needs a mapping"
            )
    return list(dict.fromkeys([*problems, *partial_rotation(config)]))


def partial_rotation(config: Mapping[str, Any]) -> Iterator[str]:
    """Heads that turn in part, at the top or in either spelling."""
    for holder in (config, *(config.get(spelling) for spelling in SPELLINGS)):
        partial = holder.get(_PARTIAL) if isinstance(holder, Mapping) else None
        if partial not in (None, 1):
            yield f"{_PARTIAL} is {partial!r}, a Llama turns every pair"


def num_pairs(config: Mapping[str, Any]) -> int | None:
    """head_dim/2; None where the sizes are no sizes."""
    head_dim = config.get("head_dim")
    if head_dim is None:
        hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
        head_dim = hidden // heads if is_length(hidden) and is_length(heads) else None
    return head_dim // 2 if is_length(head_dim) else None


def _theta_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """θ is absent or a number above 1, wherever it stands; a null is neither."""
    for holder in (config, *(config.get(spelling) for spelling in SPELLINGS)):
        if not isinstance(holder, Mapping) or "rope_theta" not in holder:
            continue
        theta = holder["rope_theta"]
        if not is_number(theta) or theta <= 1:
            shown = "null" if theta is None else _shown(theta)
            yield f"rope_theta is {shown}, needs a number above 1"


def _fields_problems(spelling: str, fields: Mapping[str, Any], pairs: int | None) -> Iterator[str]:
    nested = sorted(str(key) for key, value in fields.items() if isinstance(value, Mapping))
    if nested:
        yield f"{spelling} is nested by layer type ({', '.join(nested)}), needs a flat mapping"
        return
    kind, old = fields.get("rope_type"), fields.get("type")
    if kind is not None and old is not None and kind != old:
        yield f"type `{old}` disagrees with rope_type `{kind}`: transformers 4 reads the first"
    kind = kind or old or "default"
    if not is_known_type(kind):
        known = "write `longrope`" if kind == "su" else f"known: {', '.join(REQUIRED)}"
        yield f"rope_type `{_shown(kind)}` is none that Llama runtimes know ({known})"
        return
    yield from (f"{kind} without {key}" for key in REQUIRED[kind] if fields.get(key) is None)
    yield from _number_problems(fields)
    for key in ("short_factor", "long_factor"):
        if fields.get(key) is not None:
            yield from _list_problems(key, fields[key], pairs)


def _number_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    factor = fields.get("factor")
    if factor is not None and not (is_number(factor) and factor >= 1):
        yield f"factor is {_shown(factor)}, needs a number of at least 1"
    yield from _original_problems(fields.get(ORIGINAL))
    for key in (*_POSITIVE, *_NOT_NEGATIVE):
        value, zero = fields.get(key), key in _NOT_NEGATIVE
        if value is None or (is_number(value) and (value > 0 or (zero and value == 0))):
            continue
        yield f"{key} is {_shown(value)}, needs a number {'of at least' if zero else 'above'} 0"
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        small, large = fields.get(low), fields.get(high)
        if is_number(small) and is_number(large) and small >= large:
            yield f"{low} {small} is not below {high} {large}"


def _original_problems(original: Any) -> Iterator[str]:
    if original is not None and not is_length(original):
        yield f"{ORIGINAL} is {_shown(original)}, needs a positive integer"


def _list_problems(key: str, values: Any, pairs: int | None) -> Iterator[str]:
    """Divisors, one a pair: the first that is no positive number is named."""
    if not isinstance(values, list):
        yield f"{key} is {_shown(values)}, needs a list of numbers"
        return
    if pairs is not None and len(values) != pairs:
        yield f"{key} has {len(values)} numbers, needs head_dim/2 = {pairs}"
    for index, value in enumerate(values):
        if not (is_number(value) and value > 0):
            yield f"{key}[{index}] is {_shown(value)}, needs a number above 0"
            return


def _shown(value: Any) -> str:
    """`value` as it may stand in one line: strings quoted, long things cut."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
