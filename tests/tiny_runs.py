"""Bases, adapters and merged directories of a size that a test builds in a second."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from conftest import build_tiny_llama

from giraffe_cli import verify_probe
from giraffe_cli.checkpoint import inspect
from giraffe_cli.merge import merge_stage
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import RopeTable, make_table
from giraffe_cli.verify import verify_directory

TARGET = 1024
TARGETS = ("q_proj", "v_proj", "down_proj")


def make_base(
    folder: Path, dtype: torch.dtype = torch.float32, shard_size: str = "5GB", **changes
) -> Path:
    """The tiny Llama in `dtype`; `shard_size` splits its weights into files."""
    from transformers import LlamaForCausalLM

    build_tiny_llama(folder, **changes)
    if dtype != torch.float32 or shard_size != "5GB":
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def make_adapter(folder: Path, base: Path, std: float = 0.3, **settings) -> Path:
    """A LoRA of rank 4 with all matrices random, so that it changes every target clearly."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    values = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(TARGETS),
        "task_type": "CAUSAL_LM",
        **settings,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft 0.21 calls what transformers 5.23 deprecates
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(**values))
        torch.manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                torch.nn.init.normal_(parameter, std=std)
        adapted.save_pretrained(folder)
    return folder


def table_for(base: Path, strategy: str = "yarn") -> RopeTable:
    """The table that takes `base` to `TARGET` tokens."""
    return make_table(strategy, {}, inspect(str(base), base).head(TARGET))


def merge(base: Path, adapter: Path | None, out: Path, strategy: str = "yarn") -> Path:
    """The merged directory, as `giraffe extend` writes it."""
    checkpoint = inspect(str(base), base)
    table = make_table(strategy, {}, checkpoint.head(TARGET))
    return merge_stage(checkpoint, adapter, table, out, SilentReporter())


def ask_here(request: dict[str, Any]) -> dict[str, Any]:
    """The probe's own code in this process: five seconds of imports less for each damage."""
    answer: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify_probe.examine(request, answer)
    return json.loads(json.dumps(answer))


def prove(folder: Path, **options) -> dict[str, Any]:
    options.setdefault("probe", ask_here)
    return verify_directory(folder, reporter=SilentReporter(), **options)


def failures(proof: dict[str, Any]) -> dict[str, str]:
    """`{check: what was found}` of every failed check."""
    return {name: str(c["found"]) for name, c in proof["checks"].items() if not c["ok"]}
