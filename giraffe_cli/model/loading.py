"""A checkpoint's model and tokenizer, loaded by transformers with nothing fetched.

`load_model` puts the table on the config *before* `from_pretrained` and never calls `.to(dtype)`,
which would round `inv_freq`: 15 rad off at position 16384 in bfloat16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.install import apply_table, check_table

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def torch_dtype(name: str) -> torch.dtype:
    """`"bfloat16"` → `torch.bfloat16`."""
    import torch

    return {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }[name]


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `path`, with nothing fetched and no code run; it cuts and fills up no
    text, whatever a fine-tune left in its file."""
    from transformers import AutoTokenizer

    with _told_of(path):
        found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    found.backend_tokenizer.no_truncation()
    found.backend_tokenizer.no_padding()
    return found


def config_for(path: Path, table: RopeTable | None) -> LlamaConfig:
    """The config of the checkpoint in `path`, with `table` in the place of its own.

    Raises:
        InvalidInput: it cannot be loaded.
    """
    from transformers import LlamaConfig

    with _told_of(path):
        config = LlamaConfig.from_pretrained(path, local_files_only=True)
    if table is not None:
        apply_table(config, table)
    return config


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    table: RopeTable | None = None,
    attn_implementation: str = "sdpa",
    quantization: Any = None,
) -> LlamaForCausalLM:
    """The model of `path` in evaluation mode, its weights in `dtype`, `inv_freq` in float32.

    `quantization` is a `quantization_config` of transformers, applied weight by weight.

    Raises:
        GiraffeError: the model's table is not `table` after loading.
    """
    from transformers import LlamaForCausalLM

    config = config_for(path, table)
    with _without_loading_bar(), _told_of(path):
        model = LlamaForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            local_files_only=True,
            use_safetensors=True,
            **({} if quantization is None else {"quantization_config": quantization}),
        )
    check_table(model, table)
    return model.eval()


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Whatever a library makes of foreign files, told as what it is: files that cannot be loaded.

    Raises:
        InvalidInput: anything but a full memory or a failing disk.
    """
    from giraffe_cli.model.out_of_memory import is_out_of_memory

    try:
        yield
    except GiraffeError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split())[:300]
        raise InvalidInput(
            f"{path} cannot be loaded: {type(error).__name__}: {reason}",
            f"giraffe verify {path} names what is wrong with it",
        ) from error


@contextlib.contextmanager
def _without_loading_bar() -> Iterator[None]:
    """transformers draws a bar of its own over ours; its setting is put back afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def end_tokens(model: Any) -> set[int]:
    """The ids that end a text, as `generation_config.json` names them, else `config.json`."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = model.config.eos_token_id if named is None else named
    return set(ends if isinstance(ends, list) else [ends])
