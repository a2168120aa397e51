"""Open a checkpoint: what it is, whether it can be extended, and its model with a given table.

`inspect` reads configs and safetensors headers only (no torch for Hugging Face directories) and
refuses with a reason. `load_model` puts the table on the config *before* `from_pretrained` and
never calls `.to(dtype)`, which would round `inv_freq`: 15 rad off at position 16384 in bfloat16.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.checkpoint_config import read_rope, read_shape
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.gguf_import import import_gguf
from giraffe_cli.pickle_import import PICKLED, has_only_pickled, import_pickled
from giraffe_cli.rope.base import Head, RopeTable
from giraffe_cli.rope.install import ROPE_FILE, apply_table, check_table
from giraffe_cli.rundir import MANIFEST, digest_file, digest_value, read_json
from giraffe_cli.weights import (
    STORED_DTYPES,
    check_tensors,
    count_parameters,
    read_weights,
    weight_files,
)

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EMBEDDED = "calf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]


@dataclass(frozen=True)
class Checkpoint:
    """The facts of a checkpoint that can be used; lengths in tokens."""

    source: str
    """What the user named."""
    path: Path
    """A local Hugging Face directory."""
    digest: str
    """sha256 over config, tokenizer and weight files."""
    head_dim: int
    rope_theta: float
    native_length: int
    """Window before any scaling."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    dtype: str
    """`float32`, `bfloat16` or `float16`: what the weight files hold."""
    num_parameters: int
    existing_rope: dict[str, Any] | None
    """The scaling that is already in force, with the `target_length` it reaches; None without."""
    base_table: tuple[float, ...] | None = None
    """`[head_dim/2]` inv_freq of that scaling; None without, or when its type is not known."""
    base_attention_factor: float = 1.0
    """What that scaling multiplies cos and sin by."""

    def to_json(self) -> dict[str, Any]:
        """All fields, the path as text."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    @property
    def reach(self) -> int:
        """The window the checkpoint has now: native, or what its scaling makes of it."""
        return (
            int(self.existing_rope["target_length"]) if self.existing_rope else self.native_length
        )

    def head(self, target_length: int, on_existing: str = "replace") -> Head:
        """The rotary shape, to reach `target_length`; of a scaled base as if it were not
        (`replace`), or with its own table and the window it has now (`compose`).

        Raises:
            InvalidInput: the table to compose with is not known.
        """
        plain = Head(self.head_dim, self.rope_theta, self.native_length, target_length)
        if self.existing_rope is None or on_existing != "compose":
            return plain
        if self.base_table is None:
            raise InvalidInput(
                f"{self.source} has rope_type `{self.existing_rope['rope_type']}`, whose table is "
                "not known here",
                "pass --on-existing-rope replace, or extend its unscaled base",
            )
        return dataclasses.replace(
            plain,
            original_max_position_embeddings=self.reach,
            base_table=self.base_table,
            base_attention_factor=self.base_attention_factor,
        )


def inspect(source: str, work_dir: Path, allow_pickle: bool | None = None) -> Checkpoint:
    """Open `source`: a local directory, a `.gguf` file, a Hugging Face id, or `calf`.

    A GGUF is converted into `work_dir/base`, and so are pickled weights under `allow_pickle`, which
    is None where the user cannot say so.

    Raises:
        InvalidInput: not found, not a Llama, damaged weights, weights that are pickled, files that
            differ from the manifest beside them, links that lead out, no or a foreign tokenizer.
    """
    path = _locate(source, work_dir, bool(allow_pickle))
    if source != EMBEDDED:  # what is installed may be links into a package manager's store
        _check_links(path)
    if has_only_pickled(path):
        path = _unpickled(path, work_dir, allow_pickle)
    config = _read_config(path)
    shape, rope = read_shape(config, path), read_rope(config, path)
    weights = read_weights(path)
    check_tensors(path, shape, weights)
    _check_tokenizer(path, shape.vocab_size)
    _check_settings(path)
    return Checkpoint(
        source=source,
        path=path,
        digest=_digest(path),
        rope_theta=rope.rope_theta,
        native_length=rope.native_length,
        existing_rope=rope.existing,
        base_table=rope.base_table,
        base_attention_factor=rope.base_attention_factor,
        dtype=STORED_DTYPES[weights["model.embed_tokens.weight"].dtype],
        num_parameters=count_parameters(shape, weights),
        **dataclasses.asdict(shape),
    )


def head_to_extend(
    checkpoint: Checkpoint, target_length: int, on_existing: str, or_pass: str = ""
) -> Head:
    """What a strategy is applied to: `head`, once the window and the existing scaling allow it.

    `compose` scales the real table of a scaled base beyond the real window; `replace` puts the
    strategy in the place of its scaling, over the native window. `or_pass` is an option of the
    caller that accepts a base which reaches the target, for the hint.

    Raises:
        InvalidInput: the base reaches the target, or is scaled and `on_existing` is `refuse`.
    """
    window = checkpoint.native_length if on_existing == "replace" else checkpoint.reach
    if target_length <= window:
        raise InvalidInput(
            f"{checkpoint.source} already reaches {window} tokens, the target is {target_length}",
            "choose a longer --target-len"
            + (f", or pass {or_pass} to accept the base as it is" if or_pass else ""),
        )
    if on_existing == "refuse":
        refuse_scaled(checkpoint, target_length)
    return checkpoint.head(target_length, on_existing)


def refuse_scaled(checkpoint: Checkpoint, target_length: int) -> None:
    """Scaling on top of scaling multiplies factors that were never meant to meet.

    Raises:
        InvalidInput: the checkpoint's RoPE is scaled already; the hint gives both ways on.
    """
    rope, native, reach = checkpoint.existing_rope, checkpoint.native_length, checkpoint.reach
    if rope is None:
        return
    raise InvalidInput(
        f"{checkpoint.source} is already scaled: rope_type `{rope['rope_type']}` takes its "
        f"{native} native tokens to {reach}, and scaling on top of scaling must be meant",
        f"add `--on-existing-rope compose` to stretch that table from {reach} to {target_length}, "
        f"or `--on-existing-rope replace` to scale from the native {native} anew (the weights must "
        "then unlearn the old table); best of all, extend the unscaled base",
    )


def torch_dtype(name: str) -> torch.dtype:
    """`"bfloat16"` → `torch.bfloat16`."""
    import torch

    return {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }[name]


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `path`, with nothing fetched and no code run."""
    from transformers import AutoTokenizer

    with _told_of(path):
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def config_for(path: Path, table: RopeTable | None) -> LlamaConfig:
    """The config of the checkpoint in `path`, with `table` in the place of its own.

    Raises:
        InvalidInput: it cannot be loaded.
    """
    from transformers import LlamaConfig

    with _told_of(path):
        config = LlamaConfig.from_pretrained(path, local_files_only=True)
    if table is not None:
        apply_table(config, table)
    return config


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    table: RopeTable | None = None,
    attn_implementation: str = "sdpa",
    quantization: Any = None,
) -> LlamaForCausalLM:
    """The model of `path` in evaluation mode, its weights in `dtype`, `inv_freq` in float32.

    `quantization` is a `quantization_config` of transformers, applied weight by weight.

    Raises:
        GiraffeError: the model's table is not `table` after loading.
    """
    from transformers import LlamaForCausalLM

    config = config_for(path, table)
    with _without_loading_bar(), _told_of(path):
        model = LlamaForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            local_files_only=True,
            use_safetensors=True,
            **({} if quantization is None else {"quantization_config": quantization}),
        )
    check_table(model, table)
    return model.eval()


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Whatever a library makes of foreign files, told as what it is: files that cannot be loaded.

    Raises:
        InvalidInput: anything but a full memory or a failing disk.
    """
    import torch

    try:
        yield
    except (GiraffeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split())[:300]
        raise InvalidInput(
            f"{path} cannot be loaded: {type(error).__name__}: {reason}",
            f"giraffe verify {path} names what is wrong with it",
        ) from error


@contextlib.contextmanager
def _without_loading_bar() -> Iterator[None]:
    """transformers draws a bar of its own over ours; its setting is put back afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# ---------------------------------------------------------------- finding the directory


def _unpickled(path: Path, work_dir: Path, allowed: bool | None) -> Path:
    if allowed:
        return import_pickled(path, work_dir / "base")
    offered = "pass --allow-pickle to read tensors alone from them, or " if allowed is False else ""
    raise InvalidInput(
        f"{path} has only pickled weights ({PICKLED}), which are programs; needs safetensors",
        f"{offered}convert them where nothing can be lost: "
        "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
    )


def _locate(source: str, work_dir: Path, allow_pickle: bool) -> Path:
    if source == EMBEDDED:
        return Path(str(importlib.resources.files("giraffe_cli") / EMBEDDED))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InvalidInput(f"{path} does not exist")
        return import_gguf(path, work_dir / "base")
    if path.exists():
        raise InvalidInput(
            f"{path} is a file, needs a checkpoint directory or a .gguf file",
            "name the directory that holds config.json",
        )
    if not _HUB_ID.fullmatch(source):
        raise InvalidInput(
            f"{source} does not exist and is no Hugging Face id",
            f"give a directory, a .gguf file, an `owner/name`, or `{EMBEDDED}`",
        )
    return _download(source, allow_pickle)


def _download(repository: str, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
        if allow_pickle and not any(folder.glob("*.safetensors")):
            snapshot_download(repository, allow_patterns=[*_HUB_FILES, "pytorch_model*.bin"])
        return folder
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            f"there is no directory {repository}, and it cannot be fetched from the hub: {reason}",
            f"check the id and the network, or run `hf download {repository}` where there is one",
        ) from error


def _check_links(path: Path) -> None:
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


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise InvalidInput(f"{path} has no config.json", "name a Hugging Face checkpoint directory")
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InvalidInput(f"{path / 'config.json'} holds no JSON object")
    return config


# ---------------------------------------------------------------- tokenizer and identity


def _check_settings(path: Path) -> None:
    """The companions of `config.json` that libraries read are JSON objects, where they exist.

    Raises:
        InvalidInput: one of them is none.
    """
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        if (path / name).is_file() and not isinstance(read_json(path / name), dict):
            raise InvalidInput(f"{path / name} holds no JSON object", "download it again")


def _check_tokenizer(path: Path, vocab_size: int) -> None:
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
        added = [int(token["id"]) for token in value.get("added_tokens", [])]
        largest = max([*ids, *added], default=-1)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path / 'tokenizer.json'} is no fast tokenizer") from error
    if not 0 <= largest < vocab_size:
        raise InvalidInput(
            f"the tokenizer of {path} is foreign: its ids reach {largest}, the embedding has "
            f"{vocab_size} rows",
            "put back the tokenizer that the model was trained with",
        )


def _digest(path: Path) -> str:
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
