"""The folder of a merged model: built beside its final name, whole or absent, never another's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.own_folder import HINT, refuse_a_models
from giraffe_cli.rundir import (
    MANIFEST,
    atomic_open,
    make_folder,
    read_json,
    sync_folder,
    write_json,
)
from giraffe_cli.tensor_stream import stored_tensors
from giraffe_cli.weights import STORED_DTYPES, STORED_TABLE, holds_weights

STAGE = "merge"
BUILDING, REPLACED = ".giraffe-building", ".giraffe-replaced"
"""Suffixes of the folders that exist beside the output while it is written."""
TEMPLATES = "additional_chat_templates/*.jinja"
"""Where transformers keeps the chat templates that have names."""
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    TEMPLATES,
    "LICENSE*",
    "NOTICE*",
)


def refuse_foreign_folder(out: Path, base: Path, inputs: Mapping[str, Any] | None = None) -> None:
    """Never replace what this stage did not write, nor, given the `inputs` of a merge, what it
    wrote of others.

    Raises:
        InvalidInput: `out` is the base or, given the inputs, lies in a model's folder; or exists,
            is not empty and carries no manifest of a merge, or of another one.
    """
    if out.resolve() == base.resolve():
        raise InvalidInput(f"{out} is the base itself", HINT)
    if inputs is not None and holds_weights(out.parent):
        refuse_a_models(out.parent)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else None
    kept = manifest.get("inputs", {}) if isinstance(manifest, dict) else {}
    if kept.get("stage") != STAGE:
        raise InvalidInput(f"{out} exists and is no merged model", HINT)
    if inputs is not None and kept != json.loads(json.dumps(inputs)):
        raise InvalidInput(
            f"{out} holds another merged model: of other weights, another training or table",
            "choose another --out, or remove it",
        )


def beside(out: Path, suffix: str) -> Path:
    """A folder of the same parent."""
    whole = out.absolute()
    if not whole.name:
        raise InvalidInput(f"{out} is no folder of its own", HINT)
    return whole.with_name(whole.name + suffix)


def clear_leftovers(out: Path) -> None:
    """What a killed merge left beside `out`: half a model, or the one that was being replaced."""
    for suffix in (BUILDING, REPLACED):
        shutil.rmtree(beside(out, suffix), ignore_errors=True)


def put_in_place(building: Path, out: Path) -> None:
    """Swap in the finished directory; at every instant `out` is whole or absent."""
    make_folder(out.parent)
    replaced = beside(out, REPLACED)
    try:
        if out.exists():
            out.rename(replaced)
        building.rename(out)
    except OSError as error:
        raise GiraffeError(
            f"cannot move the merged model to {out}: {error.strerror or error}",
            HINT,
        ) from error
    sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def copy_file(source: Path, final: Path) -> None:
    """A real copy, durable; never a link, for either side may be edited or deleted later."""
    make_folder(final.parent)
    with open(source, "rb") as reader, atomic_open(final) as writer:
        shutil.copyfileobj(reader, writer)


def copy_companions(base: Path, out: Path) -> None:
    """Tokenizer, settings and licences of `base`."""
    for pattern in COPIED:
        for path in sorted(base.glob(pattern)):
            if path.is_file():
                copy_file(path, out / path.relative_to(base))


def is_in_dtype(out: Path, dtype: str) -> bool:
    """Whether a merged model is in one float type and says so; earlier versions left both as the
    base had them."""
    config = read_json(out / "config.json")
    stored = {
        STORED_DTYPES.get(tensor.dtype)
        for name, tensor in stored_tensors(out).items()
        if not name.endswith(STORED_TABLE)
    }
    said = {config.get(key) for key in ("dtype", "torch_dtype")} - {None}
    return stored == {dtype} and said <= {dtype}


def say_dtype(file: Path, dtype: str) -> None:
    """Where the config of the base names another float type than the weights are written in, as one
    does that is older than its files, let it say theirs: a loader goes by the config."""
    config = read_json(file)
    stale = [key for key in ("dtype", "torch_dtype") if config.get(key) not in (None, dtype)]
    if stale:
        write_json(file, {**config, **dict.fromkeys(stale, dtype)})
