"""Batches of calf's training: windows of text and of look-ups, drawn ahead by other processes.

A batch is a function of (seed, step, window), so it does not matter which process draws it, and a
run that resumes sees the windows of one that was not interrupted. A window of look-ups takes about
two milliseconds: two processes keep up with a trainer of a million tokens a second, fifteen with
any that one GPU makes of calf.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from calf_forms import ANSWER
from calf_lookups import Lookups
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

Batch = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Mixture:
    """How batches are drawn."""

    batch_tokens: int
    lookups: float
    """Share of windows that are look-ups."""
    answer_weight: float
    seed: int


class Batches(Dataset[Batch]):
    """`batches[step, window]`: `[batch_tokens / window, window + 1]` token ids, and their weights.

    Args:
        work: where `train.npy` and `tokenizer` are.
        mixture: how batches are drawn.
    """

    def __init__(self, work: Path, mixture: Mixture) -> None:
        self.stream, self.mixture = np.load(work / "train.npy", mmap_mode="r"), mixture
        self.lookups = None
        if mixture.lookups:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
            self.lookups = Lookups(tokenizer, self.stream)

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        step, window = place
        generator, mixture = np.random.default_rng([self.mixture.seed, step]), self.mixture
        drawn = [self._row(generator, window) for _ in range(mixture.batch_tokens // window)]
        ids, weights = zip(*drawn, strict=True)
        return np.stack(ids).astype(np.int32), np.stack(weights)

    def ahead(self, first: int, window_of: Callable[[int], int], workers: int) -> Iterator[Batch]:
        """The batches from step `first` on, without end; `workers` draw two ahead each.

        The window of a step is asked for when its batch is begun.
        """
        # Arrays travel by pipe: containers are short of the shared memory that tensors would take.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=((step, window_of(step)) for step in itertools.count(first)),
                num_workers=workers,
                collate_fn=_as_it_is,
                multiprocessing_context="fork" if workers else None,
            )
        )

    def _row(
        self, generator: np.random.Generator, window: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        if self.lookups and generator.random() < self.mixture.lookups:
            tokens, weight = self.lookups.window(generator, window + 1)
            return tokens, weighted(weight, self.mixture.answer_weight)
        start = int(generator.integers(0, len(self.stream) - window - 1))
        tokens = self.stream[start : start + window + 1].astype(np.int64)
        return tokens, np.ones(window + 1, np.float32)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def weighted(weights: npt.NDArray[np.float32], factor: float) -> npt.NDArray[np.float32]:
    """`factor` on the tokens of answers, twice that on the first two, which tell keys apart."""
    answer = weights == ANSWER
    second = np.concatenate([[False, False], answer[:-2]])
    scaled = np.where(answer, factor * np.where(answer & second, 1.0, 2.0), weights)
    return scaled.astype(np.float32)
