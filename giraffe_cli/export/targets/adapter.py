"""A run's LoRA adapter as PEFT and vLLM take it, with the table it was trained under.

The matrices are copied byte for byte; the config names the base as others know it, without a path
of this machine; `rope.json`, the tokenizer with its new limit and a README with the exact lines go
along (`export/adapter_card.py`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from giraffe_cli.adapter import (
    ADAPTER_WEIGHTS,
    adapter_digest,
    is_full,
    read_adapter,
)
from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError, first_line
from giraffe_cli.export.adapter_card import OVERRIDES, card, overrides
from giraffe_cli.export.base import AbstractTarget, Exported, ExportOptions
from giraffe_cli.lock import held_beside
from giraffe_cli.merge_folder import TEMPLATES, copy_file
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.install import ROPE_FILE
from giraffe_cli.run_files import adapter_of, base_of, read_run
from giraffe_cli.rundir import (
    atomic_open,
    begin_stage,
    digest_file,
    finish_stage,
    make_folder,
    read_json,
    stage_holds,
    sync_folder,
    temporary_path,
    write_json,
    write_sealed,
)
from giraffe_cli.verify_files import Check, check
from giraffe_cli.weights import ADAPTER_CONFIG

STAGE = "export-adapter"
_TOKENIZER = ("tokenizer.json", "special_tokens_map.json", "chat_template*", TEMPLATES)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Adapter(AbstractTarget):
    """A folder that PEFT and vLLM load on the base."""

    summary: ClassVar[str] = "a run's adapter for PEFT and vLLM, with its table and how to load it"
    takes: ClassVar[frozenset[str]] = frozenset({"out", "base_id"})

    def export(self, source: str, options: ExportOptions, reporter: Reporter) -> Exported:
        """`options.base_id` is what the config and the README name as the base; `out` defaults to
        `NAME-adapter` in the run directory. A folder that holds the same is left as it is."""
        _check_base_id(options.base_id)
        run = Path(source).expanduser()
        config, table = read_run(run)
        adapter = adapter_of(run, config)
        if adapter is None:
            raise InvalidInput(
                f"{run} was extended without training: it has no adapter",
                f"giraffe export {source} --to gguf writes its model",
            )
        if is_full(adapter):
            raise InvalidInput(
                f"{run} trained every weight (method: full): it has no adapter",
                f"giraffe merge {source} writes the model, giraffe export {source} --to gguf "
                "that model for llama.cpp",
            )
        _check_same_table(adapter, table)
        read_adapter(adapter)  # whole, or it is named before anything is written
        out = options.out or run / f"{run.resolve().name}-adapter"
        place = base_of(run, config)
        private = [run, Path(place)]
        base = base_name(place, options.base_id)
        inputs = {
            "stage": STAGE,
            "adapter": adapter_digest(adapter),
            "base": base,
            "table": table.to_json(),
        }
        if stage_holds(out, inputs):
            reporter.info(f"{out} holds this adapter already")
        else:
            with held_beside(out):
                _write(out, inputs, adapter, table, _tokenizer_folder(run, config), private)
        return _exported(out, base, table, prove(out, adapter, table, private))


def _check_base_id(base_id: str | None) -> None:
    """Raises UsageError for what is no `owner/name`. A name alone is refused, too: only models of
    before the hub had owners are found by one, none of them a Llama."""
    if base_id is None:
        return
    try:
        validate_repo_id(base_id)
        if "/" in base_id:
            return
        problem = "it has no owner"
    except HFValidationError as error:
        problem = first_line(error)
    raise UsageError(
        f"--base-id {base_id!r} is no Hugging Face id: {problem}",
        "give OWNER/NAME, such as meta-llama/Meta-Llama-3-8B; left out, the base is called by the "
        "name of its folder",
    )


def base_name(model: str, base_id: str | None) -> str:
    """A Hugging Face id as it is; of a local directory its name alone."""
    if base_id:
        return base_id
    named = _HUB_ID.fullmatch(model) and not Path(model).expanduser().exists()
    return model if named else Path(model).expanduser().resolve().name


def _check_same_table(adapter: Path, table: RopeTable) -> None:
    trained = RopeTable.from_json(read_json(adapter / ROPE_FILE))
    if (trained.inv_freq, trained.attention_factor) != (table.inv_freq, table.attention_factor):
        raise InvalidInput(f"{adapter} was trained with another table than {ROPE_FILE} of its run")


def _tokenizer_folder(run: Path, config: ExtendConfig) -> Path:
    """The extended model where it is still there, else the base."""
    if (run / "model" / "tokenizer.json").is_file():
        return run / "model"
    return inspect(base_of(run, config), run, config.allow_pickle).path


def _write(
    out: Path,
    inputs: Mapping[str, Any],
    adapter: Path,
    table: RopeTable,
    tokenizer: Path,
    private: list[Path],
) -> None:
    """The folder appears under its name when it is complete and was read back."""
    if out.exists():
        raise InvalidInput(
            f"{out} exists and holds something else", "choose another --out, or delete it"
        )
    building = begin_stage(temporary_path(out))
    try:
        copy_file(adapter / ADAPTER_WEIGHTS, building / ADAPTER_WEIGHTS)
        base = str(inputs["base"])
        config = {**read_json(adapter / ADAPTER_CONFIG), "base_model_name_or_path": base}
        write_json(building / ADAPTER_CONFIG, config)
        write_sealed(building / ROPE_FILE, table.to_json())
        write_json(building / OVERRIDES, overrides(table))
        _copy_tokenizer(tokenizer, building, table.target_length)
        with atomic_open(building / "README.md", "w") as handle:
            handle.write(card(out.name, base, bool(_HUB_ID.fullmatch(base)), table, config))
        finish_stage(building, inputs)
        prove(building, adapter, table, private)
        building.rename(out)
    except OSError as error:
        raise GiraffeError(
            f"cannot write {out}: {error.strerror or error}", "choose another --out"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    sync_folder(make_folder(out.parent))


def _copy_tokenizer(source: Path, folder: Path, target_length: int) -> None:
    for pattern in _TOKENIZER:
        for path in filter(Path.is_file, sorted(source.glob(pattern))):
            copy_file(path, folder / path.relative_to(source))
    settings = source / "tokenizer_config.json"
    if settings.is_file():
        limited = {**read_json(settings), "model_max_length": target_length}
        write_json(folder / settings.name, limited)


def prove(out: Path, adapter: Path, table: RopeTable, private: list[Path]) -> dict[str, Check]:
    """`{check: {"ok", "found", "expected"}}`, read back from `out`.

    Raises:
        GiraffeError: one of them does not hold.
    """
    written, trained = (digest_file(f / ADAPTER_WEIGHTS) for f in (out, adapter))
    found = RopeTable.from_json(read_json(out / ROPE_FILE))
    targets, expected = len(read_adapter(out)), len(read_adapter(adapter))
    texts = "".join(p.read_text(encoding="utf-8") for p in out.iterdir() if _is_text(p))
    paths = [str(p.resolve()) for p in private if p.exists() and str(p.resolve()) in texts]
    checks = {
        "matrices": check(written == trained, written, trained),
        "targets": check(targets == expected, targets, expected),
        "rope_json": check(found == table, found.strategy, table.strategy),
        "private_paths": check(not paths, paths, []),
    }
    wrong = [f"{name}: {c['found']}" for name, c in checks.items() if not c["ok"]]
    if wrong:
        raise GiraffeError(f"{out} was written wrongly: {'; '.join(wrong)}", "please report it")
    return checks


def _is_text(path: Path) -> bool:
    return path.suffix in {".json", ".md"} and path.name != "tokenizer.json"


def _exported(out: Path, base: str, table: RopeTable, checks: dict[str, Check]) -> Exported:
    facts = {
        "path": str(out),
        "base": base,
        "strategy": table.strategy,
        "native_length": table.original_max_position_embeddings,
        "target_length": table.target_length,
        "attention_factor": table.attention_factor,
        "checks": checks,
    }
    lines = [
        f"adapter: {out} (base {base})",
        f"window: {table.target_length} tokens ({table.strategy}); {ROPE_FILE} must be set before "
        "the model is built",
        f"read back: {len(checks)} checks",
        f"load it: {out / 'README.md'} has the lines",
    ]
    return Exported(facts, lines)
