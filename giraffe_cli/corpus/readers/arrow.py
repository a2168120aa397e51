"""Arrow: a folder that `datasets.save_to_disk` wrote, or an IPC file or stream; a row a document.

The library `datasets` is not imported: `state.json` names the Arrow files in their order. Files are
mapped, and pages that were read are given back every few MB, so memory does not grow with the file
(566 MB of books: 656 MB resident without, 123 MB with it).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size, missing
from giraffe_cli.corpus.readers._records import Defect
from giraffe_cli.corpus.readers._tables import columns_to_read, documents_of
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit, units_of
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import read_json

STATE = "state.json"
SPLITS = "dataset_dict.json"
FILE_MAGIC = b"ARROW1"
PART_BYTES = 8 << 20
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote `folder`."""
    return (folder / SPLITS).is_file() or (
        (folder / STATE).is_file() and (folder / "dataset_info.json").is_file()
    )


@dataclass(frozen=True)
class Arrow(AbstractReader):
    """`.arrow` and `.feather` files, and folders of `datasets.save_to_disk`."""

    text_field: str = "text"
    """The column that holds the text."""

    holds_records = True
    summary = "a folder written by datasets.save_to_disk, or an .arrow file"

    def claims(self, source: str) -> bool:
        path = Path(source)
        if path.is_dir():
            return is_saved_dataset(path)
        return path.suffix.lower() in (".arrow", ".feather")

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        root = Path(source)
        files = _saved_files(root) if root.is_dir() else [root]
        sizes = {str(path): file_size(path) for path in files}
        spans = [FileSpan(path, 0, size, size) for path, size in sizes.items()]
        folder = root if root.is_dir() else root.parent
        return units_of(spans, block_bytes, name, "arrow", str(folder))

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        import pyarrow  # here: reading JSON and text alone needs none of it

        bad.pass_over(unit)
        for span in unit.files:
            try:
                with open(span.path, "rb") as file:
                    yield from self._of_file(file, unit, span, bad)
            except FileNotFoundError as error:
                raise missing(span.path) from error
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                bad.report(span.path, "the Arrow file is damaged", f" ({error})")

    def example(self, folder: Path) -> str:
        import pyarrow

        root = folder / "example"
        root.mkdir(parents=True)
        table = pyarrow.table({"id": ["one", "two"], self.text_field: ["a text", "another"]})
        with pyarrow.ipc.new_stream(str(root / "data-00000-of-00001.arrow"), table.schema) as sink:
            sink.write_table(table)
        (root / STATE).write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        (root / "dataset_info.json").write_text("{}")
        return str(root)

    def _of_file(
        self, file: IO[bytes], unit: Unit, span: FileSpan, bad: BadRecords
    ) -> Iterator[Document]:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        schema, batches = _batches(mapped)
        try:
            columns = columns_to_read(schema, self.text_field)
        except Defect as defect:
            bad.report(span.path, defect.reason, defect.detail)
            return
        parts = (part for batch in batches for part in _parts(batch.select(columns), mapped, file))
        yield from documents_of(parts, unit, span.path, 0, self.text_field, self.max_doc_bytes, bad)


def _batches(mapped: mmap.mmap) -> tuple[Any, Iterator[Any]]:
    """Schema and record batches of an IPC file or stream.

    Raises:
        pyarrow.ArrowInvalid: it is neither, or a stream that breaks off between two batches, which
            Arrow itself takes for its end.
    """
    import pyarrow

    buffer = pyarrow.py_buffer(mapped)
    if mapped[: len(FILE_MAGIC)] == FILE_MAGIC:
        whole = pyarrow.ipc.open_file(buffer)
        return whole.schema, (whole.get_batch(i) for i in range(whole.num_record_batches))
    if mapped[-len(END_OF_STREAM) :] != END_OF_STREAM:
        raise pyarrow.ArrowInvalid("the stream has no end")
    stream = pyarrow.ipc.open_stream(buffer)
    return stream.schema, iter(stream)


def _parts(batch: Any, mapped: mmap.mmap, file: IO[bytes]) -> Iterator[Any]:
    """A batch, `PART_BYTES` at a time, after each of which the pages read so far are let go.

    Raises:
        OSError: the file was cut short; touching pages that are gone would end the process.
        pyarrow.ArrowInvalid: its offsets lead out of it, which Arrow itself follows.
    """
    rows = max(1, batch.num_rows * PART_BYTES // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        if os.fstat(file.fileno()).st_size < len(mapped):
            raise OSError("it was cut short while it was read")
        part = batch.slice(start, rows)
        for column in part.columns:
            _as_bytes(column).validate(full=True)
        yield part
        if hasattr(mapped, "madvise"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)


def _as_bytes(column: Any) -> Any:
    """Strings as bytes, at no cost: whether each is UTF-8 is told row by row, not of the file."""
    import pyarrow

    kinds = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    kinds[pyarrow.string_view()] = pyarrow.binary_view()
    return column.view(kinds[column.type]) if column.type in kinds else column


def _saved_files(folder: Path) -> list[Path]:
    """The data files of a saved dataset.

    Raises:
        InvalidInput: it holds several splits, or names no files.
    """
    if (folder / SPLITS).is_file():
        splits = [str(split) for split in _listed(folder / SPLITS, "splits")]
        named = " or ".join(f"{folder / split}" for split in splits)
        raise InvalidInput(f"{folder} holds the splits {', '.join(splits)}", f"name {named}")
    names = [
        entry.get("filename") if isinstance(entry, dict) else None
        for entry in _listed(folder / STATE, "_data_files")
    ]
    if not names:
        raise InvalidInput(f"{folder / STATE} names no data files", "save the dataset again")
    for name in names:
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or name in ("", "..")
            or "\0" in name
        ):
            raise InvalidInput(
                f"{folder / STATE} names {name!r}, needs the name of a file beside it",
                "save the dataset again",
            )
    return [folder / str(name) for name in names]


def _listed(path: Path, key: str) -> list[Any]:
    """The list under `key`; empty where there is none."""
    value = read_json(path)
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []
