"""What safetensors files hold, read from their headers alone: names, shapes, dtypes, completeness.

A file is 8 bytes (header length, little-endian), a JSON header, then the tensors; the last tensor's
end offset must be the end of the file, which is how a truncated download is found without reading
the weights. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from giraffe_cli.checkpoint_config import Shape, read_shape
from giraffe_cli.errors import InvalidInput, raise_together
from giraffe_cli.rundir import read_json
from giraffe_cli.units import counted

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
"""What PEFT writes beside an adapter; transformers loads one that lies beside a model."""
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STORED_TABLE = "rotary_emb.inv_freq"
"""How the name of a rotary table ends that conversions of before 2024 store, and nobody reads."""
STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
}
_LARGEST = 1 << 60
_LFS = b"version https://git-lfs"
"""How a pointer begins: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
_HEADER_LIMIT = 100_000_000
"""The format's own cap on header bytes; more means that the file is something else."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as its header describes it; `dtype` is safetensors' name, such as `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """The product of its shape."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file by name.

    Raises:
        InvalidInput: not a safetensors file, or shorter or longer than its header says.
    """
    size = path.stat().st_size
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, _HEADER_LIMIT):
            raise InvalidInput(f"{path.name} is {_something_else(path, size)}")
        raw = handle.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        end = _end_of_data(header)
        entries = {
            name: TensorEntry(name, str(entry["dtype"]), tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"{path.name} has a damaged safetensors header") from error
    if odd := [name for name in entries if not name.isprintable()]:
        raise InvalidInput(
            f"{path.name} has a tensor with control characters in its name: {odd[0]!r}"
        )
    if 8 + length + end != size:
        raise InvalidInput(f"{path.name} has {size} bytes, its header describes {8 + length + end}")
    return entries


def _something_else(path: Path, size: int) -> str:
    """What a file is that holds no tensors; a clone without Git LFS has pointers in their place."""
    with open(path, "rb") as handle:
        pointer = handle.read(len(_LFS)) == _LFS
    if pointer:
        return "a pointer of Git LFS, its content was not fetched: git lfs pull"
    return f"no safetensors file ({size} bytes)"


def _end_of_data(header: Mapping[str, Any]) -> int:
    """Where the last tensor ends, after holding the tensors to the format: no gap, no overlap, and
    as many bytes as shape and type say.

    Raises:
        ValueError, KeyError, TypeError: they are otherwise.
    """
    position = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        begin, end = entry["data_offsets"]
        size = _ITEM_BYTES.get(entry["dtype"])
        sizes = (begin, end, *entry["shape"])
        if any(not isinstance(number, int) or not 0 <= number < _LARGEST for number in sizes):
            raise ValueError("a size is none")
        if begin != position or (size and end - begin != size * math.prod(entry["shape"])):
            raise ValueError("a tensor has other bytes than its shape")
        position = end
    return position


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, in order.

    Raises:
        InvalidInput: none, only pickled ones, shards without an index, an index that names no
            files, or another model beside the shards of one: transformers reads the single file
            then, others the shards.
    """
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        names = plain_names(index, folder)
        if (folder / SINGLE).exists() and SINGLE not in names:
            raise InvalidInput(
                f"{folder} has two sets of weights: {SINGLE}, and the shards of {INDEX}",
                "keep the one that is meant, the single file or the shards with their index",
            )
        return [folder / name for name in names]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    pickled = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt*")])
    if pickled:
        raise InvalidInput(
            f"{folder} has only pickled weights ({', '.join(pickled)}), needs safetensors",
            "convert: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    shards = len([*folder.glob("model-*-of-*.safetensors")])
    if shards:
        raise InvalidInput(
            f"{folder} has {counted(shards, 'shard')}, and no {INDEX} that says what they hold",
            f"download {INDEX}, or save the model again",
        )
    raise InvalidInput(f"{folder} has no {SINGLE} and no {INDEX}", "download the weights")


def holds_weights(folder: Path) -> bool:
    """Whether a whole model's weights lie there, in safetensors or pickled; an adapter's do not
    count."""
    names = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
    return any((folder / name).is_file() for name in names)


def is_plain_name(name: Any) -> TypeGuard[str]:
    """Whether `name` stands for a file of the folder at hand, and leads nowhere else."""
    return isinstance(name, str) and Path(name).name == name not in ("", "..") and "\0" not in name


def plain_names(index: Any, folder: Path) -> list[str]:
    """The files that the `weight_map` of an index names, each in `folder` itself.

    Raises:
        InvalidInput: there is no such map, or a name leads elsewhere.
    """
    names = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(names, Mapping) or not names:
        raise InvalidInput(f"the index of {folder} has no `weight_map`", "download it again")
    for name in names.values():
        if not is_plain_name(name):
            raise InvalidInput(
                f"the index of {folder} names {name!r}, needs the name of a file beside it",
                "do not trust it: download the checkpoint from its author",
            )
    return sorted(set(names.values()))


def read_weights(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint by name, all shards checked.

    Raises:
        InvalidInput: missing or damaged shards, or tensors that the index names and no shard has;
            every problem is listed.
    """
    problems: list[str] = []
    entries: dict[str, TensorEntry] = {}
    for path in weight_files(folder):
        if not path.is_file():
            problems.append(f"{path.name} is missing")
            continue
        try:
            entries.update(read_header(path))
        except InvalidInput as error:
            problems.append(error.message)
    if not problems and (folder / INDEX).exists():
        named = read_json(folder / INDEX)["weight_map"]
        problems += [f"no shard has {name}" for name in sorted({*named} - {*entries})[:5]]
    raise_together(problems, f"weights of {folder}", "download the damaged files again")
    return entries


def expected_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor a Llama of this shape needs; a missing one would be initialised at random."""
    d, f = shape.hidden_size, shape.intermediate_size
    q, kv = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, d),
        "model.norm.weight": (d,),
    }
    for n in range(shape.num_layers):
        tensors |= {f"model.layers.{n}.{name}.weight": size for name, size in layer.items()}
    return (
        tensors
        if shape.tie_word_embeddings
        else tensors | {"lm_head.weight": (shape.vocab_size, d)}
    )


def bias_shapes(shape: Shape, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The biases that `config` adds to the tensors of that shape."""
    wanted = [("self_attn", config.get("attention_bias")), ("mlp", config.get("mlp_bias"))]
    parts = tuple(f".{part}." for part, has_bias in wanted if has_bias)
    return {
        name.removesuffix("weight") + "bias": size[:1]
        for name, size in expected_shapes(shape).items()
        if any(part in name for part in parts)
    }


def check_tensors(
    folder: Path, shape: Shape, weights: Mapping[str, TensorEntry], config: Mapping[str, Any]
) -> None:
    """Every tensor the config promises is there, in its shape, in a dtype we train from, and no
    other: transformers would draw the one at random and leave the other out.

    Raises:
        InvalidInput: the first five that are not.
    """
    if shape.num_layers > len(weights):  # before any name is made for layers that cannot be
        raise InvalidInput(
            f"weights of {folder} do not fit its config.json: {len(weights)} tensors for "
            f"{shape.num_layers} layers",
            "put back the config.json that belongs to these weights",
        )
    problems = []
    expected = expected_shapes(shape) | bias_shapes(shape, config)
    for name, size in expected.items():
        if name not in weights:
            problems.append(f"{name} is missing")
        elif weights[name].shape != size:
            problems.append(f"{name} is {[*weights[name].shape]}, config.json says {[*size]}")
        elif weights[name].dtype not in STORED_DTYPES:
            problems.append(
                f"{name} is {weights[name].dtype}, needs one of {', '.join(STORED_DTYPES)}"
            )
    problems += [
        f"{name} has no place"
        for name in sorted({*weights} - {*expected})
        if name != HEAD and not name.endswith(STORED_TABLE)
    ]
    if len(problems) > 5:
        problems = [*problems[:5], f"and {len(problems) - 5} more"]
    raise_together(
        problems,
        f"weights of {folder} do not fit its config.json",
        "put back the config.json that belongs to these weights",
    )


def dtype_of(weights: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> str:
    """What transformers loads the tensors as: the type that `config` names if any is stored in it,
    else that of the embeddings (of a config that is older than its files).

    Files of several types are rare, and mostly matrices of 16 bits with norms of 32.
    """
    matrices = (entry for name, entry in weights.items() if not name.endswith(STORED_TABLE))
    stored = {STORED_DTYPES.get(entry.dtype) for entry in matrices}
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named) if named in stored else STORED_DTYPES[weights[EMBEDDINGS].dtype]


def count_parameters(shape: Shape, weights: Mapping[str, TensorEntry]) -> int:
    """Parameters of the model, without a stored copy of a tied `lm_head` or old `inv_freq`s."""
    tied = {HEAD} if shape.tie_word_embeddings else set()
    return sum(
        entry.num_elements
        for name, entry in weights.items()
        if name not in tied and not name.endswith("inv_freq")
    )


@dataclass(frozen=True)
class Sizes(Shape):
    """The sizes of a Llama, and how many numbers that makes."""

    num_parameters: int


def sizes_of(folder: Path) -> Sizes:
    """What the config and the headers of the weights of a checkpoint say.

    Raises:
        InvalidInput: they cannot be read, or are no Llama's.
    """
    shape = read_shape(read_json(folder / "config.json"), folder)
    return Sizes(**asdict(shape), num_parameters=count_parameters(shape, read_weights(folder)))
