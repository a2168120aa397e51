"""`giraffe eval` and the last stage of `extend`: the same samples for every subject, then scores.

    make the samples (no model) → say what it costs → run what the cache lacks → results.json

Every subject sees identical token ids, so differences are paired. Outcomes are cached sample by
sample; a killed evaluation resumes, and one more subject or length costs only itself.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.evals.described import describe, settings
from giraffe_cli.evals.gating import check_gates
from giraffe_cli.evals.harness import check_harness, run_harness
from giraffe_cli.evals.order import Entry, Step, reach_of, reading_plan
from giraffe_cli.evals.parts import launched_part, own_device, wait_for_all
from giraffe_cli.evals.reading import chunk_here, entries_of, missing_of, read_part
from giraffe_cli.evals.results import RULES, Sample, compose
from giraffe_cli.evals.room import check_room
from giraffe_cli.evals.samples import Batch, Texts, gather_material, prepare
from giraffe_cli.evals.scoring import scored_samples
from giraffe_cli.evals.software import read_otherwise, reader_here, readers, versions
from giraffe_cli.evals.subject import EVALUATOR, Subject, reference_subject
from giraffe_cli.evals.worker import request_of
from giraffe_cli.progress import Reporter, SilentReporter
from giraffe_cli.rundir import atomic_open, make_folder, write_sealed
from giraffe_cli.train.parallel import launch
from giraffe_cli.units import counted, format_length

SCHEMA_VERSION = 2


def evaluate(
    subjects: list[Subject],
    config: EvalConfig,
    *,
    lengths: list[int],
    native_length: int,
    seed: int,
    texts: Texts,
    out: Path,
    cache: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Score every subject on the same samples; writes `results.json`, `samples.jsonl` and
    `prompts.jsonl.gz` in `out`.

    Args:
        subjects: named `checkpoint`, and `base`, `control` and `evaluator` where there are such.
        lengths: context lengths in tokens.
        native_length: the window differences and effective lengths refer to, in tokens.
        texts: held-out text, of which the `config.documents` longest are used, and haystacks.
        cache: folder of finished outcomes, shared by any number of evaluations.

    Returns:
        The content of `results.json`; equal for equal arguments but for `seconds`. Empty in all
        processes of a launcher but the first: they read their part.

    Raises:
        InvalidInput: a task that fits no length, tokenizers that differ, unknown task or knob, a
            gate on what is not evaluated, a task of `config.harness` that cannot run.
        DoesNotFit: the longest text that is to be read.
    """
    started, lengths, part = time.monotonic(), sorted({*lengths}), launched_part()
    reporter = SilentReporter() if part.process else reporter
    check_harness(config.harness)
    material = gather_material(subjects, texts, config, lengths, native_length)
    batches, warnings = prepare(config, lengths, seed, material, reporter)
    scored = [subject for subject in subjects if subject.name != EVALUATOR]
    check_gates(config, batches, scored, native_length)
    for warning in same_models(scored):
        reporter.warn(warning)
        warnings.append(warning)
    make_folder(cache)
    reference = reference_subject(subjects)
    entries = {s.name: entries_of(s, batches, s is reference) for s in subjects}
    plans = {s.name: plan_of(s, entries[s.name], config, cache) for s in subjects}
    announce(batches, plans, entries, reporter)
    for subject in subjects:
        if plans[subject.name]:
            processes = part.processes if part.processes > 1 else config.processes or 1
            check_room(subject.path, subject.dtype, reach_of(plans[subject.name]), processes)
    for place, subject in enumerate(subjects):
        if subject.digest in {earlier.digest for earlier in subjects[:place]}:
            # what the earlier one has read need not be read again
            wait_for_all()
            plans[subject.name] = plan_of(subject, entries[subject.name], config, cache)
        read_all(subject, plans[subject.name], config, cache, make_folder(out), reporter)
    wait_for_all()
    if part.process:
        return {}
    samples = scored_samples(subjects, batches, entries, cache, reporter)
    named = {batch.name: batch.task for batch in batches}
    names = [subject.name for subject in scored]
    composed = compose(named, samples, names, native_length, seed, config.threshold, config.gates)
    read_by = readers(samples)
    otherwise = read_otherwise(read_by, reader_here(chunk_here()), cache)
    for warning in [*composed.pop("warnings"), *otherwise]:
        reporter.warn(warning)
        warnings.append(warning)
    results = {
        "schema_version": SCHEMA_VERSION,
        "suite": config.suite,
        "seed": seed,
        "native_length": native_length,
        "lengths": lengths,
        **describe(scored, composed),
        "settings": settings(batches, material, config, reference),
        "rules": RULES,
        "versions": versions(),
        "read_by": read_by,
        "warnings": warnings,
    }
    write_samples(samples, make_folder(out))
    if config.harness:
        add_harness(results, subjects, config, out, cache, reporter)
    results["seconds"] = round(time.monotonic() - started, 1)
    write_sealed(out / "results.json", results)
    return results


def same_models(subjects: Sequence[Subject]) -> list[str]:
    """A warning where two that are compared are one, such as by a path that was mistaken."""
    by_digest: dict[str, list[str]] = {}
    for subject in subjects:
        by_digest.setdefault(subject.digest, []).append(subject.name)
    return [
        f"{' and '.join(names)} are the same model: every difference between them is 0"
        for names in by_digest.values()
        if len(names) > 1
    ]


def plan_of(subject: Subject, entries: list[Entry], config: EvalConfig, cache: Path) -> list[Step]:
    """The order in which `subject` reads what `cache` lacks."""
    missing = missing_of(subject, entries, cache)
    return reading_plan(missing, config.batch_tokens, chunk_here())


def add_harness(
    results: dict[str, Any],
    subjects: list[Subject],
    config: EvalConfig,
    out: Path,
    cache: Path,
    reporter: Reporter,
) -> None:
    """What lm-eval's own tasks give at the lengths and under the seed of `results`.

    Raises:
        InvalidInput: what was asked for by name runs at no length.
    """
    found = run_harness(
        subjects,
        config.harness,
        lengths=results["lengths"],
        limit=config.harness_samples,
        chat=config.chat,
        seed=results["seed"],
        out=out,
        cache=cache,
        reporter=reporter,
    )
    results["harness"] = found.scores
    results["settings"]["harness"] = found.settings
    results["warnings"] += found.warnings


def read_all(
    subject: Subject,
    plan: list[Step],
    config: EvalConfig,
    cache: Path,
    out: Path,
    reporter: Reporter,
) -> None:
    """`plan` by this process, by its part of a launcher's processes, or by workers of its own.

    Raises:
        Interrupted: a signal came while workers read; what they had read is stored.
        GiraffeError: a worker failed, or the model gave a loss that is no number.
    """
    part, processes = launched_part(), min(config.processes or 1, len(plan))
    if part.processes > 1:
        read_part(subject, plan, cache, reporter, part, own_device())
    elif processes > 1:
        entries = [entry for step in plan for prompt in step.prompts for entry in prompt.entries]
        request = request_of(subject, entries, config.batch_tokens, cache)
        launch(request, out, processes, reporter, "giraffe_cli.evals.worker", "evaluation")
    elif plan:
        read_part(subject, plan, cache, reporter)


def write_samples(samples: list[Sample], out: Path) -> None:
    """`samples.jsonl`, and every prompt once in `prompts.jsonl.gz`."""
    with atomic_open(out / "samples.jsonl", "w") as handle:
        for sample in samples:
            handle.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")
    prompts = {sample.example.digest: sample.example for sample in samples}
    with (
        atomic_open(out / "prompts.jsonl.gz", "wb") as raw,
        # without a name and a time the same prompts are the same bytes
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as handle,
    ):
        for digest, example in prompts.items():
            line = {"prompt_sha256": digest, "token_ids": example.token_ids.tolist()}
            handle.write(json.dumps(line).encode() + b"\n")


def announce(
    batches: list[Batch],
    plans: dict[str, list[Step]],
    entries: dict[str, list[Entry]],
    reporter: Reporter,
) -> None:
    """Say what will be read before anything is loaded."""
    examples = [example for batch in batches for example in batch.examples]
    used = sorted({example.length for example in examples})
    left = {name: sum(step.tokens for step in plan) for name, plan in plans.items()}
    total = {name: sum(len(e.token_ids) for _, e in asked) for name, asked in entries.items()}
    reporter.info(
        f"evaluation: {counted(len(examples), 'sample')} of "
        f"{', '.join(b.name for b in batches)} at "
        f"{', '.join(map(format_length, used))}; tokens to read: "
        + ", ".join(f"{name} {left[name]:,} of {total[name]:,}" for name in plans)
    )
