"""The only writer of RoPE fields: onto a config in memory and onto a finished directory.

Written configs say the same thing twice, because the generations of transformers read different
keys: v5 `rope_parameters`, v4 `rope_theta` + `rope_scaling` (which wins in v5 if both are there).
`original_max_position_embeddings` stays inside the dict; at the top it would cap vLLM's length.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.errors import GiraffeError
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.readings import TOLERANCE, table_tolerance
from giraffe_cli.rundir import read_json, write_json, write_sealed

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

ROPE_FILE = "rope.json"
_FAST = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""A plain fast tokenizer's class as transformers 5 saves it, and as both 4 and 5 load it."""


def apply_table(config: LlamaConfig, table: RopeTable) -> None:
    """Put `table` on a config from which a model will be built."""
    config.rope_parameters = dict(table.rope_parameters)
    config.max_position_embeddings = int(table.target_length)
    config.validate_rope()


def swap_table(model: LlamaForCausalLM, table: RopeTable) -> None:
    """Put `table` in the place of a loaded model's own; keys it has cached are void then.

    Raises:
        GiraffeError: the model's table is not `table` afterwards.
    """
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    # not validated, which warns of keys that others read; the check of the result says more
    model.config.rope_parameters = dict(table.rope_parameters)
    model.config.max_position_embeddings = int(table.target_length)
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(model.device)
    check_table(model, table)


def check_table(model: torch.nn.Module, table: RopeTable | None) -> None:
    """Every rotary module of `model` holds `table` in float32 (only the dtype for None).

    Raises:
        GiraffeError: another dtype, table or attention factor; the message says which and how far.
    """
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotaries = [m for m in model.modules() if isinstance(m, LlamaRotaryEmbedding)]
    if not rotaries:
        raise GiraffeError("the model has no Llama rotary embedding to check")
    for rotary in rotaries:
        if rotary.inv_freq.dtype != torch.float32:
            raise GiraffeError(f"inv_freq is {rotary.inv_freq.dtype}, needs float32")
        if table is not None:
            _compare(rotary.inv_freq.double().tolist(), float(rotary.attention_scaling), table)


def _compare(inv_freq: list[float], attention_factor: float, table: RopeTable) -> None:
    if len(inv_freq) != len(table.inv_freq):
        raise GiraffeError(
            f"the model's inv_freq has {len(inv_freq)} pairs, the table {len(table.inv_freq)}"
        )
    errors = [abs(a - b) / b for a, b in zip(inv_freq, table.inv_freq, strict=True)]
    worst = max(range(len(errors)), key=errors.__getitem__)
    if not errors[worst] <= table_tolerance(table.rope_parameters):
        raise GiraffeError(
            f"the model's inv_freq[{worst}] is {inv_freq[worst]:.9g}, the {table.strategy} table "
            f"says {table.inv_freq[worst]:.9g}"
        )
    if not abs(attention_factor - table.attention_factor) <= TOLERANCE * table.attention_factor:
        raise GiraffeError(
            f"the model's attention factor is {attention_factor:.9g}, the {table.strategy} table "
            f"says {table.attention_factor:.9g}"
        )


def finish_directory(folder: Path, table: RopeTable) -> None:
    """Make a saved model directory say `table` everywhere; config, tokenizer, weights are there.

    Raises:
        InvalidInput: no readable config.json.
        GiraffeError: the folder cannot be written.
    """
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config_with_table(config, table))
    tokenizer = folder / "tokenizer_config.json"
    settings = read_json(tokenizer) if tokenizer.exists() else {"tokenizer_class": _FAST[0]}
    write_json(tokenizer, _tokenizer_limits(settings, table.target_length))
    generation = folder / "generation_config.json"
    if generation.exists():
        write_json(generation, _generation_limits(read_json(generation), table))
    write_sealed(folder / ROPE_FILE, table.to_json())


def config_with_table(config: dict[str, Any], table: RopeTable) -> dict[str, Any]:
    """`config.json`'s content with the table in both generations' keys."""
    dropped = {"rope_scaling", "rope_parameters", "rope_theta", "original_max_position_embeddings"}
    written = {key: value for key, value in config.items() if key not in dropped}
    scaling = {key: v for key, v in table.rope_parameters.items() if key != "rope_theta"}
    written |= {
        "max_position_embeddings": int(table.target_length),
        "rope_theta": table.rope_parameters["rope_theta"],
        "rope_parameters": dict(table.rope_parameters),
    }
    # A v4 reader needs θ alone then, and a `default` scaling would only make it warn.
    return written if scaling["rope_type"] == "default" else written | {"rope_scaling": scaling}


def _tokenizer_limits(tokenizer: dict[str, Any], target_length: int) -> dict[str, Any]:
    """The new limit; and the class name that both generations know for a plain fast tokenizer."""
    limited = {**tokenizer, "model_max_length": int(target_length)}
    if tokenizer.get("tokenizer_class") == _FAST[0]:
        limited["tokenizer_class"] = _FAST[1]
    return limited


def _generation_limits(generation: dict[str, Any], table: RopeTable) -> dict[str, Any]:
    """A `max_length` of the native window would stop generation there; a shorter one stays."""
    native, target = table.original_max_position_embeddings, int(table.target_length)
    stops = isinstance(limit := generation.get("max_length"), int) and native <= limit < target
    return {**generation, "max_length": target} if stops else generation
