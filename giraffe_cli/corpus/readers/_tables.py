"""Arrow record batches → documents, for parquet and Arrow files alike.

The id is the row's `id` (a string or an integer), else `file name:row number`, counted from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.readers._records import (
    Defect,
    check_length,
    identity_of,
    is_blank,
    text_of,
    what_there_is,
)
from giraffe_cli.corpus.unit import Unit


def columns_to_read(schema: Any, text_field: str) -> list[str]:
    """The text's column, and the id's where there is one.

    Raises:
        Defect: there is no such column, or it holds no strings.
    """
    if text_field not in schema.names:
        raise Defect(
            f"no column `{text_field}` (--text-field names it)",
            f"; {what_there_is(text_field, schema.names)}",
        )
    twice = [name for name in (text_field, "id") if schema.names.count(name) > 1]
    if twice:
        raise Defect(f"two columns `{twice[0]}`")
    kind = schema.field(text_field).type
    if not _is_string(kind):
        raise Defect(f"column `{text_field}` is no string but {kind}")
    return [text_field] + ["id"] * ("id" in schema.names and text_field != "id")


def documents_of(
    batches: Iterable[Any],
    unit: Unit,
    path: str,
    rows_before: int,
    text_field: str,
    max_doc_bytes: int,
    bad: BadRecords,
) -> Iterator[Document]:
    """One document a row, a value at a time; `rows_before` rows of the file lie before these."""
    row, name = rows_before, unit.relative(path)
    for batch in batches:
        texts = batch.column(text_field)
        ids = batch.column("id") if "id" in batch.schema.names else None
        for index in range(batch.num_rows):
            row += 1
            try:
                text = _text(texts[index], text_field, max_doc_bytes)
                identity = _identity(ids[index]) if ids is not None else None
            except Defect as defect:
                bad.report(partial("{}: row {}".format, path, row), defect.reason, defect.detail)
                continue
            if is_blank(text):
                bad.skip("empty text")
            else:
                yield Document(identity or f"{name}:{row}", text, unit.source)


def _identity(scalar: Any) -> str | None:
    try:
        return identity_of({"id": scalar.as_py()})
    except UnicodeDecodeError as error:
        raise Defect("an `id` that is not valid UTF-8") from error


def _text(scalar: Any, text_field: str, max_doc_bytes: int) -> str:
    try:
        text = scalar.as_py()
    except UnicodeDecodeError as error:
        raise Defect("not valid UTF-8") from error
    text = text_of({text_field: text}, text_field)
    check_length(text, max_doc_bytes)
    return text


def _is_string(kind: Any) -> bool:
    import pyarrow.types as types  # here: reading JSON and text alone needs none of it

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
