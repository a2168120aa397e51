"""`hf:OWNER/NAME[:CONFIG][:SPLIT]`: a dataset of the Hugging Face hub, streamed; a row a document.

    hf:allenai/c4:en:validation      hf:owner/name::test      hf:./folder/of/parquet

The split is `train` unless named. The library `datasets` reads it, from the commit that the data
files were at when the corpus was listed, so that a later push changes nothing half-way. The whole
stream is one unit. Memory: what `datasets` buffers, a row group of each open file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size
from giraffe_cli.corpus.readers._records import Defect, check_length, identity_of, is_blank, text_of
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit
from giraffe_cli.errors import GiraffeError, InvalidInput, near_misses

PREFIX = "hf:"
COMMIT = re.compile(r"@([0-9a-f]{40})/")


class _Named(NamedTuple):
    dataset: str
    config: str | None
    split: str


@dataclass(frozen=True)
class Hub(AbstractReader):
    """Datasets of the hub, or folders that `datasets` reads."""

    text_field: str = "text"
    """The column that holds the text."""

    summary = "hf:OWNER/NAME[:CONFIG][:SPLIT], a dataset of the hub, streamed"

    def claims(self, source: str) -> bool:
        return source.startswith(PREFIX)

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        named = _named(source)
        files = tuple(map(_span, _data_files(source, named)))
        commits = {match[1] for span in files if (match := COMMIT.search(span.path))}
        revision = f"@{commits.pop()}" if len(commits) == 1 else ""
        size = sum(span.size for span in files)
        return [Unit(name, "hub", f"{named.split}{revision}", source, files, size)]

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        split, _, revision = unit.name.partition("@")
        rows = _stream(unit.root, _named(unit.root), revision or None)
        for number, row in enumerate(rows, start=1):
            try:
                text = text_of(row, self.text_field)
                check_length(text, self.max_doc_bytes)
                identity = identity_of(row)
            except Defect as defect:
                where = partial("{}: row {}".format, unit.root, number)
                bad.report(where, defect.reason, defect.detail)
                continue
            if is_blank(text):
                bad.skip("empty text")
            else:
                yield Document(identity or f"{split}:{number}", text, unit.source)

    def example(self, folder: Path) -> str:
        import pyarrow
        import pyarrow.parquet

        root = folder / "example"
        root.mkdir(parents=True)
        columns = {"id": ["one", "two"], self.text_field: ["a text", "another"]}
        pyarrow.parquet.write_table(pyarrow.table(columns), root / "train-00000.parquet")
        return f"{PREFIX}{root}"


def _named(source: str) -> _Named:
    """Taken apart.

    Raises:
        InvalidInput: more than two colons, or no dataset.
    """
    parts = source.removeprefix(PREFIX).split(":")
    if not parts[0] or len(parts) > 3:
        raise InvalidInput(f"`{source}` names no dataset", "write hf:OWNER/NAME[:CONFIG][:SPLIT]")
    config, split = [*parts[1:], "", ""][:2]
    return _Named(parts[0], config or None, split or "train")


def _library() -> Any:
    """The library `datasets`, which no other reader needs and which takes a second to import.

    Raises:
        InvalidInput: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise InvalidInput(
            f"hub datasets need `datasets`: {error}", "pip install datasets"
        ) from error
    return datasets


def _data_files(source: str, named: _Named) -> list[str]:
    """Paths or `hf://` addresses of the split's files.

    Raises:
        InvalidInput: the dataset cannot be reached, or has no such config or split.
    """
    datasets = _library()
    try:
        builder = datasets.load_dataset_builder(named.dataset, named.config)
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    if named.split not in files:
        raise InvalidInput(
            f"{source} has no split `{named.split}`",
            f"{near_misses(named.split, files)}; write hf:OWNER/NAME:CONFIG:SPLIT",
        )
    return files[named.split]


def _span(path: str) -> FileSpan:
    size = 0 if "://" in path else file_size(path)
    return FileSpan(path, 0, size, size)


def _stream(source: str, named: _Named, revision: str | None) -> Iterator[dict[str, Any]]:
    """The rows.

    Raises:
        InvalidInput: as `_data_files`.
        GiraffeError: the stream broke off.
    """
    datasets = _library()
    try:
        stream = datasets.load_dataset(
            named.dataset, named.config, split=named.split, streaming=True, revision=revision
        )
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error
    rows = iter(stream)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # of any layer below: HTTP, files, Arrow, the dataset's builder
            raise GiraffeError(f"{source} broke off: {error}", "run the command again") from error
        yield row


def _unreachable(source: str, error: Exception) -> InvalidInput:
    offline = "Offline" in f"{type(error).__name__} {error}"
    hint = (
        "this process is offline (HF_HUB_OFFLINE): unset it, or name files on this machine"
        if offline
        else "write hf:OWNER/NAME:CONFIG:SPLIT; log in with `hf auth login` if it is private"
    )
    return InvalidInput(f"cannot open {source}: {error}", hint)
