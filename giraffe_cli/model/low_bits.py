"""bitsandbytes, an extra: the frozen base in 4 bits, Adam's moments in 8.

NF4 stores a weight as 4-bit codes with a scale for each 64 values, and those scales in 8 bits
(QLoRA, arXiv:2305.14314): about 4.13 bits a weight. Only the linear layers of the decoder are
quantised; embeddings, norms and head keep their dtype. Both run on CPUs too (bitsandbytes 0.50),
where they save the same memory and cost time.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput

if TYPE_CHECKING:
    import torch

NF4, ADAMW_8BIT = "train.quantize_base: nf4", "train.optimizer: adamw8bit"
"""The knobs that need it."""


def import_bitsandbytes(knob: str) -> Any:
    """The library; `knob` is what asked for it.

    Raises:
        InvalidInput: it is not installed, or does not load on this machine.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its modules call what torch 2.13 deprecates
            return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"
        reason = "is not installed" if missing else f"cannot be loaded: {error}"
        raise InvalidInput(
            f"{knob} needs bitsandbytes, which {reason}",
            "run pip install 'giraffe-cli[quantize]', or leave the knob out",
        ) from error


def check_low_bits(config: TrainConfig) -> None:
    """Whether what `config` needs of bitsandbytes is there, before hours are spent.

    Raises:
        InvalidInput: it is not.
    """
    if config.quantize_base == "nf4":
        import_bitsandbytes(NF4)
    if config.optimizer == "adamw8bit":
        import_bitsandbytes(ADAMW_8BIT)


def nf4_settings(dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes as `quantization_config`: NF4, computing in `dtype`.

    Raises:
        InvalidInput: bitsandbytes is missing.
    """
    import_bitsandbytes(NF4)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_coded(weight: Any) -> bool:
    """Whether it holds 4 bits of each number, and what reads them."""
    return getattr(weight, "quant_state", None) is not None


def rows_of(weight: Any) -> int:
    """Outputs of a weight `[out, in]`, or of its 4 bits."""
    return int(weight.quant_state.shape[0] if is_coded(weight) else len(weight))


def keep_codes(model: torch.nn.Module) -> None:
    """The 4 bits of `model` lie as they were made for as long as it is trained: on a CPU with
    AVX512-BF16 a forward pass in evaluation mode lays them out for a product without gradient, with
    scales rounded to bfloat16."""
    for module in model.modules():
        if is_coded(getattr(module, "weight", None)):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def dense(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """`[out, in]`: 4 bits as the numbers in `dtype` that they stand for; else `weight` itself."""
    if not is_coded(weight):
        return weight  # type: ignore[no-any-return]
    assert not getattr(weight.quant_state, "packing_format_for_cpu", False)
    assert weight.data.is_contiguous(), "codes that are another process's"
    read = import_bitsandbytes(NF4).functional.dequantize_4bit
    return read(weight.data, weight.quant_state).to(dtype)  # type: ignore[no-any-return]
