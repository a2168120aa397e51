"""`giraffe eval`: a checkpoint's scores by context length, beside its base's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.cli.console import Console
from giraffe_cli.errors import GateFailed, InvalidInput, raise_together
from giraffe_cli.units import format_length

if TYPE_CHECKING:
    from giraffe_cli.config import EvalConfig
    from giraffe_cli.corpus.base import Document
    from giraffe_cli.evals.samples import Texts

EXAMPLES = """
Examples:

giraffe eval runs/calf-16k/model --base calf

giraffe eval ./smollm2-16k --base ./smollm2 --data books.jsonl.gz --lengths 8k,16k

giraffe eval ./any-llama --tasks passkey --lengths 2k,12k --set passkey.trials=3 --json

giraffe eval ./smollm2-16k --base ./smollm2 --gate 'nll@16k-nll@8k<0' --gate 'passkey@16k>=0.7'
"""

DEFAULT_DATA = "python-stdlib"


def _print_schema(asked: bool) -> None:
    if asked:
        from giraffe_cli.evals.schema import results_schema

        typer.echo(json.dumps(results_schema(), indent=2))
        raise typer.Exit


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Any Llama: a directory, .gguf file or Hugging Face id, or calf.")
    ],
    base: Annotated[
        str | None, typer.Option(help="What it was made from; scored on the same samples.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Held-out corpus, or a directory of `pack-data`; repeatable. Default: what the "
            "checkpoint's run held out, else what python-stdlib holds out."
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks by comma. Default: nll,passkey.")] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="4k,8k,16k. Default: the native window, fourfolds of it, the target."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="A task's knob: nll.anchors=4, passkey.trials=3."),
    ] = None,
    documents: Annotated[
        int | None, typer.Option(help="Held-out documents at most, longest first. Default: 8.")
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
    seed: Annotated[int, typer.Option(help="Seed of samples and intervals.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: as the checkpoint is stored.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: runs/eval-CHECKPOINT.")
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON schema of results.json, and end.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score a checkpoint by context length, with 95% intervals, and its base on the same samples.

    nll: loss of the same held-out tokens under more and more context. passkey: find a number in
    filler. Every scored sample is kept, so the same command resumes a stopped evaluation.
    """
    console = Console(as_json)
    config = _config(tasks, lengths, documents, data, assignments or [], gates, threshold)
    _check_dtype(dtype)
    folder = out or _default_out(checkpoint)
    results = _run(checkpoint, base, config, seed, dtype, folder, console)
    where = f"results  {escape(str(folder / 'results.json'))}, samples.jsonl beside it"
    parts = [*render(results), "", *render_gates(results), where]
    console.result({**results, "out": str(folder)}, parts)
    _fail_on_gates(results, folder)


def _config(
    tasks: str | None,
    lengths: str | None,
    documents: int | None,
    data: list[str] | None,
    assignments: list[str],
    gates: list[str] | None,
    threshold: float | None,
) -> EvalConfig:
    """The evaluation's config; every problem at once.

    Raises:
        InvalidInput: a length, a task list, a knob or a gate that cannot be.
    """
    from giraffe_cli.config import apply_overrides, build

    values = {
        "tasks": tasks.split(",") if tasks is not None else None,
        "lengths": lengths.split(",") if lengths is not None else None,
        "documents": documents,
        "data": data or None,
        "knobs": apply_overrides({}, assignments) or None,
        "gates": gates or None,
        "threshold": threshold,
    }
    given = {key: value for key, value in values.items() if value is not None}
    return build({"target_length": 1, "eval": given}, "eval").eval


def _check_dtype(dtype: str) -> None:
    known = ("auto", "float32", "bfloat16", "float16")
    if dtype not in known:
        raise InvalidInput(f"unknown --dtype `{dtype}`", f"known: {', '.join(known)}")


def _default_out(checkpoint: str) -> Path:
    """`runs/eval-NAME`; a run's `model` folder is known by the run's name."""
    path = Path(checkpoint).resolve()
    name = path.parent.name if path.name == "model" else path.name
    return Path("runs") / f"eval-{name.removesuffix('.gguf')}"


def _run(
    checkpoint: str,
    base: str | None,
    config: EvalConfig,
    seed: int,
    dtype: str,
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Open what was named, gather the documents, evaluate."""
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.config import resolve_dtype
    from giraffe_cli.evals.runner import Subject
    from giraffe_cli.evals.runner import evaluate as score
    from giraffe_cli.evals.samples import default_lengths

    tested = inspect(checkpoint, out / "checkpoint")
    reference = inspect(base, out / "base") if base else None
    native = reference.reach if reference else tested.native_length
    chosen = config.lengths or default_lengths(native, tested.reach)
    computed = resolve_dtype(dtype, tested.dtype)
    opened = [("base", reference), ("checkpoint", tested)]
    return score(
        [Subject(name, c.path, c.digest, computed) for name, c in opened if c],
        config,
        lengths=chosen,
        native_length=native,
        seed=seed,
        texts=_texts(config, tested.path),
        out=out,
        cache=Path(config.cache) if config.cache else out / "cache",
        reporter=console,
    )


def _texts(config: EvalConfig, checkpoint: Path) -> Texts:
    """The documents where a task needs some, and the haystack."""
    from giraffe_cli.evals.base import tasks
    from giraffe_cli.stages import evaluation_texts

    known = tasks()
    needed = {need for name in config.tasks if name in known for need in known[name].needs}
    return evaluation_texts(config, _documents(config, checkpoint) if "documents" in needed else [])


def _documents(config: EvalConfig, checkpoint: Path) -> list[Document]:
    """Text to score on: `--data`, else what the checkpoint's run held out, else python-stdlib's.

    Raises:
        InvalidInput: a source is missing or unreadable, or holds nothing.
    """
    from giraffe_cli.config import PackConfig
    from giraffe_cli.corpus.base import BadRecords
    from giraffe_cli.corpus.holdout import choose_held_out
    from giraffe_cli.corpus.sources import check_distinct, read_source
    from giraffe_cli.corpus.store import held_out, is_packed

    packed = checkpoint.parent / "packed"
    if not config.data and is_packed(packed):
        return held_out(packed)
    if not config.data:
        found = list(read_source(DEFAULT_DATA, BadRecords()))
        kept = choose_held_out([d.id for d in found], PackConfig().hold_out)
        return [document for document in found if document.id in kept]
    check_distinct(config.data)
    documents: list[Document] = []
    for source in config.data:
        if is_packed(Path(source)):
            documents += held_out(Path(source))
        else:
            documents += read_source(source, BadRecords())
    problems = [] if documents else [f"no documents in {', '.join(config.data)}"]
    raise_together(problems, "--data", "name a corpus that holds text")
    return documents


def render(results: dict[str, Any]) -> list[RenderableType]:
    """A table for each task, lengths as rows, and how far each model reaches."""
    models, parts = results["models"], list[RenderableType]()
    for task in results["measures"]:
        reached = [f"{name} {_reached(task, name, results)}" for name in models]
        rule = escape(results["measures"][task]["effective_length"]["rule"])
        parts += [_table(task, results), f"effective length: {', '.join(reached)} ({rule})", ""]
    return parts[:-1]


def _reached(task: str, name: str, results: dict[str, Any]) -> str:
    """The effective length in words."""
    length = results["models"][name].get("effective_length", {}).get(task)
    return format_length(length) if length else "none shown"


def render_gates(results: dict[str, Any]) -> list[RenderableType]:
    """A line for each gate, and an empty one after them."""
    from giraffe_cli.gates import Gate

    gates = [Gate(**gate) for gate in results["gates"]]
    lines = [f"gate {'passed' if g.ok else 'failed'}  {escape(g.sentence)}" for g in gates]
    return [*lines, *([""] if lines else [])]


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


def _table(task: str, results: dict[str, Any]) -> Table:
    """Score and 95% interval by length; with a base also the paired difference."""
    models = results["models"]
    paired = results["paired"].get(task, {}).get("checkpoint_minus_base", {})
    table = Table(title=f"{task} by context length, 95% intervals", box=None, padding=(0, 2, 0, 0))
    headings = ["context", *models, *(["checkpoint - base"] if paired else []), "n"]
    for heading in headings:
        table.add_column(heading, justify="right")
    scored = models["checkpoint"]["tasks"][task]
    models = {name: model for name, model in models.items() if task in model.get("tasks", {})}
    for length, score in scored.items():
        mark = "*" if int(length) > results["native_length"] else ""
        cells = [_cell(model["tasks"][task][length]) for model in models.values()]
        differences = [_cell(paired[length], sign="+")] if paired else []
        table.add_row(f"{format_length(int(length))}{mark}", *cells, *differences, str(score["n"]))
    if any(int(length) > results["native_length"] for length in scored):
        table.caption = f"* beyond the native window of {format_length(results['native_length'])}"
    return table


def _cell(score: dict[str, Any], sign: str = "") -> str:
    low, high = score["ci_low"], score["ci_high"]
    return escape(f"{score['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]")
