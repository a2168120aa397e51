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

from giraffe_cli.errors import InvalidInput
from giraffe_cli.registry import discover, pick
from giraffe_cli.rope.knobs import check_knobs, knob_values, with_knobs

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
    base_table: tuple[float, ...] | None = None
    """`[head_dim/2]` inv_freq of a base that is scaled already and is composed with: then the
    native window is the one that table reaches. None: θ^(-2i/d)."""
    base_attention_factor: float = 1.0
    """What the base multiplies cos and sin by; multiplied with the strategy's own."""

    @property
    def factor(self) -> float:
        """Target over native window, s in the papers."""
        return self.target_length / self.original_max_position_embeddings

    def exponents(self) -> FloatArray:
        """`[head_dim/2]` 2i/d: 0 for the fastest pair, nearly 1 for the slowest."""
        return np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim

    def unscaled_inv_freq(self) -> FloatArray:
        """`[head_dim/2]` θ^(-2i/d) in radians per token, fastest pair first."""
        return np.asarray(self.rope_theta ** -self.exponents(), dtype=np.float64)

    def base_inv_freq(self) -> FloatArray:
        """`[head_dim/2]` the table in force in the base: what a strategy starts from."""
        if self.base_table is None:
            return self.unscaled_inv_freq()
        return np.array(self.base_table, dtype=np.float64)

    def turns(self) -> FloatArray:
        """`[head_dim/2]` how often each pair of the base turns in the native window."""
        return self.original_max_position_embeddings * self.base_inv_freq() / (2 * math.pi)

    def pair_turning(self, turns: float) -> float:
        """The (fractional) pair index that turns `turns` times in the native window.

        d · ln(L0 / (2πn)) / (2 ln θ) for an unscaled base, also beyond the ends of the table (the
        papers' correction dimension); for a composed base the place in its own table, interpolated
        on a log scale and prolonged with θ's slope.
        """
        slope = 2 * math.log(self.rope_theta) / self.head_dim
        if self.base_table is None:
            reach = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return math.log(reach) / slope
        logs = -np.log(self.turns())
        wanted, last = -math.log(turns), len(logs) - 1
        if wanted < logs[0]:
            return float((wanted - logs[0]) / slope)
        if wanted > logs[-1]:
            return float(last + (wanted - logs[-1]) / slope)
        return float(np.interp(wanted, logs, np.arange(last + 1)))


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
    starts_at_identity: ClassVar[bool] = True
    """The table tends to the base's as the target tends to the native window; False where the
    table does not follow the target, or follows it in steps of whole pairs."""

    def __post_init__(self) -> None:
        check_knobs(self)

    @classmethod
    def example(cls, head: Head) -> dict[str, Any]:
        """Knobs for a demonstration on `head`; only a strategy without useful defaults has some."""
        return {}

    @classmethod
    def variants(cls, head: Head) -> list[dict[str, Any]]:
        """Knobs worth comparing on `head`, the defaults first; `giraffe rope compare` reads all."""
        return [cls.example(head)]

    @abstractmethod
    def inv_freq(self, head: Head) -> FloatArray:
        """`[head_dim/2]` scaled inverse frequencies, radians per token, from
        `head.base_inv_freq()`; positive, none faster than the pair before it."""

    def attention_factor(self, head: Head) -> float:
        """What cos and sin are multiplied by, beside what the base multiplies them by."""
        return 1.0

    def native(self, head: Head) -> dict[str, Any] | None:
        """The `rope_type` dict transformers itself computes this table from when the base is
        unscaled, without `rope_theta` unless the strategy changes it; None where only `longrope`
        factors can express it."""
        return None


@dataclass(frozen=True)
class RopeTable:
    """A strategy applied to a head: the content of `rope.json`."""

    strategy: str
    """Its name in the registry."""
    knobs: dict[str, Any]
    """Every knob with its value, defaults included."""
    head_dim: int
    """Dimensions of a head, two for each pair."""
    rope_theta: float
    """Base of the unscaled table."""
    original_max_position_embeddings: int
    """Tokens of the window that was scaled from."""
    target_length: int
    """Tokens of the window that was scaled to."""
    inv_freq: tuple[float, ...]
    """`[head_dim/2]` radians per token, fastest pair first."""
    attention_factor: float
    """What cos and sin are multiplied by."""
    rope_parameters: dict[str, Any]
    """What is written to `config.json`; computes the same table in stock transformers."""

    def to_json(self) -> dict[str, Any]:
        """The content of `rope.json`; `from_json` reads it."""
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
    return with_knobs(pick(name, strategies(), "RoPE strategy"), name, knobs)


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

    A base that is scaled already (`head.base_table`) always ends as `longrope` factors: no other
    `rope_type` says two scalings at once.

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
    table = strategy.inv_freq(head)
    attention_factor = float(strategy.attention_factor(head) * head.base_attention_factor)
    native = strategy.native(head) if head.base_table is None else None
    parameters = longrope_parameters(head, table, attention_factor) if native is None else native
    return RopeTable(
        strategy=name,
        knobs=knob_values(strategy),
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
