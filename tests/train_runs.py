"""Training runs of a second: the settings, the material and a reporter that disturbs them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

from conftest import prose

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.packing import PackConfig, pack_stage
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import make_table
from giraffe_cli.rundir import digest_file, read_json
from giraffe_cli.train.loop import train_stage

STEPS = 5
SETTINGS = {
    "steps": STEPS,
    "window": 64,
    "windows_per_step": 2,
    "warmup_steps": 1,
    "checkpoint_every": 2,
    "lora": {"rank": 2, "dropout": 0.1},
    "loss_chunk": 24,
}


class Hooked(SilentReporter):
    """Calls `at_step(n)` when the bar reaches step n: between recording it and saving it."""

    def __init__(self, at_step=lambda step: None):
        super().__init__()
        self.at_step = at_step
        self.fields = {}

    def bar(self, description, total, unit, done=0):
        self.done = done
        return contextlib.nullcontext(self)

    def advance(self, amount=1, **fields):
        self.done += amount
        self.fields = fields
        self.at_step(self.done)


def build_material(tiny_llama: Path, root: Path, hold_out: float = 0.1) -> SimpleNamespace:
    """The tiny Llama, and windows of 64 tokens that hold two to six documents each."""
    checkpoint = inspect(str(tiny_llama), root)
    corpus, packed = root / "docs.jsonl", root / "packed"
    documents = [{"id": f"doc-{n}", "text": prose(n, 1 + n % 3)} for n in range(60)]
    corpus.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    config = PackConfig(min_piece=4, hold_out=hold_out)
    pack_stage([str(corpus)], checkpoint.path, 64, config, 0, packed, SilentReporter())
    return SimpleNamespace(
        checkpoint=checkpoint,
        packed=packed,
        table=make_table("yarn", {}, checkpoint.head(512)),
        documents={d["id"]: d["text"] for d in documents},
    )


def run(
    material,
    run_dir,
    reporter=None,
    dtype="float32",
    positions="pose",
    evaluated_documents=0,
    crew=None,
    hands_on=False,
    start_from=None,
    **changes,
):
    return train_stage(
        material.checkpoint,
        material.table,
        material.packed,
        TrainConfig.model_validate({**SETTINGS, **changes}),
        positions=positions,
        target_length=512,
        dtype=dtype,
        seed=7,
        run_dir=run_dir,
        reporter=reporter or SilentReporter(),
        evaluated_documents=evaluated_documents,
        crew=crew,
        hands_on=hands_on,
        start_from=start_from,
    )


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def timeless(run_dir):
    """The metrics without what the clock decides."""
    return [
        {k: v for k, v in entry.items() if k not in ("seconds", "tokens_per_second")}
        for entry in metrics(run_dir)
    ]


def adapter_bytes(run_dir):
    return {path.name: digest_file(path) for path in (run_dir / "adapter").iterdir()}


def state_of(run_dir, step):
    return read_json(run_dir / "checkpoints" / f"step-{step}" / "state.json")


def checkpoints(run_dir):
    return {path.name for path in (run_dir / "checkpoints").iterdir()}
