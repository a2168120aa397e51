"""A `.gguf` file becomes a Hugging Face directory: weights unpacked once, tokenizer beside them.

Only what transformers restores for Llama survives: θ and the native window do, `rope.scaling.*`
does not, so a GGUF that carries scaling is refused rather than read as unscaled.
Needs the `gguf` package (extra `[gguf]`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import (
    begin_stage,
    digest_file,
    finish_stage,
    read_json,
    stage_holds,
    write_json,
)

_STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def import_gguf(gguf_file: Path, out: Path, dtype: str | None = None) -> Path:
    """Write `out`, a Hugging Face directory with the weights of `gguf_file`; skipped if it holds.

    `dtype` defaults to the file's own for F32, F16 and BF16 matrices, to bfloat16 for quantised
    ones, whose block noise is far above bfloat16's rounding.

    Raises:
        InvalidInput: the `gguf` package is missing, the file is damaged, is no Llama, or is scaled.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InvalidInput(
            f"reading {gguf_file.name} needs the `gguf` package, which is not installed",
            "pip install 'giraffe-cli[gguf]'",
        )
    stored = read_gguf_header(gguf_file)
    inputs = {"gguf_sha256": digest_file(gguf_file), "dtype": dtype or stored}
    if not stage_holds(out, inputs):
        begin_stage(out)
        _convert(gguf_file, out, inputs["dtype"])
        finish_stage(out, inputs)
    return out


def read_gguf_header(gguf_file: Path) -> str:
    """The dtype to unpack to, after checking architecture and scaling."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf_file)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise InvalidInput(
            f"{gguf_file} is not a readable GGUF file: {error}", "download it again"
        ) from error
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise InvalidInput(f"{gguf_file} holds a `{architecture}` model, needs `llama`")
    scaling = _field(reader, "llama.rope.scaling.type")
    factors = any(tensor.name.startswith("rope_") for tensor in reader.tensors)
    if scaling not in (None, "none") or factors:
        raise InvalidInput(
            f"{gguf_file} carries RoPE scaling ({scaling or 'factor tensors'}), which transformers "
            "does not restore from GGUF",
            "start from the model's safetensors, or from its unscaled base",
        )
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    return (
        _STORED_DTYPES[kinds.pop()]
        if len(kinds) == 1 and kinds <= {*_STORED_DTYPES}
        else "bfloat16"
    )


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _convert(gguf_file: Path, out: Path, dtype: str) -> None:
    from giraffe_cli.model.out_of_memory import is_out_of_memory

    try:
        model, tokenizer, missing = _unpacked(gguf_file, dtype)
    except Exception as error:  # whatever the library makes of a header that changed
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise InvalidInput(
            f"{gguf_file} cannot be unpacked: {type(error).__name__}: {reason}", "download it again"
        ) from error
    if missing:
        raise InvalidInput(
            f"{gguf_file} lacks {len(missing)} tensors of its model, such as {min(missing)}",
            "download it again",
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _drop_invented_tokens(out / "tokenizer.json", model.config.vocab_size)


def _unpacked(gguf_file: Path, dtype: str) -> tuple[Any, Any, set[str]]:
    """Model, tokenizer, and the names of weights that the library made up."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = gguf_file.parent, gguf_file.name
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=getattr(torch, dtype),
        quantization_config=GgufConfig(gguf_file=name, dequantize=True),
        output_loading_info=True,
    )
    missing = set(loading["missing_keys"]) | set(loading["mismatched_keys"])
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name), missing


def _drop_invented_tokens(file: Path, vocab_size: int) -> None:
    """GPT-2 style conversion adds `<|endoftext|>` to vocabularies without it: an id past the
    embedding, which no model could emit or read."""
    value = read_json(file)
    kept = [token for token in value["added_tokens"] if token["id"] < vocab_size]
    if len(kept) < len(value["added_tokens"]):
        write_json(file, {**value, "added_tokens": kept})
