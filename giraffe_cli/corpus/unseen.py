"""Text that a training has not seen: what a model is scored on must be none of what it read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.store import PackedRows, document_ids, open_packed
from giraffe_cli.corpus.tokens import tokenizer_digest
from giraffe_cli.corpus.trained_text import trained_shares
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import Reporter

TRAINED_FROM = 0.2
"""The share of a document's text that is trained on from which it is not evaluated: where Touvron
et al. 2023 (Llama 2, appendix A.6) no longer call a sample clean."""
TOLD_FROM = 0.01
"""The share from which a document that is evaluated is told."""


def not_trained_on(
    documents: list[Document],
    packed: Iterable[Path],
    tokenizers: Sequence[Path],
    otherwise: str,
    reporter: Reporter,
) -> list[Document]:
    """Those of `documents` that no folder of `packed` windows trains on, by id or by text; the
    others are told.

    Args:
        tokenizers: folders of which one holds the tokenizer that a folder was packed with; the
            text of one packed with another is not compared, which is told.

    Raises:
        InvalidInput: none is left, and `otherwise` is what to do then; or a folder was altered.
    """
    if not documents:
        return []
    folders = [open_packed(folder) for folder in dict.fromkeys(packed)]
    ids = set[str]().union(*(document_ids(rows.folder) for rows in folders))
    others = [document for document in documents if document.id not in ids]
    shares = _shares(others, folders, tokenizers, reporter)
    kept = [d for d, share in zip(others, shares, strict=True) if share < TRAINED_FROM]
    if len(kept) < len(documents):
        reporter.warn(
            f"{len(documents) - len(kept)} of {len(documents)} documents are not evaluated: they "
            f"are trained on (by id {len(documents) - len(others)}, by text "
            f"{len(others) - len(kept)})"
        )
    if not kept:
        raise InvalidInput("every document of the evaluation is trained on", otherwise)
    _tell_of_the_rest(others, shares, reporter)
    return kept


def _shares(
    documents: list[Document],
    folders: Sequence[PackedRows],
    tokenizers: Sequence[Path],
    reporter: Reporter,
) -> npt.NDArray[np.float64]:
    """[documents] the largest share of each text that the folders of one tokenizer train on."""
    held = {tokenizer_digest(path): path for path in tokenizers if _has_tokenizer(path)}
    shares = np.zeros(len(documents))
    texts = [document.text for document in documents]
    for digest in dict.fromkeys(rows.tokenizer_digest for rows in folders):
        same = [rows for rows in folders if rows.tokenizer_digest == digest]
        if digest in held:
            np.maximum(shares, trained_shares(texts, same, held[digest], reporter), out=shares)
            continue
        names = ", ".join(str(rows.folder) for rows in same)
        reporter.warn(
            f"{names}: packed with another tokenizer than the evaluated models have, so what is "
            "trained on there is known by its id, and not by its text"
        )
    return shares


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def _tell_of_the_rest(
    documents: list[Document], shares: npt.NDArray[np.float64], reporter: Reporter
) -> None:
    """One line about the documents that are evaluated though a part of them is trained on."""
    told = np.flatnonzero((shares >= TOLD_FROM) & (shares < TRAINED_FROM))
    if len(told):
        most = int(told[np.argmax(shares[told])])
        reporter.info(
            f"{len(told)} evaluated documents hold passages that are trained on, at most "
            f"{shares[most]:.0%} of one: {documents[most].id}"
        )
