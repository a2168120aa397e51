"""A stage's training under the levers that fit it: chosen once, kept, one step down when it fails.

    levers.json   the setting in force, why, and what was given up for it

A resumed run trains under the setting it began with, whatever the machine has free by then, as
long as the config allows it. When memory runs out in the first step all the same, the next rung of
the ladder is taken, once, and said aloud.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.building import build
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.train import knobs_without_effect
from giraffe_cli.errors import DoesNotFit, FirstStepDoesNotFit, InvalidInput
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.out_of_memory import hand_back
from giraffe_cli.plan.demand import Demand
from giraffe_cli.plan.estimate import assumed_pace, demand_of, estimate
from giraffe_cli.plan.ladder import Rung, ladder, make_rung, next_down
from giraffe_cli.plan.machine import Machine, this_machine
from giraffe_cli.plan.operations import Rates
from giraffe_cli.plan.settings import allows
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import make_folder, read_json, write_sealed
from giraffe_cli.train.loop import TrainResult
from giraffe_cli.units import format_bytes

FILE = "levers.json"


def read_levers(folder: Path) -> Levers | None:
    """The setting that the stage in `folder` began with; None before it did."""
    path = folder / FILE
    return Levers(**read_json(path)["levers"]) if path.exists() else None


def as_begun(config: ExtendConfig, folder: Path, checkpoint: Checkpoint) -> ExtendConfig:
    """`config` of the stage in `folder`, with the levers that decide its weights (under dropout,
    masks are drawn by tile) as they were when its weights began to change; `checkpoint` is its
    base.

    Raises:
        InvalidInput: something else that `config` asks for excludes them.
    """
    kept = read_levers(folder)
    free = knobs_without_effect(config.train, checkpoint.attention_dropout)
    deciding = [name for name in _DECIDING if name not in free]
    trained = (path for name in _TRAINED for path in folder.glob(name))
    if kept is None or not deciding or not any(trained):
        return config
    began_with = {name: _as_knob(name, getattr(kept, name)) for name in deciding}
    values = config.model_dump(mode="json")
    try:
        return build({**values, "train": {**values["train"], **began_with}})
    except InvalidInput as error:
        told = ", ".join(f"{name}: {value}" for name, value in began_with.items())
        raise InvalidInput(
            f"{folder} began with {told}, by which dropout's masks are drawn, and goes on with "
            f"them; {error.message}",
            "take back what was changed of train, or choose another --out",
        ) from None


_DECIDING = ("mlp_tile", "projection_tile", "whole_layers", "head_groups")
_TRAINED = ("checkpoints/step-*", "adapter")


def _as_knob(name: str, value: int) -> int | str:
    return "none" if name.endswith("_tile") and value == 0 else value


@dataclass(frozen=True)
class Fit:
    """Fits the training of one stage into this machine."""

    checkpoint: Checkpoint
    config: ExtendConfig
    """Of the stage."""
    folder: Path
    reporter: Reporter
    attention_share: float = 1.0
    """s² of its windows."""
    slower: float | None = None
    """Time of the stage before, measured over assumed; None of the first, whose time its own first
    step tells."""

    def train(self, start: Callable[..., TrainResult]) -> TrainResult:
        """`start(levers=..., planned_seconds_per_step=...)`; once more, a rung further down, when
        its first step does not fit.

        Raises:
            DoesNotFit: nor does the second try, or there is no rung below.
        """
        levers = self._settled()
        try:
            return start(levers=levers, planned_seconds_per_step=self._planned(levers))
        except FirstStepDoesNotFit as error:
            # not the error: its traceback's frames hold the model and the activations of this try
            failed, hint = error.message, error.hint
        lower = next_down(self._rungs(levers), levers)
        if lower is None:
            raise DoesNotFit(
                f"{failed}; no setting of the levers needs less than `{levers.sentence}`", hint
            )
        self.reporter.warn(
            f"{failed}. Trying once more with {lower.levers.sentence}, predicted to need "
            f"{format_bytes(lower.total)}"
        )
        self._keep(lower.levers, [{"gave_up": levers.to_json(), "because": failed}])
        hand_back()
        try:
            planned = self._planned(lower.levers)
            return start(levers=lower.levers, planned_seconds_per_step=planned)
        except FirstStepDoesNotFit as error:
            raise DoesNotFit(f"{error.message}, on the second try as well", error.hint) from None

    def measured_over_assumed(self, result: TrainResult) -> float | None:
        """How much longer than assumed its steps took: what the next stage is planned with."""
        levers = read_levers(self.folder)
        if levers is None or not result.steps:
            return None
        return result.seconds / result.steps / self._rung(levers).seconds_per_step

    def _planned(self, levers: Levers) -> float | None:
        return self.slower and self.slower * self._rung(levers).seconds_per_step

    def _settled(self) -> Levers:
        kept, layers = read_levers(self.folder), self.checkpoint.num_layers
        config = as_begun(self.config, self.folder, self.checkpoint)
        if kept is not None and allows(config.train, kept, layers):
            return kept
        planned = estimate(self.checkpoint, config, attention_share=self.attention_share)
        levers = Levers(**planned["levers"])
        self._keep(levers, [])
        return levers

    def _keep(self, levers: Levers, given_up: list[dict[str, Any]]) -> None:
        path = make_folder(self.folder) / FILE
        earlier = read_json(path)["given_up"] if path.exists() else []
        write_sealed(path, {"levers": levers.to_json(), "given_up": [*earlier, *given_up]})

    def _rung(self, levers: Levers) -> Rung:
        """What they are predicted to cost here, whether or not the ladder has them now."""
        return make_rung(*self._predicted(), levers)

    def _rungs(self, levers: Levers) -> list[Rung]:
        """`levers`, which need not be on the ladder, and the ladder."""
        return [self._rung(levers), *ladder(*self._predicted())]

    def _predicted(self) -> tuple[Demand, Machine, Rates]:
        machine = this_machine()
        config = as_begun(self.config, self.folder, self.checkpoint)
        demand = demand_of(self.checkpoint, config, machine, self.attention_share)
        return demand, machine, assumed_pace(machine, demand.dtype).rates
