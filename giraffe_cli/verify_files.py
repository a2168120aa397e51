"""What can be said about a model directory by reading its files: keys, limits, names, sizes.

Every check is `{"ok", "found", "expected"}`; `found` is words or a number a person can act on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.errors import GiraffeError
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.readings import (
    ORIGINAL,
    differences,
    read_as_transformers_4,
    read_as_transformers_5,
    switches,
)
from giraffe_cli.tensor_stream import stored_tensors
from giraffe_cli.weights import INDEX

Check = dict[str, Any]
FOREIGN_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".py"}
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def check(ok: bool, found: Any, expected: Any) -> Check:
    """One finding."""
    return {"ok": bool(ok), "found": found, "expected": expected}


def listed(names: list[str], limit: int = 3) -> str:
    """`a, b, c and 4 more`."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def check_weight_files(folder: Path) -> dict[str, Check]:
    """Only safetensors, whole, and all that the index names."""
    foreign = sorted(p.name for p in folder.iterdir() if p.suffix in FOREIGN_SUFFIXES)
    checks = {
        "safetensors_only": check(
            not foreign, listed(foreign) or "safetensors only", "safetensors only"
        )
    }
    try:
        stored = stored_tensors(folder)
    except GiraffeError as error:
        return {**checks, "weight_files": check(False, error.message, "whole weight files")}
    named = set(stored)
    if (folder / INDEX).is_file():
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
    lost = sorted(named ^ set(stored))
    return {
        **checks,
        "weight_files": check(
            not lost,
            f"index and files disagree on {listed(lost)}" if lost else f"{len(stored)} tensors",
            "every tensor of the index, no other",
        ),
    }


def check_config(config: Mapping[str, Any], table: RopeTable | None) -> dict[str, Check]:
    """The fields every runtime reads; against `table` where the directory is ours."""
    window = config.get("max_position_embeddings")
    target = table.target_length if table else window
    whole = isinstance(window, int) and not isinstance(window, bool) and window > 0
    architectures = config.get("architectures")
    return {
        "architecture": check(
            architectures == ["LlamaForCausalLM"] and "auto_map" not in config,
            architectures if "auto_map" not in config else "auto_map: needs code of its own",
            ["LlamaForCausalLM"],
        ),
        "max_position_embeddings": check(
            whole and window == target, window, target if table else "a positive integer"
        ),
        "top_level_original_length": check(
            ORIGINAL not in config, config.get(ORIGINAL, "absent"), "absent: vLLM would serve it"
        ),
        **check_rope_fields(config, table),
    }


def check_rope_fields(config: Mapping[str, Any], table: RopeTable | None) -> dict[str, Check]:
    """Both spellings agree, and say what `rope.json` says."""
    reading, old = read_as_transformers_5(config), read_as_transformers_4(config)
    spelt_new = config.get("rope_parameters")
    # Transformers 4 has no θ inside the dict and fills in no original length.
    apart = differences(old, {k: v for k, v in reading.items() if k != ORIGINAL or k in old})
    if spelt_new and config.get("rope_scaling"):
        apart += [d for d in differences(reading, _new(config, spelt_new)) if d not in apart]
    checks = {
        "rope_spellings": check(
            not apart, "; ".join(apart) or "agree", "transformers 4 and 5 read the same"
        ),
        "rope_type_fields": _check_type_fields(reading, config),
    }
    if table:
        written = {k: v for k, v in table.rope_parameters.items() if v is not None}
        wrong = differences(reading, written)
        checks["rope_parameters"] = check(
            not wrong, "; ".join(wrong) or "as in rope.json", "as in rope.json"
        )
    return checks


def _new(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return read_as_transformers_5({**config, "rope_scaling": None, "rope_parameters": fields})


def _check_type_fields(reading: Mapping[str, Any], config: Mapping[str, Any]) -> Check:
    """What the type needs beside its numbers, so that no runtime falls back to a guess."""
    spelt = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    kind, problems = reading["rope_type"], []
    if kind in {"yarn", "longrope", "llama3"} and not isinstance(spelt.get(ORIGINAL), int):
        problems.append(f"{kind} without an integer {ORIGINAL}")
    if kind == "longrope":
        factor = reading.get("attention_factor")
        if switches(reading):
            problems.append("short_factor differs from long_factor: cached generation breaks")
        if factor is None:
            problems.append("longrope without attention_factor")
        for key in ("short_mscale", "long_mscale"):
            if reading.get(key) != factor:
                problems.append(f"{key} {reading.get(key)} against attention_factor {factor}")
    return check(
        not problems, "; ".join(problems) or f"{kind}, complete", "every field the type needs"
    )


def check_tokenizer(
    folder: Path, facts: Mapping[str, Any], config: Mapping[str, Any], table: RopeTable | None
) -> dict[str, Check]:
    """Limit and vocabulary of the tokenizer as `AutoTokenizer` gave them (`facts`)."""
    if "error" in facts:
        return {"tokenizer_limit": check(False, facts["error"], "a tokenizer that loads")}
    limit, window = facts["model_max_length"], config.get("max_position_embeddings")
    if table:
        found = check(limit == table.target_length, limit, table.target_length)
    else:
        enough = isinstance(window, int) and limit >= window
        found = check(enough, limit, f"at least {window}")
    return {
        "tokenizer_limit": found,
        **check_vocabulary(folder, facts["largest_id"], config),
    }


def check_vocabulary(folder: Path, largest_id: int, config: Mapping[str, Any]) -> dict[str, Check]:
    """Rows of the embeddings: as many as the config says, and enough for the tokenizer."""
    try:
        rows = stored_tensors(folder)[EMBEDDINGS].shape[0]
    except (GiraffeError, KeyError):
        return {}  # `weight_files` or `weights` names it
    size = config.get("vocab_size")
    return {
        "vocabulary": check(
            rows == size and largest_id < rows,
            f"{rows} rows, vocab_size {size}, largest token id {largest_id}",
            "rows equal vocab_size and cover every token id",
        )
    }


def check_base_vocabulary(folder: Path, base: Path) -> dict[str, Check]:
    """The vocabulary is never resized."""
    try:
        found, expected = (stored_tensors(f)[EMBEDDINGS].shape[0] for f in (folder, base))
    except (GiraffeError, KeyError):
        return {}
    return {"vocabulary_of_base": check(found == expected, found, expected)}


def check_tied_embeddings(digests: Mapping[str, str], config: Mapping[str, Any]) -> Check:
    """A tied head is absent or equal to the embeddings, an untied one present."""
    tied = bool(config.get("tie_word_embeddings", False))
    head, embeddings = digests.get(HEAD), digests.get(EMBEDDINGS)
    stored = "absent" if head is None else "equal" if head == embeddings else "different"
    return check(
        head in (None, embeddings) if tied else head is not None,
        f"tie_word_embeddings {tied}, stored head {stored}",
        "tied: no head, or the embeddings again; untied: a head of its own",
    )
