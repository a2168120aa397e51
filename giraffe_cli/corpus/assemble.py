"""The second phase of packing: tokenised units → selection, mixture, windows, rows on disk.

One process, memory flat in the corpus: documents are numbers in arrays until the moment their
tokens are copied from the first phase's files into a row group. The result is a function of the
units' content, the config and the seed, whoever tokenised them in whatever order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.corpus_index import CorpusIndex
from giraffe_cli.corpus.duplicates import duplicates_report
from giraffe_cli.corpus.held_out_file import held_candidates, held_documents, write_held_out
from giraffe_cli.corpus.lookups import LookupHider, room_for_lookups
from giraffe_cli.corpus.mix import Selection, select
from giraffe_cli.corpus.pack import Plan, join, plan, with_targets
from giraffe_cli.corpus.pack_knobs import LOWER
from giraffe_cli.corpus.removed import Removed, removed_from, write_removed
from giraffe_cli.corpus.rows import Layout, RowGroup, write_rows
from giraffe_cli.corpus.shares import Mixture
from giraffe_cli.corpus.stats import (
    named_in,
    packing_stats,
    skipped_in,
    source_stats,
    with_lookups,
)
from giraffe_cli.corpus.store import STATS, clear_rows
from giraffe_cli.corpus.token_files import row_groups
from giraffe_cli.corpus.tools import Tools
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import write_json


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
    """Write rows, `held_out.jsonl.gz`, `removed.jsonl` and `stats.json` into `out`; what was there
    goes once it is known what takes its place.

    Raises:
        InvalidInput: nothing to train on, or a mixture that the documents cannot give.
        GiraffeError: `out` cannot be written.
    """
    config = tools.config
    held = list(held_documents(units, index, work))
    candidates = held_candidates(index, config, len(held))
    removed = removed_from(index, config, candidates)
    gone = removed.mask()
    if gone.all():
        raise InvalidInput(
            "every training document has the text of one held out, or of an evaluation",
            "give more documents, or --hold-out 0",
        )
    lengths = np.where(gone, 0, index.lengths)
    text = window - room_for_lookups(config.lookups, window)
    selection = select(lengths, index.source, index.names, _mixture(config), text, seed)
    windows = _windows(lengths, selection, config, text, seed)
    hider = LookupHider(tools.tokenize, config.lookups, window, seed) if config.lookups else None
    shared = index.shared_ids(held)
    stored = index.stored_ids(shared)
    layout = Layout.of(len(windows), window)
    clear_rows(out)
    with reporter.bar("writing windows", len(windows), "windows") as bar:
        groups = row_groups(index, windows, layout, stored)
        groups = hider.hide(groups) if hider else groups
        write_rows(out, (_told(group, bar) for group in groups), layout)
    write_held_out(index, work, out, shared, candidates)
    write_removed(index, removed, stored, out)
    added = hider.report() if hider else None
    stats = _stats(index, tools, removed, selection, windows, lengths, len(held), window, added)
    write_json(out / STATS, stats)
    return stats, layout


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
        )
        made = with_targets(made).shuffled(seed + number)
        plans.append(replace(made, document=documents[made.document]))
    windows = join(plans) if plans else plan([], window)
    if not selection.in_passes:
        windows = windows.shuffled(seed)
    if not len(windows):
        raise InvalidInput(
            f"no training document has {config.min_piece} tokens or more",
            f"{LOWER}, or give longer documents",
        )
    return windows


def _told(group: RowGroup, bar: Any) -> RowGroup:
    bar.advance(len(group.row_lengths))
    return group


def _stats(
    index: CorpusIndex,
    tools: Tools,
    removed: Removed,
    selection: Selection,
    windows: Plan,
    lengths: npt.NDArray[np.int64],
    held: int,
    window: int,
    lookups: dict[str, Any] | None,
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
        **with_lookups(windows, window, lookups),
        "rule": config.rule,
        "tokenizer_backend": ", ".join(backends),
        "tokens_policy": tools.tokenize.policy,
        "sources": source_stats(of_training[packable], index.source[packable], index.names),
        "skipped": dict(sorted(skipped_in(index.units).items())),
        "skipped_records": named_in(index.units),
        "duplicates": duplicates_report(
            removed.duplicate_of, removed.of_held, of_training, removed.dedupe
        ),
        "contamination": grams.report()
        | {
            "documents": contaminated,
            "tokens": int(index.lengths[index.contaminated].sum()),
        }
        if grams
        else None,
        "mixture": selection.report,
    }
