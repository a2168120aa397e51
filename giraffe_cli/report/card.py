"""The model card: `README.md` of the extended checkpoint, with the numbers of `report.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from giraffe_cli import __version__
from giraffe_cli.checkpoint_source import EMBEDDED
from giraffe_cli.corpus.source_names import PREFIX, parse_source
from giraffe_cli.plain_yaml import parse_yaml
from giraffe_cli.report import facts, facts_training
from giraffe_cli.report.card_tables import markdown_tables
from giraffe_cli.report.choice import documents_read, was_measured
from giraffe_cli.report.page import all_warnings, model_name, page_title
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.serve import serve_lines
from giraffe_cli.report.verdicts import run_verdicts
from giraffe_cli.rundir import atomic_open
from giraffe_cli.units import counted, format_length, visible

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def write_card(report: Mapping[str, Any], model_dir: Path, plan: Mapping[str, Any]) -> None:
    """Write `model_dir/README.md`.

    Args:
        plan: content of `plan.json`, whose `model.path` leads to the base's own card; may be empty.

    Raises:
        GiraffeError: the file cannot be written.
    """
    base_path = plan.get("model", {}).get("path")
    data = card_data(report, Path(base_path) if base_path else None)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(report, model_dir)}")
    with atomic_open(model_dir / "README.md", "w") as handle:
        handle.write(visible(str(card)))


def card_data(report: Mapping[str, Any], base_path: Path | None) -> ModelCardData:
    """Front matter. A license is repeated from the base's card, never invented."""
    source = str(report.get("model", ""))
    is_own = Path(source).exists() or source == EMBEDDED
    named = _HUB_NAME.fullmatch(source) and not is_own
    return ModelCardData(
        base_model=source if named else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llama", "long-context", "rope", str(report["strategy"]), "giraffe"],
        **_inherited(base_path),
    )


def _inherited(base_path: Path | None) -> dict[str, Any]:
    """`license`, its name and link, and `language` of the base's card, where it has them."""
    if base_path is None or not (base_path / "README.md").is_file():
        return {}
    text = (base_path / "README.md").read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    try:
        values = parse_yaml(front[1]) if front else None
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    keys = ("license", "license_name", "license_link", "language")
    return {key: values[key] for key in keys if values.get(key)}


def _body(report: Mapping[str, Any], model_dir: Path) -> str:
    native, target = (format_length(report[key]) for key in ("native_length", "target_length"))
    steps = report["steps"]
    method = facts_training.method_name(report.get("train", {}))
    how = f"{steps:,} training steps ({method})" if steps else "no training (zero-shot)"
    parts = [
        f"# {page_title(report)}",
        f"{model_name(report)} with its context window extended from {native} to {target} tokens: "
        f"{report['strategy']} scaling of RoPE, {how}. It loads with no extra code.",
        "## What was measured",
        "\n".join(f"- {verdict.sentence}. {verdict.meaning}" for verdict in run_verdicts(report)),
    ]
    parts += markdown_tables(Scored.of_run(report))
    warnings = all_warnings(report)
    if warnings:
        parts += ["**Warnings**", "\n".join(f"- {warning}" for warning in warnings)]
    code = "python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    parts += [
        "## Load it",
        f"```{code}\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH")\n```',
        "## Serve it",
        "```\n" + "\n".join(serve_lines(model_dir, "PATH")) + "\n```",
        "## RoPE",
        _listed(facts.rope_rows(report, {})),
        *_chosen_by(report.get("rope_choice") or {}, str(report["strategy"])),
        "## Training",
        _listed([*facts_training.training_rows(report), *facts.data_rows(_published(report), {})]),
        f"Made by giraffe {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _published(report: Mapping[str, Any]) -> dict[str, Any]:
    """`report` with names in the place of paths, which are nobody's but the author's."""
    sources = report.get("data") or []
    return {**report, "data": [public_name(str(source)) for source in sources]}


def public_name(source: str) -> str:
    """What a corpus is called where its path means nothing: `books.jsonl`, `epub:books`, the name
    that it was given, an id of the hub."""
    named = parse_source(source)
    if source.startswith("hf:") or named.name != source:
        return source if source.startswith("hf:") else named.name
    kind = PREFIX.fullmatch(source)
    if kind and not Path(source).exists():
        return f"{kind[1]}:{Path(kind[2]).name}"
    return Path(source).name or source


def _chosen_by(choice: Mapping[str, Any], strategy: str) -> list[str]:
    """How the table was chosen, where tables were compared; the last stage may name its own."""
    if not was_measured(choice) or choice["chosen"]["strategy"] != strategy:
        return []
    read = counted(documents_read(choice), "document")
    reason = " ".join(str(choice["reason"]).split())
    return [f"The table was chosen by measurement on {read} of the training text: {reason}."]


def _listed(rows: list[facts.Row]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)
