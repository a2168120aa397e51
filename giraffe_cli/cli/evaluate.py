"""`giraffe eval`: a checkpoint's scores by context length, beside its base's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from giraffe_cli.cli import complete
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.evaluate_input import default_out, eval_config, named_files
from giraffe_cli.cli.evaluate_run import check_processes, held_by_the_first_process, score_named
from giraffe_cli.cli.evaluate_text import render, render_gates
from giraffe_cli.cli.launcher import start_alone_unless_launched
from giraffe_cli.cli.options import AllowPickle, AsJson, Chat, Dtype, a_seed, choices_of, one_of
from giraffe_cli.errors import GateFailed
from giraffe_cli.own_folder import refuse_anothers

EXAMPLES = """
Examples:

giraffe eval runs/calf-16k/model --base calf

giraffe eval ./smollm2-16k --base ./smollm2 --data books.jsonl.gz --lengths 8k,16k

giraffe eval ./any-llama --tasks passkey,niah --lengths 2k,12k --samples 3 --json

giraffe eval ./smollm2-16k --base ./smollm2 --gate 'nll@16k-nll@8k<0' --gate 'passkey@16k>=0.7'

giraffe eval ./smollm2-16k --base ./smollm2 --suite standard --file lambada=lambada.jsonl.gz
"""


def _task_names() -> list[str]:
    from giraffe_cli.evals.base import tasks

    return list(tasks())


def _print_schema(asked: bool) -> None:
    if asked:
        from giraffe_cli.evals.schema import results_schema

        typer.echo(json.dumps(results_schema(), indent=2))
        raise typer.Exit


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Any Llama: a directory, .gguf file or Hugging Face id, calf; a run's folder, or "
            "an adapter's (its base is --base, else what it names)."
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="What it was made from; scored on the same samples.")
    ] = None,
    suite: Annotated[
        str | None,
        one_of(
            choices_of("eval.suite"),
            "quick, standard or full: which tasks, how many samples. Default: quick.",
            complete.suites,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        one_of(
            _task_names,
            "Tasks by comma, such as nll,passkey. Default: the suite's.",
            complete.tasks,
            several=True,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="By comma: 4k,8k,16k. Default: the native window, fourfolds of it, the target."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples of each task that draws them: haystacks (each at every depth) or trials "
            "at every depth, rows of a data file, prompts of --harness (there 50 by default). "
            "--set TASK.samples stands over it.",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="A task's knob: nll.anchors=4, passkey.trials=3; repeatable."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Held-out corpus, or a directory of `pack-data`; repeatable. Default: what the "
            "checkpoint's run held out, else what python-stdlib holds out."
        ),
    ] = None,
    haystack: Annotated[
        list[str] | None,
        typer.Option(
            help="Corpus that needles are hidden in, or a directory of `pack-data`; repeatable. "
            "Default: --data, else the documentation inside Python."
        ),
    ] = None,
    other_data: Annotated[
        list[str] | None,
        typer.Option(
            help="Corpus of another domain, or a directory of `pack-data`, to see what was lost "
            "there; repeatable. Default: the help topics inside Python."
        ),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A task's data file, JSON lines (.gz): lambada=PATH, hellaswag=PATH; repeatable.",
        ),
    ] = None,
    evaluator: Annotated[
        str | None,
        typer.Option(
            help="Long-context Llama of the same tokenizer that chooses the tokens of longppl. "
            "Default: the base, else the checkpoint itself."
        ),
    ] = None,
    harness: Annotated[
        list[str] | None,
        typer.Option(
            help="Run lm-eval's tasks on the same models: ruler (those that run here, at every "
            "length) or a task's name; repeatable. Needs giraffe-cli\\[eval]."
        ),
    ] = None,
    chat: Chat = False,
    documents: Annotated[
        int | None,
        typer.Option(
            min=1, help="Held-out documents at most, longest first. Default: the suite's."
        ),
    ] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            help="Exit with 5 unless the whole interval keeps it: nll@16k-nll@8k<0, "
            "passkey@16k>=0.9, short_context.delta_nll<=0.02; repeatable.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Share of right answers the effective length asks for. Default: 0.9 of the base's."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            "--gpus",
            min=1,
            help="Processes that share the samples: one for each GPU, or so many on a CPU. "
            "--harness is read by one.",
        ),
    ] = None,
    seed: Annotated[int, a_seed("Seed of samples and intervals.")] = 0,
    dtype: Dtype = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: runs/eval-CHECKPOINT.")
    ] = None,
    allow_pickle: AllowPickle = False,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON schema of results.json, and end.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint by context length, with 95% intervals, and its base on the same samples.

    Loss of the same held-out tokens under more and more context, retrieval out of long prompts,
    and what it cost within the native window. Every scored sample is kept, so the same command
    resumes a stopped evaluation.
    """
    console = Console(as_json)
    start_alone_unless_launched(console)
    given = {
        "suite": suite,
        "tasks": tasks.split(",") if tasks is not None else None,
        "lengths": lengths.split(",") if lengths is not None else None,
        "documents": documents,
        "data": data or None,
        "haystack": haystack or None,
        "other_data": other_data or None,
        "files": named_files(file),
        "evaluator": evaluator,
        "harness": harness or None,
        "chat": chat or None,
        "gates": gates or None,
        "threshold": threshold,
        "processes": processes,
    }
    config = eval_config(given, assignments or [], samples)
    check_processes(config.processes)
    folder = out or default_out(checkpoint)
    own = ["results.json", "samples.jsonl"]
    refuse_anothers(folder, own, ["prompts.jsonl.gz", "report.html", "command.json"])
    with held_by_the_first_process(folder):
        results = score_named(checkpoint, base, config, seed, dtype, folder, console, allow_pickle)
    if not results:
        return  # another process of the launcher tells
    where = f"results  {escape(str(folder / 'results.json'))}, samples.jsonl beside it"
    where += f"\nreport   {escape(_page(results, folder))}"
    parts = [*render(results), "", *render_gates(results), where]
    console.result({**results, "out": str(folder)}, parts)
    _fail_on_gates(results, folder)


def _page(results: dict[str, Any], folder: Path) -> str:
    """Write the page, which tells the command line that made it; its path."""
    from giraffe_cli.report.evaluation import write_evaluation

    return str(write_evaluation(results, folder, ["giraffe", *sys.argv[1:]]))


def _fail_on_gates(results: dict[str, Any], folder: Path) -> None:
    """Raises GateFailed, with every failed gate, where there is one."""
    from giraffe_cli.gates import Gate

    failed = [Gate(**gate) for gate in results["gates"] if not gate["ok"]]
    if failed:
        raise GateFailed(
            f"{len(failed)} of {len(results['gates'])} gates failed: "
            + "; ".join(gate.sentence for gate in failed),
            f"the scores are in {folder / 'results.json'}",
        )
