"""The second phase of packing: tokenised units → selection, mixture, windows, rows on disk.

One process, memory flat in the corpus: documents are numbers in arrays until the moment their
tokens are copied from the first phase's files into a row group. The result is a function of the
units' content, the config and the seed, whoever tokenised them in whatever order.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.base import Unit
from giraffe_cli.corpus.corpus_index import CorpusIndex, TokenFiles
from giraffe_cli.corpus.duplicates import duplicates_report, first_of_equals
from giraffe_cli.corpus.mix import Mixture, Selection, select
from giraffe_cli.corpus.pack import Plan, join, plan
from giraffe_cli.corpus.rows import Layout, RowGroup, Strings, write_rows
from giraffe_cli.corpus.stats import packing_stats, skipped_in, source_stats
from giraffe_cli.corpus.store import REMOVED, STATS, held_out_writer
from giraffe_cli.corpus.tools import Tools
from giraffe_cli.corpus.unit_files import HELD, unit_folder
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import atomic_open, write_json


@dataclass(frozen=True)
class Removed:
    """Training documents that are not packed, and why."""

    candidates: list[int]
    """Documents of one id that are held out because no other was."""
    of_held: npt.NDArray[np.bool_]
    """[documents] true where the text is that of a document held out."""
    contaminated: npt.NDArray[np.bool_]
    duplicate_of: npt.NDArray[np.int64]
    """[documents] the first document with the same text; its own number where it is the first."""
    dedupe: bool

    def mask(self) -> npt.NDArray[np.bool_]:
        """[documents] true where a document is left out."""
        out = self.contaminated.copy()
        if self.dedupe:
            out |= self.of_held | (self.duplicate_of != np.arange(len(out)))
        out[self.candidates] = True
        return out


def assemble(
    units: list[Unit],
    index: CorpusIndex,
    work: Path,
    tools: Tools,
    window: int,
    seed: int,
    out: Path,
    reporter: Reporter,
) -> tuple[dict[str, Any], Layout]:
    """Write rows, `held_out.jsonl.gz`, `removed.jsonl` and `stats.json` into `out`.

    Raises:
        InvalidInput: nothing to train on, or a mixture that the documents cannot give.
        GiraffeError: `out` cannot be written.
    """
    config = tools.config
    held = list(_held_documents(units, index, work))
    candidates = _candidates(index, config, len(held))
    removed = _removed(index, config, candidates)
    lengths = np.where(removed.mask(), 0, index.lengths)
    selection = select(lengths, index.source, index.names, _mixture(config), window, seed)
    windows = _windows(lengths, selection, config, window, seed)
    shared = index.shared_ids(held)
    stored = index.stored_ids(shared)
    layout = Layout.of(len(windows), window)
    with reporter.bar("writing windows", len(windows), "windows") as bar:
        groups = _groups(index, windows, layout, stored)
        write_rows(out, (_told(group, bar) for group in groups), layout)
    _write_held(units, index, work, out, shared, candidates)
    _write_removed(index, removed, stored, out)
    stats = _stats(index, tools, removed, selection, windows, lengths, len(held))
    write_json(out / STATS, stats)
    return stats, layout


# ── which documents ──────────────────────────────────────────────────────────────────────────


def _held_documents(units: list[Unit], index: CorpusIndex, work: Path) -> Iterator[tuple[str, str]]:
    """(id, source) of every document held out; ids only are kept in memory."""
    for number, unit in enumerate(units):
        if index.units[number]["held"]:
            with open(unit_folder(work, number) / HELD, "rb") as lines:
                for line in lines:
                    yield json.loads(line)["id"], unit.source


def _candidates(index: CorpusIndex, config: PackConfig, held: int) -> list[int]:
    """What to hold out when nothing was: every document of the id of the lowest hash, as long as
    others are left to train on."""
    if config.hold_out == 0 or held:
        return []
    ranked = [
        (unit["candidate"]["rank"], unit["candidate"]["id"])
        for unit in index.units
        if unit["candidate"]
    ]
    identity = min(ranked)[1]
    found = [n for n in range(len(index.ids)) if index.ids[n] == identity]
    return found if len(found) < len(index.ids) else []


def _removed(index: CorpusIndex, config: PackConfig, candidates: list[int]) -> Removed:
    held = {bytes.fromhex(text) for unit in index.units for text in unit["held_hashes"]}
    held |= {index.hashes[number].tobytes() for number in candidates}
    own = (index.hashes[number].tobytes() in held for number in range(len(index.hashes)))
    of_held = np.fromiter(own, dtype=bool, count=len(index.hashes))
    first = first_of_equals(index.hashes)
    return Removed(candidates, of_held, index.contaminated, first, dedupe=config.dedupe)


def _mixture(config: PackConfig) -> Mixture:
    return Mixture(
        weights=config.mix,
        upsample=config.upsample,
        short_mix=config.short_mix,
        min_doc_len=config.min_doc_len or 0,
        epochs=config.epochs,
        tokens=config.token_budget,
    )


def _windows(
    lengths: npt.NDArray[np.int64],
    selection: Selection,
    config: PackConfig,
    window: int,
    seed: int,
) -> Plan:
    """The shuffled windows, pass after pass, or of everything at once where some are repeated.

    Raises:
        InvalidInput: every document is shorter than `min_piece`.
    """
    times = selection.times
    everything = np.arange(len(lengths))
    # Pass by pass even where passes are mixed afterwards: no window holds a document twice.
    passes = [everything[times > n] for n in range(int(times.max(initial=0)))]
    plans = []
    for number, documents in enumerate(passes):
        made = plan(
            lengths[documents],
            window,
            config.min_piece,
            config.rule,
            config.overlap or 0,
            config.drop_tail,
        ).shuffled(seed + number)
        plans.append(replace(made, document=documents[made.document]))
    windows = join(plans) if plans else plan([], window)
    if not selection.in_passes:
        windows = windows.shuffled(seed)
    if not len(windows):
        raise InvalidInput(
            f"no training document has {config.min_piece} tokens or more",
            "pass a smaller --min-piece, or longer documents",
        )
    return windows


# ── what is written ──────────────────────────────────────────────────────────────────────────


def _groups(
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


def _told(group: RowGroup, bar: Any) -> RowGroup:
    bar.advance(len(group.row_lengths))
    return group


def _write_held(
    units: list[Unit],
    index: CorpusIndex,
    work: Path,
    out: Path,
    shared: set[str],
    candidates: list[int],
) -> None:
    """`held_out.jsonl.gz`: the units' held documents, or the candidates."""
    with held_out_writer(out) as write:
        for number in range(len(units)):
            with open(unit_folder(work, number) / HELD, "rb") as lines:
                for line in lines:
                    write(_under_source(line, shared))
        chosen = {index.ids[number] for number in candidates}
        for unit in index.units:
            if unit["candidate"] and unit["candidate"]["id"] in chosen:
                for text in unit["candidate"]["lines"]:
                    write(_under_source(text.encode(), shared))


def _under_source(line: bytes, shared: set[str]) -> bytes:
    if not shared:
        return line
    value = json.loads(line)
    if value["id"] not in shared:
        return line
    value["id"] = f"{value['source']}:{value['id']}"
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _write_removed(index: CorpusIndex, removed: Removed, stored: Strings, out: Path) -> None:
    """`removed.jsonl`, a line a document left out as a duplicate or contaminated; if any were."""
    duplicate = removed.duplicate_of != np.arange(len(removed.duplicate_of))
    gone = removed.contaminated | ((duplicate | removed.of_held) & removed.dedupe)
    gone[removed.candidates] = False
    if not gone.any():
        return
    with atomic_open(out / REMOVED) as handle:
        for number in np.flatnonzero(gone).tolist():
            reason = "shares 13-word runs with an evaluation text"
            if removed.of_held[number]:
                reason = "same text as a document held out"
            elif not removed.contaminated[number]:
                reason = f"same text as {stored[int(removed.duplicate_of[number])]}"
            value = {
                "id": stored[number],
                "source": index.names[int(index.source[number])],
                "tokens": int(index.lengths[number]),
                "reason": reason,
            }
            handle.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")


def _stats(
    index: CorpusIndex,
    tools: Tools,
    removed: Removed,
    selection: Selection,
    windows: Plan,
    lengths: npt.NDArray[np.int64],
    held: int,
) -> dict[str, Any]:
    config, grams = tools.config, tools.grams
    extra = len(removed.candidates)
    packable = np.ones(len(index.lengths), dtype=bool)
    packable[removed.candidates] = False
    of_training = np.where(packable, index.lengths, 0)
    contaminated = int(index.contaminated.sum())
    backends = sorted({unit["backend"] for unit in index.units})
    return {
        "documents": len(index.lengths) + held,
        "documents_held_out": held + extra,
        **packing_stats(lengths, windows, selection.times),
        "rule": config.rule,
        "tokenizer_backend": ", ".join(backends),
        "tokens_policy": tools.tokenize.policy,
        "sources": source_stats(of_training[packable], index.source[packable], index.names),
        "skipped": dict(sorted(skipped_in(index.units).items())),
        "duplicates": duplicates_report(removed.duplicate_of, of_training, removed.dedupe),
        "contamination": grams.report()
        | {
            "documents": contaminated,
            "tokens": int(index.lengths[index.contaminated].sum()),
        }
        if grams
        else None,
        "mixture": selection.report,
    }
