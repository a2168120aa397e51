"""From lm-eval's logged samples to scores with intervals, and to `harness.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from giraffe_cli.errors import GiraffeError
from giraffe_cli.evals.harness_jobs import Job
from giraffe_cli.evals.harness_runs import Run
from giraffe_cli.evals.lm_eval_tasks import RULER
from giraffe_cli.evals.statistics import Score, clustered_bootstrap, clustered_share
from giraffe_cli.rundir import atomic_open

Found = Mapping[tuple[str, Job], Mapping[str, Run]]
"""Subject and job → task → run."""
AGREEMENT = 1e-9
"""Between a mean over samples and lm-eval's own figure, relative: two orders of summing."""


def scores_of(subject: str, found: Found, seed: int) -> dict[str, dict[str, Score]]:
    """Task → length → score.

    Raises:
        GiraffeError: lm-eval's own figure of a RULER task is not the mean of its samples.
    """
    scores: dict[str, dict[str, Score]] = {}
    for (who, job), runs in found.items():
        for task, run in runs.items() if who == subject else ():
            if task in RULER:
                scores.setdefault(task, {})[str(job.length)] = ruler_score(task, job.length, run)
                continue
            for metric, score in metric_scores(run, seed).items():
                scores.setdefault(f"{task}.{metric}", {})[str(run.longest)] = score
    return scores


def ruler_score(task: str, length: int, run: Run) -> Score:
    """Mean share of the answers found; lm-eval names the metric by the length.

    Raises:
        GiraffeError: its own figure is not the mean of its samples.
    """
    metric = str(length)
    values = [sample.scores[metric] for sample in run.samples]
    if not _is_mean(values, run.means.get(metric, -1.0)) or not all(0 <= v <= 1 for v in values):
        raise GiraffeError(
            f"lm-eval gives {run.means.get(metric)} for `{task}` at {metric}, its samples "
            f"{sum(values) / len(values)}",
            "another version of lm-eval than 0.4.13 may count otherwise; please report it",
        )
    alternatives = task.startswith("ruler_qa")  # any one of their answers is right
    parts = 0 if alternatives else sum(len(sample.answers) for sample in run.samples)
    return clustered_share(values, _clusters(run), parts=parts)


def metric_scores(run: Run, seed: int) -> dict[str, Score]:
    """Score of each metric whose figure is the mean of its samples; others, such as a corpus's
    perplexity, have no interval over samples and are left out."""
    scores = {}
    for metric, mean in run.means.items():
        values = [sample.scores[metric] for sample in run.samples if metric in sample.scores]
        if not values or not _is_mean(values, mean):
            continue
        clusters = [str(s.document) for s in run.samples if metric in s.scores]
        shares = all(0 <= value <= 1 for value in values)
        scores[metric] = (
            clustered_share(values, clusters)
            if shares
            else clustered_bootstrap(values, clusters, seed)
        )
    return scores


def longest_prompts(found: Found) -> dict[str, dict[str, int]]:
    """Task → length → tokens of the longest prompt with its answer."""
    longest: dict[str, dict[str, int]] = {}
    for (_, job), runs in found.items():
        for task, run in runs.items():
            longest.setdefault(task, {})[str(job.length)] = run.longest
    return longest


def write_samples(found: Found, path: Path) -> None:
    """One line for each sample: subject, task, length, answers, text, scores by metric."""
    with atomic_open(path, "w") as handle:
        for (subject, job), runs in found.items():
            for task, run in runs.items():
                for sample in run.samples:
                    line = {
                        "subject": subject,
                        "task": task,
                        "length": job.length,
                        "document": sample.document,
                        "prompt_sha256": sample.prompt_sha256,
                        "answers": sample.answers,
                        "text": sample.text,
                        "scores": sample.scores,
                    }
                    handle.write(json.dumps(line, ensure_ascii=False) + "\n")


def _clusters(run: Run) -> list[str]:
    return [str(sample.document) for sample in run.samples]


def _is_mean(values: Sequence[float], figure: float) -> bool:
    return math.isclose(sum(values) / len(values), figure, rel_tol=AGREEMENT, abs_tol=AGREEMENT)
