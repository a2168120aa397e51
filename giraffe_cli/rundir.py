"""Files that are whole or absent, and stages that count only once their manifest exists.

Every file is written beside its final name, fsynced, renamed, and the folder fsynced. A stage is a
folder whose `manifest.json`, written last, names its inputs by digest and its files by size and
digest; a folder without one is a leftover and is cleared before the stage runs again.

What a later command computes from is sealed: a JSON file carries the digest of its own content, so
that a byte that changed on the disk is an error and no other number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from giraffe_cli.errors import GiraffeError, InvalidInput

MANIFEST = "manifest.json"
TEMPORARY_SUFFIX = ".partial"
SEAL = "giraffe_seal"
_SEAL_BEGINS = "giraffe-seal:"
LOCK = ".giraffe-lock"
"""The file that `lock.py` holds in a folder; part of no stage."""
WORK = ".work"
"""The folder inside a stage of what it was made from; part of no stage, should it be left over."""


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_file(temporary: Path, final: Path) -> None:
    """fsync `temporary`, rename it to `final`, fsync the folder. For writers that need a path."""
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, final)
    sync_folder(final.parent)


def temporary_path(final: Path) -> Path:
    """Where a writer puts the bytes that `commit_file` will rename to `final`."""
    return final.with_name(final.name + TEMPORARY_SUFFIX)


@contextlib.contextmanager
def atomic_open(final: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A handle whose bytes appear under `final` when the block ends without an exception.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
    """
    temporary = temporary_path(final)
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode, encoding=encoding) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, final)
        sync_folder(final.parent)
    except OSError as error:
        raise GiraffeError(
            f"cannot write {final}: {error.strerror or error}",
            "free disk space or choose another --out",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(final: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    with atomic_open(final, "w") as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")


def write_sealed(final: Path, value: Mapping[str, Any]) -> None:
    """`value` as JSON with the digest of its content, which `read_json` checks."""
    write_json(final, sealed(value))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the digest of its content under `SEAL`; `unsealed` is the inverse."""
    return {**value, SEAL: seal(digest_value(json.loads(json.dumps(dict(value)))))}


def unsealed(value: Any, text: str) -> Any:
    """`value`, parsed from `text`, without its seal; what is foreign, or of a giraffe that sealed
    nothing yet, as it is.

    Raises:
        ValueError: it is not what `sealed` gave.
    """
    if isinstance(value, dict) and SEAL in value:
        stated = value.pop(SEAL)
        if stated == seal(digest_value(value)):
            return value
    elif _SEAL_BEGINS not in text and f'"{SEAL}"' not in text:
        return value
    raise ValueError("the seal does not fit the content")


def seal(digest: str) -> str:
    """`giraffe-seal:1f0c…`: what tells a seal that was damaged from a file that never had one."""
    return f"{_SEAL_BEGINS}{digest}"


def ends_with_seal(path: Path) -> bool:
    """Whether a file that giraffe wrote and sealed lies at `path`, by its last bytes."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - 2 * len(seal("0" * 64))))
            return _SEAL_BEGINS.encode() in handle.read()
    except OSError:
        return False


def read_json(path: Path) -> Any:
    """Parse `path`; of a sealed file the value without its seal.

    Raises:
        InvalidInput: missing, not JSON, or not what `write_sealed` wrote.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{path} does not exist", "check the path, or run the command that writes it"
        ) from error
    except (ValueError, OSError, RecursionError) as error:
        raise InvalidInput(
            f"{path} cannot be read as JSON: {error}", "restore it, or write it again"
        ) from error
    try:
        return unsealed(value, text)
    except ValueError:
        raise altered(path) from None


def read_kept(path: Path) -> Any | None:
    """What an earlier call left and can be done again; None where it is missing or damaged."""
    try:
        return read_json(path)
    except InvalidInput:
        return None


def altered(path: Path) -> InvalidInput:
    """The error for a file that is not what was written."""
    return InvalidInput(
        f"{path} was altered since it was written",
        "restore it from a copy, or remove it and run the command that writes it again",
    )


def digest_bytes(data: bytes) -> str:
    """sha256, hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of the file's bytes, hex; constant memory."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_value(value: Any) -> str:
    """sha256 of `value` as canonical JSON (sorted keys): the identity of a config slice."""
    return digest_bytes(json.dumps(value, sort_keys=True, default=str).encode())


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents.

    Raises:
        InvalidInput: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"cannot create {folder}: {error.strerror or error}", "choose another --out"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InvalidInput(f"{folder} is not writable", "choose another --out")
    return folder


def begin_stage(folder: Path) -> Path:
    """An empty folder for a stage that is about to run: leftovers of a killed run are removed."""
    if folder.exists():
        shutil.rmtree(folder)
    return make_folder(folder)


def finish_stage(folder: Path, inputs: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Write the manifest of `folder`: `inputs`, `facts`, and each file's size and sha256."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in (MANIFEST, LOCK)
        and path.relative_to(folder).parts[0] != WORK
    }
    manifest = {"inputs": dict(inputs), **facts, "files": files}
    write_sealed(folder / MANIFEST, manifest)
    return manifest


def stage_holds(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """True when the manifest exists, names these inputs, and every file has its size and digest."""
    if not (folder / MANIFEST).exists():
        return False
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["inputs"] != json.loads(json.dumps(dict(inputs))):
            return False
        return all(is_as_written(folder / n, entry) for n, entry in manifest["files"].items())
    except (InvalidInput, KeyError, TypeError, AttributeError, ValueError, OSError):
        return False


def check_whole(folder: Path) -> None:
    """Hold a folder to its manifest, where it has one.

    Raises:
        InvalidInput: the manifest cannot be read, or a file differs from it; the first is named.
    """
    if not (folder / MANIFEST).exists():
        return
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        return  # somebody else's file of that name
    for name, entry in files.items():
        if not is_as_written(folder / name, entry):
            raise altered(folder / name)


def is_as_written(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the `bytes` and the `sha256` of its entry in a manifest."""
    return (
        path.is_file()
        and path.stat().st_size == entry["bytes"]
        and digest_file(path) == entry["sha256"]
    )
