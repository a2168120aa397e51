"""The corpora of an evaluation, read: what is scored, what needles are hidden in, other text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.sources import read_source
from giraffe_cli.corpus.store import held_out, is_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.samples import Texts


def evaluation_texts(
    config: EvalConfig, documents: Sequence[Document], evaluator: Checkpoint | None = None
) -> Texts:
    """The documents, what needles are hidden in, and how far the evaluator reads; see `EvalConfig`.

    Raises:
        InvalidInput: a corpus is missing, unreadable or without text.
    """
    haystack = documents_of(config.haystack, "--haystack")
    other = documents_of(config.other_data, "--other-data")
    return make_texts(config, documents, haystack, other, evaluator)


def make_texts(
    config: EvalConfig,
    documents: Sequence[Document],
    haystack: Sequence[Document],
    other: Sequence[Document],
    evaluator: Checkpoint | None,
) -> Texts:
    """What was read as an evaluation takes it: needles are hidden in the documents of `data` where
    no haystack is named."""
    reach = evaluator.reach if evaluator else 0
    return Texts(documents, haystack or (documents if config.data else []), other, reach)


def documents_of(sources: list[str], option: str, bad: BadRecords | None = None) -> list[Document]:
    """The documents of corpora, of a folder that `pack-data` wrote those that it holds out; none
    where no source is named.

    Raises:
        InvalidInput: a source is missing or unreadable, or all of them hold no text.
    """
    found: list[Document] = []
    for source in sources:
        if is_packed(Path(source)):
            found += held_out(Path(source))
        else:
            found += read_source(source, bad or BadRecords())
    if sources and not any(document.text.strip() for document in found):
        raise InvalidInput(
            f"{option}: no text in {', '.join(sources)}", "name a corpus that holds text"
        )
    return found
