"""A `.gguf` file becomes a Hugging Face directory: weights unpacked once, tokenizer beside them.

Only what transformers restores for Llama survives: θ and the native window do, `rope.scaling.*`
does not, so a GGUF that carries scaling is refused rather than read as unscaled. Its tokenizers
are restored but for the steps before the merges, which are set here (`gguf_pipelines.py`).
Needs the `gguf` package (extra `[gguf]`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.gguf_header import GgufHeader, read_gguf_header
from giraffe_cli.gguf_pipelines import metaspace_normalizer, steps_of
from giraffe_cli.rundir import (
    MANIFEST,
    begin_stage,
    digest_file,
    finish_stage,
    read_json,
    read_kept,
    stage_holds,
    write_json,
)

TOKENIZER = "steps of llama.cpp's name"
"""What the tokenizer is made from."""


def import_gguf(gguf_file: Path, out: Path, dtype: str | None = None) -> Path:
    """Write `out`, a Hugging Face directory with the weights of `gguf_file`; skipped if it holds,
    also as an earlier version of giraffe wrote it.

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
    digest = digest_file(gguf_file)
    if _holds(out, digest, dtype):
        return out
    header = read_gguf_header(gguf_file)
    chosen = dtype or header.dtype
    begin_stage(out)
    _convert(gguf_file, out, chosen, header)
    finish_stage(out, {"gguf_sha256": digest, "dtype": chosen, "tokenizer": TOKENIZER})
    return out


def _holds(out: Path, digest: str, dtype: str | None) -> bool:
    """Whether `out` was unpacked from that file, by this version or one whose tokenizers had
    transformers' steps: a run may have been trained with it."""
    manifest = read_kept(out / MANIFEST)
    inputs = manifest.get("inputs") if isinstance(manifest, dict) else None
    return (
        isinstance(inputs, dict)
        and inputs.get("gguf_sha256") == digest
        and dtype in (None, inputs.get("dtype"))
        and stage_holds(out, inputs)
    )


def _convert(gguf_file: Path, out: Path, dtype: str, header: GgufHeader) -> None:
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
    if header.add_bos is not None:
        tokenizer.add_bos_token = header.add_bos
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _drop_invented_tokens(out / "tokenizer.json", model.config.vocab_size)
    value = read_json(out / "tokenizer.json")
    write_json(out / "tokenizer.json", with_steps(value, header))


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


def with_steps(value: dict[str, Any], header: GgufHeader) -> dict[str, Any]:
    """`value`, a tokenizer.json, with what happens to a text before the merges as llama.cpp does
    it. transformers takes GPT-2's steps for every name that it does not know (SmolLM2's `smollm`:
    9 of 58 books' tokens differed), and looks no word up before merging it (Llama 3 does)."""
    if header.tokenizer == "llama":
        decoder, prefix = value["decoder"], header.add_space_prefix
        kept = [step for step in decoder["decoders"] if prefix or step["type"] != "Strip"]
        return {
            **value,
            "normalizer": metaspace_normalizer(prefix),
            "pre_tokenizer": None,
            "decoder": {**decoder, "decoders": kept},
        }
    steps, ignores_merges = steps_of(header.pre)
    alone = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    model = {**value["model"], "ignore_merges": ignores_merges}
    return {**value, "normalizer": None, "pre_tokenizer": alone, "model": model}
