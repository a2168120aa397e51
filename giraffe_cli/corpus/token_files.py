"""Tokens from the files of the first phase, piece by piece, into row groups.

    row_groups(index, windows, layout, stored)   # one after the other, as `write_rows` takes them

Tokens are read by `pread`, never mapped, so that the resident size does not grow with the corpus.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.corpus_index import CorpusIndex
from giraffe_cli.corpus.pack import Plan
from giraffe_cli.corpus.rows import Layout, RowGroup, Strings
from giraffe_cli.errors import InvalidInput

OPEN_FILES = 64


class TokenFiles:
    """Reads pieces of documents; keeps the files read last open."""

    def __init__(self, index: CorpusIndex) -> None:
        self._index = index
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, document: int, start: int, out: npt.NDArray[np.int32]) -> None:
        """Tokens `start` … of `document` into `out`.

        Raises:
            InvalidInput: the file is shorter than its index says.
        """
        file = int(self._index.file[document])
        dtype = np.dtype(self._index.dtypes[file]).newbyteorder("<")
        first = (int(self._index.offset[document]) + start) * dtype.itemsize
        size = len(out) * dtype.itemsize
        data = os.pread(self._descriptor(file), size, first)
        if len(data) != size:
            raise InvalidInput(f"{self._index.files[file]} is truncated", "pack again")
        out[:] = np.frombuffer(data, dtype=dtype)

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            if len(self._open) == OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[file] = os.open(self._index.files[file], os.O_RDONLY)
        self._open.move_to_end(file)
        return self._open[file]


def row_groups(
    index: CorpusIndex, windows: Plan, layout: Layout, stored: Strings
) -> Iterator[RowGroup]:
    """Row group after row group, each read from the token files."""
    files = TokenFiles(index)
    sources = Strings.of(index.names)
    with contextlib.closing(files):
        for first, last in layout.groups():
            begin, end = int(windows.offsets[first]), int(windows.offsets[last])
            documents, lengths = windows.document[begin:end], windows.length[begin:end]
            ids = np.empty(int(lengths.sum()), dtype=np.int32)
            at = 0
            for piece in range(begin, end):
                length = int(windows.length[piece])
                files.read(
                    int(windows.document[piece]), int(windows.start[piece]), ids[at : at + length]
                )
                at += length
            offsets = windows.offsets[first : last + 1] - begin
            totals = np.concatenate([[0], np.cumsum(lengths)])
            yield RowGroup(
                ids,
                np.diff(totals[offsets]).astype(np.int32),
                lengths.astype(np.int32),
                np.diff(offsets).astype(np.int32),
                sources.take(index.source[documents]),
                stored.take(documents),
            )
