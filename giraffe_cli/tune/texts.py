"""The documents that tables are judged on: the longest of a corpus, read once and within bounds."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.source_names import check_distinct
from giraffe_cli.corpus.sources import read_source
from giraffe_cli.corpus.store import held_out, is_packed

MOST_CHARACTERS = 400_000_000
"""Of a corpus that are looked at: some tens of seconds of reading."""


def longest_documents(
    sources: Sequence[str],
    count: int,
    config: PackConfig | None = None,
    keep: Callable[[Document], bool] = lambda document: True,
) -> list[Document]:
    """The `count` longest in characters, longest first, of what `keep` accepts, looking at the
    first `MOST_CHARACTERS`; of a directory of `pack-data` what it held out.

    Raises:
        InvalidInput: a source is missing, unreadable or named twice.
    """
    check_distinct(sources)
    kept: list[tuple[int, int, Document]] = []
    seen = 0
    for number, document in enumerate(_documents(sources, config or PackConfig())):
        if keep(document):
            # of equal lengths the earlier document stays; documents themselves have no order
            heapq.heappush(kept, (len(document.text), -number, document))
            if len(kept) > count:
                heapq.heappop(kept)
        seen += len(document.text)
        if seen > MOST_CHARACTERS:
            break
    return [document for _, _, document in sorted(kept, reverse=True)]


def _documents(sources: Sequence[str], config: PackConfig) -> Iterator[Document]:
    for source in sources:
        if is_packed(Path(source)):
            yield from held_out(Path(source))
        else:
            yield from read_source(source, BadRecords(config.on_bad), config)
