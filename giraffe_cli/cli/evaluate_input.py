"""What `giraffe eval` makes of its options: the config, the data files, the documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.errors import InvalidInput

if TYPE_CHECKING:
    from giraffe_cli.config.evaluate import EvalConfig
    from giraffe_cli.corpus.base import Document
    from giraffe_cli.progress import Reporter

DEFAULT_DATA = "python-stdlib"
COUNTS = ("samples", "trials")
"""Knobs that say how many samples a task takes."""


def eval_config(given: dict[str, Any], assignments: list[str], samples: int | None) -> EvalConfig:
    """The evaluation's config from options that were given; every problem at once.

    Args:
        given: `EvalConfig` fields; None where the option was left out.
        samples: for each task that has such a knob and none in `assignments`, and for each of
            `harness`.

    Raises:
        InvalidInput: a length, a task, a knob or a number that cannot be.
    """
    from giraffe_cli.config.building import apply_overrides, build
    from giraffe_cli.evals.chosen import runnable

    values = {key: value for key, value in given.items() if value is not None}
    knobs = apply_overrides({}, assignments)

    def built() -> EvalConfig:
        return build({"target_length": 1, "eval": {**values, "knobs": knobs}}, "eval").eval

    config = built()
    if given.get("documents") is not None:
        _check_documents(config, given["documents"])
    if samples is not None:
        for task, knob in _counted(config, samples).items():
            knobs[task] = {knob: samples, **knobs.get(task, {})}
        if config.harness:
            values["harness_samples"] = samples
        config = built()
    runnable(config)  # refuses before anything is read
    return config


def _check_documents(config: EvalConfig, documents: int) -> None:
    """Raises InvalidInput where no evaluated task reads any."""
    from giraffe_cli.evals.base import tasks
    from giraffe_cli.evals.chosen import needs_of

    read = {"documents", "other_text"}
    if not read & needs_of(config.tasks):
        readers = [name for name in tasks() if read & needs_of([name])]
        raise InvalidInput(
            f"--documents {documents} has no effect on {', '.join(config.tasks)}",
            f"add one of {', '.join(readers)} to --tasks",
        )


def _counted(config: EvalConfig, samples: int) -> dict[str, str]:
    """Task → its knob that says how many.

    Raises:
        InvalidInput: nothing has one, and lm-eval's tasks neither.
    """
    from dataclasses import fields

    from giraffe_cli.evals.base import tasks

    known = tasks()
    found = {
        name: field.name
        for name in config.tasks
        if name in known
        for field in fields(known[name])
        if field.name in COUNTS
    }
    if not found and not config.harness:
        raise InvalidInput(
            f"--samples {samples} has no effect on {', '.join(config.tasks)}",
            "text is scored on --documents, each on as many anchors as --set TASK.anchors=4 says",
        )
    return found


def named_files(given: list[str] | None) -> dict[str, str] | None:
    """`["lambada=a.jsonl"]` → `{"lambada": "a.jsonl"}`.

    Raises:
        InvalidInput: no `=`, or one name twice.
    """
    found: dict[str, str] = {}
    for entry in given or ():
        name, separator, path = entry.partition("=")
        if not (name and separator and path):
            raise InvalidInput(f"--file {entry}: no `NAME=PATH`", "--file lambada=lambada.jsonl.gz")
        if name in found:
            raise InvalidInput(f"--file {name} is given twice: {found[name]} and {path}")
        found[name] = path
    return found or None


def documents_for(
    config: EvalConfig, run: Path, tokenizers: list[Path], reporter: Reporter
) -> list[Document]:
    """Text to score on: `--data`, else what the run in folder `run` held out, else what
    python-stdlib holds out; without what that run was trained on. None where no task reads any.

    Args:
        tokenizers: folders of the evaluated models; the run's tokenizer is one of theirs.

    Raises:
        InvalidInput: a source is missing or unreadable, or all hold no text, or trained text only.
    """
    from giraffe_cli.corpus.source_names import check_distinct
    from giraffe_cli.corpus.store import held_out
    from giraffe_cli.corpus.unseen import not_trained_on
    from giraffe_cli.evals.chosen import needs_of
    from giraffe_cli.evals.texts import documents_of
    from giraffe_cli.run_files import was_trained, windows_of

    needed, windows = needs_of(config.tasks), windows_of(run)
    if "documents" not in needed and not (config.data and "haystack" in needed):
        return []
    is_trained, hint = (run / "training.json").is_file(), "pass --data with other text"
    alone = [f for f in tokenizers if not (f.parent / "training.json").is_file()]
    moved = next((folder for folder in alone if was_trained(folder)), None)
    if moved and not is_trained:
        reporter.warn(
            f"{moved} was trained by giraffe, and its run is not beside it: what it read cannot be "
            f"left out of {', '.join(config.data or [DEFAULT_DATA])}, and losses on that prove "
            "nothing; evaluate it where the run wrote it"
        )
    if is_trained and not windows:
        reporter.warn(
            f"the windows that {run} was trained on are not found: whether it read "
            f"{', '.join(config.data or [DEFAULT_DATA])} cannot be told"
        )
    if config.data:
        check_distinct(config.data)
        documents = documents_of(config.data, "--data")
        hint += "; without it the run's held-out documents are read"
    else:
        documents = held_out(windows[0]) if windows else _default_documents()
    if not is_trained:
        return documents
    return not_trained_on(documents, windows, tokenizers, hint, reporter)


def _default_documents() -> list[Document]:
    """The modules that python-stdlib holds out."""
    from giraffe_cli.config.pack import PackConfig
    from giraffe_cli.corpus.base import BadRecords
    from giraffe_cli.corpus.holdout import choose_held_out
    from giraffe_cli.corpus.sources import read_source

    found = list(read_source(DEFAULT_DATA, BadRecords()))
    kept = choose_held_out([d.id for d in found], PackConfig().hold_out)
    return [document for document in found if document.id in kept]


def default_out(checkpoint: str) -> Path:
    """`runs/eval-NAME`; a run's `model` or `adapter` folder is known by the run's name."""
    path = Path(checkpoint).resolve()
    name = path.parent.name if path.name in ("model", "adapter") else path.name
    return Path("runs") / f"eval-{name.removesuffix('.gguf')}"
