"""A whole run of `giraffe extend`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from giraffe_cli.config.base import AUTO, Length, Section
from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.config.rope import RopeConfig
from giraffe_cli.config.stages import StageConfig, as_stage
from giraffe_cli.config.train import TrainConfig


def _target_may_come_otherwise(schema: dict[str, Any]) -> None:
    """No file must name it: the last of `stages` or `--target-len` may give it."""
    schema.pop("required", None)


class ExtendConfig(Section):
    """A whole run of `giraffe extend`."""

    model_config = ConfigDict(json_schema_extra=_target_may_come_otherwise)

    model: str = "calf"
    """A checkpoint: a local directory, a `.gguf` file, a Hugging Face id, or `calf`."""
    allow_pickle: bool = False
    """Read pickled weights (`pytorch_model.bin`) of `model`, tensors alone; else they are
    refused."""
    data: list[str] = Field(default_factory=lambda: ["python-stdlib"], min_length=1)
    """Corpora, or one directory that `giraffe pack-data` wrote."""
    target_length: Length
    """The window the model is to reach, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Computation type; auto: bfloat16 for weights stored in 16 bits, float32 for others and on a
    CPU or GPU without units for bfloat16. A resumed run keeps what it began with."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds packing, positions, adapters, windows and evaluation samples."""
    rope: RopeConfig = Field(default_factory=RopeConfig)
    """How positions are rescaled."""
    pack: PackConfig = Field(default_factory=PackConfig)
    """How documents become windows."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """The fine-tune."""
    stages: list[
        Annotated[
            StageConfig, BeforeValidator(as_stage, json_schema_input_type=Length | StageConfig)
        ]
    ] = Field(default_factory=list)
    """Rising targets that one adapter is trained for in turn, such as `[16k, 32k]`; the last is the
    run's `target_length`, which may then be left out. Default: one stage."""
    eval: EvalConfig = Field(default_factory=EvalConfig)
    """The proof."""

    @property
    def window(self) -> int:
        """Tokens in a training window."""
        return self.train.window or self.target_length

    @property
    def positions(self) -> str:
        """The position scheme in force."""
        if self.train.positions != "auto":
            return self.train.positions
        return "plain" if self.window == self.target_length else "pose"

    @model_validator(mode="before")
    @classmethod
    def _the_last_stage_gives_the_target(cls, values: Any) -> Any:
        stages = values.get("stages") if isinstance(values, dict) else None
        if not isinstance(stages, list) or not stages or "target_length" in values:
            return values
        last = as_stage(stages[-1])
        known = isinstance(last, dict) and "target_length" in last
        return {**values, "target_length": last["target_length"]} if known else values

    @model_validator(mode="after")
    def _windows_reach_no_further_than_the_target(self) -> ExtendConfig:
        if self.window > self.target_length:
            raise ValueError(
                f"train.window {self.window} is longer than target_length {self.target_length}"
            )
        return self

    @model_validator(mode="after")
    def _stages_rise_to_the_target(self) -> ExtendConfig:
        targets = [stage.target_length for stage in self.stages]
        problems = [
            f"stages.{number}.window {stage.window} is longer than its target_length "
            f"{stage.target_length}"
            for number, stage in enumerate(self.stages)
            if stage.window and stage.window > stage.target_length
        ]
        if any(later <= earlier for earlier, later in itertools.pairwise(targets)):
            problems.append(f"stages: targets must rise, found {targets}")
        if targets and targets[-1] != self.target_length:
            problems.append(
                f"stages end at {targets[-1]}, target_length is {self.target_length}; leave one out"
            )
        for number, stage in enumerate(self.stages):
            steps, decay = stage.steps or self.train.steps, self.train.decay_steps or 0
            if (stage.schedule or self.train.schedule) == "wsd" and 0 < steps < decay:
                problems.append(
                    f"stages.{number}: train.decay_steps {decay} is more than the {steps} steps "
                    "there are"
                )
        if self.train.control and not self.trains:
            problems.append("train.control needs train.steps: without a step it is the base")
        if any(stage.steps is None for stage in self.stages) and self.train.steps == 0:
            problems.append("stages: a stage of 0 steps trains nothing; raise train.steps")
        elif self.stages and self.train.steps == 0:
            problems.append("stages: they train, and train.steps is 0; leave one of them out")
        if any(stage.strategy == AUTO for stage in self.stages):
            problems.append("stages: auto is chosen once for the run, set rope.strategy to it")
        if self.rope.strategy == AUTO and any(
            stage.knobs is not None and stage.strategy is None for stage in self.stages
        ):
            problems.append("stages: knobs beside rope.strategy auto, which finds them itself")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def with_rope(self, strategy: str, knobs: Mapping[str, Any]) -> ExtendConfig:
        """The same run under a strategy that is settled."""
        settled = {"strategy": strategy, "knobs": dict(knobs), "minutes": None}
        return self.model_copy(update={"rope": self.rope.model_copy(update=settled)})

    @property
    def trains(self) -> bool:
        """Whether any step is taken; else the zero-shot extension is written."""
        return bool(self.stages) or self.train.steps > 0

    def stage_configs(self) -> list[ExtendConfig]:
        """Each stage as the config of a run of one stage, first to last; `[self]` without stages.

        The schedule's `decay_steps` stay with stages of `schedule: wsd`.
        """
        return [self._of_stage(stage) for stage in self.stages] or [self]

    def _of_stage(self, stage: StageConfig) -> ExtendConfig:
        own = stage.model_dump(exclude_none=True)
        target, knobs = stage.target_length, stage.knobs
        rope = self.rope.model_copy(
            update={
                "strategy": stage.strategy or self.rope.strategy,
                "knobs": knobs if knobs is not None else {} if stage.strategy else self.rope.knobs,
            }
        )
        train = {key: value for key, value in own.items() if key in TrainConfig.model_fields}
        window = stage.window or self.train.window
        train["window"] = window and min(window, target)
        if (stage.schedule or self.train.schedule) != "wsd":
            train["decay_steps"] = None
        scheme = stage.positions or self.train.positions
        is_plain = scheme == "auto" and (train["window"] or target) == target
        is_other = stage.positions not in (None, self.train.positions)
        if stage.position_knobs is None and (is_other or is_plain):
            train["position_knobs"] = {}
        return self.model_copy(
            update={
                "data": stage.data or self.data,
                "target_length": target,
                "rope": rope,
                "train": self.train.model_copy(update=train),
                "stages": [],
            }
        )
