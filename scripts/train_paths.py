"""What a cell of bench_train.py trains, each in a process of its own: ours, HF Trainer, TRL.

All start from the same float32 weights and adapters and see the same ids and labels.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from bench_cells import D256, SMOLLM2, document_lengths, peak_bytes, row_of

MODELS: dict[str, dict[str, Any]] = {
    "d256-v32k": {**D256, "vocab_size": 32000},
    "d256-v8k": {**D256, "vocab_size": 8000},
    "smollm2-135m": SMOLLM2,
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "vocab_size": 512,
    },
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16


def ours(cell: dict[str, Any]) -> dict[str, Any]:
    """The step of train/loop.py without its records."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    from giraffe_cli.train.gradients import lay_side_by_side
    from giraffe_cli.train.optimizer import make_optimizer
    from giraffe_cli.train.setup import trainable_parameters, window_nats

    config, model = build_ours(cell)
    base = peak_bytes()
    parameters = trainable_parameters(model)
    lay_side_by_side(parameters.values())
    optimizer = make_optimizer(parameters, config)
    window = window_of(cell)
    clock, losses, norms = Clock(), [], []
    for _ in range(cell["steps"] + 1):
        loss = window_nats(model, window, torch.device("cpu")) / window.num_targets
        loss.backward()
        norms.append(float(clip_grad_norm_(parameters.values(), config.clip_norm)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        losses.append(float(loss.detach()))
        clock.tick()
    return {**clock.figures(base), "loss": losses, "grad_norm": norms, "attention": "giraffe"}


def hf(cell: dict[str, Any]) -> dict[str, Any]:
    """transformers.Trainer on rows whose first token of a document is no target."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator

    model = peft_model(cell)
    base = peak_bytes()
    row = row_of(documents_of(cell))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**arguments(cell, folder)),
            train_dataset=Dataset.from_list([row]),
            data_collator=default_data_collator,
        )
        return train(trainer, base)


def trl(cell: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer on tokenised documents, which it packs itself."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    model = peft_model(cell)
    base = peak_bytes()
    words = Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **arguments(cell, folder),
                max_length=cell["length"],
                packing=cell["documents"] == "packed",
            ),
            train_dataset=Dataset.from_list([{"input_ids": ids} for ids in documents_of(cell)]),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>"),
        )
        found = train(trainer, base)
    rows = trainer.train_dataset["input_ids"]
    expected = [token for piece in documents_of(cell) for token in piece]
    if [list(row) for row in rows] != [expected]:
        raise SystemExit(f"TRL trained on {len(rows)} other rows than the documents end to end")
    return found


def adapters(cell: dict[str, Any]) -> dict[str, Any]:
    """Writes the adapters all paths start from; both factors differ from 0, so that the gate sees
    every one of them."""
    import torch
    from peft import get_peft_model_state_dict

    model = peft_model({**cell, "adapters": None})
    torch.manual_seed(1)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, tensor in tensors.items():
        tensor.normal_(std=0.05 if "lora_B" in name else tensor.shape[1] ** -0.5)
    torch.save(tensors, cell["adapters"])
    return {}


CELLS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ours": ours,
    "hf": hf,
    "trl": trl,
    "adapters": adapters,
}


class Clock:
    """Seconds from one tick to the next; the first step is dropped."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []
        self.tick()

    def tick(self) -> None:
        self._marks.append((time.process_time(), time.perf_counter()))

    def figures(self, base: int) -> dict[str, Any]:
        """Medians of the steps, and the peak above `base` bytes."""
        steps = list(zip(self._marks[1:], self._marks[2:], strict=False))
        return {
            "cpu_seconds": statistics.median(end[0] - start[0] for start, end in steps),
            "wall_seconds": statistics.median(end[1] - start[1] for start, end in steps),
            "net_bytes": peak_bytes() - base,
            "base_bytes": base,
        }


def train(trainer: Any, base: int) -> dict[str, Any]:
    """Run a peer's trainer; a step reaches from the end of one to the end of the next."""
    from transformers import PrinterCallback, TrainerCallback

    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Ticks())
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        **clock.figures(base),
        "loss": [entry["loss"] for entry in log],
        "grad_norm": [float(entry["grad_norm"]) for entry in log],
        "attention": trainer.model.config._attn_implementation,
    }


def arguments(cell: dict[str, Any], folder: str) -> dict[str, Any]:
    """Of both trainers: what the comparison fixes; everything else is their default."""
    return {
        "output_dir": folder,
        "max_steps": cell["steps"] + 1,
        "per_device_train_batch_size": 1,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


# ── what they are given ──────────────────────────────────────────────────────────────────────


def build_ours(cell: dict[str, Any]) -> tuple[Any, Any]:
    """(training config, `WindowLoss`) on the same weights and adapters."""
    import torch
    from peft import set_peft_model_state_dict

    from giraffe_cli.config.lora import LoraConfig
    from giraffe_cli.config.train import TrainConfig
    from giraffe_cli.model.attention import register_attention
    from giraffe_cli.model.levers import Levers
    from giraffe_cli.model.lora import add_lora
    from giraffe_cli.train.window_loss import WindowLoss

    config = TrainConfig(lora=LoraConfig(rank=RANK, alpha=ALPHA, targets=TARGETS))
    base = base_model(cell, attn_implementation=register_attention())
    model = add_lora(base, config.lora, seed=0)
    set_peft_model_state_dict(model, torch.load(cell["adapters"]))
    model.train()
    # d256-v8k is there for its bytes a token: as large a block of logits as of 32,000 entries
    times = 4 if cell["model"] == "d256-v8k" else 1
    # what a plan takes on a CPU, the loss chunk aside
    levers = Levers(fused=True, projection_tile=1024, loss_chunk=times * Levers().loss_chunk)
    return config, WindowLoss(model, torch.float32, levers)


def peft_model(cell: dict[str, Any]) -> Any:
    """What a user of PEFT writes; with the cell's adapters, where there are any."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base_model(cell), config)
    if cell["adapters"]:
        set_peft_model_state_dict(model, torch.load(cell["adapters"]))
    return model


def base_model(cell: dict[str, Any], **options: Any) -> Any:
    """The float32 model: `--model`'s weights, or random ones that keep the variance of the stream,
    so that a path that attends to something else shows in the loss."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if cell["weights"] and cell["model"] == "smollm2-135m":
        return LlamaForCausalLM.from_pretrained(cell["weights"], dtype=torch.float32, **options)
    shape = MODELS[cell["model"]]
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        initializer_range=shape["hidden_size"] ** -0.5,
        max_position_embeddings=32768,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **options,
    )
    return LlamaForCausalLM(config)


def documents_of(cell: dict[str, Any]) -> list[list[int]]:
    """Random ids, one list a document, the longest first as TRL packs them."""
    import numpy as np

    generator = np.random.default_rng(0)
    size = MODELS[cell["model"]]["vocab_size"]
    lengths = document_lengths(cell["documents"], cell["length"])
    return [generator.integers(1, size, length).tolist() for length in lengths]


def window_of(cell: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    from giraffe_cli.corpus.store import Row
    from giraffe_cli.train.data import Window, next_token_labels

    pieces = documents_of(cell)
    lengths = [len(piece) for piece in pieces]
    tokens = np.concatenate(pieces).astype(np.int32)
    row = Row(tokens, np.array(lengths, dtype=np.int32), [f"doc-{n}" for n in range(len(lengths))])
    return Window(
        input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
        labels=torch.from_numpy(next_token_labels(row)),
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        seq_lengths=tuple(lengths),
        doc_ids=tuple(row.doc_ids),
        dropout_seed=0,
    )
