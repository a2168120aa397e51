"""Inputs by the thousand: configs that hypothesis draws from the config's own JSON schema, lengths,
sizes and gates, and corpora and headers with random changes.

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

import hypothesis
from hypothesis import strategies as st

from scripts.campaign.cases import Case, Verdict
from scripts.campaign.commands import call
from scripts.campaign.schemas import Values, anything, changed

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

        def take(name: str, attempt: Callable[[], object]) -> None:
            (folder / "last").write_text(name[:2000], errors="backslashreplace")
            counts["inputs_opened" if _is_opened(attempt) else "inputs_refused"] += 1

        if kind in DRAWN:
            _drawn(kind, folder, size, seed, take)
        else:
            for name, attempt in KINDS[kind](material, folder, random.Random(seed), size):
                take(name, attempt)
        (folder / "counts").write_text(json.dumps(counts))

    ended = call(work, folder)
    last = (folder / "last").read_text() if (folder / "last").exists() else ""
    if ended.code or ended.hung or not (folder / "counts").exists():
        told = "hangs" if ended.hung else ended.stderr.strip()[-300:]
        return Verdict("wrong", f"input {last[:300]}: code {ended.code}: {told}")
    counts = json.loads((folder / "counts").read_text())
    return Verdict("same", "", {"inputs": sum(counts.values()), **counts})


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
Take = Callable[[str, Callable[[], object]], None]


# ── configs and lengths ──────────────────────────────────────────────────────────────────────


def _drawn(kind: str, folder: Path, size: int, seed: str, take: Take) -> None:
    """`size` values of hypothesis; the last that is taken is the least of those that go wrong."""
    values, attempt = DRAWN[kind]()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=size,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(values)
    def take_one(value: Any) -> None:
        take(repr(value), partial(attempt, value, folder))

    take_one()


def _configs() -> tuple[Values, Callable[[Any, Path], None]]:
    """Values of the config's schema, some with parts replaced by anything."""
    from giraffe_cli.config.extend import ExtendConfig

    schema = ExtendConfig.model_json_schema()
    return changed({**schema, "required": ["target_length"]}), through_files


def through_files(value: Any, folder: Path) -> None:
    """A config through YAML and, where it is taken, through the sealed file of a run and back."""
    import yaml

    from giraffe_cli.config.building import build
    from giraffe_cli.config.files import read_sealed_yaml, read_yaml, write_sealed_yaml

    path, sealed = folder / "a.yaml", folder / "run.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    config = build(read_yaml(path))
    config.stage_configs()
    write_sealed_yaml(sealed, config.model_dump(mode="json"))
    assert build(read_sealed_yaml(sealed)) == config


def _lengths() -> tuple[Values, Callable[[Any, Path], None]]:
    """Lengths, bytes and gates as people mistype them; what is taken is written back the same."""
    from giraffe_cli.gates import parse_gate
    from giraffe_cli.units import format_length, parse_bytes, parse_length

    def attempt(case: tuple[str, Any], folder: Path) -> None:
        what, value = case
        if what == "gate":
            assert parse_gate(parse_gate(str(value)).text) == parse_gate(str(value))
        elif what == "bytes":
            assert parse_bytes(value) > 0
        else:
            found = parse_length(value)
            assert found > 0
            assert parse_length(format_length(found)) == found

    letters = st.text("0123456789kmgKMGTBib.-+e_ ,@<>=nlpasky\u0661\u00b2\x1b", max_size=12)
    forms = st.from_regex(
        r"[0-9]{1,19}(\.[0-9]{1,3})? ?[kmgtKM]?[bB]?"
        r"|(base:)?(nll|passkey\.ranked)@[0-9]{1,3}k?(-nll@[0-9]k)?(<|>)=?-?[0-9]{1,3}(\.[0-9])?",
        fullmatch=True,
    )
    kinds = st.sampled_from(["length", "bytes", "gate"])
    return st.tuples(kinds, letters | forms | anything()), attempt


DRAWN: dict[str, Callable[[], tuple[Values, Callable[[Any, Path], None]]]] = {
    "config": _configs,
    "length": _lengths,
}


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
    from giraffe_cli.config.pack import PackConfig
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
    "jsonl": _bytes_of("docs.jsonl", _corpus),
    "parquet": _bytes_of("docs.parquet", _corpus),
    "arrow": _bytes_of("docs.arrow", _corpus),
    "gguf": _bytes_of("base.gguf", _gguf, 40_000),
    "safetensors": _bytes_of("base/model.safetensors", _safetensors, 2_500),
    "manifest": _manifests,
}
