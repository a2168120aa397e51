"""A checkpoint's files beside its weights: readable, unaltered, no link that leads out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.install import ROPE_FILE
from giraffe_cli.rundir import MANIFEST, digest_file, digest_value, read_json
from giraffe_cli.weights import ADAPTER_CONFIG, weight_files


def check_links(path: Path) -> None:
    """Templates and settings are copied beside what is made of a checkpoint, so a link of a
    stranger's may not fetch a file of the user's. Weights may lie elsewhere: no text is in them.

    Raises:
        InvalidInput: a link leads out of the folder, and not into the blobs of the hub's cache.
    """
    folder = path.resolve()
    inside = [folder] + [folder.parent.parent / "blobs"] * (folder.parent.name == "snapshots")
    for entry in sorted(path.iterdir()):
        if not entry.is_symlink() or entry.suffix == ".safetensors" or not entry.is_file():
            continue
        target = entry.resolve()
        if not any(target.is_relative_to(place) for place in inside):
            raise InvalidInput(
                f"{entry} is a link to {target}, outside of the checkpoint",
                f"if that is meant, make a copy that follows it: cp -rL {path} COPY",
            )


def read_config(path: Path) -> dict[str, Any]:
    """What `config.json` holds.

    Raises:
        InvalidInput: there is none, or it holds no JSON object.
    """
    if not (path / "config.json").is_file():
        raise InvalidInput(*_what_lies_there(path))
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InvalidInput(f"{path / 'config.json'} holds no JSON object")
    return config


def _what_lies_there(path: Path) -> tuple[str, str]:
    """Message and hint for a folder without `config.json`: what users take for a checkpoint."""
    if (path / ADAPTER_CONFIG).is_file():
        settings = read_json(path / ADAPTER_CONFIG)
        base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
        return (
            f"{path} holds a PEFT adapter for {base or 'an unnamed base'}, no model",
            "merge it first, and name the folder of that: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(...)",
        )
    inside = [path / "model", *sorted(path.glob("*.gguf"))]
    found = next((entry for entry in inside if entry.is_file() or _is_checkpoint(entry)), None)
    hint = f"name {found}" if found else "name a Hugging Face checkpoint directory"
    return f"{path} has no config.json", hint


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file()


def check_settings(path: Path) -> None:
    """The companions of `config.json` that libraries read are JSON objects, where they exist, and
    none is an adapter's.

    Raises:
        InvalidInput: one of them is otherwise.
    """
    if (path / ADAPTER_CONFIG).is_file():
        raise InvalidInput(
            f"{path} holds a model and, by its {ADAPTER_CONFIG}, a PEFT adapter, which "
            "transformers would put on top of it",
            f"where it is merged already, remove {ADAPTER_CONFIG} from a copy; else merge it first",
        )
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        settings = read_json(path / name) if (path / name).is_file() else {}
        if not isinstance(settings, dict):
            raise InvalidInput(f"{path / name} holds no JSON object", "download it again")
        limit = settings.get("model_max_length")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float)):
            raise InvalidInput(
                f"{path / name} says model_max_length {limit!r}, needs a number",
                "write it without quotation marks",
            )


def check_tokenizer(path: Path, vocab_size: int) -> None:
    """There is a fast tokenizer, and the embedding has a row for each of its ids.

    Raises:
        InvalidInput: there is none, or it belongs to another model.
    """
    if not (path / "tokenizer.json").is_file():
        raise InvalidInput(
            f"{path} has no tokenizer.json",
            "save it: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    value = read_json(path / "tokenizer.json")
    try:
        vocabulary = value["model"]["vocab"]
        # A dictionary of ids for BPE, a list of (piece, score) for Unigram.
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = {int(token["id"]): token["content"] for token in value.get("added_tokens", [])}
        largest = max([*ids, *added], default=-1)
        without_row = [added[number] for number in sorted(added) if number >= vocab_size]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path / 'tokenizer.json'} is no fast tokenizer") from error
    if without_row and max(ids, default=-1) < vocab_size:
        raise InvalidInput(
            f"the embedding of {path} has {vocab_size} rows and none for what was added to its "
            f"tokenizer: {', '.join(map(str, without_row[:3]))}{', …' * (len(without_row) > 3)}",
            f"give it rows, in a copy: {shlex.join(_with_rows(path, largest + 1))}",
        )
    if not 0 <= largest < vocab_size:
        raise InvalidInput(
            f"the tokenizer of {path} is foreign: its ids reach {largest}, the embedding has "
            f"{vocab_size} rows",
            "put back the tokenizer that the model was trained with",
        )


def _with_rows(path: Path, rows: int) -> list[str]:
    """The command that writes a copy of `path` whose embedding has so many rows."""
    copy = f"{path}-{rows}"
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"m = M.from_pretrained({str(path)!r}, dtype='auto'); m.resize_token_embeddings({rows}); "
        f"m.save_pretrained({copy!r}); T.from_pretrained({str(path)!r}).save_pretrained({copy!r})"
    )
    return ["python", "-c", code]


def checkpoint_digest(path: Path) -> str:
    """The identity of what lies in `path`, held against the manifest of who wrote it, if any.

    Raises:
        InvalidInput: a file is not what giraffe wrote there.
    """
    files = [path / "config.json", path / "tokenizer.json", *weight_files(path)]
    rope = path / ROPE_FILE
    digests = {f.name: digest_file(f) for f in [*files, *[rope] * rope.exists()]}
    manifest = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else {}
    written = manifest.get("files") if isinstance(manifest, dict) else None
    for name, entry in written.items() if isinstance(written, dict) else ():
        stated = entry.get("sha256") if isinstance(entry, dict) else None
        if stated and digests.get(name, stated) != stated:
            raise InvalidInput(
                f"{path / name} was altered since giraffe wrote it",
                f"write it again; if the change is yours, remove {path / MANIFEST}",
            )
    return digest_value(digests)
