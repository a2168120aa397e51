"""What a position scheme is: the position ids of a document piece in a training window.

A scheme is a choice about the data, apart from the table: any scheme goes with any strategy.

    make_positions("pose", {"chunks": 3}).position_ids(6, 16, generator)  → 0 1 5 6 12 13
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from giraffe_cli.registry import discover, pick
from giraffe_cli.rope.knobs import check_knobs, with_knobs

Positions = npt.NDArray[Any]
"""int64 or float64."""


@dataclass(frozen=True)
class AbstractPositions(ABC):
    """A scheme that gives the position ids of one document piece inside a training window; the
    dataclass fields (made with `knob`) are its knobs.

    Raises:
        InvalidInput: a knob of another type or outside its range, naming the range.
    """

    summary: ClassVar[str]
    source: ClassVar[str]

    def __post_init__(self) -> None:
        check_knobs(self)

    @abstractmethod
    def position_ids(
        self, length: int, target_length: int, generator: np.random.Generator
    ) -> Positions:
        """`[length]` strictly increasing positions from 0 up, below `target_length`; whole
        numbers, or float64 for a scheme that places tokens between them."""


def position_schemes() -> dict[str, type[AbstractPositions]]:
    """Every registered position scheme by name."""
    return discover("giraffe_cli.rope.positions", AbstractPositions)


def make_positions(name: str, knobs: Mapping[str, Any] | None = None) -> AbstractPositions:
    """The scheme `name` with `knobs`.

    Raises:
        InvalidInput: unknown scheme or knob, or a knob out of range.
    """
    return with_knobs(pick(name, position_schemes(), "position scheme"), name, knobs or {})
