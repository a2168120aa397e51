"""What `config.json` alone says: is it a Llama, are its RoPE fields usable, do its readers agree.

A spelling is a defect when two stock runtimes would build different models from the file without a
word: θ and scaling in `rope_parameters` only (transformers 4 reads θ 10000), an original length at
the top (vLLM serves it), longrope without `short_mscale`/`long_mscale` (vLLM guesses another
attention factor), yarn with `attn_factor` (which only some multiply by). What a flag of the runtime
settles, or what it refuses aloud, gets a sentence in `runtimes` and no more: `linear`, whose length
vLLM multiplies; `dynamic`; a θ no key names.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_config import read_shape
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.malformed import is_length, rope_problems
from giraffe_cli.rope.readings import (
    ORIGINAL,
    TOLERANCE,
    TYPES_WITH_ORIGINAL,
    differences,
    fields_of,
    read_as_transformers_4,
    read_as_transformers_5,
    switches,
    yarn_attention_factor,
)
from giraffe_cli.rope.runtimes import older_yarn_factor
from giraffe_cli.rundir import read_json
from giraffe_cli.verify_files import Check, check, problems_check
from giraffe_cli.weights import ADAPTER_CONFIG, holds_weights

SPELL_BOTH = (
    "write θ and scaling in both spellings: rope_parameters with rope_theta inside, and rope_theta "
    "beside rope_scaling"
)
NEEDED_BEFORE_LOADING = (
    "quantisation",
    "model_shape",
    "rope_fields",
    "weight_files",
    "tensors",
)
"""In this order: tensors are looked at only where the weight files are whole."""


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model directory.

    Raises:
        InvalidInput: an adapter's directory; a missing, empty or unreadable `config.json`, or one
            that holds no object.
    """
    path = folder / "config.json"
    _refuse_adapter(folder)
    if not path.is_file():
        told = f"{folder} is no model directory: it has no config.json"
        raise InvalidInput(told, _where_its_model_is(folder))
    again = "download or save the checkpoint again"
    if not path.stat().st_size:
        raise InvalidInput(f"{path} is empty (0 bytes)", again)
    config = read_json(path)
    if not isinstance(config, dict) or not config:
        raise InvalidInput(f"{path} holds no JSON object, or an empty one", again)
    return config


def _where_its_model_is(folder: Path) -> str | None:
    """The command that helps where `folder` is a run's."""
    if (folder / "model").is_dir():
        return f"run giraffe verify {shlex.quote(str(folder / 'model'))}"
    if (folder / "run.yaml").is_file():
        return f"giraffe merge {shlex.quote(str(folder))} writes the model of a trained run"
    return None


def _refuse_adapter(folder: Path) -> None:
    """A PEFT adapter without a model: there is no table in it to verify."""
    path = folder / ADAPTER_CONFIG
    if holds_weights(folder) or not path.is_file():
        return
    settings = read_json(path)
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    merge = "merge it first: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
    if (folder.parent / "run.yaml").is_file():
        run, model = (shlex.quote(str(path)) for path in (folder.parent, folder.parent / "model"))
        merge = f"run giraffe merge {run}, then giraffe verify {model}"
    raise InvalidInput(
        f"{folder} holds a PEFT adapter for {base or 'an unnamed base'}, no model: RoPE is the "
        "base's, an adapter carries none",
        merge,
    )


def is_llama(config: Mapping[str, Any]) -> bool:
    """True for `LlamaForCausalLM` of type `llama`, all that giraffe knows."""
    return config.get("model_type") == "llama" and config.get("architectures") == [
        "LlamaForCausalLM"
    ]


def not_loadable(config: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    """The check that makes loading pointless, the first one; None when loading is worth its cost.

    A config that is only mis-scaled is loaded: the proof then also shows the table in force.
    """
    if not is_length(config.get("max_position_embeddings")):
        return "max_position_embeddings"
    return next((n for n in NEEDED_BEFORE_LOADING if not checks[n]["ok"]), None)


def check_architecture(config: Mapping[str, Any]) -> dict[str, Check]:
    """One check; every other config check presumes a Llama."""
    expected = "LlamaForCausalLM of type llama, without code of its own"
    if not is_llama(config):
        named = config.get("architectures")
        words = ", ".join(map(str, named)) if isinstance(named, list) else named
        found = f"{words} of type {config.get('model_type')}"
        hint = "giraffe verifies and extends Llama models alone"
        return {"architecture": check(False, found, expected, hint)}
    own_code = "auto_map" in config
    found = "auto_map: needs code of its own" if own_code else "LlamaForCausalLM"
    hint = "drop auto_map where the stock class computes the same"
    return {"architecture": check(not own_code, found, expected, hint)}


def check_config(
    folder: Path, config: Mapping[str, Any], table: RopeTable | None
) -> dict[str, Check]:
    """The fields every runtime reads; against `table` where the directory is ours."""
    window = config.get("max_position_embeddings")
    target = table.target_length if table else window
    return {
        **check_architecture(config),
        "config_json": _check_strict_json(folder),
        "quantisation": check(
            not config.get("quantization_config"),
            "quantised weights" if config.get("quantization_config") else "none",
            "weights as trained, not quantised",
            "verify and extend the unquantised model; quantise afterwards",
        ),
        "model_shape": _check_shape(folder, config),
        "max_position_embeddings": check(
            is_length(window) and window == target,
            window if is_length(window) else repr(window),
            target if table else "a positive integer",
            "write the window as a JSON integer" if not is_length(window) else None,
        ),
        "top_level_original_length": check(
            ORIGINAL not in config,
            config.get(ORIGINAL, "absent"),
            "absent: vLLM would serve it",
            f"keep {ORIGINAL} inside rope_parameters and rope_scaling only",
        ),
        **check_rope_fields(config, table),
    }


def _check_strict_json(folder: Path) -> Check:
    """NaN and Infinity, which Python's reader lets pass and others refuse."""
    found: list[str] = []
    json.loads((folder / "config.json").read_text(encoding="utf-8"), parse_constant=found.append)
    words = [f"{found[0]} is no JSON"] if found else []
    return problems_check(words, "strict JSON", "strict JSON", "write finite numbers")


def _check_shape(folder: Path, config: Mapping[str, Any]) -> Check:
    """The sizes, as `read_shape` wants them; other architectures have their own check."""
    plain = {k: v for k, v in config.items() if k not in ("quantization_config",)}
    plain.update(model_type="llama", architectures=["LlamaForCausalLM"], max_position_embeddings=1)
    plain.pop("partial_rotary_factor", None)  # `rope_fields` names it
    try:
        shape = read_shape(plain, folder)
    except InvalidInput as error:
        reason = " ".join(error.message.removeprefix(f"{folder / 'config.json'}: ").split())
        return check(False, reason, "sizes of a Llama", "put back the model's own config.json")
    words = f"{shape.num_layers} layers of {shape.num_attention_heads} heads of {shape.head_dim}"
    return check(True, words, "sizes of a Llama")


def check_rope_fields(config: Mapping[str, Any], table: RopeTable | None) -> dict[str, Check]:
    """Fields that can be used, both spellings agreeing, saying what `rope.json` says."""
    malformed = rope_problems(config)
    reading = read_as_transformers_5(config)
    usable = problems_check(
        malformed, "usable", "RoPE fields that runtimes can use", "write the field again"
    )
    if malformed:
        return {"rope_fields": usable}
    checks = {
        "rope_fields": usable,
        "rope_spellings": _check_spellings(config, reading),
        "rope_type_fields": _check_type_fields(config, reading),
    }
    if table:
        written = {k: v for k, v in table.rope_parameters.items() if v is not None}
        checks["rope_parameters"] = problems_check(
            differences(reading, written),
            "as in rope.json",
            "as in rope.json",
            _lost(reading, written),
        )
    return checks


def _lost(reading: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """The remedy, with the commonest cause where it shows."""
    copy = "copy rope_parameters from rope.json into config.json, in both spellings"
    if reading["rope_type"] == "default" != written.get("rope_type", "default"):
        return f"the scaling was lost, by a merge or a save: {copy}"
    return copy


def _check_spellings(config: Mapping[str, Any], reading: Mapping[str, Any]) -> Check:
    """transformers 4 and 5, and the spelling that loses, say the same."""
    old = read_as_transformers_4(config)
    # Transformers 4 has no θ inside the dict and fills in no original length.
    apart = differences(old, {k: v for k, v in reading.items() if k != ORIGINAL or k in old})
    new = fields_of(config, "rope_parameters")
    if new and fields_of(config, "rope_scaling"):
        other = read_as_transformers_5({**config, "rope_scaling": None})
        apart += [d for d in differences(reading, other) if d not in apart]
    return problems_check(apart, "agree", "transformers 4 and 5 read the same", SPELL_BOTH)


def _check_type_fields(config: Mapping[str, Any], reading: dict[str, Any]) -> Check:
    """What the type needs beside its numbers, so that no runtime falls back to a guess."""
    spelt = {**fields_of(config, "rope_parameters"), **fields_of(config, "rope_scaling")}
    kind, problems = reading["rope_type"], []
    hint = "write every field out; what is absent, transformers and vLLM guess differently"
    if kind in TYPES_WITH_ORIGINAL and spelt.get(ORIGINAL) is None:
        problems.append(f"{kind} without an integer {ORIGINAL}")
    if kind == "yarn" and reading.get("attn_factor") not in (None, 1):
        problems += _attn_factor_problems(reading)
        hint = "write what cos and sin are multiplied by as attention_factor, without attn_factor"
    if kind == "longrope":
        factor = reading.get("attention_factor")
        if switches(reading):
            problems.append("short_factor differs from long_factor: cached generation breaks")
        if factor is None:
            problems.append("longrope without attention_factor")
        for key in ("short_mscale", "long_mscale"):
            if reading.get(key) != factor or factor is None:
                problems.append(f"{key} {reading.get(key)} against attention_factor {factor}")
    return problems_check(
        problems,
        f"{kind}, complete",
        "every field the type needs",
        hint,
    )


def _attn_factor_problems(reading: dict[str, Any]) -> list[str]:
    """The YaRN authors' spelling, beside an `attention_factor` that does not say the same."""
    written, older = yarn_attention_factor(reading), older_yarn_factor(reading)
    if math.isclose(written, older, rel_tol=TOLERANCE):
        return []
    return [
        f"attn_factor {reading['attn_factor']}: vLLM before 0.33 and SGLang multiply by it "
        f"({older:.6g}), transformers does not read it ({written:.6g})"
    ]
