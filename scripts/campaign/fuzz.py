"""Inputs by the thousand: configs from the config's own JSON schema, lengths and sizes, and corpora
and headers with random changes.

Each input is opened the way commands open it. What comes of it is the value, or an error of
giraffe's own; anything else is wrong. A case is a batch of inputs in one child, so that a crash of
a library counts as what it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from scripts.campaign.cases import Case, Verdict
from scripts.campaign.commands import call

BATCH = 250
BATCHES = {
    "config": 8,
    "length": 8,
    "jsonl": 10,
    "parquet": 6,
    "arrow": 6,
    "gguf": 4,
    "safetensors": 8,
    "manifest": 4,
}
"""Batches of each kind: 13,500 inputs."""


def cases(material: Path, work: Path, share: float, seed: int) -> list[Case]:
    """At least one small batch of every kind."""
    found = []
    for kind, count in BATCHES.items():
        size = BATCH if share >= 1 else max(4, round(BATCH * share * count))
        for number in range(count if share >= 1 else 1):
            key = f"fuzz/{kind}/{number}"
            attempt = partial(_batch, material, kind, size, f"{seed}{key}")
            found.append(Case(key, attempt))
    return found


def _batch(material: Path, kind: str, size: int, seed: str, folder: Path) -> Verdict:
    def work() -> None:
        counts = {"inputs_opened": 0, "inputs_refused": 0}
        draw = random.Random(seed)
        for number, (name, attempt) in enumerate(KINDS[kind](material, folder, draw, size)):
            (folder / "last").write_text(f"{number}: {name}"[:2000], errors="backslashreplace")
            counts["inputs_opened" if _is_opened(attempt) else "inputs_refused"] += 1
        (folder / "counts").write_text(json.dumps(counts))

    ended = call(work, folder)
    last = (folder / "last").read_text() if (folder / "last").exists() else ""
    if ended.code or ended.hung or not (folder / "counts").exists():
        told = "hangs" if ended.hung else (ended.stderr.strip().splitlines() or [""])[-1][:300]
        return Verdict("wrong", f"input {last[:300]}: code {ended.code}: {told}")
    counts = json.loads((folder / "counts").read_text())
    return Verdict("same", "", {"inputs": size, **counts})


def _is_opened(attempt: Callable[[], object]) -> bool:
    """Whether it gave a value; an error of giraffe's must say something on one screen.

    Raises:
        AssertionError: an error without words, or words without end.
    """
    from giraffe_cli.errors import GiraffeError

    try:
        attempt()
    except GiraffeError as error:
        told = error.message
    else:
        return True
    assert 5 < len(told) < 20_000, told[:100]
    return False


Attempts = Iterator[tuple[str, Callable[[], object]]]


# ── configs and lengths ──────────────────────────────────────────────────────────────────────


def _configs(material: Path, folder: Path, draw: random.Random, size: int) -> Attempts:
    """Values of the schema, some replaced by anything; through YAML, and of those that are taken
    through the sealed file and back."""
    import yaml

    from giraffe_cli.config import (
        ExtendConfig,
        build,
        read_sealed_yaml,
        read_yaml,
        write_sealed_yaml,
    )

    schema = ExtendConfig.model_json_schema()
    path, sealed = folder / "a.yaml", folder / "run.yaml"
    for _ in range(size):
        value = _of_schema(schema, schema["$defs"], draw, draw.choice([0.0, 0.02, 0.2]))
        path.write_text(yaml.safe_dump(value), encoding="utf-8")

        def attempt() -> None:
            config = build(read_yaml(path))
            config.stage_configs()
            write_sealed_yaml(sealed, config.model_dump(mode="json"))
            assert build(read_sealed_yaml(sealed)) == config

        yield path.read_text()[:500], attempt


def _of_schema(
    schema: dict[str, Any], known: dict[str, Any], draw: random.Random, odd: float
) -> Any:
    """A value that fits `schema`, but for a share `odd` of its parts."""
    if draw.random() < odd:
        return _anything(draw)
    if "$ref" in schema:
        return _of_schema(known[schema["$ref"].rpartition("/")[2]], known, draw, odd)
    if "anyOf" in schema:
        return _of_schema(draw.choice(schema["anyOf"]), known, draw, odd)
    if "enum" in schema or "const" in schema:
        return draw.choice(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object":
        found = {
            name: _of_schema(part, known, draw, odd)
            for name, part in schema.get("properties", {}).items()
            if draw.random() < 0.25 or name in schema.get("required", ())
        }
        if odd and draw.random() < odd:
            found[draw.choice(WORDS)] = _anything(draw)
        return found
    if kind == "array":
        part = schema.get("items", {})
        least = schema.get("minItems", 0)
        return [_of_schema(part, known, draw, odd) for _ in range(least + draw.randrange(3))]
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    values: dict[Any, Callable[[], Any]] = {
        "integer": lambda: draw.choice([low, low + 1, 64, 2048, 16384]),
        "number": lambda: draw.choice([low, low + 0.5, 1e-4, 1, 3e38]),
        "boolean": lambda: draw.random() < 0.5,
        "null": lambda: None,
        "string": lambda: draw.choice(WORDS),
    }
    return values.get(kind, lambda: _anything(draw))()


def _anything(draw: random.Random, depth: int = 0) -> Any:
    """Any value that YAML can write."""
    if depth < 3 and draw.random() < 0.3:
        inner = [_anything(draw, depth + 1) for _ in range(draw.randrange(4))]
        return inner if draw.random() < 0.5 else dict(zip(WORDS, inner, strict=False))
    return draw.choice([None, True, *NUMBERS, *WORDS, "".join(draw.choices(ODD, k=3))])


NUMBERS = [0, -1, 1, 7, 10**6, 10**30, -(2**63), 0.0, -0.5, 1e-9, 1e308, 1e999, float("nan")]
WORDS = "16k 1m auto yarn ntk nll passkey none lora full 0 -1 1e9 q_proj base . a=b = nll@16k<0"
WORDS = [*WORDS.split(), "", " ", "9" * 5000, "../x"]
ODD = "\x1b\x00A\u0300\u202e\U0001f992\ud83e".replace("\ud83e", "\ufffd")


def _lengths(material: Path, folder: Path, draw: random.Random, size: int) -> Attempts:
    """Lengths, bytes and gates as people mistype them; what is taken is written back the same."""
    from giraffe_cli.gates import parse_gate
    from giraffe_cli.units import format_length, parse_bytes, parse_length

    def length(text: Any) -> None:
        found = parse_length(text)
        assert found > 0
        assert parse_length(format_length(found)) == found

    letters = "0123456789kmgKMGTBib.-+e_ ,@<>=nlpasky\u0661\u00b2\x1b"
    for _ in range(size):
        text: Any = "".join(draw.choices(letters, k=draw.randrange(1, 12)))
        if draw.random() < 0.3:
            text = draw.choice([_anything(draw), f"{draw.choice(NUMBERS)}k", "16k" * 99])
        work = draw.choice([length, parse_bytes, parse_gate])
        shown = str(text) if work is parse_gate else text
        yield repr(text), partial(work, shown)


# ── bytes ────────────────────────────────────────────────────────────────────────────────────


def mutated(data: bytes, draw: random.Random, reach: int | None = None) -> bytes:
    """One to eight changes of the first `reach` bytes: flips, cuts, insertions, known numbers."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 8])):
        end = min(len(found), reach or len(found)) or 1
        at = draw.randrange(end)
        change = draw.randrange(6)
        if change == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << draw.randrange(8)
        elif change == 1:
            del found[at : at + draw.choice([1, 4, 64, 10**6])]
        elif change == 2:
            found[at:at] = draw.randbytes(draw.choice([1, 4, 64]))
        elif change == 3:
            found[at : at + 8] = draw.choice(
                [b"\0" * 8, b"\xff" * 8, (2**31).to_bytes(8, "little")]
            )
        elif change == 4:
            other = draw.randrange(end)
            found[at:at] = found[other : other + draw.choice([1, 16, 256])]
        else:
            found[at : at + 1] = draw.choice(
                [b'"', b"{", b"[", b"\n", b"\\u", b"9" * 400, b"-", b"e"]
            )
    return bytes(found)


def _bytes_of(
    name: str, opened: Callable[[Path], object], reach: int | None = None
) -> Callable[..., Attempts]:
    """Attempts to open changed copies of a file of the material."""

    def attempts(material: Path, folder: Path, draw: random.Random, size: int) -> Attempts:
        data = (material / name).read_bytes()
        path = folder / Path(name).name
        for number in range(size):
            path.write_bytes(mutated(data, draw, reach))
            yield f"{name} {number}", partial(opened, path)

    return attempts


def _corpus(path: Path) -> None:
    from giraffe_cli.config import PackConfig
    from giraffe_cli.corpus.base import BadRecords
    from giraffe_cli.corpus.sources import read_source

    for document in read_source(str(path), BadRecords("skip"), PackConfig(on_bad="skip")):
        document.text.encode()
    list(read_source(str(path), BadRecords(), PackConfig()))


def _gguf(path: Path) -> None:
    from giraffe_cli.gguf_import import read_gguf_header

    read_gguf_header(path)


def _safetensors(path: Path) -> None:
    from giraffe_cli.tensor_stream import read_layout
    from giraffe_cli.weights import read_header

    read_header(path)
    read_layout(path)


def _manifests(material: Path, folder: Path, draw: random.Random, size: int) -> Attempts:
    import shutil

    from giraffe_cli.corpus.store import open_packed

    packed = folder / "packed"
    shutil.copytree(material / "packed", packed)
    data = (packed / "manifest.json").read_bytes()
    for number in range(size):
        (packed / "manifest.json").write_bytes(mutated(data, draw))

        def attempt() -> None:
            rows = open_packed(packed)
            for n in range(min(3, len(rows))):
                rows.row(n)

        yield f"manifest {number}", attempt


KINDS: dict[str, Callable[..., Attempts]] = {
    "config": _configs,
    "length": _lengths,
    "jsonl": _bytes_of("docs.jsonl", _corpus),
    "parquet": _bytes_of("docs.parquet", _corpus),
    "arrow": _bytes_of("docs.arrow", _corpus),
    "gguf": _bytes_of("base.gguf", _gguf, 40_000),
    "safetensors": _bytes_of("base/model.safetensors", _safetensors, 2_500),
    "manifest": _manifests,
}
