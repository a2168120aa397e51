"""Text that a training has not seen: what a model is scored on must be none of what it read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.store import document_ids
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import Reporter


def not_trained_on(
    documents: list[Document], packed: Iterable[Path], otherwise: str, reporter: Reporter
) -> list[Document]:
    """Those of `documents` whose ids no folder of `packed` windows trains on; the others are told.

    Raises:
        InvalidInput: none is left; `otherwise` is what to do then.
    """
    trained = set[str]().union(*(document_ids(folder) for folder in packed))
    kept = [document for document in documents if document.id not in trained]
    if len(kept) < len(documents):
        reporter.warn(
            f"{len(documents) - len(kept)} of {len(documents)} documents are not evaluated: they "
            "are trained on"
        )
    if documents and not kept:
        raise InvalidInput("every document of the evaluation is trained on", otherwise)
    return kept
