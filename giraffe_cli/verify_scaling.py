"""Evidence, in a directory that giraffe did not write, that its scaling or its θ was lost.

A merge or a save that drops RoPE fields leaves a config that is well-formed and wrong. What gives
it away: a window that θ cannot reach, a tokenizer that allows more than the window, a base with
another θ or with the very same table and a shorter window, lengths that contradict the factor.
Where a `rope.json` lies beside the config there is nothing to infer: it is compared key by key.

The window that θ reaches, L(θ) = 2π·(4096/2π)^(ln θ / ln 10⁴), is the critical base of Liu et al.
2023 (arXiv 2310.05209, "Scaling Laws of RoPE-based Extrapolation") turned round: the pair that
completes its turn at the end of Llama 2's window (θ 10⁴, 4096) is the last one trained, and a
larger θ slows that pair to L(θ). 10⁴ → 4096, 5·10⁵ → 64k, 10⁶ → 105k. A window is doubted above
2·L(θ), because models are trained beyond it: 8192 at 10⁴ passes, 16384 does not; Llama 3.1's
131072 at 5·10⁵ without its `llama3` fields does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.rope.malformed import is_length, is_number, rope_problems
from giraffe_cli.rope.readings import (
    DEFAULT_THETA,
    ORIGINAL,
    TYPES_WITH_ORIGINAL,
    Reading,
    describe,
    fields_of,
    names_theta,
    read_as_transformers_5,
    served_length,
)
from giraffe_cli.rundir import read_json
from giraffe_cli.verify_files import Check, problems_check
from giraffe_cli.verify_tables import claim_of

LLAMA_2_WINDOW = 4096
REACH_MARGIN = 2.0
NO_LIMIT = 1e9
"""Tokenizers without a limit say about 1e30."""
LLAMA_3_VOCABULARY = 128256
FACTOR_TOLERANCE = 1e-3
"""Relative, between a YaRN factor and window/original: config writers round to three digits."""


def reachable_length(theta: float) -> float:
    """L(θ) in tokens: the window that unscaled RoPE of base θ is commonly trained at."""
    exponent = math.log(theta) / math.log(DEFAULT_THETA)
    return 2 * math.pi * math.pow(LLAMA_2_WINDOW / (2 * math.pi), exponent)


def check_scaling(
    folder: Path, config: Mapping[str, Any], base: Mapping[str, Any] | None
) -> dict[str, Check]:
    """`scaling`, `rope_theta` and `rope_lengths` of a well-formed config; `base` is the config of
    the model this one was made from, where it is known.

    Raises:
        InvalidInput: a `tokenizer_config.json` that is not JSON.
    """
    reading = read_as_transformers_5(config)
    lost = _out_of_reach(config, reading) + _tokenizer_reaches_further(folder, config, reading)
    theta = _theta_lost(config, reading)
    if base and not rope_problems(base) and is_length(base.get("max_position_embeddings")):
        lost += _same_as_base(config, reading, base)
        theta += _theta_of_base(reading, base)
    return {
        "scaling": problems_check(
            lost,
            f"{describe(reading)} fits the window",
            "RoPE that reaches the window",
            "put back the rope_parameters that the model was trained with; a merge may drop them",
        ),
        "rope_theta": problems_check(
            theta,
            f"θ {reading['rope_theta']:g}",
            "the θ that the model was trained with",
            "write rope_theta, at the top and inside rope_parameters, as the base has it",
        ),
        "rope_lengths": problems_check(
            _length_problems(config, reading),
            "agree",
            "window, original length and factor that agree",
            "max_position_embeddings is the extended window (of dynamic: the native one), "
            f"{ORIGINAL} the native one, factor their ratio",
        ),
    }


def _out_of_reach(config: Mapping[str, Any], reading: Reading) -> list[str]:
    window, theta = config["max_position_embeddings"], reading["rope_theta"]
    reach = reachable_length(theta)
    if reading["rope_type"] != "default" or window <= REACH_MARGIN * reach:
        return []
    return [
        f"scaling lost: unscaled RoPE with θ {theta:g} reaches about {reach:.0f} tokens, the "
        f"window is {window}"
    ]


def _tokenizer_reaches_further(
    folder: Path, config: Mapping[str, Any], reading: Reading
) -> list[str]:
    limit, served = tokenizer_limit(folder), served_length(config, reading)
    if limit is None or limit <= served:
        return []
    return [
        f"scaling lost, or window not raised: the tokenizer allows {limit} tokens, the config "
        f"{served}"
    ]


def tokenizer_limit(folder: Path) -> int | None:
    """`model_max_length` where `tokenizer_config.json` names a real one.

    Raises:
        InvalidInput: the file is not JSON.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else None
    limit = settings.get("model_max_length") if isinstance(settings, dict) else None
    return int(limit) if is_number(limit) and 0 < limit < NO_LIMIT else None


def _same_as_base(
    config: Mapping[str, Any], reading: Reading, base: Mapping[str, Any]
) -> list[str]:
    """The base's own table under a longer window, or no scaling where the base has one."""
    other = read_as_transformers_5(base)
    own, theirs = served_length(config, reading), served_length(base, other)
    if reading["rope_type"] == "default" != other["rope_type"] and (
        reading["rope_theta"] in (other["rope_theta"], DEFAULT_THETA)
    ):
        return [f"scaling lost: the base reads {describe(other)}, this {describe(reading)}"]
    if own > theirs and _equal_tables(config, base):
        return [
            f"scaling lost: the table is the base's own ({describe(other)}, {theirs} tokens), the "
            f"window is {own}"
        ]
    return []


def _equal_tables(config: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    first, second = claim_of(config), claim_of(base)
    if first is None or second is None or first[0].shape != second[0].shape:
        return False
    return np.allclose(first[0], second[0], rtol=1e-9, atol=0) and first[1] == second[1]


def _theta_lost(config: Mapping[str, Any], reading: Reading) -> list[str]:
    """A default θ where another spelling, the type or the vocabulary says that it was another.

    An absent θ alone is no defect: Llama 1 and 2 were published without the key.
    """
    if names_theta(config):
        return []
    elsewhere = fields_of(config, "rope_parameters").get("rope_theta")
    read = f"θ lost: no key in force names it, so it is read as {DEFAULT_THETA:g}"
    if elsewhere not in (None, DEFAULT_THETA):
        return [f"{read}; rope_parameters says {elsewhere:g}"]
    if reading["rope_type"] == "llama3":
        return [f"{read}; llama3 scaling was made for 500000"]
    if config.get("vocab_size") == LLAMA_3_VOCABULARY:
        return [f"{read}; a vocabulary of {LLAMA_3_VOCABULARY} is Llama 3's, with 500000"]
    return []


def _theta_of_base(reading: Reading, base: Mapping[str, Any]) -> list[str]:
    theta = read_as_transformers_5(base)["rope_theta"]
    if reading["rope_theta"] != DEFAULT_THETA or theta == DEFAULT_THETA:
        return []
    return [f"θ lost: {reading['rope_theta']:g} here, {theta:g} in the base"]


def _length_problems(config: Mapping[str, Any], reading: Reading) -> list[str]:
    """What original length, window and factor say of one another."""
    window, original, kind = (
        config["max_position_embeddings"],
        fields_of(config, "rope_scaling", "rope_parameters").get(ORIGINAL),
        reading["rope_type"],
    )
    if kind == "dynamic":
        return _dynamic_problems(window, original, reading)
    if original is None or kind not in TYPES_WITH_ORIGINAL:
        return []
    if original >= window:
        return [f"{ORIGINAL} {original} is not below the window {window}"]
    ratio = window / original
    if kind == "yarn" and not math.isclose(reading["factor"], ratio, rel_tol=FACTOR_TOLERANCE):
        return [f"factor {reading['factor']:g}, but window/original is {ratio:g}"]
    return []


def _dynamic_problems(window: int, original: Any, reading: Reading) -> list[str]:
    """transformers scales once the text is longer than `max_position_embeddings`."""
    native = original or REACH_MARGIN * reachable_length(reading["rope_theta"])
    if window <= native:
        return []
    return [
        f"dynamic never scales: it starts beyond max_position_embeddings, which is raised to "
        f"{window} already"
    ]
