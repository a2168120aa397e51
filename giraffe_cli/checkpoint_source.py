"""Where a checkpoint lies: a directory, what a file was made into, the hub, the embedded one."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from giraffe_cli.checkpoint_files import check_links
from giraffe_cli.errors import InvalidInput, first_line
from giraffe_cli.gguf_import import import_gguf
from giraffe_cli.pickle_import import PICKLED, has_only_pickled, import_pickled

EMBEDDED = "calf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]


def short_name(source: str) -> str:
    """What a checkpoint is called: the last part of a path or hub id; of `.` and `..` the folder's
    own name."""
    path = Path(source)
    name = path.resolve().name if path.name in ("", "..") else path.name
    return name.removesuffix(".gguf")


def checkpoint_folder(source: str, work_dir: Path, allow_pickle: bool | None) -> Path:
    """The directory of `source` with weights as safetensors, converted into `work_dir/base` where
    they were not; `allow_pickle` is None where the user cannot say so.

    Raises:
        InvalidInput: not found, links that lead out, weights that are pickled.
    """
    path = _locate(source, work_dir, bool(allow_pickle))
    if source != EMBEDDED:  # what is installed may be links into a package manager's store
        check_links(path)
    return _unpickled(path, work_dir, allow_pickle) if has_only_pickled(path) else path


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
        raise InvalidInput(
            f"there is no directory {repository}, and it cannot be fetched from the hub: "
            f"{first_line(error)}",
            f"check the id and the network, or run `hf download {repository}` where there is one",
        ) from error


def _unpickled(path: Path, work_dir: Path, allowed: bool | None) -> Path:
    if allowed:
        return import_pickled(path, work_dir / "base")
    offered = "pass --allow-pickle to read tensors alone from them, or " if allowed is False else ""
    raise InvalidInput(
        f"{path} has only pickled weights ({PICKLED}), which are programs; needs safetensors",
        f"{offered}convert them where nothing can be lost: "
        "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
    )
