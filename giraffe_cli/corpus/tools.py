"""What one process needs to tokenise units, and what of it decides their ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.changes import raw_digest
from giraffe_cli.corpus.contamination import EvaluationGrams
from giraffe_cli.corpus.tokens import DocumentTokenizer, tokenizer_digest
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.rundir import digest_value

FORMAT = 4
"""Counts changes of what the first phase of packing writes."""
_IDENTIFYING = ("hold_out", "on_bad", "text_field", "bos", "eos", "max_doc_bytes", "block_bytes")
"""Knobs of `PackConfig` that decide what that phase writes."""


@dataclass
class Tools:
    """What one process needs for all its units."""

    tokenize: DocumentTokenizer
    config: PackConfig
    grams: EvaluationGrams | None
    inputs: dict[str, Any]
    """What decides the ids beside the unit."""
    kept: str | None = None
    """A document that is not held out, whatever its hash: else there were none to train on."""

    @staticmethod
    def of(folder: Path, config: PackConfig, kept: str | None = None) -> Tools:
        """Open the tokenizer in `folder` and the evaluation files.

        Raises:
            InvalidInput: either cannot be used.
        """
        tokenize = DocumentTokenizer(folder, config.backend, config.bos, config.eos)
        grams = EvaluationGrams.of(config.decontaminate) if config.decontaminate else None
        inputs = {
            "format": FORMAT,
            "tokenizer": tokenizer_digest(folder),
            "tokens_policy": tokenize.policy,
            "config": config.model_dump(mode="json", include=set(_IDENTIFYING)),
            "decontaminate": grams.files if grams else {},
            "kept": kept,
        }
        return Tools(tokenize, config, grams, inputs, kept)


def unit_inputs(unit: Unit, tools: Tools) -> dict[str, Any]:
    """The identity of a tokenised unit, its source's bytes included."""
    return {**tools.inputs, "unit": digest_value(unit.to_json()), "raw": raw_digest(unit)}
