"""The pack stage: sources → documents → tokens → windows → rows on disk.

The corpus is read twice. The first reading finds every defect before a byte is written, and gives
the digest that tells a later run whether anything changed; the second tokenises. Texts pass through
in batches; only token ids (4 bytes a token) and document ids stay in memory.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.config import PackConfig, differing_keys
from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.pack import Int64, Plan, plan
from giraffe_cli.corpus.scan import Corpus, choose_held_out, scan
from giraffe_cli.corpus.stats import packing_stats, too_little_long
from giraffe_cli.corpus.store import (
    KIND,
    STATS,
    Int32,
    Layout,
    Row,
    SourcedRow,
    check_replaceable,
    held_out_writer,
    is_packed,
    write_rows,
)
from giraffe_cli.corpus.tokens import BACKEND, DocumentTokenizer, tokenizer_digest
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import (
    MANIFEST,
    begin_stage,
    finish_stage,
    read_json,
    stage_holds,
    write_json,
)

__all__ = ["pack_stage", "tokenizer_digest"]

FORMAT_VERSION = 1
"""Counts changes of what is written, so that folders of an older giraffe are packed again."""


@dataclass
class Tokens:
    """The training documents, as parallel lists in the order of the corpus."""

    input_ids: list[Int32] = field(default_factory=list)
    doc_ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def lengths(self) -> Int64:
        """[documents] tokens of each."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def by_source(self) -> dict[str, dict[str, int]]:
        """Documents and tokens of each source."""
        totals: dict[str, dict[str, int]] = {}
        for source, ids in zip(self.sources, self.input_ids, strict=True):
            total = totals.setdefault(source, {"documents": 0, "tokens": 0})
            total["documents"] += 1
            total["tokens"] += len(ids)
        return totals

    def rows(self, windows: Plan) -> Iterator[SourcedRow]:
        """Each window's tokens and where they come from."""
        for pieces in windows:
            parts = [self.input_ids[p.document][p.start : p.start + p.length] for p in pieces]
            row = Row(
                np.concatenate(parts),
                np.array([p.length for p in pieces], dtype=np.int32),
                [self.doc_ids[p.document] for p in pieces],
            )
            yield SourcedRow(row, [self.sources[p.document] for p in pieces])


def pack_stage(
    sources: list[str],
    checkpoint_path: Path,
    window: int,
    config: PackConfig,
    seed: int,
    out: Path,
    reporter: Reporter,
    *,
    replace: bool = True,
) -> dict[str, Any]:
    """Pack `sources` into windows of at most `window` tokens under `out`; returns its stats.

    `checkpoint_path` is a folder with `tokenizer.json`. Does nothing when `out` holds the rows of
    the same sources, tokenizer, window, config and seed; rows of other inputs are
    packed again under `replace`, and refused without it.

    Raises:
        InvalidInput: a source, a record or the tokenizer cannot be used; nothing to train on;
            `out` holds rows of other inputs.
        UsageError: a source named twice, `min_piece` longer than the window, or `out` holds
            files of something else.
        GiraffeError: `out` cannot be written; nothing half-written stays.
    """
    check_replaceable(out)
    if config.min_piece > window:
        raise UsageError(
            f"min_piece {config.min_piece} is longer than the window of {window} tokens",
            "lower --min-piece or pass a longer --window",
        )
    tokenize = DocumentTokenizer(checkpoint_path)
    corpus = scan(sources, config)
    inputs = {
        "version": FORMAT_VERSION,
        "sources": corpus.digests,
        "tokenizer": tokenizer_digest(checkpoint_path),
        "window": window,
        "config": config.model_dump(mode="json"),
        "seed": seed,
    }
    if stage_holds(out, inputs):
        reporter.info(f"{out} holds these windows already")
    else:
        if not replace and is_packed(out):
            _refuse(out, inputs)
        begin_stage(out)
        try:
            tokens = _tokenize(corpus, config.hold_out, tokenize, out, reporter)
            windows = _windows(tokens, window, config.min_piece, seed)
            _write(corpus, tokens, windows, out, inputs)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
    stats: dict[str, Any] = read_json(out / STATS)
    _warn(stats, config, reporter)
    return stats


def _refuse(out: Path, inputs: dict[str, Any]) -> None:
    different = differing_keys(read_json(out / MANIFEST)["inputs"], inputs)
    raise InvalidInput(
        f"{out} holds windows of other inputs; different: {', '.join(different) or 'a file in it'}",
        f"choose another --out, or remove {out}",
    )


def _tokenize(
    corpus: Corpus, share: float, tokenize: DocumentTokenizer, out: Path, reporter: Reporter
) -> Tokens:
    """Tokens of the training documents; the others are written to `held_out.jsonl.gz`."""
    tokens, held = Tokens(), choose_held_out(corpus.ids, share)
    with (
        held_out_writer(out) as hold_out,
        reporter.bar("tokenising", corpus.characters, "characters") as bar,
    ):

        def training() -> Iterator[Document]:
            for document in corpus.read(BadRecords(corpus.bad.on_bad)):
                if document.id in held:
                    hold_out(dataclasses.replace(document, id=corpus.stored_id(document)))
                    bar.advance(len(document.text))
                else:
                    yield document

        for document, ids in tokenize(training()):
            tokens.input_ids.append(ids)
            tokens.doc_ids.append(corpus.stored_id(document))
            tokens.sources.append(document.source)
            bar.advance(len(document.text))
    return tokens


def _windows(tokens: Tokens, window: int, min_piece: int, seed: int) -> Plan:
    """The shuffled windows.

    Raises:
        InvalidInput: every document is shorter than `min_piece`.
    """
    windows = plan(tokens.lengths(), window, min_piece).shuffled(seed)
    if not len(windows):
        raise InvalidInput(
            f"no training document has {min_piece} tokens or more",
            "pass a smaller --min-piece, or longer documents",
        )
    return windows


def _write(
    corpus: Corpus, tokens: Tokens, windows: Plan, out: Path, inputs: dict[str, Any]
) -> None:
    """Rows, stats, and the manifest last."""
    layout = Layout.of(len(windows), windows.window)
    write_rows(out, tokens.rows(windows), layout)
    documents = sum(corpus.ids.values())
    stats = {
        "documents": documents,
        "documents_held_out": documents - len(tokens.input_ids),
        **packing_stats(tokens.lengths(), windows),
        "tokenizer_backend": BACKEND,
        "sources": tokens.by_source(),
        "skipped": dict(sorted(corpus.bad.skipped.items())),
    }
    write_json(out / STATS, stats)
    finish_stage(out, inputs, kind=KIND, window=windows.window, layout=asdict(layout))


def _warn(stats: dict[str, Any], config: PackConfig, reporter: Reporter) -> None:
    """Say what the user should act on or accept."""
    if message := too_little_long(stats):
        reporter.warn(message)
    if config.hold_out > 0 and not stats["documents_held_out"]:
        reporter.warn("the corpus is one document: none is held out for evaluation")
    if stats["skipped"]:
        listed = ", ".join(f"{count} × {reason}" for reason, count in stats["skipped"].items())
        reporter.warn(f"skipped: {listed}")
