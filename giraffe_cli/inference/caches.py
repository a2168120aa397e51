"""Which cache holds the keys and values of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from giraffe_cli.errors import UsageError, near_misses

if TYPE_CHECKING:
    from giraffe_cli.model.key_values import KeyValues
    from giraffe_cli.model.stored import StoredKeyValues

AUTO = "auto"
KV_DTYPES = (AUTO, "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class CacheChoice:
    """How keys and values are kept."""

    dtype: str = AUTO
    """A name of `KV_DTYPES`; `auto`: as they are computed."""
    offload: bool = False
    """All but the last are kept in the host's memory."""

    def __post_init__(self) -> None:
        if self.dtype not in KV_DTYPES:
            raise UsageError(f"--kv-dtype {self.dtype}", near_misses(self.dtype, KV_DTYPES))

    def check_device(self, kind: str) -> None:
        """Refuse what has no effect on `cpu` or `cuda`.

        Raises:
            UsageError: an offload from the host to the host.
        """
        if self.offload and kind == "cpu":
            raise UsageError(
                "--kv-offload without effect: on a CPU keys and values are in the host's memory",
                "leave it out; --kv-dtype int4 takes a little more than a quarter of their memory",
            )

    def empty(self, model: Any) -> KeyValues | StoredKeyValues:
        """A cache for `model`, on its device."""
        from giraffe_cli.model.key_values import KeyValues
        from giraffe_cli.model.kv_formats import FORMATS, Cast
        from giraffe_cli.model.stored import StoredKeyValues

        computed, layers = str(model.dtype).removeprefix("torch."), model.config.num_hidden_layers
        as_computed = self.dtype in (AUTO, computed)
        if as_computed and not self.offload:
            return KeyValues(layers)
        form = Cast(model.dtype) if as_computed else FORMATS[self.dtype]
        return StoredKeyValues(layers, form, on_host=self.offload)
