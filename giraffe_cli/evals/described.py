"""What `results.json` says of an evaluation besides scores: models and settings.

All that must be repeated to get the same numbers, by content: sizes and names may stay where texts
change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.evals.base import Material
from giraffe_cli.evals.reading import chunk_here
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.subject import Subject
from giraffe_cli.rundir import digest_bytes, digest_file, digest_value, read_json


def describe(subjects: list[Subject], scored: dict[str, Any]) -> dict[str, Any]:
    """`scored` with each model's identity put before its scores."""
    identities = {
        s.name: {"sha256": s.digest, "rope": dict(_rope_in_force(s.path)), "dtype": s.dtype}
        for s in subjects
    }
    models = {n: {**identities[n], **scored["models"].get(n, {})} for n in identities}
    return {**scored, "models": models}


def _rope_in_force(path: Path) -> Iterator[tuple[str, Any]]:
    """The RoPE keys of `config.json`, as they are in the file."""
    config = read_json(path / "config.json")
    for key in ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings"):
        if config.get(key) is not None:
            yield key, config[key]


def settings(
    batches: list[Batch], material: Material, config: EvalConfig, reference: Subject
) -> dict[str, Any]:
    """All that must be repeated to get the same numbers."""
    chosen = any(example.for_reference for batch in batches for example in batch.examples)
    return {
        **({"reference": describe_reference(reference, material)} if chosen else {}),
        "chat": config.chat,
        "tasks": {batch.name: dataclasses.asdict(batch.task) for batch in batches},
        "documents": {doc.id: len(doc.token_ids) for doc in material.documents},
        "other_text": {doc.id: len(doc.token_ids) for doc in material.other_text},
        "files": {name: digest_file(Path(path)) for name, path in material.files.items()},
        "digests": digests(material),
        "chunk": chunk_here(),
    }


def digests(material: Material) -> dict[str, str]:
    """sha256 over the token ids of the documents and of the other text, and over the texts of the
    haystack: ids and sizes may stay where texts change."""
    tokenised = {"documents": material.documents, "other_text": material.other_text}
    held: dict[str, list[str]] = {
        name: [digest_bytes(doc.token_ids.astype("<i4").tobytes()) for doc in documents]
        for name, documents in tokenised.items()
    }
    held["haystack"] = [digest_bytes(text.encode()) for text in material.haystack]
    return {name: digest_value(parts) for name, parts in held.items() if parts}


def describe_reference(reference: Subject, material: Material) -> dict[str, Any]:
    """Whose reading chose what `longppl` scores; other references choose other tokens."""
    return {
        "subject": reference.name,
        "sha256": reference.digest,
        "dtype": reference.dtype,
        "tokens": min(material.reference_length, max(material.lengths)),
    }
