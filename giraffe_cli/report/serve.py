"""How to serve a checkpoint: the exact `vllm serve` and `llama-server` lines, or why there is none.

vLLM reads every `rope_type` that giraffe writes (0.33); it multiplies the length of `linear` by the
factor, which the `--max-model-len` that is always printed settles, and takes `long_mscale` for
longrope's attention factor. For llama.cpp the line goes through `giraffe export`, which carries any
table: the stock converter drops longrope's factors and recomputes YaRN's attention factor.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.malformed import rope_problems
from giraffe_cli.rope.readings import (
    ORIGINAL,
    read_as_transformers_5,
    served_length,
    switches,
)
from giraffe_cli.rundir import read_json


def serve_lines(model_dir: Path, named: str | None = None) -> list[str]:
    """Commands to paste, and lines starting with `#` where a runtime cannot serve this model.

    Args:
        model_dir: a written checkpoint; its `config.json` decides.
        named: what the lines call it in the place of its path.

    Raises:
        InvalidInput: no readable `config.json`.
    """
    config = read_json(model_dir / "config.json")
    rope = read_as_transformers_5(config)
    shown = Path(named) if named else model_dir
    length, folder = window_of(config), shlex.quote(str(shown))
    if length is None:
        raise InvalidInput(
            f"{model_dir}/config.json says max_position_embeddings "
            f"{config.get('max_position_embeddings')!r}, needs an integer",
            f"run giraffe verify {folder}",
        )
    return [
        *_vllm_cautions(rope),
        f"vllm serve {folder} --max-model-len {length}",
        *_llama_cpp(shown, config, rope, length),
    ]


def window_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model is served at; None where `config.json` does not say."""
    window = config.get("max_position_embeddings")
    if not isinstance(window, int) or rope_problems(config):
        return window if isinstance(window, int) else None
    return served_length(config, read_as_transformers_5(config))


def gguf_path(model_dir: Path) -> Path:
    """Where the printed lines put the file for llama.cpp, and look for it: beside the folder."""
    named = model_dir if model_dir.name not in ("", "..") else model_dir.resolve()
    return named.with_name(f"{named.name}.gguf")


def _vllm_cautions(rope: Mapping[str, Any]) -> list[str]:
    if rope["rope_type"] == "linear" and rope.get(ORIGINAL):
        return [
            "# vLLM multiplies the length of linear scaling by its factor: keep --max-model-len"
        ]
    if rope["rope_type"] == "longrope" and "long_mscale" not in rope:
        return ["# vLLM ignores attention_factor for longrope, and long_mscale is missing here"]
    return []


def has_biases(config: Mapping[str, Any]) -> bool:
    """Whether the projections add a bias, which `giraffe export --to gguf` has no place for."""
    return bool(config.get("attention_bias") or config.get("mlp_bias"))


def _llama_cpp(
    model_dir: Path, config: Mapping[str, Any], rope: Mapping[str, Any], length: int
) -> list[str]:
    if switches(rope):
        return [
            f"# llama.cpp: not served, {rope['rope_type']} here changes its table with the length "
            "and a GGUF holds one table"
        ]
    if has_biases(config):
        return ["# llama.cpp: not served, giraffe export writes no biases, which this model has"]
    gguf = shlex.quote(str(gguf_path(model_dir)))
    return [
        f"giraffe export {shlex.quote(str(model_dir))} --to gguf --out {gguf}",
        f"llama-server -m {gguf} -c {length}",
    ]
