"""Do the serve lines fit the directory they name?

    weights     whole safetensors files of the shapes that config.json says
    tokenizer   tokenizer.json, and no limit below the printed length (vLLM takes the smaller one)
    vllm        its table is the one that is written, at the printed length
    gguf        the exported file, where there is one: window, table, attention factor, tensors; and
                not older than the weights

Nothing is loaded and no engine is started; whether `vllm` and `llama-server` are installed is told,
and is no defect.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import inspect
from giraffe_cli.errors import GiraffeError
from giraffe_cli.report.serve import gguf_path, has_biases, window_of
from giraffe_cli.rope.malformed import is_number
from giraffe_cli.rope.readings import read_as_transformers_5, switches
from giraffe_cli.rope.runtimes import VLLM_WITH_YARN_FACTORS, portability
from giraffe_cli.rundir import read_json
from giraffe_cli.verify_files import Check, check
from giraffe_cli.weights import weight_files

PROGRAMS = {"vllm": "vllm", "llama.cpp": "llama-server"}


def check_serving(model_dir: Path) -> dict[str, Check]:
    """`{check: {"ok", "found", "expected"}}`; never raises for what is wrong with the directory."""
    config = read_json(model_dir / "config.json")
    length = window_of(config)
    return {
        "weights": _weights(model_dir),
        "tokenizer": _tokenizer(model_dir, length),
        "vllm": _vllm(config, length),
        "gguf": _gguf(model_dir, config),
    }


def engines() -> dict[str, bool]:
    """Which of the engines can be started here."""
    return {name: shutil.which(program) is not None for name, program in PROGRAMS.items()}


def _weights(model_dir: Path) -> Check:
    try:
        found = inspect(str(model_dir), model_dir)
    except GiraffeError as error:
        return check(False, error.message, "a whole checkpoint", error.hint)
    words = f"{found.num_parameters:,} parameters in {found.dtype}"
    return check(True, words, "a whole checkpoint")


def _tokenizer(model_dir: Path, length: Any) -> Check:
    path = model_dir / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        return check(False, f"{path.name} holds no JSON object", f"no limit below {length}")
    limit = settings.get("model_max_length")
    if limit is None or is_number(limit) and isinstance(length, int) and limit >= length:
        chat = "with" if _has_chat_template(model_dir, settings) else "without"
        return check(True, f"{chat} chat template", f"no limit below {length}")
    return check(
        False,
        f"model_max_length {limit!r}",
        f"no limit below {length}",
        f"set model_max_length to {length} in {path}, or serve with --max-model-len {limit}",
    )


def _has_chat_template(model_dir: Path, settings: dict[str, Any]) -> bool:
    return "chat_template" in settings or (model_dir / "chat_template.jinja").is_file()


def _vllm(config: dict[str, Any], length: Any) -> Check:
    does = portability(config)["vllm"]
    fits = ("exact", f"exact with --max-model-len {length}", VLLM_WITH_YARN_FACTORS)
    hint = "run giraffe verify, which says what each runtime reads"
    return check(does in fits, does, f"exact at {length} tokens", hint)


def _gguf(model_dir: Path, config: dict[str, Any]) -> Check:
    path, expected = gguf_path(model_dir), "the table and window of the directory"
    if switches(read_as_transformers_5(config)):
        return check(True, "none: a GGUF holds one table", expected)
    if has_biases(config):
        return check(True, "none: biases are not exported", expected)
    if not path.is_file():
        return check(True, "not exported yet: the line above writes it", expected)
    if importlib.util.find_spec("gguf") is None:
        return check(True, "not read: pip install 'giraffe-cli[gguf]'", expected)
    model, file = shlex.quote(str(model_dir)), shlex.quote(str(path))
    again = f"rm {file} && giraffe export {model} --to gguf --out {file}"
    try:
        newest = max(file.stat().st_mtime for file in weight_files(model_dir))
        if path.stat().st_mtime < newest:
            return check(False, f"{path} is older than the weights", expected, again)
        return _header(path, model_dir, expected, again)
    except GiraffeError as error:
        return check(False, error.message, expected, error.hint)


def _header(path: Path, model_dir: Path, expected: str, again: str) -> Check:
    from giraffe_cli.export.gguf_proof import prove_header
    from giraffe_cli.export.source import open_source

    try:
        checks = prove_header(path, open_source(str(model_dir)))
    except (ValueError, KeyError, IndexError) as error:
        return check(False, f"{path} cannot be read: {error}", expected, again)
    wrong = [f"{name} {one['found']}" for name, one in checks.items() if not one["ok"]]
    fine = f"{path}: {', '.join(checks)} as in the directory"
    return check(not wrong, "; ".join(wrong) or fine, expected, again)
