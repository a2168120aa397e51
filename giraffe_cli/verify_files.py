"""What can be said about a directory's weight and tokenizer files without loading a model.

Every check is `{"ok", "found", "expected"}`; `found` is words or a number a person can act on, and
a failed one may carry a `hint`, the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_config import read_shape
from giraffe_cli.checkpoint_files import check_settings
from giraffe_cli.errors import GiraffeError
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.malformed import is_length
from giraffe_cli.tensor_stream import stored_tensors
from giraffe_cli.weights import EMBEDDINGS, HEAD, INDEX, check_tensors, read_weights

Check = dict[str, Any]
FOREIGN_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".py"}


def check(ok: bool, found: Any, expected: Any, hint: str | None = None) -> Check:
    """One finding; `hint`, what to do about it, is kept only when there is something to do."""
    finding = {"ok": bool(ok), "found": found, "expected": expected}
    return finding if ok or not hint else {**finding, "hint": hint}


def problems_check(problems: list[str], fine: str, expected: str, hint: str | None = None) -> Check:
    """One finding out of any number of phrases; `fine` is what is said when there are none."""
    return check(not problems, "; ".join(problems) or fine, expected, hint)


def listed(names: list[str], limit: int = 3) -> str:
    """`a, b, c and 4 more`."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def check_weight_files(folder: Path) -> dict[str, Check]:
    """Only safetensors, whole, and all that the index names."""
    foreign = sorted(p.name for p in folder.iterdir() if p.suffix in FOREIGN_SUFFIXES)
    checks = {
        "safetensors_only": check(
            not foreign,
            listed(foreign) or "safetensors only",
            "safetensors only",
            "load with transformers, then save_pretrained(...) into an empty directory",
        )
    }
    try:
        stored = stored_tensors(folder)
    except GiraffeError as error:
        found = check(False, error.message, "whole weight files", error.hint)
        return {**checks, "weight_files": found}
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


def check_companions(folder: Path) -> dict[str, Check]:
    """Settings that libraries can read, and no adapter that they would put on top."""
    try:
        check_settings(folder)
    except GiraffeError as error:
        found = error.message.removeprefix(f"{folder} ").removeprefix(f"{folder}/")
        return {"companions": check(False, found, "JSON objects, no adapter's", error.hint)}
    return {"companions": check(True, "readable, no adapter's", "JSON objects, no adapter's")}


def check_base_config(
    config: Mapping[str, Any], base: Mapping[str, Any], folder: Path
) -> dict[str, Check]:
    """Sizes that the weights' shapes leave open, and the norms' ε, are the base's."""
    try:
        own, theirs = (read_shape(each, folder) for each in (config, base))
    except GiraffeError:
        return {}  # `model_shape` names it
    apart = [
        f"{key} {getattr(own, key)} against {getattr(theirs, key)}"
        for key in ("head_dim", "num_attention_heads", "num_key_value_heads")
        if getattr(own, key) != getattr(theirs, key)
    ]
    first, second = (each.get("rms_norm_eps", 1e-6) for each in (config, base))
    apart += [f"rms_norm_eps {first:g} against {second:g}"] * (first != second)
    return {
        "config_of_base": problems_check(
            apart, "as the base's", "the base's heads and ε", "put back the base's config.json"
        )
    }


def check_tensor_shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, Check]:
    """Every tensor that `config` promises, in its shape, in a 16- or 32-bit float dtype.

    The head is `tied_embeddings`' business. Nothing to say for sizes or files that other checks
    found unusable.
    """
    try:
        shape, weights = read_shape(config, folder), read_weights(folder)
    except GiraffeError:
        return {}
    expected = "every tensor of the config, in its shape, as a float of 16 or 32 bits"
    hint = "put back the config.json that belongs to these weights, unquantised ones"
    if shape.num_layers > len(weights):
        found = f"{len(weights)} tensors for {shape.num_layers} layers"
        return {"tensors": check(False, found, expected, hint)}
    try:
        check_tensors(folder, shape, {HEAD: weights[EMBEDDINGS], **weights}, config)
    except KeyError:
        return {"tensors": check(False, f"{EMBEDDINGS} is missing", expected, hint)}
    except GiraffeError as error:
        reason = " ".join(error.message.partition(": ")[2].split())
        return {"tensors": check(False, reason, expected, hint)}
    return {"tensors": check(True, f"{len(weights)} of the right shape", expected)}


def check_tokenizer(
    folder: Path, facts: Mapping[str, Any], config: Mapping[str, Any], table: RopeTable | None
) -> dict[str, Check]:
    """Limit and vocabulary of the tokenizer as `AutoTokenizer` gave them (`facts`)."""
    if "error" in facts:
        hint = "copy the tokenizer files of the model that this one comes from"
        return {"tokenizer_limit": check(False, facts["error"], "a tokenizer that loads", hint)}
    limit, window = facts["model_max_length"], config.get("max_position_embeddings")
    needed = table.target_length if table else window
    enough = limit == needed if table else is_length(window) and limit >= window
    hint = f"set model_max_length to {needed} in tokenizer_config.json: it cuts prompts, caps vLLM"
    found = check(enough, limit, needed if table else f"at least {window}", hint)
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
            "put back the tokenizer and vocab_size that the weights were trained with",
        )
    }


def check_base_vocabulary(folder: Path, base: Path) -> dict[str, Check]:
    """The vocabulary is never resized."""
    try:
        found, expected = (stored_tensors(f)[EMBEDDINGS].shape[0] for f in (folder, base))
    except (GiraffeError, KeyError):
        return {}
    hint = "give prompts a pad token that exists; resized embeddings cannot be merged or compared"
    return {"vocabulary_of_base": check(found == expected, found, expected, hint)}


def check_tied_embeddings(digests: Mapping[str, str], config: Mapping[str, Any]) -> Check:
    """A tied head is absent or equal to the embeddings, an untied one present."""
    tied = bool(config.get("tie_word_embeddings", False))
    head, embeddings = digests.get(HEAD), digests.get(EMBEDDINGS)
    stored = "absent" if head is None else "equal" if head == embeddings else "different"
    return check(
        head in (None, embeddings) if tied else head is not None,
        f"tie_word_embeddings {tied}, stored head {stored}",
        "tied: no head, or the embeddings again; untied: a head of its own",
        "set tie_word_embeddings to what the base's config.json says, or save the head again",
    )
