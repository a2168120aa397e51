"""`README.md` of an exported adapter: how to load it so that its rotary table is in force.

PEFT knows nothing of RoPE: an adapter put on its base as that comes gives other logits and no
error. So the table is set on the config *before* the model is built, which is what the card says.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from giraffe_cli.rope.base import RopeTable

OVERRIDES = "hf_overrides.json"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 accepts as `--max-lora-rank`."""

_CARD = """---
{front}library_name: peft
pipeline_tag: text-generation
tags: [llama, long-context, rope, {strategy}, giraffe]
---

# {name}

A {kind} adapter for {base_words}, trained with its rotary table scaled ({strategy}) from {native} \
to {target} tokens. The adapter's own files do not carry that table: it is in `rope.json`, and has \
to be set before the model is built. Without it the model runs, and is wrong.

## PEFT

```python
import json
from pathlib import Path

from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

adapter, base = {adapter!r}, {base!r}
rope = json.loads(Path(adapter, "rope.json").read_text())
config = AutoConfig.from_pretrained(base)
config.rope_parameters = rope["rope_parameters"]
config.max_position_embeddings = rope["target_length"]
model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype="auto")
model = PeftModel.from_pretrained(model, adapter)
```

Setting `model.config.rope_parameters` afterwards changes nothing: the table is built with the \
model. transformers 5 reads `rope_parameters`.

{vllm}{note}"""

_VLLM = """## vLLM

```sh
cd {directory}
vllm serve {base_argument} --tokenizer . --max-model-len {target} \\
  --hf-overrides "$(cat {overrides})" \\
  --enable-lora --max-lora-rank {rank} --lora-modules {module}
```

`{overrides}` holds `rope_parameters` and `max_position_embeddings`; the tokenizer here is the \
base's with its limit raised to {target}. Ask for the model `{name}`: under the base's name the \
base answers, with the adapter's table.
"""

_WITHOUT_VLLM = """## vLLM

vLLM takes plain LoRA alone, and this adapter {beyond}: serve the merged model, which \
`giraffe merge` or PEFT's `merge_and_unload` writes.
"""

_LOCAL = """
The base was not named by a Hugging Face id: put the directory of `{base}` in its place.
"""


def card(name: str, base: str, on_hub: bool, table: RopeTable, config: Mapping[str, Any]) -> str:
    """The text of `README.md`; `config` is `adapter_config.json`."""
    beyond = beyond_plain_lora(config)
    names = {
        "name": name,
        "base": base,
        "base_argument": shlex.quote(base),
        "directory": shlex.quote(name),
        "module": shlex.quote(f"{name}=."),
        "target": table.target_length,
        "overrides": OVERRIDES,
    }
    return _CARD.format(
        **names,
        front=f"base_model: {base}\n" if on_hub else "",
        base_words=f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{base}`",
        kind="DoRA" if config.get("use_dora") else "LoRA",
        adapter=name,
        strategy=table.strategy,
        native=table.original_max_position_embeddings,
        vllm=_WITHOUT_VLLM.format(beyond=beyond)
        if beyond
        else _VLLM.format(**names, rank=_max_rank(config)),
        note="" if on_hub else _LOCAL.format(base=base),
    )


def beyond_plain_lora(config: Mapping[str, Any]) -> str:
    """What vLLM 0.33 refuses of an adapter, as a phrase; empty for LoRA, rank-stabilised or not."""
    reasons = []
    if config.get("use_dora"):
        reasons.append("scales the norms of rows (DoRA)")
    if saved := config.get("modules_to_save"):
        reasons.append(f"holds modules that were trained whole ({', '.join(sorted({*saved}))})")
    return " and ".join(reasons)


def overrides(table: RopeTable) -> dict[str, Any]:
    """What vLLM's `--hf-overrides` takes."""
    return {
        "rope_parameters": table.rope_parameters,
        "max_position_embeddings": table.target_length,
    }


def _max_rank(config: Mapping[str, Any]) -> int:
    """The smallest rank vLLM accepts that is enough for every module."""
    rank = max([int(config["r"]), *(config.get("rank_pattern") or {}).values()])
    return next((allowed for allowed in _VLLM_RANKS if allowed >= rank), rank)
