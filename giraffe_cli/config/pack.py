"""How documents become windows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from giraffe_cli.config.base import Length, Section, Size, yes_or_no

MOST_EPOCHS = 1000
"""Passes are planned one by one, in memory."""


class PackConfig(Section):
    """How documents become training windows."""

    hold_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of documents (by hash of their id) kept out of training, for evaluation."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with a record that cannot be read: stop, or skip and count it."""
    text_field: str = "text"
    """The JSONL field that holds the text."""
    min_piece: int = Field(default=32, ge=1)
    """Pieces of documents shorter than this many tokens are dropped, and counted."""
    rule: Literal["best-fit", "concat", "one"] = "best-fit"
    """How windows are filled: whole documents where they fit best, documents end to end, or one
    document a window."""
    overlap: Length | None = None
    """Tokens that each further piece of a document longer than the window repeats."""
    drop_tail: bool = False
    """Under `one`: drop what a document has beyond its first window, and count it."""
    bos: Annotated[Literal["auto", "yes", "no"], BeforeValidator(yes_or_no)] = "auto"
    """A BOS token before each document; auto: as the tokenizer's files say, where they say nothing
    yes."""
    eos: Annotated[Literal["auto", "yes", "no"], BeforeValidator(yes_or_no)] = "auto"
    """An EOS token after each document; auto: when the tokenizer names one."""
    min_doc_len: Length | None = None
    """Documents shorter than this many tokens are left out, and counted."""
    mix: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Source → its share of the tokens, for all sources or none."""
    upsample: Literal["none", "long"] = "none"
    """long: short documents count a tenth, while each source keeps its share of the tokens."""
    short_mix: float | None = Field(default=None, ge=0, le=1)
    """Share of the tokens that comes from documents shorter than the window, such as 0.4."""
    lookups: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the tokens that are made-up facts and questions for them, hidden in the windows:
    0.06, say."""
    epochs: float | None = Field(default=None, gt=0, le=MOST_EPOCHS)
    """Most passes over a document; default: one."""
    token_budget: Length | None = None
    """Tokens to pack; default: as many as the documents give."""
    dedupe: bool = False
    """Leave out documents whose text an earlier one has, but for white space."""
    decontaminate: list[str] = Field(default_factory=list)
    """Files of evaluation texts; documents that share 13-word runs with them are left out."""
    max_doc_bytes: Size = 256_000_000
    """Larger documents are refused by name."""
    backend: Literal["auto", "fastokens", "tokenizers"] = "auto"
    """What tokenises; auto: fastokens when it is installed and shown to give equal ids."""
    block_bytes: Size = 32 << 20
    """Bytes of text that are tokenised at a time; changes memory and speed, not what is packed."""
