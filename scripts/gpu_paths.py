"""One cell of `bench_gpu.py`: a LoRA step of rank 16 on all linears by ours, Trainer or TRL.

Weights and adapters are drawn on the device from a fixed seed, the same numbers for every path: no
checkpoint, no copy. A first step, beyond 32k through two layers only, loads the kernels and is not
timed. What is timed are whole optimiser steps between synchronisations.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_cells import peak_bytes, row_of, squared_share
from gpu_cells import SHAPES, Cell

RATE = 1e-6
"""Of AdamW: small enough that the loss of each step is that of the same weights in every path."""
NEEDS = {
    "ours": (
        "giraffe_cli.train.setup",
        "giraffe_cli.train.optimizer",
        "torch._inductor.compile_fx",
        "transformers.models.llama.modeling_llama",
    ),
    "hf": ("transformers", "peft", "datasets"),
    "trl": ("transformers", "peft", "datasets", "trl.trainer.sft_trainer"),
    "ceilings": ("torch",),
}


def import_all(path: str) -> None:
    """What takes seconds, while the process waits for its cell."""
    for name in NEEDS[path]:
        importlib.import_module(name)


def measure(cell: Cell, device: str) -> dict[str, Any]:
    """Figures of `cell`; memory that runs out is a figure as well."""
    import torch

    clock = Clock(torch.device(device))
    try:
        found = PATHS[cell.path](cell, clock)
        outcome = "ok"
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        outcome, found = "oom", {"told": str(error)[:300]}
    return {"outcome": outcome, **clock.figures(), **found}


class Clock:
    """Seconds of each step, and the most memory since the first timed one began."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.base_rss = peak_bytes()
        self.steps: list[float] = []
        self.started = time.perf_counter()
        self.built = 0.0
        self.levers: dict[str, Any] = {}

    def ready(self) -> None:
        """The model is there."""
        self.built = self._now() - self.started

    def begin(self) -> None:
        """A step begins. What the one before the timed ones took is forgotten."""
        if self.device.type == "cuda" and len(self.steps) == 1:
            import torch

            torch.cuda.reset_peak_memory_stats()
        self.mark = self._now()

    def end(self) -> None:
        """A step has ended."""
        self.steps.append(self._now() - self.mark)

    def figures(self) -> dict[str, Any]:
        """The first step is not among `step_seconds`."""
        timed = self.steps[1:]
        found: dict[str, Any] = {
            "build_seconds": self.built,
            "first_seconds": self.steps[0] if self.steps else None,
            "step_seconds": timed,
            "seconds": statistics.median(timed) if timed else None,
            "host_bytes": peak_bytes(),
            "host_base_bytes": self.base_rss,
            **({"levers": self.levers} if self.levers else {}),
        }
        if self.device.type == "cuda":
            import torch

            free, total = torch.cuda.mem_get_info()
            found |= {
                "allocated_bytes": torch.cuda.max_memory_allocated(),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
                "used_bytes": total - free,
                "pinned_bytes": torch.cuda.host_memory_stats().get("allocated_bytes.current", 0),
            }
        return found

    def _now(self) -> float:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


# ── ours ─────────────────────────────────────────────────────────────────────────────────────


def ours(cell: Cell, clock: Clock) -> dict[str, Any]:
    """The step of `train/step.py` on the model of `train/setup.py`."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    from giraffe_cli.model.attention import register_attention
    from giraffe_cli.model.trainable import causal_model, make_trainable
    from giraffe_cli.train.gradients import lay_side_by_side
    from giraffe_cli.train.optimizer import make_optimizer
    from giraffe_cli.train.setup import trainable_parameters, window_nats
    from giraffe_cli.train.window_loss import WindowLoss

    config = train_config(cell)
    base = base_model(cell, clock.device, register_attention())
    adapted = make_trainable(base, config, dtype_on(clock.device), seed=0)
    draw_adapters(adapted, clock.device)
    levers = levers_of(cell, clock.device, causal_model(adapted).model.layers)
    clock.levers = levers.to_json()
    with tempfile.TemporaryDirectory() as folder:
        model = WindowLoss(adapted.train(), dtype_on(clock.device), levers, None, Path(folder))
        model.kernels, told = kernels_on(cell, clock.device)
        parameters = trainable_parameters(model)
        lay_side_by_side(parameters.values())
        optimizer = make_optimizer(parameters, config)
        pinned = pin_ahead(cell, levers) if levers.offload == "host" else 0.0
        clock.ready()
        losses, norms = [], []
        window = window_of(cell)
        decoder = causal_model(adapted).model
        layers = decoder.layers
        for number in range(1 + cell.timed):
            decoder.layers = layers[: cell.warm] if cell.warm and not number else layers
            clock.begin()
            nats = window_nats(model, window, clock.device)
            torch.autograd.backward(nats / window.num_targets)
            norms.append(float(clip_grad_norm_(parameters.values(), config.clip_norm)))
            losses.append(float(nats.detach()) / window.num_targets)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            clock.end()
    return {"loss": losses, "grad_norm": norms, "attention": told, "pin_seconds": pinned}


def train_config(cell: Cell) -> Any:
    """Rank 16, all linears, and the levers that the cell names."""
    from giraffe_cli.config.train import TrainConfig

    known = set(TrainConfig.model_fields) - {"steps"} if cell.path == "ours" else set()
    return TrainConfig.model_validate(
        {
            "window": cell.length,
            "learning_rate": RATE,
            "lora": {"rank": 16, "alpha": 32},
            **{
                key: value
                for key, value in cell.settings.items()
                if key in known and key != "steps"
            },
        }
    )


def levers_of(cell: Cell, device: Any, layers: Any) -> Any:
    """What the cell names, and of the rest what keeps a GPU busy; `levers=plan`: what `giraffe
    plan` takes on this machine."""
    from giraffe_cli.model.fused import why_not_fused
    from giraffe_cli.model.levers import Levers

    config = train_config(cell)
    if cell.settings.get("levers") == "plan":
        return planned_levers(cell)
    usual = {"mlp_tile": 0 if cell.length <= 32768 else 16384, "loss_chunk": 4096}
    if config.checkpointing == "none":
        usual["mlp_tile"] = 0
    levers = replace(
        Levers.asked_for(config), **{k: v for k, v in usual.items() if k not in cell.settings}
    )
    wanted = config.fused_layers != "off"
    return replace(levers, fused=wanted and why_not_fused(layers) is None)


def planned_levers(cell: Cell) -> Any:
    """Of the fastest rung that fits, as a run on this machine takes it."""
    from giraffe_cli.plan.estimate import assumed_pace
    from giraffe_cli.plan.ladder import first_that_fits, ladder
    from giraffe_cli.plan.machine import this_machine

    machine = this_machine()
    demand = demand_of(cell, machine.kind)
    rungs = ladder(demand, machine, assumed_pace(machine, demand.dtype).rates)
    rung = first_that_fits(rungs, machine, demand.train)
    return (rung or min(rungs, key=lambda one: one.total)).levers


def demand_of(cell: Cell, kind: str) -> Any:
    """What the plan is asked for."""
    from giraffe_cli.plan.demand import Demand

    share = squared_share(cell.seq_lengths)
    dtype = "bfloat16" if kind == "cuda" else "float32"
    config = train_config(cell)
    return Demand(shape_of(cell), config, dtype, cell.length, kind, attention_share=share)


def kernels_on(cell: Cell, device: Any) -> tuple[Any, str]:
    """What attends, chosen as a run chooses it; None on a CPU."""
    from giraffe_cli.model.probe import AttentionShape, probe, settle

    if not is_gpu(device):
        return None, "cpu"
    shape = shape_of(cell)
    sizes = AttentionShape(shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
    wanted = train_config(cell).attention_kernel
    return settle(wanted, probe(sizes, dtype_on(device), cell.length, device, wanted))


def pin_ahead(cell: Cell, levers: Any) -> float:
    """Seconds to pin the host memory of a step: a run spends them in its first step alone, from
    which torch's pool keeps the blocks."""
    import torch

    from giraffe_cli.model.host_store import BLOCK
    from giraffe_cli.plan.memory import away_bytes

    started = time.perf_counter()
    count = -(-int(away_bytes(demand_of(cell, "cuda"), levers)) // BLOCK)
    blocks = [torch.empty(BLOCK, dtype=torch.uint8, pin_memory=True) for _ in range(count)]
    del blocks
    return time.perf_counter() - started


# ── peers ────────────────────────────────────────────────────────────────────────────────────


def hf(cell: Cell, clock: Clock) -> dict[str, Any]:
    """transformers.Trainer with its own loss; `liger=1` for Liger's fused one and its layers."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator

    model = peft_model(cell, clock.device)
    rows = [row_of(documents_of(cell))] * (1 + cell.timed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                **arguments(cell, clock.device, folder),
                bf16=clock.device.type == "cuda",
                gradient_checkpointing=cell.settings.get("checkpointing") != "none",
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=default_data_collator,
        )
        return train(trainer, cell, clock)


def trl(cell: Cell, clock: Clock) -> dict[str, Any]:
    """SFTTrainer with its own chunked loss on rows that are packed already.

    Settings: `checkpointing=selective` keeps attention's output, `offload=host` the inputs of
    layers, `offload=activations` everything that is saved.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    model = peft_model(cell, clock.device)
    is_packed = cell.documents == "packed"
    pieces = documents_of(cell)
    row = {"input_ids": [token for piece in pieces for token in piece]}
    if is_packed:
        row["seq_lengths"] = cell.seq_lengths
    words = Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **arguments(cell, clock.device, folder),
                bf16=clock.device.type == "cuda",
                gradient_checkpointing=cell.settings.get("checkpointing") != "none",
                activation_offloading=cell.settings.get("offload") == "activations",
                max_length=cell.length,
                packing=is_packed,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([row] * (1 + cell.timed)),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>"),
        )
        return train(trainer, cell, clock)


def arguments(cell: Cell, device: Any, folder: str) -> dict[str, Any]:
    """Of both trainers: what the comparison fixes, and what the cell sets."""
    extra: dict[str, Any] = {}
    if cell.settings.get("checkpointing") == "selective":
        extra["selective"] = True
    if cell.settings.get("offload") == "host":
        extra["offload"] = True
    return {
        "output_dir": folder,
        "max_steps": 1 + cell.timed,
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "use_liger_kernel": cell.settings.get("liger") == "1",
        "gradient_checkpointing_kwargs": {"use_reentrant": False, **extra},
    }


def train(trainer: Any, cell: Cell, clock: Clock) -> dict[str, Any]:
    """Run a peer's trainer under the cell's attention kernel."""
    from transformers import PrinterCallback, TrainerCallback

    config = trainer.model.get_base_model().model.config
    num_layers = config.num_hidden_layers

    class Ticks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            config.num_hidden_layers = (cell.warm if not clock.steps else 0) or num_layers
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Ticks())
    pinned = pin_rows(cell, clock.device) if cell.settings.get("offload") == "host" else 0.0
    clock.ready()
    with kernel(cell):
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "loss": [entry["loss"] for entry in log],
        "grad_norm": [float(entry["grad_norm"]) for entry in log],
        "attention": trainer.model.config._attn_implementation,
        "pin_seconds": pinned,
    }


def kernel(cell: Cell) -> Any:
    """torch's choice for sdpa, or `kernel=cudnn` and `kernel=flash` as a user would ask for it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    chosen = backends.get(cell.settings.get("kernel", ""))
    return sdpa_kernel(chosen) if chosen is not None else contextlib.nullcontext()


def pin_rows(cell: Cell, device: Any) -> float:
    """As `pin_ahead`, for what transformers offloads: the input of each layer."""
    import torch

    if device.type != "cuda":
        return 0.0
    started, shape = time.perf_counter(), shape_of(cell)
    size = (1, cell.length, shape.hidden_size)
    rows = [
        torch.empty(size, dtype=torch.bfloat16, pin_memory=True) for _ in range(shape.num_layers)
    ]
    del rows
    return time.perf_counter() - started


def peft_model(cell: Cell, device: Any) -> Any:
    """What a user of PEFT writes; `kernel=flex` for flex attention instead of sdpa."""
    from peft import LoraConfig, get_peft_model

    attention = "flex_attention" if cell.settings.get("kernel") == "flex" else "sdpa"
    config = LoraConfig(
        r=16, lora_alpha=32, target_modules=train_config_targets(), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base_model(cell, device, attention), config)
    draw_adapters(model, device)
    return model.train()


def train_config_targets() -> list[str]:
    """All linears, in Llama's names."""
    from giraffe_cli.config.lora import LoraConfig

    return list(LoraConfig().targets)


# ── what they are given ──────────────────────────────────────────────────────────────────────


def is_gpu(device: Any) -> bool:
    """Whether it is one."""
    return bool(device.type == "cuda")


def dtype_name(device: Any) -> str:
    """bfloat16 on a GPU."""
    return "bfloat16" if is_gpu(device) else "float32"


def dtype_on(device: Any) -> Any:
    """The same as torch has it."""
    from giraffe_cli.model.loading import torch_dtype

    return torch_dtype(dtype_name(device))


def shape_of(cell: Cell) -> Any:
    """The sizes of the cell's model, `layers=N` of them."""
    from giraffe_cli.checkpoint_config import Shape
    from giraffe_cli.plan import shapes
    from giraffe_cli.weights import expected_shapes

    if cell.shape == "tiny":
        tiny = Shape(16, 64, 128, 2, 4, 2, 512, False)
        shape = replace(shapes.named_shape("smollm2-135m"), **vars(tiny))
    else:
        shape = shapes.named_shape(SHAPES[cell.shape])
    sizes = {name: getattr(shape, name) for name in Shape.__dataclass_fields__}
    sizes["num_layers"] = int(cell.settings.get("layers", shape.num_layers))
    names = expected_shapes(Shape(**sizes)).values()
    return replace(
        shape, **sizes, num_parameters=sum(math.prod(size) for size in names), source=cell.shape
    )


def base_model(cell: Cell, device: Any, attention: str) -> Any:
    """Random weights of variance 1/d, drawn where they are used, so that attention to something
    else shows in the loss."""
    import torch
    from transformers import AutoModelForCausalLM

    from giraffe_cli.plan.trial import config_of

    shape = shape_of(cell)
    config = config_of(
        shape,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=1 << 20,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype_on(device), attn_implementation=attention
        )
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, shape.hidden_size**-0.5, generator=generator)
    gc.collect()
    return model


def draw_adapters(model: Any, device: Any) -> None:
    """Both factors differ from 0, so that the gradient norm sees every one of them."""
    import torch

    generator = torch.Generator(device).manual_seed(1)
    found = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name in sorted(found):
            spread = 0.05 if ".lora_B." in name else found[name].shape[1] ** -0.5
            found[name].normal_(0.0, spread, generator=generator)


def documents_of(cell: Cell) -> list[list[int]]:
    """Random ids, one list a document."""
    import numpy as np

    generator, size = np.random.default_rng(0), shape_of(cell).vocab_size
    return [generator.integers(1, size, count).tolist() for count in cell.seq_lengths]


def window_of(cell: Cell) -> Any:
    """The same as a `Window`."""
    import numpy as np
    import torch

    from giraffe_cli.corpus.store import Row
    from giraffe_cli.train.data import Window, next_token_labels

    pieces = documents_of(cell)
    lengths = [len(piece) for piece in pieces]
    names = [f"doc-{n}" for n in range(len(lengths))]
    tokens = np.concatenate(pieces).astype(np.int32)
    row = Row(tokens, np.array(lengths, dtype=np.int32), names)
    return Window(
        input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
        labels=torch.from_numpy(next_token_labels(row)),
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        seq_lengths=tuple(lengths),
        doc_ids=tuple(names),
        dropout_seed=0,
    )


PATHS = {"ours": ours, "hf": hf, "trl": trl}
