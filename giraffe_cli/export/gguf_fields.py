"""The metadata of a Llama GGUF: what `llama.cpp` reads in place of `config.json`.

`rope.freq_base` is the plain θ and no `rope.scaling.type` is written, so that the runtime computes
nothing of its own: with `yarn` it would replace the attention factor by 0.1 ln s + 1, with
`longrope` it would look for two other tensors. The table is `rope_freqs.weight`, by which it
divides each pair's angle, and `rope.scaling.attn_factor`, by which it multiplies cos and sin
(llama.cpp's `src/models/llama.cpp`, `src/llama-context.cpp`, `ggml_rope_cache_init`).
"""

from __future__ import annotations

from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.export.gguf_tokenizer import Vocabulary
from giraffe_cli.export.source import Source

ATTENTION_FACTOR = "llama.rope.scaling.attn_factor"
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""llama.cpp's `enum llama_ftype`."""
_QUANTISATION_VERSION = 2
"""`GGML_QNT_VERSION`: the layout of quantised blocks."""


def model_fields(source: Source, dtype: str) -> dict[str, Any]:
    """Name → value; the Python type says the stored one: int uint32, float float32.

    Raises:
        InvalidInput: an activation that llama.cpp's Llama does not compute.
    """
    config, shape = source.config, source.checkpoint
    if config.get("hidden_act", "silu") != "silu":
        raise InvalidInput(f"{shape.source} has hidden_act {config['hidden_act']}, needs silu")
    fields: dict[str, Any] = {
        "general.type": "model",
        "general.name": source.name,
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": _QUANTISATION_VERSION,
        "llama.vocab_size": shape.vocab_size,
        "llama.context_length": source.context_length,
        "llama.embedding_length": shape.hidden_size,
        "llama.block_count": shape.num_layers,
        "llama.feed_forward_length": shape.intermediate_size,
        "llama.attention.head_count": shape.num_attention_heads,
        "llama.attention.head_count_kv": shape.num_key_value_heads,
        "llama.attention.key_length": shape.head_dim,
        "llama.attention.value_length": shape.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "llama.rope.dimension_count": shape.head_dim,
        "llama.rope.freq_base": source.rope_theta,
    }
    if source.attention_factor != 1.0:
        fields[ATTENTION_FACTOR] = source.attention_factor
    return fields


def tokenizer_fields(vocabulary: Vocabulary) -> dict[str, Any]:
    """Name → value, as `model_fields`; lists become arrays."""
    optional = {
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_space_prefix,
        "tokenizer.chat_template": vocabulary.chat_template,
    }
    names = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        **{
            f"tokenizer.ggml.{names[name]}_token_id": index
            for name, index in vocabulary.special_ids.items()
        },
        "tokenizer.ggml.add_bos_token": vocabulary.add_bos,
        "tokenizer.ggml.add_eos_token": vocabulary.add_eos,
        **{name: value for name, value in optional.items() if value is not None},
    }
