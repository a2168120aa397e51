"""Which packed row is trained when, and what the model is given for it: a function of the step.

No state is kept, so a resumed run and a run on another number of processes see the same windows:

    step 7, 4 windows a step → windows 28-31
    window 28 of 10 rows     → epoch 2, row permutation(seed, epoch 2)[8]

The randomness of a window (positions, dropout) is drawn from (seed, window), for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from giraffe_cli.corpus.store import PackedRows, Row
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.loss import IGNORED
from giraffe_cli.rope.scheme import AbstractPositions, Positions
from giraffe_cli.train.balance import shared_out

_ORDER, _POSITIONS, _DROPOUT, _HELD_OUT = range(4)
"""What a random stream is for: streams of one window must not be the same numbers."""


@dataclass(frozen=True)
class Window:
    """One packed row, ready for the model; n tokens in documents of `seq_lengths`."""

    input_ids: Tensor
    """[1, n] int64."""
    labels: Tensor
    """[n] int64: the next token of the same document, -100 for a document's last."""
    position_ids: Tensor
    """[1, n] int64, or float64 from a scheme that places tokens between whole positions."""
    seq_lengths: tuple[int, ...]
    doc_ids: tuple[str, ...]
    dropout_seed: int

    @property
    def num_targets(self) -> int:
        """Labels that count."""
        return self.input_ids.shape[1] - len(self.seq_lengths)


@dataclass(frozen=True)
class WindowStream:
    """The windows of a training run, addressed by number."""

    rows: PackedRows
    positions: AbstractPositions
    window: int
    """Most tokens a row may hold."""
    target_length: int
    seed: int
    windows_per_step: int
    across_documents: bool = False
    """Whether the documents of a row count as one: attention, positions and targets run through."""

    def share(self, step: int, rank: int = 0, processes: int = 1) -> list[int]:
        """Which of the windows of `step` (from 0) are this process's, by their places in it."""
        first, many = step * self.windows_per_step, self.windows_per_step
        costs = [0.0] * many
        if processes > 1 and not self.across_documents:
            costs = self.rows.squares[self._rows(range(first, first + many))].tolist()
        return shared_out(costs, processes)[rank]

    def of_step(self, step: int, places: Sequence[int]) -> list[Window]:
        """The windows of `step` at `places`."""
        return [self.build(step * self.windows_per_step + place) for place in places]

    def build(self, index: int) -> Window:
        """The `index`-th window of the run, from 0.

        Raises:
            InvalidInput: the row is longer than the configured window, or trains nothing.
        """
        (row_index,) = self._rows([index])
        row = self.rows.row(row_index)
        if len(row.input_ids) > self.window:
            raise InvalidInput(
                f"packed row {row_index} holds {len(row.input_ids)} tokens, the window is "
                f"{self.window}",
                "pack again with this --window",
            )
        if self.across_documents:
            row = row._replace(seq_lengths=np.array([len(row.input_ids)], np.int32))
        if len(row.input_ids) == len(row.seq_lengths):
            raise InvalidInput(f"packed row {row_index} holds documents of single tokens only")
        dropout_seed = int(self._generator(_DROPOUT, index).integers(2**63))
        return self._window(row, self._generator(_POSITIONS, index), dropout_seed)

    def of_document(self, ids: npt.NDArray[Any], name: str, place: int) -> Window:
        """The first `window` tokens of a document that is not trained on, the `place`-th of such:
        its positions are drawn from a stream of their own."""
        first = ids[: self.window]
        row = Row(first, np.array([len(first)], dtype=np.int32), [name])
        return self._window(row, self._generator(_HELD_OUT, place), dropout_seed=0)

    def cursor(self, index: int) -> tuple[int, int]:
        """(epoch, place in its permutation) of a window."""
        return divmod(index, len(self.rows))

    def _rows(self, indices: Sequence[int]) -> list[int]:
        """The packed rows of these windows."""
        places = [self.cursor(index) for index in indices]
        orders = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        return [int(orders[epoch][place]) for epoch, place in places]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return self._generator(_ORDER, epoch).permutation(len(self.rows))

    def _window(self, row: Row, generator: np.random.Generator, dropout_seed: int) -> Window:
        return Window(
            input_ids=torch.from_numpy(row.input_ids.astype(np.int64)).unsqueeze(0),
            labels=torch.from_numpy(next_token_labels(row)),
            position_ids=torch.from_numpy(self._position_ids(row, generator)).unsqueeze(0),
            seq_lengths=tuple(int(length) for length in row.seq_lengths),
            doc_ids=tuple(row.doc_ids),
            dropout_seed=dropout_seed,
        )

    def _position_ids(self, row: Row, generator: np.random.Generator) -> Positions:
        pieces = [
            self.positions.position_ids(int(length), self.target_length, generator)
            for length in row.seq_lengths
        ]
        return np.concatenate(pieces)

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, number))


def next_token_labels(row: Row) -> npt.NDArray[np.int64]:
    """[n] labels: each document predicts its own next token, its last predicts nothing.

    Documents of 3 and 2 tokens `[5 6 7 | 8 9]` → `[6 7 -100 9 -100]`.
    """
    labels = np.full(len(row.input_ids), IGNORED, dtype=np.int64)
    labels[:-1] = row.input_ids[1:]
    labels[np.cumsum(row.seq_lengths) - 1] = IGNORED
    return labels
