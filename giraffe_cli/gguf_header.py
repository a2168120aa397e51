"""What a `.gguf` file says before it is unpacked: its types, its tokenizer, or why it is refused.

transformers restores θ and the native window of a Llama and leaves out the rest of what the file
says of it, without a word: scaling, other scales of attention, experts.
Needs the `gguf` package (extra `[gguf]`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.gguf_pipelines import begins_with_bos, known_names

_STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SCALING = ("scaling.factor", "scaling.attn_factor", "scale_linear")
"""Beside `scaling.type`; 0 and 1 scale nothing."""
_OTHER_MODEL = ("attention.sliding_window", "expert_count", "logit_scale", "residual_scale")
"""What makes of a `llama` another model than transformers' own; 0 does not."""
_SCALE_TOLERANCE = 1e-3
"""Relative: writers round 1/√head_dim."""
_OF_A_LLAMA = re.compile(
    r"(token_embd|output_norm|output|rope_\w+"
    r"|blk\.\d+\.(attn_(norm|q|k|v|output|rot_embd)|ffn_(norm|gate|up|down)))\.weight"
)
"""`attn_rot_embd` is the rotary table that old conversions store, and nobody reads."""
_PLAIN = "giraffe extends plain Llama architectures only"
_UNSCALED = "start from the model's safetensors, or from its unscaled base"


@dataclass(frozen=True)
class GgufHeader:
    """What a file says that decides how it is unpacked."""

    dtype: str
    """Of the matrices where it is one of `float32`, `float16`, `bfloat16`; else bfloat16."""
    tokenizer: str
    """`gpt2` (byte-level BPE) or `llama` (sentencepiece)."""
    pre: str
    """llama.cpp's name of the pre-tokenizer of a byte-level BPE."""
    add_space_prefix: bool
    """Whether sentencepiece puts a space before a text."""
    add_bos: bool | None = None
    """Whether a text begins with BOS; None: as transformers reads the file."""


def read_gguf_header(gguf_file: Path) -> GgufHeader:
    """What decides how the file is unpacked, after checking architecture, scaling and tokenizer.

    Raises:
        InvalidInput: no readable file, no Llama, a scaled one, or steps before the merges that are
            not known here.
    """
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
    _check_scaling(reader, gguf_file)
    _check_stock(reader, gguf_file)
    tokenizer, pre = (_field(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if tokenizer not in ("gpt2", "llama") or (tokenizer == "gpt2" and pre not in known_names()):
        raise InvalidInput(
            f"{gguf_file} has the tokenizer `{tokenizer}` with the pre-tokenizer `{pre}`, which is "
            "not known here",
            f"start from the model's safetensors; known are {', '.join(known_names())}",
        )
    unsaid = _field(reader, "tokenizer.ggml.add_bos_token") is None
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    own = kinds.pop() if len(kinds) == 1 else ""
    return GgufHeader(
        dtype=_STORED_DTYPES.get(own, "bfloat16"),
        tokenizer=tokenizer,
        pre=pre or "",
        add_space_prefix=_field(reader, "tokenizer.ggml.add_space_prefix") is not False,
        add_bos=True if unsaid and begins_with_bos(pre or "") else None,
    )


def _check_scaling(reader: Any, gguf_file: Path) -> None:
    kind = _field(reader, "llama.rope.scaling.type")
    found = [kind] if kind not in (None, "none") else []
    found += [key for key in _SCALING if _field(reader, f"llama.rope.{key}") not in (None, 0, 1)]
    if any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        found.append("factor tensors")
    if found:
        raise InvalidInput(
            f"{gguf_file} carries RoPE scaling ({', '.join(found)}), which transformers does not "
            "restore from GGUF",
            _UNSCALED,
        )


def _check_stock(reader: Any, gguf_file: Path) -> None:
    """Nothing is said that transformers' Llama would leave out.

    Raises:
        InvalidInput: heads that turn in part, another scale of attention, experts, tensors that a
            Llama has not, or the like.
    """
    found = {key: _field(reader, f"llama.{key}") for key in _OTHER_MODEL}
    words = [f"{key} {value:g}" for key, value in found.items() if value]
    heads = _field(reader, "llama.attention.head_count") or 1
    if isinstance(heads, list):
        raise InvalidInput(f"{gguf_file} has other heads in each layer", _PLAIN)
    foreign = sorted(t.name for t in reader.tensors if not _OF_A_LLAMA.fullmatch(t.name))
    words += [f"the tensor {name}" for name in foreign[:3]]
    width = (_field(reader, "llama.embedding_length") or 0) // heads
    head_dim = _field(reader, "llama.attention.key_length") or width
    turned = _field(reader, "llama.rope.dimension_count")
    if turned not in (None, head_dim):
        words.append(f"rope.dimension_count {turned} of {head_dim}")
    scale = _field(reader, "llama.attention.scale")
    if scale and abs(scale * head_dim**0.5 - 1) > _SCALE_TOLERANCE:
        words.append(f"attention.scale {scale:g}")
    if words:
        raise InvalidInput(
            f"{gguf_file} is no plain Llama: it has {', '.join(words)}",
            _PLAIN,
        )


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()
