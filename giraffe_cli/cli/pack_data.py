"""`giraffe pack-data`: documents go in, fixed-length training windows with statistics come out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from giraffe_cli.cli import complete
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AsJson, OnBad, a_seed, choices_of, one_of
from giraffe_cli.cli.pack_input import pack_config, shard_of, tokenizer_folder, weights_of
from giraffe_cli.cli.pack_tasks import check_options, pack_by_tasks
from giraffe_cli.cli.pack_text import following_line, render
from giraffe_cli.units import parse_length

EXAMPLES = """
Examples:

giraffe pack-data books.jsonl.gz --tokenizer ./llama --window 16k --out packed/books

giraffe pack-data books=b.parquet code=repo:src --mix books=3 --mix code=1 --tokenizer ./llama --window 64k --out packed/mixed

giraffe pack-data 'corpus/*.jsonl' --tokenizer ./llama --window 16k --out packed/big --shard 2/8

giraffe pack-data 'corpus/*.jsonl' --tokenizer ./llama --window 16k --out packed/big --executor slurm --tasks 64 --executor-set partition=cpu

giraffe pack-data python-stdlib --tokenizer calf --window 2k --out packed/stdlib --report
"""  # noqa: E501 - a command is one line


def pack_data(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="File, folder, glob, `-`, `repo:DIR`, `epub:DIR`, `pdf:DIR`, `hf:OWNER/NAME` or "
            "`python-stdlib`; "
            "NAME=SRC names it.",
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(help="Checkpoint whose tokenizer is used: a directory, or calf.")
    ],
    window: Annotated[str, typer.Option(help="Tokens in a window: 16k, 4096.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    rule: Annotated[
        str | None,
        one_of(
            choices_of("pack.rule"),
            "best-fit, concat (a stream), one (a document a window). Default: best-fit.",
        ),
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="Tokens that pieces of a cut document share. Default: 0.")
    ] = None,
    drop_tail: Annotated[
        bool, typer.Option("--drop-tail", help="With `--rule one`: keep first windows only.")
    ] = False,
    min_piece: Annotated[
        int | None, typer.Option(min=1, help="Shorter pieces are dropped and counted. Default: 32.")
    ] = None,
    min_doc_len: Annotated[
        str | None, typer.Option(help="Shorter documents, in tokens, are left out.")
    ] = None,
    bos: Annotated[
        str | None,
        one_of(
            choices_of("pack.bos"),
            "BOS before a document: auto (as the tokenizer's files say; where they say nothing, "
            "yes), yes, no. Default: auto.",
        ),
    ] = None,
    eos: Annotated[
        str | None,
        one_of(
            choices_of("pack.eos"),
            "EOS after a document: auto (where the tokenizer has one), yes, no. Default: auto.",
        ),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(help="NAME=WEIGHT: a source's share of the tokens; repeatable."),
    ] = None,
    upsample: Annotated[
        str | None,
        one_of(
            choices_of("pack.upsample"),
            "long: long documents more often, each source's share held. Default: none.",
        ),
    ] = None,
    short_mix: Annotated[
        float | None, typer.Option(help="Share of tokens from documents below the window: 0.4.")
    ] = None,
    lookups: Annotated[
        float | None,
        typer.Option(
            help="Share of a window's tokens for made-up facts, each asked for further on: 0.06."
        ),
    ] = None,
    token_budget: Annotated[
        str | None, typer.Option("--tokens", help="Tokens to pack: 50m. Default: all there are.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Most passes over a document. Default: 1.")
    ] = None,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Leave out exact repetitions of a document.")
    ] = False,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluation texts; documents that share 13-word runs are left out; repeatable."
        ),
    ] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(help="Share of documents kept out for evaluation. Default: 0.1."),
    ] = None,
    on_bad: OnBad = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field or column with the text. Default: text.")
    ] = None,
    max_doc_bytes: Annotated[
        str | None, typer.Option(help="Longer documents are refused. Default: 256MB.")
    ] = None,
    backend: Annotated[
        str | None,
        one_of(
            choices_of("pack.backend"),
            "What tokenises: auto, fastokens, tokenizers. Default: auto.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that tokenise.")] = 1,
    shard: Annotated[
        str | None, typer.Option(help="i/N: tokenise every N-th unit only; then --merge.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Windows from what all shards tokenised.")
    ] = False,
    executor: Annotated[
        str | None,
        one_of(
            complete.executor_names,
            "local, slurm or ray: shards as tasks, and the merge (extra \\[cluster]).",
            complete.executors,
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Shards that --executor runs. Default: what suits it.")
    ] = None,
    executor_set: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of the executor: partition=cpu, time=08:00:00; repeatable."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also write report.html, a page about the corpus.")
    ] = False,
    seed: Annotated[int, a_seed("Seed of the order of the windows.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Pack documents into training windows for `giraffe extend --data` and other trainers.

    Only documents longer than the window are cut; the rest are fitted together whole, and every
    row records its pieces. The same command on the same input writes the same bytes, whatever
    the number of workers and shards, and goes on where a killed one stopped.
    """
    flags: dict[str, Any] = {
        "rule": rule,
        "overlap": overlap,
        "drop_tail": drop_tail or None,
        "min_piece": min_piece,
        "min_doc_len": min_doc_len,
        "bos": bos,
        "eos": eos,
        "mix": weights_of(mix or []) or None,
        "upsample": upsample,
        "short_mix": short_mix,
        "lookups": lookups,
        "token_budget": token_budget,
        "epochs": epochs,
        "dedupe": dedupe or None,
        "decontaminate": decontaminate or None,
        "hold_out": hold_out,
        "on_bad": on_bad,
        "text_field": text_field,
        "max_doc_bytes": max_doc_bytes,
        "backend": backend,
    }
    settings = executor_set or []
    check_options(
        executor, tasks, settings, shard=shard, merge=merge, workers=workers, report=report
    )
    part = shard_of(shard, merge, report, workers)
    console = Console(as_json)
    config = pack_config({name: value for name, value in flags.items() if value is not None})
    with tempfile.TemporaryDirectory() as scratch:
        folder = tokenizer_folder(tokenizer, Path(scratch))
        job = (sources, folder, parse_length(window), config, seed, out, console)
        if part:
            _pack_part(job, part, workers, console)
            return
        if executor:
            packed = pack_by_tasks(job, executor, tasks, settings, console)
            if packed is None:
                return
            stats = packed
        else:
            stats = _pack(job, merge, workers)
        if report:
            from giraffe_cli.report.pack_page import write_page

            console.info(f"wrote {write_page(out, folder, stats)}")
        following = following_line(tokenizer, folder, out, parse_length(window))
    console.result(
        {"out": str(out), **stats}, [*render(stats, out), "", escape(f"next: {following}")]
    )


def _pack(job: tuple[Any, ...], merge: bool, workers: int) -> dict[str, Any]:
    from giraffe_cli.corpus.packing import merge_shards, pack_stage

    if merge:
        return merge_shards(*job)
    return pack_stage(*job, replace=False, workers=workers)


def _pack_part(job: tuple[Any, ...], part: tuple[int, int], workers: int, console: Console) -> None:
    from giraffe_cli.corpus.packing import pack_shard

    done = pack_shard(*job, shard=part, workers=workers)
    following = "when every shard is done: the same command with --merge in the place of --shard"
    if done["finished"]:
        following = "every shard is done and merged"
    console.result(
        {"out": str(job[5]), **done},
        f"shard {done['shard']}: {done['documents']:,} documents, {done['tokens']:,} tokens in "
        f"{len(done['units'])} of {done['units_in_all']} units; {following}",
    )
