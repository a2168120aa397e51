"""The tokens that end a text beside the tokenizer's own: a GGUF has a place for one of them.

transformers ends at each `eos_token_id` of `generation_config.json`. llama.cpp ends at EOS, at EOT
where the file names one, and at every token that is called as the models it knows call theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.rundir import read_json

BY_NAME = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>")
) | {"<|end_of_text|>", "<EOT>"}
"""Taken for an end whatever the file says (llama.cpp, `llama-vocab.cpp`, since early 2025)."""


def further_ends(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, int], tokens: Sequence[str]
) -> list[int]:
    """The ids at which transformers ends and llama.cpp by itself would not, in their order; none
    that is another of the `special` ones."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    named = settings.get("eos_token_id") if isinstance(settings, dict) else None
    named = config.get("eos_token_id") if named is None else named
    ids = named if isinstance(named, list) else [named]
    known = [index for index in ids if isinstance(index, int) and 0 <= index < len(tokens)]
    others = {special.get(name) for name in ("bos", "eos", "unk")}
    return [index for index in known if index not in others and tokens[index] not in BY_NAME]
