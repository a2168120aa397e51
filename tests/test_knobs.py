"""Every key of the config has an effect; one without an entry here fails.

Keys of `pack` and most of `eval` are options too, and `test_options.py` shows theirs (`AsOption`).
Of the others a plan, a table or a training of a second is compared: {key: other value}, or two
settings where one key needs another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import pytest
from conftest import build_tiny_llama
from effects import NoEffect, ShownBy, check_elsewhere
from pydantic import BaseModel
from test_options import ENTRIES as OPTIONS
from train_runs import SETTINGS, build_material, checkpoints, run, timeless

from giraffe_cli.checkpoint import inspect
from giraffe_cli.cli.plan_training import plan_on
from giraffe_cli.config.building import build, put
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.plan.machine import named_machine
from giraffe_cli.rundir import digest_file
from giraffe_cli.stages import choose_table
from giraffe_cli.tune.choice import budget_seconds


@dataclass(frozen=True)
class AsOption:
    """`test_options.py` perturbs it."""

    command: str
    option: str


@dataclass(frozen=True)
class Plan:
    """Two settings whose plans, tables or stages differ."""

    given: dict[str, Any]
    without: dict[str, Any] | None = None


@dataclass(frozen=True)
class Train:
    """Two settings under which a training of five steps ends otherwise."""

    given: dict[str, Any]
    without: dict[str, Any] | None = None


LONGCE = {"loss": "longce", "short_context": 16}
HELD_OUT = "test_train_held_out.py::"
NARROW = {
    "train.checkpointing": "full",
    "train.projection_tile": 16,
    "train.mlp_tile": 16,
    "train.loss_chunk": 16,
}
LATER = {"target_length": 512}
STAGES = {"stages": [256, LATER]}


def stage(**own: Any) -> Plan:
    return Plan({"stages": [256, {**LATER, **own}]}, STAGES)


PACK_OPTIONS = {
    "hold_out", "on_bad", "text_field", "min_piece", "rule", "overlap", "drop_tail", "bos", "eos",
    "min_doc_len", "mix", "upsample", "short_mix", "lookups", "epochs", "dedupe", "decontaminate",
    "max_doc_bytes", "backend",
}  # fmt: skip
EVAL_OPTIONS = {
    "suite", "tasks", "lengths", "documents", "data", "haystack", "other_data", "evaluator", "chat",
    "threshold", "harness", "processes",
}  # fmt: skip


def option_of(key: str) -> str:
    return f"--{key.replace('_', '-')}"


ENTRIES = {
    "model": AsOption("extend", "--model"),
    "data": AsOption("extend", "--data"),
    "target_length": Plan({"target_length": 1024}),
    "dtype": Plan({"dtype": "bfloat16"}),
    "allow_pickle": AsOption("extend", "--allow-pickle"),
    "seed": AsOption("extend", "--seed"),
    "rope.strategy": Plan({"rope.strategy": "ntk"}),
    "rope.knobs": Plan(
        {"rope.strategy": "yarn", "rope.knobs": {"beta_fast": 64}}, {"rope.strategy": "yarn"}
    ),
    "rope.minutes": Plan({"rope.minutes": 3}),
    "rope.on_existing": Plan(
        {"model": "{scaled}", "rope.on_existing": "replace"},
        {"model": "{scaled}", "rope.on_existing": "compose"},
    ),
    **{f"pack.{key}": AsOption("pack-data", option_of(key)) for key in PACK_OPTIONS},
    "pack.token_budget": AsOption("pack-data", "--tokens"),
    "pack.block_bytes": NoEffect(
        "giraffe_cli/config/pack.py", "changes memory and speed, not what is packed"
    ),
    "train.steps": Train({"steps": 3}),
    "train.window": Plan({"train.window": 128}),
    "train.positions": Plan({"train.positions": "randomised"}),
    "train.position_knobs": Train({"position_knobs": {"chunks": 3}}),
    "train.windows_per_step": Train({"windows_per_step": 1}),
    "train.learning_rate": Train({"learning_rate": 1e-3}),
    "train.warmup_steps": Train({"warmup_steps": 3}),
    "train.schedule": Train({"schedule": "constant"}),
    "train.decay_steps": Train({"schedule": "wsd", "decay_steps": 3}, {"schedule": "wsd"}),
    "train.embeddings_rate": Train(
        {"lora.also_train": ["embeddings"], "embeddings_rate": 0.1},
        {"lora.also_train": ["embeddings"]},
    ),
    "train.weight_decay": Train({"weight_decay": 0.5}),
    "train.loss": Train(LONGCE),
    "train.short_context": Train({**LONGCE, "short_context": 8}, LONGCE),
    "train.weight_cap": Train({**LONGCE, "weight_cap": 1.001}, LONGCE),
    "train.weight_floor": Train({**LONGCE, "weight_floor": 0}, LONGCE),
    "train.clip_norm": Train({"clip_norm": 1e-3}),
    "train.method": Plan({"train.method": "full"}),
    "train.lora.rank": Train({"lora.rank": 3}),
    "train.lora.alpha": Train({"lora.alpha": 8}),
    "train.lora.b_rate": Train({"lora.b_rate": 16}),
    "train.lora.dropout": Train({"lora.dropout": 0}),
    "train.lora.targets": Train({"lora.targets": ["q_proj"]}),
    "train.lora.use_rslora": Train({"lora.use_rslora": True}),
    "train.lora.use_dora": Train({"lora.use_dora": True}),
    "train.lora.init_lora_weights": Train({"lora.init_lora_weights": "pissa"}),
    "train.lora.also_train": Train({"lora.also_train": ["norms"]}),
    "train.quantize_base": ShownBy(
        "test_low_bits.py::test_an_nf4_run_resumes_and_merges_into_the_original_base"
    ),
    "train.optimizer": ShownBy(
        "test_low_bits.py::test_8_bit_moments_move_the_weights_almost_as_32_bit_ones"
    ),
    "train.checkpointing": Plan({"train.checkpointing": "full"}),
    "train.offload": Plan({"train.checkpointing": "full", "train.offload": "disk"},
                          {"train.checkpointing": "full"}),
    "train.offload_layers": Plan(
        {"train.checkpointing": "full", "train.offload": "disk", "train.offload_layers": 1},
        {"train.checkpointing": "full", "train.offload": "disk"}),
    "train.attention_layers": Plan(
        {"train.checkpointing": "attention", "train.attention_layers": 1},
        {"train.checkpointing": "attention"}),
    "train.fused_layers": Plan({"train.fused_layers": "on"}),
    "train.attention_kernel": ShownBy("test_kernels.py::test_what_is_asked_for_is_taken"),
    "train.mlp_tile": Plan({"train.checkpointing": "full", "train.mlp_tile": 64},
                           {"train.checkpointing": "full"}),
    "train.projection_tile": Plan({"train.checkpointing": "full", "train.projection_tile": 64},
                                  {"train.checkpointing": "full", "train.projection_tile": "none"}),
    "train.head_groups": Plan(
        {**NARROW, "train.head_groups": 1}, NARROW),
    "train.whole_layers": Plan({"train.checkpointing": "full", "train.whole_layers": 1},
                               {"train.checkpointing": "full"}),
    "train.loss_chunk": Plan({"train.loss_chunk": 16}),
    "train.across_documents": Train({"across_documents": True}),
    "train.held_out_every": Train({"held_out_every": 2}),
    "train.held_out_windows": Train(
        {"held_out_every": 2, "held_out_windows": 1}, {"held_out_every": 2}
    ),
    "train.patience": ShownBy(f"{HELD_OUT}test_a_run_that_has_stopped_early_knows_it_when_resumed"),
    "train.keep": ShownBy(f"{HELD_OUT}test_the_best_checkpoint_stays_beside_the_newest"),
    "train.control": Plan({"train.control": True}),
    "train.max_bad_steps": ShownBy(
        "test_train_bad_steps.py::test_more_than_enough_in_a_row_end_the_run_and_name_all_documents"
    ),
    "train.checkpoint_every": Train({"checkpoint_every": 3}),
    "train.keep_checkpoints": Train({"keep_checkpoints": 1}),
    "train.processes": Plan({"train.windows_per_step": 2, "train.processes": 2},
                            {"train.windows_per_step": 2, "train.processes": 1}),
    "train.nodes": Plan(
        {"train.windows_per_step": 2, "train.processes": 2, "train.nodes": 2},
        {"train.windows_per_step": 2, "train.processes": 2},
    ),
    "train.sequence_parallel": Plan({"train.processes": 2, "train.sequence_parallel": 2}),
    "train.sequence_parallel_by": Plan(
        {"train.processes": 2, "train.sequence_parallel": 2, "train.sequence_parallel_by": "keys"},
        {"train.processes": 2, "train.sequence_parallel": 2},
    ),
    "train.shard_base": Plan(
        {"train.windows_per_step": 2, "train.processes": 2, "train.shard_base": "full"},
        {"train.windows_per_step": 2, "train.processes": 2, "train.shard_base": "none"},
    ),
    "train.share_devices": ShownBy(
        "test_train.py::test_processes_share_a_gpu_only_when_they_are_told_to"
    ),
    "train.deterministic": ShownBy(
        "test_deterministic.py::test_the_switch_is_on_while_it_trains_and_put_back"
    ),
    "train.trackers": ShownBy(
        "test_train_trackers.py::test_tensorboard_gets_every_step_and_measurement"
    ),
    "stages.target_length": Plan({"stages": [384, LATER]}, STAGES),
    "stages.steps": stage(steps=3),
    "stages.window": stage(window=128),
    "stages.windows_per_step": stage(windows_per_step=3),
    "stages.position_knobs": Plan(
        {"train.window": 128, "stages": [256, {**LATER, "position_knobs": {"chunks": 3}}]},
        {"train.window": 128, "stages": [256, LATER]},
    ),
    "stages.positions": stage(positions="randomised"),
    "stages.learning_rate": stage(learning_rate=1e-3),
    "stages.warmup_steps": stage(warmup_steps=1),
    "stages.schedule": stage(schedule="constant"),
    "stages.data": stage(data=["other.jsonl"]),
    "stages.strategy": stage(strategy="ntk"),
    "stages.knobs": Plan(
        {"stages": [256, {**LATER, "strategy": "yarn", "knobs": {"beta_fast": 64}}]},
        {"stages": [256, {**LATER, "strategy": "yarn"}]},
    ),
    **{f"eval.{key}": AsOption("eval", option_of(key)) for key in EVAL_OPTIONS},
    "eval.knobs": AsOption("eval", "--set"),
    "eval.files": AsOption("eval", "--file"),
    "eval.gates": AsOption("eval", "--gate"),
    "eval.harness_samples": AsOption("eval", "--samples"),
    "eval.cache": ShownBy(
        "test_pipeline.py::test_several_runs_may_share_the_folder_of_scored_samples"
    ),
    "eval.batch_tokens": NoEffect(
        "giraffe_cli/config/evaluate.py", "changes the speed. 0: one prompt"
    ),
}  # fmt: skip


def keys(section: type[BaseModel] = ExtendConfig, before: str = ""):
    """Dotted names of all knobs, `stages` as those of one."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if get_origin(kind) is list and before + name == "stages":
            kind = get_args(get_args(kind)[0])[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{before}{name}.")
        else:
            yield before + name


def test_every_key_has_an_entry_and_every_entry_a_key():
    assert sorted(ENTRIES) == sorted(keys())


def entries(*kinds: type):
    return [
        pytest.param(key, entry, id=key)
        for key, entry in sorted(ENTRIES.items())
        if isinstance(entry, kinds)
    ]


@pytest.mark.parametrize(("key", "entry"), entries(AsOption))
def test_an_option_shows_it(key, entry):
    assert entry.option in OPTIONS[entry.command]


@pytest.mark.parametrize(("key", "entry"), entries(ShownBy, NoEffect))
def test_what_is_shown_elsewhere_still_is(key, entry):
    check_elsewhere(entry, key.rpartition(".")[2])


@pytest.fixture(scope="module")
def places(tiny_llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("knobs")
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    folder = build_tiny_llama(root / "scaled", rope_parameters=scaled)
    return {"{tiny}": tiny_llama, "{scaled}": folder, "root": root}


def planned(settings, places):
    values: dict[str, Any] = {"model": "{tiny}", "target_length": 512}
    for key, value in settings.items():
        put(values, key, value)
    values["model"] = str(places[values["model"]])
    config = build(values)
    checkpoint = inspect(config.model, places["root"])
    stages = config.stage_configs()
    return json.dumps([
        plan_on(named_machine("h100", 2, 9 * 10**9), checkpoint, config),
        [choose_table(one, checkpoint).to_json() for one in stages],
        [one.model_dump(mode="json", exclude={"rope"}) for one in stages if config.stages],
        [one.positions for one in stages],
        budget_seconds(config, 60.0),
    ])  # fmt: skip


@pytest.mark.parametrize(("key", "entry"), entries(Plan))
def test_a_plan_or_a_table_differs(places, key, entry):
    assert planned(entry.given, places) != planned(entry.without or {}, places)


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    material, seen = build_material(tiny_llama, root, hold_out=0.3), {}

    def train(settings):
        """What a training leaves, apart from times."""
        name = json.dumps(settings)
        if name not in seen:
            values = json.loads(json.dumps(SETTINGS))
            for key, value in settings.items():
                put(values, key, value)
            folder = root / str(len(seen))
            run(material, folder, **values)
            weights = digest_file(folder / "adapter" / "adapter_model.safetensors")
            seen[name] = timeless(folder), weights, checkpoints(folder)
        return seen[name]

    return train


@pytest.mark.parametrize(("key", "entry"), entries(Train))
def test_a_training_ends_otherwise(trained, key, entry):
    assert trained(entry.given) != trained(entry.without or {})


def test_the_same_settings_end_alike(trained, places):
    """Else every knob would have an effect."""
    assert trained({"clip_norm": 1.0}) == trained({})
    assert planned({}, places) == planned({}, places)
