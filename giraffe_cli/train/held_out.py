"""Windows of documents that are not trained on, and the loss on them between steps.

They are the same in every process layout and every resumed part: the first `window` tokens of each
of the longest documents that packing held out, at positions drawn from (seed, place).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from giraffe_cli.corpus.base import longest_first
from giraffe_cli.corpus.store import PackedRows, each_held_out
from giraffe_cli.corpus.tokens import DocumentTokenizer
from giraffe_cli.train.data import Window, WindowStream
from giraffe_cli.train.gradients import sum_of
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.packed_checks import nothing_held_out
from giraffe_cli.train.setup import window_nats
from giraffe_cli.train.window_loss import WindowLoss


def held_out_windows(
    rows: PackedRows, stream: WindowStream, tokenizer_dir: Path, most: int, evaluated: int = 0
) -> list[Window]:
    """One window of each of the `most` longest documents held out, longest first; the `evaluated`
    longest are left to the evaluation, where there are others: what is measured on chooses the
    weights, and a score on the same text would flatter them.

    Raises:
        InvalidInput: packing held none out, or none of two tokens.
    """
    documents = longest_first(each_held_out(rows.folder), evaluated + most)
    documents = documents[evaluated:] or documents
    # what a document is made of beside its text is what packing made of it
    tokenize = DocumentTokenizer(tokenizer_dir, "tokenizers", rows.bos, rows.eos)
    texts = [(tokenize.encode([document.text])[0], document.id) for document in documents[:most]]
    windows = [
        stream.of_document(ids, name, place)
        for place, (ids, name) in enumerate(texts)
        if len(ids) > 1
    ]
    if not windows:
        raise nothing_held_out(rows.folder)
    return windows


def held_out_nll(
    model: WindowLoss, windows: Sequence[Window], layout: Layout, device: torch.device
) -> float:
    """Mean nats per target over all `windows`, without dropout; equal in every process."""
    told = torch.zeros(len(windows), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for first in range(0, len(windows), layout.window_processes):
            place = first + layout.window_rank
            if place < len(windows):
                told[place] = window_nats(model, windows[place], device)
            elif model.base:  # the others' passes need this process's part of the weights
                window_nats(model, windows[0], device)
    model.train(was_training)
    return float(sum(sum_of(told).tolist()) / sum(window.num_targets for window in windows))
