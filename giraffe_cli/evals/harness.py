"""lm-eval's own tasks on the models under evaluation, beside giraffe's.

    --harness ruler              the RULER tasks that run here, at every length of the evaluation
    --harness niah_single_1      one of them
    --harness hellaswag          any other task, once, up to the longest length

Scores stand in `results.json` under `harness`: subject → task → length → score; a task that is none
of RULER's stands as `task.metric` under the tokens of its longest prompt. Means and intervals are
taken over lm-eval's logged samples (`harness.jsonl`): its -1 for lengths it did not run and its N/A
for standard errors are never read.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.harness_jobs import Bench, Job
from giraffe_cli.evals.harness_runs import Run
from giraffe_cli.evals.harness_scores import longest_prompts, scores_of, write_samples
from giraffe_cli.evals.lm_eval_tasks import MADE, RULER, all_tasks, installed_version
from giraffe_cli.evals.samples import chat_tokenizer
from giraffe_cli.evals.statistics import Score
from giraffe_cli.evals.subject import EVALUATOR, Subject
from giraffe_cli.progress import Reporter

GROUP = "ruler"
PACKAGES = ("lm_eval", "wonderwords", "nltk", "scipy")
DOWNLOADS = {
    **dict.fromkeys(
        ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"),
        "Paul Graham's essays",
    ),
    "ruler_qa_squad": "SQuAD",
    "ruler_qa_hotpot": "HotpotQA",
}
"""What RULER tasks fetch to make their prompts of."""


class Harness(NamedTuple):
    """What lm-eval found."""

    scores: dict[str, dict[str, dict[str, Score]]]
    """Subject → task → length → score."""
    settings: dict[str, Any]
    warnings: list[str]


def check_harness(names: Sequence[str]) -> None:
    """Refuse what cannot run, before anything is scored.

    Raises:
        InvalidInput: a package is missing, or a named task needs a download and HF_HUB_OFFLINE
            is set, or lm-eval knows no such task.
    """
    missing = [name for name in PACKAGES if names and find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"--harness needs {', '.join(missing)}: not installed",
            "pip install 'giraffe-cli[eval]'",
        )
    for name in names:
        if is_offline() and name in DOWNLOADS:
            raise InvalidInput(
                f"--harness {name} downloads {DOWNLOADS[name]}, and HF_HUB_OFFLINE is set",
                f"unset HF_HUB_OFFLINE, or use --harness {GROUP}, which leaves such tasks out",
            )
    others = [name for name in names if name not in (GROUP, *RULER) and not Path(name).is_file()]
    known = all_tasks() if others else ()
    for name in others:
        if name not in known:
            close = difflib.get_close_matches(name, [GROUP, *known], n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "lm_eval ls tasks lists them"
            raise InvalidInput(f"lm-eval knows no task `{name}`", hint)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def run_harness(
    subjects: Sequence[Subject],
    names: Sequence[str],
    *,
    lengths: Sequence[int],
    limit: int,
    chat: bool,
    seed: int,
    out: Path,
    cache: Path,
    reporter: Reporter,
) -> Harness:
    """Run lm-eval's tasks on every subject but the evaluator; writes `harness.jsonl` in `out`.

    Args:
        names: `ruler`, lm-eval's names of tasks or groups, or paths of its YAML files.
        lengths: context lengths in tokens.
        limit: samples of each task at each length at the most; the first ones.
        chat: whether they are asked through the chat template that giraffe's own tasks use.
        cache: folder of finished tasks, which are not run again.

    Raises:
        InvalidInput: what was asked for by name runs at no length.
    """
    scored = [subject for subject in subjects if subject.name != EVALUATOR]
    jobs, template = plan(names, lengths), chat_tokenizer(scored).chat_template if chat else None
    announce(jobs, limit, len(scored), reporter)
    found: dict[tuple[str, Job], dict[str, Run]] = {}
    problems: dict[Job, InvalidInput] = {}
    for length in sorted({job.length for job in jobs}):
        bench = Bench(limit=limit, chat=template, seed=seed, cache=cache, reporter=reporter)
        for subject in scored:
            if subject.longest is None or length <= subject.longest:
                due = [job for job in jobs if job.length == length]
                found.update({(subject.name, job): runs for job, runs in bench.run(subject, due)})
        problems.update(bench.problems)
    refuse_what_never_ran(jobs, {job for _, job in found}, problems)
    warnings = [*_without_network(names), *_left_out(problems)]
    for warning in warnings:
        reporter.warn(warning)
    write_samples(found, out / "harness.jsonl")
    settings = {
        "lm_eval": installed_version(),
        "tasks": list(names),
        "samples": limit,
        "longest": longest_prompts(found),
    }
    scores = {subject.name: scores_of(subject.name, found, seed) for subject in scored}
    return Harness(scores, settings, warnings)


def plan(names: Sequence[str], lengths: Sequence[int]) -> list[Job]:
    """What is run at which length: RULER's tasks at each, any other once, with the longest."""
    group = [n for n in RULER if GROUP in names and not (n in DOWNLOADS and is_offline())]
    others = [name for name in dict.fromkeys(names) if name not in (GROUP, *group)]
    return [
        Job(name, length, name in group)
        for name in (*group, *others)
        for length in (sorted({*lengths}) if name in RULER else [max(lengths)])
    ]


def announce(jobs: Sequence[Job], limit: int, models: int, reporter: Reporter) -> None:
    """Say what it costs before it starts."""
    text = (
        f"lm-eval {installed_version()}: {limit} samples of each of "
        f"{', '.join(dict.fromkeys(job.name for job in jobs))}, one at a time, for each of "
        f"{models} models"
    )
    lengths = [job.length for job in jobs if job.name in RULER]
    if lengths:
        text += (
            f"; up to {sum(lengths) * min(limit, MADE):,} prompt tokens, after making {MADE} "
            f"prompts of each task and length, {sum(lengths) * MADE:,} tokens"
        )
    reporter.info(text)


def refuse_what_never_ran(
    jobs: Sequence[Job], ran: set[Job], problems: Mapping[Job, InvalidInput]
) -> None:
    """What was asked for gives something at one length at least.

    Raises:
        InvalidInput: it does not; with the reason at its longest length.
    """

    def asked(of: Iterable[Job]) -> dict[str, Job]:
        return {GROUP if job.of_ruler else job.name: job for job in of}

    for name in asked(jobs).keys() - asked(ran).keys():
        job = asked(job for job in jobs if job in problems)[name]
        problem = problems[job]
        raise InvalidInput(f"--harness {name}: {job}: {problem.message}", problem.hint)


def _without_network(names: Sequence[str]) -> list[str]:
    return [
        f"left out: lm-eval's `{name}` downloads {DOWNLOADS[name]}, and HF_HUB_OFFLINE is set"
        for name in RULER
        if GROUP in names and name in DOWNLOADS and is_offline()
    ]


def _left_out(problems: Mapping[Job, InvalidInput]) -> list[str]:
    return [f"left out: lm-eval's {job}: {problem.message}" for job, problem in problems.items()]
