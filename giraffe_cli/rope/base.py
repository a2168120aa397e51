"""What a RoPE strategy is: arithmetic on head_dim/2 numbers.

A strategy maps a `Head` (the model's rotary shape and the two lengths) to an `inv_freq` table and
one attention factor. It needs no torch and patches nobody's forward: `make_table` turns it into a
`RopeTable`, whose `rope_parameters` is the standard config that stock transformers loads.

    Head(head_dim=128, rope_theta=1e4, original_max_position_embeddings=4096, target_length=16384)
    make_table("linear", {}, head).inv_freq[0]  → 0.25   (the fastest pair divided by 4)
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import InvalidInput, near_misses, raise_together
from giraffe_cli.registry import discover, pick

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """The rotary shape of a model and the window it is to reach."""

    head_dim: int
    rope_theta: float
    original_max_position_embeddings: int
    """Native window in tokens: what the model was trained at."""
    target_length: int
    """Window in tokens the table must cover."""

    @property
    def factor(self) -> float:
        """Target over native window, s in the papers."""
        return self.target_length / self.original_max_position_embeddings

    def unscaled_inv_freq(self) -> FloatArray:
        """`[head_dim/2]` θ^(-2i/d) in radians per token, fastest pair first."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        return self.rope_theta**-exponents


def knob(default: Any, doc: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A strategy's field: its default, its documentation and the closed range it must lie in."""
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high})


def _knob_problem(field: dataclasses.Field[Any], value: Any) -> str | None:
    """What is wrong with a knob's value; an int may stand for a float, a bool for nothing else."""
    low, high = field.metadata["low"], field.metadata["high"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    expected = float if isinstance(field.default, float) else type(field.default)
    if not (number if expected in (int, float) else isinstance(value, expected)):
        return f"{field.name} is {value!r}, must be of type {expected.__name__}"
    if number and not low <= value <= high:
        return f"{field.name} is {value}, must lie in [{low:g}, {high:g}]"
    return None


@dataclass(frozen=True)
class AbstractStrategy(ABC):
    """One scaling rule; the dataclass fields (made with `knob`) are its knobs.

    Raises:
        InvalidInput: a knob of another type or outside its range, naming the range.
    """

    summary: ClassVar[str]
    """One line: what it does to the table."""
    source: ClassVar[str]
    """Paper and reference implementation."""
    choose_when: ClassVar[str]
    """One line of advice."""

    def __post_init__(self) -> None:
        found = (
            _knob_problem(field, getattr(self, field.name)) for field in dataclasses.fields(self)
        )
        problems = [problem for problem in found if problem]
        raise_together(problems, f"knobs of {type(self).__name__.lower()}")

    @abstractmethod
    def inv_freq(self, head: Head) -> FloatArray:
        """`[head_dim/2]` scaled inverse frequencies, radians per token."""

    @abstractmethod
    def attention_factor(self, head: Head) -> float:
        """What cos and sin are multiplied by; 1 for most."""

    @abstractmethod
    def native(self, head: Head) -> dict[str, Any] | None:
        """The `rope_type` dict transformers itself computes this table from, without `rope_theta`
        unless the strategy changes it; None where only `longrope` factors can express it."""


@dataclass(frozen=True)
class RopeTable:
    """A strategy applied to a head: the content of `rope.json`."""

    strategy: str
    knobs: dict[str, Any]
    head_dim: int
    rope_theta: float
    original_max_position_embeddings: int
    target_length: int
    inv_freq: tuple[float, ...]
    attention_factor: float
    rope_parameters: dict[str, Any]
    """What is written to `config.json`; computes the same table in stock transformers."""

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "inv_freq": list(self.inv_freq)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RopeTable:
        """Inverse of `to_json`; unknown keys of later versions are ignored.

        Raises:
            InvalidInput: a key is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in value]
        if missing:
            raise InvalidInput(f"rope.json lacks {', '.join(missing)}", "write it again")
        chosen = {name: value[name] for name in names}
        return cls(**{**chosen, "inv_freq": tuple(value["inv_freq"])})


def strategies() -> dict[str, type[AbstractStrategy]]:
    """Every registered strategy by name."""
    return discover("giraffe_cli.rope.strategies", AbstractStrategy)


def make_strategy(name: str, knobs: Mapping[str, Any]) -> AbstractStrategy:
    """The strategy `name` with `knobs`.

    Raises:
        InvalidInput: unknown strategy or knob, or a knob out of range.
    """
    kind = pick(name, strategies(), "RoPE strategy")
    known = {field.name for field in dataclasses.fields(kind)}
    for given in knobs:
        if given not in known:
            hint = near_misses(given, known) if known else f"`{name}` has no knobs"
            raise InvalidInput(f"`{given}` is no knob of `{name}`", hint)
    return kind(**knobs)


def longrope_parameters(head: Head, table: FloatArray, attention_factor: float) -> dict[str, Any]:
    """Any table as `longrope`: per-pair divisors, short equal to long so that nothing switches.

    `short_mscale`/`long_mscale` say to vLLM what `attention_factor` says to transformers.
    """
    divisors = [float(divisor) for divisor in head.unscaled_inv_freq() / table]
    return {
        "rope_type": "longrope",
        "factor": head.factor,
        "original_max_position_embeddings": head.original_max_position_embeddings,
        "attention_factor": attention_factor,
        "short_factor": divisors,
        "long_factor": divisors,
        "short_mscale": attention_factor,
        "long_mscale": attention_factor,
    }


def make_table(name: str, knobs: Mapping[str, Any], head: Head) -> RopeTable:
    """Apply a strategy to a head, with the config that carries it.

    Raises:
        InvalidInput: unknown strategy or knob, a knob out of range, a target not above the window.
    """
    strategy = make_strategy(name, knobs)
    if head.target_length <= head.original_max_position_embeddings:
        raise InvalidInput(
            f"target length {head.target_length} is not longer than the native window "
            f"{head.original_max_position_embeddings}",
            "choose a longer --target-len",
        )
    table, attention_factor = strategy.inv_freq(head), float(strategy.attention_factor(head))
    native = strategy.native(head)
    parameters = longrope_parameters(head, table, attention_factor) if native is None else native
    return RopeTable(
        strategy=name,
        knobs=dataclasses.asdict(strategy),
        head_dim=head.head_dim,
        rope_theta=head.rope_theta,
        original_max_position_embeddings=head.original_max_position_embeddings,
        target_length=head.target_length,
        inv_freq=tuple(float(value) for value in table),
        attention_factor=attention_factor,
        rope_parameters={
            "rope_theta": head.rope_theta,
            "original_max_position_embeddings": head.original_max_position_embeddings,
            **parameters,
        },
    )


@dataclass(frozen=True)
class AbstractPositions(ABC):
    """A scheme that gives the position ids of one document piece inside a training window."""

    summary: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def position_ids(
        self, length: int, target_length: int, generator: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """`[length]` strictly increasing positions below `target_length`."""


def position_schemes() -> dict[str, type[AbstractPositions]]:
    """Every registered position scheme by name."""
    return discover("giraffe_cli.rope.positions", AbstractPositions)


def make_positions(name: str) -> AbstractPositions:
    """The scheme `name`.

    Raises:
        InvalidInput: unknown scheme.
    """
    return pick(name, position_schemes(), "position scheme")()
