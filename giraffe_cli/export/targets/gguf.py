"""GGUF for llama.cpp, with the exact table of every strategy.

llama.cpp's own converter writes only the word `longrope` for a Llama and drops its factors; here
any table is `rope_freqs.weight` beside the plain θ (`export/gguf_fields.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
from pathlib import Path
from typing import Any, ClassVar

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.export.base import AbstractTarget, Exported, ExportOptions
from giraffe_cli.export.gguf_fields import model_fields, tokenizer_fields
from giraffe_cli.export.gguf_proof import prove
from giraffe_cli.export.gguf_tensors import DTYPES, Planned, plan_tensors, read_planned
from giraffe_cli.export.gguf_tokenizer import read_vocabulary
from giraffe_cli.export.gguf_write import write_gguf
from giraffe_cli.export.source import Source, open_source
from giraffe_cli.lock import held_beside
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import commit_file, make_folder, temporary_path
from giraffe_cli.units import format_bytes
from giraffe_cli.verify_files import Check

_OWN_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Gguf(AbstractTarget):
    """One file that llama.cpp and what is built on it load."""

    summary: ClassVar[str] = "one file for llama.cpp: weights, tokenizer and the exact table"
    takes: ClassVar[frozenset[str]] = frozenset({"out", "dtype"})

    def export(self, source: str, options: ExportOptions, reporter: Reporter) -> Exported:
        """`options.dtype` defaults to the checkpoint's own, `out` to `NAME-DTYPE.gguf` beside it.

        A file of that name that holds this very model already is left as it is.
        """
        _need_gguf()
        opened = open_source(source)
        dtype = _dtype(options.dtype, opened)
        out = options.out or _default_out(source, opened, dtype)
        vocabulary = read_vocabulary(
            opened.checkpoint.path, opened.config, opened.checkpoint.vocab_size
        )
        for warning in vocabulary.warnings:
            reporter.warn(warning)
        fields = {**model_fields(opened, dtype), **tokenizer_fields(vocabulary)}
        plan = plan_tensors(opened.checkpoint, dtype)
        if out.exists():
            checks = _prove_existing(out, opened, fields, plan)
            with contextlib.suppress(OSError):  # of another owner: it stands as it is
                os.utime(out)  # as new as the weights that it was found equal to
            reporter.info(f"{out} holds this model already")
        else:
            with held_beside(out):
                checks = _write_proven(out, opened, fields, plan, reporter)
        return _exported(out, opened, dtype, len(plan), checks)


def _need_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise InvalidInput(
            "writing GGUF needs the `gguf` package, which is not installed",
            "pip install 'giraffe-cli[gguf]'",
        )


def _dtype(asked: str | None, source: Source) -> str:
    dtype = asked or _OWN_DTYPE[source.checkpoint.dtype]
    if dtype not in DTYPES:
        raise InvalidInput(f"unknown --dtype {dtype}", f"choose one of {', '.join(DTYPES)}")
    return dtype


def _default_out(given: str, source: Source, dtype: str) -> Path:
    """Beside the directory, in a run directory inside it; here for `calf` and hub ids."""
    name, path = f"{source.name}-{dtype}.gguf", Path(given).expanduser()
    if not path.is_dir():
        return Path(name)
    return (path if (path / "run.yaml").is_file() else path.resolve().parent) / name


def _prove_existing(
    out: Path, source: Source, fields: dict[str, Any], plan: dict[str, Planned]
) -> dict[str, Check]:
    hint = "choose another --out, or delete it"
    if not out.is_file():
        raise InvalidInput(f"{out} exists and is no file", hint)
    try:
        checks = prove(out, source, fields, read_planned(source.checkpoint, plan))
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InvalidInput(f"{out} exists and is no readable GGUF file", hint) from error
    wrong = _failures(checks)
    if wrong:
        raise InvalidInput(f"{out} exists and holds something else ({wrong})", hint)
    return checks


def _write_proven(
    out: Path, source: Source, fields: dict[str, Any], plan: dict[str, Planned], reporter: Reporter
) -> dict[str, Check]:
    """The file appears under its name when it is written, read back and found equal."""
    make_folder(out.parent)
    temporary = temporary_path(out)
    try:
        write_gguf(
            temporary,
            fields,
            plan.values(),
            read_planned(source.checkpoint, plan),
            source.divisors() if source.scaled else None,
            reporter,
        )
        reporter.info(f"reading {out.name} back")
        checks = prove(temporary, source, fields, read_planned(source.checkpoint, plan))
        if wrong := _failures(checks):
            raise GiraffeError(
                f"{out} was written wrongly: {wrong}",
                "this is a fault of giraffe, and the file was removed; please report it",
            )
        commit_file(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return checks


def _failures(checks: dict[str, Check]) -> str:
    """`weights: differ: blk.0.attn_q.weight; ...`, empty when all hold."""
    return "; ".join(f"{name}: {c['found']}" for name, c in checks.items() if not c["ok"])


def _exported(
    out: Path, source: Source, dtype: str, weights: int, checks: dict[str, Check]
) -> Exported:
    scaled, size = source.scaled, out.stat().st_size
    facts = {
        "path": str(out),
        "dtype": dtype,
        "bytes": size,
        "tensors": weights + scaled,
        "context_length": source.context_length,
        "attention_factor": source.attention_factor,
        "rope_freqs": scaled,
        "checks": checks,
    }
    table = "rope_freqs.weight" if scaled else "plain θ"
    lines = [
        f"gguf: {out} ({dtype}, {format_bytes(size)}, {facts['tensors']} tensors)",
        f"window: {source.context_length} tokens, table: {table}, "
        f"attention factor {source.attention_factor:g}",
        f"read back: {len(checks)} checks",
        f"serve it: llama-server -m {shlex.quote(str(out))} -c {source.context_length}",
    ]
    return Exported(facts, lines)
