"""`giraffe eval` and the last stage of `extend`: the same samples for every subject, then scores.

    make the samples (no model) → say what it costs → run what the cache lacks → results.json

Every subject sees identical token ids, so differences are paired. Outcomes are cached sample by
sample; a killed evaluation resumes, and one more subject or length costs only itself.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import giraffe_cli
from giraffe_cli.config import EvalConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.evals.base import Example, Material
from giraffe_cli.evals.cache import OutcomeCache, sample_key
from giraffe_cli.evals.results import RULES, Sample, Scoreboard, compose
from giraffe_cli.evals.samples import Batch, gather_material, prepare
from giraffe_cli.evals.subject import CHUNK, Subject, open_subject
from giraffe_cli.progress import Bar, Reporter
from giraffe_cli.rundir import atomic_open, make_folder, read_json, write_json
from giraffe_cli.units import format_length

SCHEMA_VERSION = 1

__all__ = ["Subject", "evaluate"]


def evaluate(
    subjects: list[Subject],
    config: EvalConfig,
    *,
    lengths: list[int],
    native_length: int,
    seed: int,
    documents: list[Document],
    out: Path,
    cache: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Score every subject on the same samples; writes `results.json` and `samples.jsonl` in `out`.

    Args:
        subjects: named `checkpoint`, and `base` and `control` where it is compared with them.
        lengths: context lengths in tokens.
        native_length: the window differences and effective lengths refer to, in tokens.
        documents: held-out text; the `config.documents` longest are used.
        cache: folder of finished outcomes, shared by any number of evaluations.

    Returns:
        The content of `results.json`; equal for equal arguments but for `seconds`.

    Raises:
        InvalidInput: a task that fits no length, tokenizers that differ, unknown task or knob.
    """
    started, lengths = time.monotonic(), sorted({*lengths})
    material = gather_material(subjects, documents, config.documents)
    batches, warnings = prepare(config, lengths, seed, material, reporter)
    announce(batches, subjects, reporter)
    make_folder(cache)
    samples = [sample for s in subjects for sample in run_subject(s, batches, cache, reporter)]
    boards = {
        batch.name: Scoreboard(
            batch.name,
            batch.task,
            [sample for sample in samples if sample.task == batch.name],
            native_length,
            seed,
        )
        for batch in batches
    }
    for warning in (warning for board in boards.values() for warning in board.warnings()):
        reporter.warn(warning)
        warnings.append(warning)
    results = {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "native_length": native_length,
        "lengths": lengths,
        **describe(subjects, compose(boards, [s.name for s in subjects], native_length)),
        "settings": settings(batches, material),
        "rules": RULES,
        "versions": versions(),
        "warnings": warnings,
        "seconds": round(time.monotonic() - started, 1),
    }
    make_folder(out)
    with atomic_open(out / "samples.jsonl", "w") as handle:
        for sample in samples:
            handle.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")
    write_json(out / "results.json", results)
    return results


def announce(batches: list[Batch], subjects: list[Subject], reporter: Reporter) -> None:
    """Say what it will cost before it starts."""
    examples = [example for batch in batches for example in batch.examples]
    tokens = sum(len(example.token_ids) for example in examples)
    used = sorted({example.length for example in examples})
    reporter.info(
        f"evaluation: {len(examples)} samples of {', '.join(b.name for b in batches)} at "
        f"{', '.join(map(format_length, used))}, {tokens:,} prompt tokens for each of "
        f"{len(subjects)} models"
    )


def run_subject(
    subject: Subject, batches: list[Batch], cache: Path, reporter: Reporter
) -> list[Sample]:
    """Every example's outcome for `subject`; the model is loaded only if one is not cached."""
    batches = [
        dataclasses.replace(b, examples=[e for e in b.examples if subject.takes(e)])
        for b in batches
    ]
    caches = {batch.name: OutcomeCache(cache, subject, batch.name) for batch in batches}
    missing = [
        (batch, example)
        for batch in batches
        for example in batch.examples
        if caches[batch.name].get(sample_key(subject, batch.name, example)) is None
    ]
    if missing:
        total = sum(len(e.token_ids) for batch in batches for e in batch.examples)
        left = sum(len(example.token_ids) for _, example in missing)
        with reporter.bar(f"evaluating {subject.name}", total, "tokens", total - left) as bar:
            _fill(subject, missing, caches, bar)
    return [
        Sample(subject.name, batch.name, example, outcome, batch.task.score(example, outcome))
        for batch in batches
        for example in batch.examples
        if (outcome := caches[batch.name].get(sample_key(subject, batch.name, example)))
    ]


def _fill(
    subject: Subject,
    missing: list[tuple[Batch, Example]],
    caches: dict[str, OutcomeCache],
    bar: Bar,
) -> None:
    """Run what is missing, in the order that shares the most prefixes."""
    opened = open_subject(subject)
    for batch, example in sorted(missing, key=_prefix_order):
        outcome = opened.outcome(example)
        caches[batch.name].put(sample_key(subject, batch.name, example), outcome)
        bar.advance(len(example.token_ids), length=format_length(example.length))


def _prefix_order(entry: tuple[Batch, Example]) -> tuple[str, int, list[int]]:
    """By task and length; within them prompts that begin alike come one after the other."""
    batch, example = entry
    return batch.name, example.length, example.token_ids.tolist()


def describe(subjects: list[Subject], scored: dict[str, Any]) -> dict[str, Any]:
    """`scored` with each model's identity put before its scores."""
    identities = {
        s.name: {"sha256": s.digest, "rope": dict(_rope_in_force(s.path)), "dtype": s.dtype}
        for s in subjects
    }
    models = {name: {**identities[name], **scored["models"][name]} for name in identities}
    return {**scored, "models": models}


def _rope_in_force(path: Path) -> Iterator[tuple[str, Any]]:
    """The RoPE keys of `config.json`, as they are in the file."""
    config = read_json(path / "config.json")
    for key in ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings"):
        if config.get(key) is not None:
            yield key, config[key]


def settings(batches: list[Batch], material: Material) -> dict[str, Any]:
    """All that must be repeated to get the same numbers."""
    return {
        "tasks": {batch.name: dataclasses.asdict(batch.task) for batch in batches},
        "documents": {doc.id: len(doc.token_ids) for doc in material.documents},
        "chunk": CHUNK,
    }


def versions() -> dict[str, str]:
    """What computed the numbers."""
    import torch
    import transformers

    return {
        "giraffe": giraffe_cli.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
