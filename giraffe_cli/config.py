"""Every knob once, documented under it: YAML, `--set`, help and JSON schema come from here.

    target_length: 16k
    rope: {strategy: yarn}
    train: {steps: 60, window: 2k}

`load` collects every problem of a file and the `--set` overrides, then raises once.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from giraffe_cli.errors import GiraffeError, InvalidInput, near_misses, raise_together
from giraffe_cli.evals.suites import SUITES
from giraffe_cli.gates import parse_gate
from giraffe_cli.plain_yaml import parse_yaml
from giraffe_cli.rundir import altered, atomic_open, digest_bytes, seal
from giraffe_cli.units import brief, parse_bytes, parse_length

AUTO = "auto"
"""The strategy that is chosen by measurement."""
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _length(value: Any) -> int:
    try:
        return parse_length(value)
    except GiraffeError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


def _size(value: Any) -> int:
    try:
        return parse_bytes(value)
    except GiraffeError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; a knob written so is a number."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return number if not isinstance(number, float) or math.isfinite(number) else value


def _switch(value: Any) -> Any:
    """YAML 1.1 reads `on` and `off` as truth values; a knob written so is the word."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


_REQUIRED = {"target_length": ", pass --target-len 16k or write it into the config"}

_Whole = Annotated[int, Field(ge=1, lt=10**18)]
_LengthText = Annotated[str, Field(pattern=r"^\s*[0-9]{1,18}[kKmM]?\s*$")]
_SizeText = Annotated[str, Field(pattern=r"^\s*[0-9]{1,18}(\.[0-9]{1,18})?\s*[kKmMgGtT]?[bB]?\s*$")]
Length = Annotated[int, BeforeValidator(_length, json_schema_input_type=_Whole | _LengthText)]
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=_Whole | _SizeText)]
Knobs = dict[str, Annotated[float | int | bool | str | list[float], BeforeValidator(_number)]]


class Section(BaseModel):
    """A group of knobs; unknown keys are errors, and the text under a field is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class RopeConfig(Section):
    """How positions are rescaled."""

    strategy: str = AUTO
    """Name of the strategy, see `giraffe rope list`; auto: the best of all on the training text,
    compared before anything is trained."""
    knobs: Knobs = Field(default_factory=dict)
    """Knobs of the strategy, such as `beta_fast`."""
    minutes: float | None = Field(default=None, gt=0)
    """Time limit of that comparison; default: a tenth of the predicted training time, five minutes
    where nothing is trained."""
    on_existing: Literal["refuse", "compose", "replace"] = "refuse"
    """A base that is scaled already: refuse it, scale its real table further, or put the strategy
    in the place of its scaling."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> RopeConfig:
        if self.strategy == AUTO and self.knobs:
            raise ValueError(
                f"knobs {', '.join(sorted(self.knobs))} need a strategy; name it, or leave them "
                "out: auto tries several"
            )
        if self.strategy != AUTO and self.minutes is not None:
            raise ValueError(f"minutes has no effect on strategy {self.strategy}, only on auto")
        return self


class PackConfig(Section):
    """How documents become training windows."""

    hold_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of documents (by hash of their id) kept out of training, for evaluation."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with a record that cannot be read: stop, or skip and count it."""
    text_field: str = "text"
    """The JSONL field that holds the text."""
    min_piece: int = Field(default=32, ge=1)
    """Pieces of documents shorter than this many tokens are dropped, and counted."""
    rule: Literal["best-fit", "concat", "one"] = "best-fit"
    """How windows are filled: whole documents where they fit best, documents end to end, or one
    document a window."""
    overlap: Length | None = None
    """Tokens that each further piece of a document longer than the window repeats."""
    drop_tail: bool = False
    """Under `one`: drop what a document has beyond its first window, and count it."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """A BOS token before each document; auto: where the tokenizer itself would put one."""
    eos: Literal["auto", "yes", "no"] = "auto"
    """An EOS token after each document; auto: when the tokenizer names one."""
    min_doc_len: Length | None = None
    """Documents shorter than this many tokens are left out, and counted."""
    mix: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Source → its share of the tokens, for all sources or none."""
    upsample: Literal["none", "long"] = "none"
    """long: short documents count a tenth, while each source keeps its share of the tokens."""
    short_mix: float | None = Field(default=None, ge=0, le=1)
    """Share of the tokens that comes from documents shorter than the window, such as 0.4."""
    epochs: float | None = Field(default=None, gt=0)
    """Most passes over a document; default: one."""
    token_budget: Length | None = None
    """Tokens to pack; default: as many as the documents give."""
    dedupe: bool = False
    """Leave out documents whose text an earlier one has exactly."""
    decontaminate: list[str] = Field(default_factory=list)
    """Files of evaluation texts; documents that share 13-word runs with them are left out."""
    max_doc_bytes: Size = 256_000_000
    """Larger documents are refused by name."""
    backend: Literal["auto", "fastokens", "tokenizers"] = "auto"
    """What tokenises; auto: fastokens when it is installed and shown to give equal ids."""
    block_bytes: Size = 32 << 20
    """Bytes of text that are tokenised at a time; changes memory and speed, not what is packed."""


class LoraConfig(Section):
    """The adapter that is trained."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the down-projection."""
    targets: list[str] = Field(default_factory=lambda: list(LORA_TARGETS), min_length=1)
    """Module names that get an adapter; each must match something."""
    use_rslora: bool = False
    """Scale the update by alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Train the norm of every output row beside the direction (DoRA)."""
    init_lora_weights: Literal["default", "pissa"] = "default"
    """pissa: start from the largest singular directions of each weight, and train those."""
    also_train: list[Literal["embeddings", "norms"]] = Field(default_factory=list)
    """Trained whole beside the adapter, as LongLoRA does; tied weights stay tied."""


class TrainConfig(Section):
    """The fine-tune."""

    steps: int = Field(default=100, ge=0)
    """Optimiser steps; 0 writes the zero-shot extension."""
    window: Length | None = None
    """Tokens in a training window; default: the target length. Shorter windows train with PoSE."""
    positions: Literal["auto"] | str = "auto"
    """Position scheme; auto: `plain` for full windows, `pose` for shorter ones."""
    position_knobs: Knobs = Field(default_factory=dict)
    """Knobs of the position scheme, such as `chunks`."""
    windows_per_step: int = Field(default=1, ge=1)
    """Windows in one optimiser step, over all processes and accumulation together."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After warm-up: cosine to a tenth of the peak, constant, or constant and then linearly to
    nought over the last `decay_steps` (warm-up, stable, decay)."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Steps of the decay under `wsd`; default: a fifth of the steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay, of matrices; embeddings and norms do not decay."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    method: Literal["lora", "full"] = "lora"
    """Train an adapter, or every weight: in float32, computing in the run's dtype, which takes 16
    bytes a weight with gradients and moments."""
    lora: LoraConfig = Field(default_factory=LoraConfig)
    """The adapter."""
    quantize_base: Literal["none", "nf4"] = "none"
    """nf4: hold the frozen base in 4 bits (bitsandbytes); the merge goes into the original, which
    differs from what was trained on by that rounding."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit: moments in 8 bits (bitsandbytes)."""
    checkpointing: Literal["auto", "none", "attention", "full"] = "auto"
    """Layers recomputed in the backward pass: none; all but attention, whose output is kept; all.
    auto: the first that fits."""
    attention_layers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Under `checkpointing: attention`: of how many layers the output is kept, from the last; the
    others' is computed again. auto: as many as fit on a GPU, all of them on a CPU."""
    offload: Literal["auto", "none", "host", "disk"] = "auto"
    """Where the inputs of recomputed layers wait: on the device, in host memory, in a file."""
    offload_layers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """How many layers' wait there, from the first; the others' stay on the device. auto: as many as
    the plan needs on a GPU, all of them on a CPU."""
    attention_kernel: Literal["auto", "cudnn", "flash", "flash4", "efficient"] = "auto"
    """What a GPU attends with; auto: the fastest of torch's own in a short measurement, which is
    told. flash4 needs `pip install --pre flash-attn-4`, and has not run yet. A CPU has one."""
    fused_layers: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """Take the projections of a layer together and what lies between them in one pass; auto: on a
    GPU, where the adapter is plain LoRA over weights of 16 or 32 bits."""
    shard_base: Literal["auto", "none", "full"] = "auto"
    """Share the frozen base out over the processes: each keeps a part of every layer, and gathers a
    layer when it computes it. full: so; auto: where that is the fastest setting that fits, on CPUs;
    on GPUs, where it has not run yet, a plan proposes it."""
    mlp_tile: Literal["auto", "none"] | Length = "auto"
    """Tokens that pass through an MLP at a time while layers are recomputed."""
    loss_chunk: Literal["auto"] | Length = "auto"
    """Tokens whose logits exist at one time; auto: as many as the memory left over holds, up to 256
    on a CPU, where more are not faster, and 4,096 on a GPU."""
    across_documents: bool = False
    """Let the documents of a window see each other, on purpose."""
    held_out_every: int = Field(default=0, ge=0)
    """Steps between measurements of the loss on held-out windows; 0: never."""
    held_out_windows: int = Field(default=4, ge=1)
    """Windows of a measurement."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many measurements in a row without a lower loss."""
    keep: Literal["last", "best"] = "last"
    """Which weights the run ends with: of the last step, or of the lowest held-out loss."""
    control: bool = False
    """Train a second adapter for comparison: same steps and documents, at the native window and
    without scaling. What it gains is the text's domain, not length."""
    max_bad_steps: int = Field(default=3, ge=0)
    """A step whose loss is no number moves nothing; after so many more in a row the run ends."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints stay on disk."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that train together; default: one per visible GPU, one without GPUs."""
    nodes: int = Field(default=1, ge=1)
    """Machines that train together, all alike and each running the same command; `processes` are
    those of all of them. The run folder, model and packed data must be seen by each."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Processes that share each window, every one a slice of its tokens."""
    sequence_parallel_by: Literal["heads", "keys"] = "heads"
    """What they exchange for attention. heads: each gets all tokens of its share of the heads,
    which must divide by the processes. keys: each gathers all keys and values for its own queries,
    whatever the heads; on GPUs in 16 bits by `flash`, where it has not run yet."""
    share_devices: bool = False
    """Let `processes` be more than the GPUs, several on each: to try a layout on fewer than it is
    meant for. They speak through host memory (gloo), which is slower than one process."""
    deterministic: bool = False
    """Repeat the training to the bit on a GPU too, at the price of slower kernels; a resumed run
    then ends in the same bytes, as it does on a CPU."""
    trackers: list[str] = Field(default_factory=list)
    """Accelerate trackers, such as `tensorboard`, `trackio` or `wandb`."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> TrainConfig:
        problems = [
            sentence
            for is_wrong, sentence in (
                (self.decay_steps and self.schedule != "wsd", "decay_steps needs schedule: wsd"),
                (
                    self.steps and (self.decay_steps or 0) > self.steps,
                    f"decay_steps {self.decay_steps} is more than the {self.steps} steps there are",
                ),
                (self.patience and not self.held_out_every, "patience needs held_out_every"),
                *self._of_sharding(),
                (
                    self.sequence_parallel_by == "keys" and self.sequence_parallel == 1,
                    "sequence_parallel_by: keys needs sequence_parallel: how many share a window",
                ),
                (
                    self.sequence_parallel_by == "keys"
                    and self.attention_kernel not in ("auto", "flash", "flash4"),
                    "sequence_parallel_by: keys attends by attention_kernel: flash, or flash4",
                ),
                (
                    self.share_devices and self.processes is None,
                    "share_devices needs processes: how many share the GPUs",
                ),
                (
                    self.keep == "best" and not self.held_out_every,
                    "keep: best needs held_out_every",
                ),
                (
                    self.method == "full" and self.quantize_base != "none",
                    "method: full trains every weight, quantize_base freezes them",
                ),
                (
                    self.method == "full" and self.lora != LoraConfig(),
                    "method: full has no adapter, lora has no effect on it",
                ),
                (
                    self.lora.use_dora and self.lora.init_lora_weights == "pissa",
                    "use_dora and init_lora_weights: pissa exclude each other: what PiSSA starts "
                    "from is constant, DoRA scales it",
                ),
                (
                    self.checkpointing == "none" and self.offload in ("host", "disk"),
                    "offload needs checkpointing",
                ),
                (
                    self.checkpointing in ("none", "full") and self.attention_layers != "auto",
                    "attention_layers needs checkpointing: attention",
                ),
                (
                    self.offload == "none" and self.offload_layers != "auto",
                    "offload_layers needs offload",
                ),
                (
                    self.checkpointing == "none" and isinstance(self.mlp_tile, int),
                    "mlp_tile needs checkpointing",
                ),
            )
            if is_wrong
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _of_sharding(self) -> list[tuple[bool, str]]:
        is_asked = self.shard_base == "full"
        return [
            (
                is_asked and self.checkpointing == "none",
                "shard_base needs checkpointing: kept activations keep the gathered weights",
            ),
            (
                is_asked and self.checkpointing != "none" and not self.can_shard_base,
                "shard_base: full shares out a frozen base in 16 or 32 bits, under plain LoRA: "
                "method: full freezes none, quantize_base, use_dora and pissa need it whole",
            ),
        ]

    @property
    def can_shard_base(self) -> bool:
        """Whether what is trained allows the frozen weights to be shared out."""
        needs_weights = self.lora.use_dora or self.lora.init_lora_weights == "pissa"
        is_plain = self.method == "lora" and self.quantize_base == "none" and not needs_weights
        return is_plain and self.checkpointing != "none"


class StageConfig(Section):
    """One stage of a progressive extension; what is left out is the run's own, and a plain length
    stands for a stage that gives its target alone."""

    target_length: Length
    """The window this stage reaches, in tokens."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; default: `train.steps`."""
    window: Length | None = None
    """Tokens in a training window; default: `train.window`, at most this stage's target."""
    windows_per_step: int | None = Field(default=None, ge=1)
    """Windows in one optimiser step."""
    positions: str | None = None
    """Position scheme; default: `train.positions`."""
    learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Peak learning rate."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant", "wsd"] | None = None
    """What follows warm-up."""
    data: list[str] | None = None
    """Corpora of this stage."""
    strategy: str | None = None
    """RoPE strategy of this stage."""
    knobs: Knobs | None = None
    """Knobs of the strategy; default: `rope.knobs`, or none beside a `strategy` of its own."""


def _stage(value: Any) -> Any:
    """A plain length is a stage that gives its target alone."""
    return {"target_length": value} if isinstance(value, str | int) else value


def knobs_without_effect(train: TrainConfig) -> set[str]:
    """Knobs of `train` that change no trained weight beyond the order of float sums: a run may be
    resumed with others of them."""
    free = {
        *("checkpoint_every", "keep_checkpoints", "processes", "trackers", "max_bad_steps"),
        *("checkpointing", "attention_layers", "offload", "offload_layers", "loss_chunk"),
        *("attention_kernel", "fused_layers", "shard_base", "control", "nodes"),
        *("share_devices", "deterministic"),
    }
    if train.lora.dropout == 0:
        # masks are drawn tile by tile, slice by slice
        free |= {"mlp_tile", "sequence_parallel", "sequence_parallel_by"}
    if train.patience is None and train.keep == "last":
        free |= {"held_out_every", "held_out_windows"}
    return free


class EvalConfig(Section):
    """The proof: base against extended on the same samples."""

    suite: Literal["quick", "standard", "full"] = "quick"
    """Which tasks and how many samples, where they are not given by name."""
    tasks: list[str] = Field(default_factory=list)
    """Names of the tasks; default: the suite's."""
    lengths: list[Length] | None = None
    """Context lengths in tokens; default: the native window, every fourfold of it, the target."""
    knobs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Knobs by task, such as `{nll: {anchors: 4}}`, over the suite's."""
    documents: int = Field(default=0, ge=0)
    """Held-out documents used at the most, longest first; 0: as many as the suite says."""
    data: list[str] = Field(default_factory=list)
    """Corpora to score on; default: the documents `pack.hold_out` kept out of training."""
    haystack: list[str] = Field(default_factory=list)
    """Corpora that needles are hidden in; default: `data`, else the documentation inside Python."""
    other_data: list[str] = Field(default_factory=list)
    """Corpora of another domain, for what the extension cost there."""
    files: dict[str, str] = Field(default_factory=dict)
    """Data files of tasks by name, such as `{hellaswag: hellaswag_val.jsonl.gz}`."""
    evaluator: str | None = None
    """A long-context checkpoint that chooses the tokens of `longppl`; default: the base."""
    chat: bool = False
    """Ask through the tokenizer's chat template; default: bare text, as base models read it."""
    gates: list[str] = Field(default_factory=list)
    """Thresholds such as `nll@16k-nll@8k<0`, tested against the interval's bound."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Share of right answers that the effective length asks for, as a lower bound; default: 0.9 of
    the base's share at its native window."""
    harness: list[str] = Field(default_factory=list)
    """Tasks of lm-eval on the same models: `ruler` for those that run here, or lm-eval's names."""
    harness_samples: int = Field(default=50, ge=1)
    """Samples of each task of `harness` at each length."""
    cache: str | None = None
    """Folder of scored samples that several runs may share; default: in the run folder."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that share the reading, one for each GPU, or so many on a CPU; default: those of
    the training where they are given, else 1."""
    batch_tokens: int = Field(default=2048, ge=0)
    """Tokens in a row of prompts of at most 512; changes the speed. 0: one prompt at a time."""

    @property
    def tasks_are_the_suites(self) -> bool:
        """Whether the tasks are those that the suite names, so that one without its data file is
        left out; else each was asked for by name."""
        return tuple(self.tasks) == SUITES[self.suite].tasks

    @field_validator("gates")
    @classmethod
    def _gates_have_their_form(cls, gates: list[str]) -> list[str]:
        try:
            for gate in gates:
                parse_gate(gate)
        except GiraffeError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return gates

    @model_validator(mode="before")
    @classmethod
    def _the_suite_fills_what_is_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict) or str(values.get("suite", "quick")) not in SUITES:
            return values
        suite = SUITES[str(values.get("suite", "quick"))]
        tasks = values.get("tasks") or list(suite.tasks)
        given = values.get("knobs") or {}
        if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
            return values
        if not isinstance(given, dict):
            return values
        knobs = {name: dict(suite.knobs[name]) for name in tasks if name in suite.knobs}
        for name, own in given.items():
            knobs[name] = {**knobs.get(name, {}), **own} if isinstance(own, dict) else own
        documents = values.get("documents") or suite.documents
        return {**values, "tasks": tasks, "knobs": knobs, "documents": documents}


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
    """Computation type; auto: the checkpoint's on a GPU, bfloat16 or float32 as stored on a CPU."""
    seed: int = 0
    """Seeds packing, positions, adapters, windows and evaluation samples."""
    rope: RopeConfig = Field(default_factory=RopeConfig)
    """How positions are rescaled."""
    pack: PackConfig = Field(default_factory=PackConfig)
    """How documents become windows."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """The fine-tune."""
    stages: list[
        Annotated[StageConfig, BeforeValidator(_stage, json_schema_input_type=Length | StageConfig)]
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
        last = _stage(stages[-1])
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
        if self.train.control and not self.trains:
            problems.append("train.control needs train.steps: without a step it is the base")
        if any(stage.steps is None for stage in self.stages) and self.train.steps == 0:
            problems.append("stages: a stage of 0 steps trains nothing; raise train.steps")
        if any(stage.strategy == AUTO for stage in self.stages):
            problems.append("stages: auto is chosen once for the run, set rope.strategy to it")
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
        return self.model_copy(
            update={
                "data": stage.data or self.data,
                "target_length": target,
                "rope": rope,
                "train": self.train.model_copy(update=train),
                "stages": [],
            }
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; plain data only.

    Raises:
        InvalidInput: missing, not YAML, or not a mapping.
    """
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot read config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"config {path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"config {path} holds no mapping", "write `key: value` lines")
    return value


def write_sealed_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """`values` with the digest of the text as its last line, a comment; see `read_sealed_yaml`."""
    text = yaml.safe_dump(dict(values), sort_keys=False)
    with atomic_open(path, "w") as handle:
        handle.write(f"{text}# {seal(digest_bytes(text.encode()))}\n")


def read_sealed_yaml(path: Path) -> dict[str, Any]:
    """What `write_sealed_yaml` wrote, as `read_yaml` gives it.

    Raises:
        InvalidInput: missing, no YAML mapping, or altered since.
    """
    values = read_yaml(path)
    text, mark, stated = path.read_text(encoding="utf-8").rpartition("# ")
    if not mark or not stated.startswith(seal("")):
        raise InvalidInput(
            f"{path} does not end with its seal: it was cut short or edited, or an earlier giraffe "
            "wrote it",
            "restore it from a copy, or start again in another --out",
        )
    if stated.strip() != seal(digest_bytes(text.encode())):
        raise altered(path)
    return values


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the dotted `path` in nested `values`, making sections on the way.

    Raises:
        InvalidInput: the path leads through a plain value.
    """
    *parents, leaf = path.strip().split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise InvalidInput(f"cannot set `{path}`: `{parent}` holds no section")
    target[leaf] = value


def apply_overrides(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with `train.lora.rank=8` and the like set; the right side is YAML.

    Raises:
        InvalidInput: an assignment without `=`, or a path through a plain value.
    """
    merged = copy.deepcopy(values)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path.strip():
            raise InvalidInput(f"--set {assignment}: no `key=value`", "write --set train.steps=60")
        try:
            put(merged, path, parse_yaml(text))
        except ValueError as error:
            raise InvalidInput(
                f"--set {assignment}: the value is not YAML: {error}", "put it in quotes"
            ) from error
    return merged


def build(values: Mapping[str, Any], subject: str = "config") -> ExtendConfig:
    """Validate `values`, reporting every problem at once.

    Raises:
        InvalidInput: unknown keys (with near misses), wrong types, values out of range.
    """
    try:
        return ExtendConfig.model_validate(dict(values))
    except ValidationError as error:
        raise_together(_problems(error.errors()), subject)
        raise


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    different: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            different += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            different.append(f"{prefix}{key}")
    return different


def resolve_dtype(requested: str, stored: str) -> str:
    """`auto` computes in bfloat16 when the weights are stored in 16 bits, else in float32."""
    if requested != "auto":
        return requested
    return "float32" if stored == "float32" else "bfloat16"


def _problems(entries: Iterable[Any]) -> list[str]:
    """pydantic's errors as sentences that name the dotted key, one for each value: what may be of
    several types has an error of each."""
    told: dict[str, str] = {}
    for entry in entries:
        path = _path(entry["loc"])
        if entry["type"] == "extra_forbidden":
            *parents, leaf = entry["loc"]
            told[path] = f"unknown key `{path}`; {near_misses(brief(leaf), _field_names(parents))}"
        elif entry["type"] == "missing":
            told[path] = f"`{path}` is required{_REQUIRED.get(path, '')}"
        else:
            message = entry["msg"].removeprefix("Value error, ")
            if path in told:
                told[path] += f", or {message.removeprefix('Input should be ')}"
            else:
                told[path] = f"`{path}`: {message}" if path else message
    return list(told.values())


def _path(loc: Iterable[Any]) -> str:
    """`rope.knobs.factor`, without the type that was tried: pydantic puts `float` or
    `list[float]` after it."""
    parts = [brief(part) for part in loc]
    tried = next((n for n, part in enumerate(parts) if "[" in part), len(parts))
    parts = parts[:tried]
    if parts and parts[-1] in ("float", "int", "bool", "str"):
        parts.pop()
    return ".".join(parts)


def _field_names(parents: list[Any]) -> Iterator[str]:
    section: type[BaseModel] = ExtendConfig
    for parent in parents:
        if isinstance(parent, int):  # an entry of a list of sections
            continue
        annotation = section.model_fields[str(parent)].annotation
        if get_origin(annotation) is list:
            annotation = get_args(get_args(annotation)[0])[0]
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return iter(section.model_fields)
