"""The first reading of a corpus: every defect found, every id known, one digest a source.

Documents are held out by the hash of their id alone, so a growing corpus keeps its split, and a
document that two sources hold under one id stays on one side.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from giraffe_cli.config import PackConfig
from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, reader_for
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError


@dataclass
class Corpus:
    """Sources and what the first reading found in them."""

    readers: dict[str, AbstractReader]
    """Source as the user named it → its reader."""
    bad: BadRecords
    """What the first reading passed over."""
    digests: dict[str, str] = field(default_factory=dict)
    """Source → sha256 over its documents' ids and texts, in order."""
    ids: Counter[str] = field(default_factory=Counter)
    """Document id → number of sources that hold it."""
    characters: int = 0

    def read(self, bad: BadRecords) -> Iterator[Document]:
        """All documents, source by source; the digests are complete once the last is out."""
        for source, reader in self.readers.items():
            hasher = hashlib.sha256()
            for document in reader.documents(source, bad):
                for part in (document.id, document.text):
                    data = part.encode()
                    hasher.update(len(data).to_bytes(8, "big") + data)
                yield document
            found = hasher.hexdigest()
            if self.digests.setdefault(source, found) != found:
                raise GiraffeError(f"{source} changed while it was read", "run the command again")

    def stored_id(self, document: Document) -> str:
        """The id, under its source where two sources share it."""
        shared = self.ids[document.id] > 1
        return f"{document.source}:{document.id}" if shared else document.id


def scan(sources: list[str], config: PackConfig) -> Corpus:
    """The first reading.

    Raises:
        InvalidInput: a defect under `on_bad: fail`, a missing source, or no document at all.
        UsageError: a source named twice, or a `text_field` that no source has a use for.
    """
    check_distinct(sources)
    knobs = {"text_field": config.text_field}
    corpus = Corpus({s: reader_for(s, knobs) for s in sources}, BadRecords(config.on_bad))
    declared = {entry.name for reader in corpus.readers.values() for entry in fields(reader)}
    default = PackConfig.model_fields["text_field"].default
    if config.text_field != default and "text_field" not in declared:
        raise UsageError(
            f"text field `{config.text_field}` has no effect: no source has fields",
            "leave --text-field out; it is for JSONL sources",
        )
    for document in corpus.read(corpus.bad):
        corpus.ids[document.id] += 1
        corpus.characters += len(document.text)
    if not corpus.ids:
        raise InvalidInput(
            f"no documents in {', '.join(sources)}; skipped: {corpus.bad.skipped or 'none'}",
            "name a corpus that holds text",
        )
    return corpus


def check_distinct(sources: list[str]) -> None:
    """Refuse a corpus that would be read twice.

    Raises:
        UsageError: two sources are the same, or one lies inside the other.
    """
    places = [Path(source).resolve() for source in sources]
    for index, (source, place) in enumerate(zip(sources, places, strict=True)):
        for other, elsewhere in zip(sources[:index], places[:index], strict=True):
            if place == elsewhere:
                raise UsageError(f"`{source}` is named twice", "name each source once")
            if place in elsewhere.parents or elsewhere in place.parents:
                raise UsageError(f"`{source}` and `{other}` overlap", "name one of the two")


def choose_held_out(ids: Collection[str], share: float) -> frozenset[str]:
    """The ids kept out of training: those whose sha256 lies in the lowest `share` of its range.

    At least one of two or more is held out when `share` > 0, and at least one is not.
    """
    if share == 0 or len(ids) < 2:
        return frozenset()
    ranked = sorted((hashlib.sha256(identity.encode()).digest(), identity) for identity in ids)
    limit = int(share * 2**64)
    below = sum(int.from_bytes(digest[:8], "big") < limit for digest, _ in ranked)
    count = min(max(below, 1), len(ranked) - 1)
    return frozenset(identity for _, identity in ranked[:count])
