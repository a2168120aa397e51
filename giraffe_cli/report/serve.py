"""How to serve a checkpoint: the exact `vllm serve` and `llama-server` lines, or why there is none.

What each runtime does with a `rope_type` (read in vLLM 0.33 and llama.cpp of October 2026):

    rope_type  vLLM                                   llama.cpp's own converter
    default    exact                                  exact, any theta
    linear     multiplies the length by the factor    exact
    yarn       exact                                  recomputes the attention factor, 0.1 ln s + 1
    llama3     exact                                  exact
    longrope   reads short_mscale and long_mscale     drops the factors: unscaled, useless
    dynamic    exact                                  drops the scaling

A `--max-model-len` is always printed, which also settles the length of `linear`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.readings import read_as_transformers_5, yarn_attention_factor
from giraffe_cli.rundir import read_json

CONVERTIBLE = ("default", "linear", "yarn", "llama3")
"""The `rope_type`s that llama.cpp's stock converter carries over."""
_OUT_TYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


def serve_lines(model_dir: Path, report: Mapping[str, Any] | None = None) -> list[str]:
    """Commands to paste, and lines starting with `#` where a runtime cannot serve this model.

    Args:
        model_dir: a written checkpoint; its `config.json` decides.
        report: `report.json`, for the embedded model's name; None for any directory.

    Raises:
        InvalidInput: no readable `config.json`.
    """
    config = read_json(model_dir / "config.json")
    rope = read_as_transformers_5(config)
    length = config.get("max_position_embeddings")
    if not isinstance(length, int):
        raise InvalidInput(
            f"{model_dir}/config.json says max_position_embeddings {length!r}, needs an integer",
            f"run giraffe verify {model_dir}",
        )
    folder = shlex.quote(str(model_dir))
    return [
        *_vllm_cautions(rope),
        f"vllm serve {folder} --max-model-len {length}",
        *_llama_cpp(model_dir, config, rope, length, str((report or {}).get("model", ""))),
    ]


def _vllm_cautions(rope: Mapping[str, Any]) -> list[str]:
    if rope["rope_type"] == "linear":
        return [
            "# vLLM multiplies the length of linear scaling by its factor: keep --max-model-len"
        ]
    if rope["rope_type"] == "longrope" and "long_mscale" not in rope:
        return ["# vLLM ignores attention_factor for longrope, and long_mscale is missing here"]
    return []


def _llama_cpp(
    model_dir: Path, config: Mapping[str, Any], rope: Mapping[str, Any], length: int, model: str
) -> list[str]:
    obstacle = _llama_cpp_obstacle(rope, model)
    if obstacle:
        return [f"# llama.cpp: not served yet, {obstacle}"]
    dtype = str(config.get("dtype", config.get("torch_dtype", "")))
    folder = shlex.quote(str(model_dir))
    gguf = shlex.quote(f"{model_dir}.gguf")
    return [
        f"python convert_hf_to_gguf.py {folder} --outfile {gguf} "
        f"--outtype {_OUT_TYPES.get(dtype, 'auto')}",
        f"llama-server -m {gguf} -c {length}",
    ]


def _llama_cpp_obstacle(rope: Mapping[str, Any], model: str) -> str | None:
    """Why the stock converter would write a model that runs with another table; None when exact."""
    kind = rope["rope_type"]
    if kind == "longrope":
        return (
            "its stock converter drops the longrope factors and the model would run unscaled; "
            "choose --rope yarn, linear or ntk for llama.cpp"
        )
    if kind not in CONVERTIBLE:
        return f"its stock converter does not carry rope_type {kind}"
    if kind == "yarn" and not _standard_attention_factor(rope):
        return (
            f"it would replace the attention factor {yarn_attention_factor(rope):.4f} "
            "by 0.1 ln(factor) + 1"
        )
    if model == "calf":
        return "its converter does not know calf's own tokenizer"
    return None


def _standard_attention_factor(rope: Mapping[str, Any]) -> bool:
    """True when YaRN's factor is the paper's 0.1 ln s + 1, which llama.cpp computes itself."""
    standard = yarn_attention_factor({"factor": rope["factor"]})
    return math.isclose(yarn_attention_factor(rope), standard, rel_tol=1e-6)
