"""What every reader of records asks of one: a text that a tokenizer can take, and its id.

text_of({"id": 7, "text": "Call me Ishmael."}, "text") → "Call me Ishmael."
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from giraffe_cli.errors import near_misses


class Defect(Exception):
    """Why one record cannot be used: `reason` is counted, `detail` told where it is not."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def text_of(record: Mapping[str, Any], field: str) -> str:
    """The text under `field`.

    Raises:
        Defect: there is none, or `checked` refuses it.
    """
    text = record.get(field)
    if isinstance(text, str):
        return checked(text, f"field `{field}`")
    if field in record:
        raise Defect(f"field `{field}` is no string but {type(text).__name__}")
    known = what_there_is(field, record) if record else "the object is empty"
    raise Defect(f"no field `{field}` (--text-field names it)", f"; {known}")


CHAT = {"messages", "conversations"}
"""Names under which turns of a conversation are published."""


TOKENS = "input_ids"
"""The name under which a corpus that is tokenised already is published."""


def what_there_is(field: str, names: Iterable[str]) -> str:
    """The `names` there are instead of `field`; of a conversation or of tokens how they become a
    text."""
    known = near_misses(field, names)
    if not CHAT.isdisjoint(names):
        return (
            f"{known}; a conversation is rendered to one text first: tokenizer.apply_chat_template"
        )
    if TOKENS in names:
        return (
            f"{known}; tokens become a text again first, by the tokenizer that made them: "
            "tokenizer.decode(input_ids, skip_special_tokens=True)"
        )
    return known


def checked(text: str, what: str) -> str:
    """`text`, if text it is.

    Raises:
        Defect: it holds half a surrogate pair, which JSON can escape and no UTF-8 file can hold, or
            a NUL character: legal Unicode, but in a corpus the trace of binary data.
    """
    if "\0" in text:
        raise Defect(f"{what} holds a NUL character")
    if not encodable(text):
        raise Defect(f"{what} holds half a surrogate pair")
    return text


def is_blank(text: str) -> bool:
    """Whether there is nothing but white space; without a copy of the text."""
    return not text or text.isspace()


def identity_of(record: Mapping[str, Any]) -> str | None:
    """The record's own `id`, a string or an integer; None without one.

    Raises:
        Defect: the id holds half a surrogate pair.
    """
    identity = record.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        return None
    if not encodable(str(identity)):
        raise Defect("field `id` holds half a surrogate pair")
    return str(identity)


def too_long(limit: int) -> Defect:
    """What is wrong with a record of more than `limit` bytes."""
    return Defect(f"longer than {limit:,} bytes (--max-doc-bytes)")


def check_length(text: str, limit: int) -> None:
    """Hold a text to `limit` bytes of UTF-8; a character has at most 4, so few are measured.

    Raises:
        Defect: it is longer.
    """
    if len(text) * 4 > limit and len(text.encode()) > limit:
        raise too_long(limit)


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold it."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True
