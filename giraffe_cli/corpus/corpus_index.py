"""What the second phase knows of the whole corpus: an array entry for every tokenised document.

    index = read_index(units, work, inputs)   # lengths, hashes, ids, where the tokens lie

Memory: about 60 bytes a document and its id; with selection and windows about 250 at the peak.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.pack import Int64
from giraffe_cli.corpus.rows import Strings
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.corpus.unit_files import block_stem, read_done, unit_folder
from giraffe_cli.errors import InvalidInput


@dataclass
class CorpusIndex:
    """The tokenised documents of all units, in order."""

    lengths: Int64
    """[documents] tokens."""
    hashes: npt.NDArray[np.uint8]
    """[documents, 16] of the texts."""
    contaminated: npt.NDArray[np.bool_]
    ids: Strings
    """[documents]"""
    source: npt.NDArray[np.int32]
    """[documents] number of the source."""
    file: npt.NDArray[np.int32]
    """[documents] number of the token file."""
    offset: Int64
    """[documents] first token in it."""
    files: list[Path]
    dtypes: list[str]
    """[files] of the ids."""
    names: list[str]
    """Sources, in the user's order."""
    units: list[dict[str, Any]]
    """`done.json` of each unit."""

    def stored_ids(self, shared: set[str]) -> Strings:
        """[documents] the id, under its source where it is one of `shared`."""
        if not shared:
            return self.ids
        plain = (self.ids[number] for number in range(len(self.ids)))
        return Strings.of(
            [
                f"{self.names[int(self.source[n])]}:{identity}" if identity in shared else identity
                for n, identity in enumerate(plain)
            ]
        )

    def shared_ids(self, held: Sequence[tuple[str, str]]) -> set[str]:
        """Ids that documents of two sources have.

        Args:
            held: (id, source) of the documents that were held out.
        """
        if len(self.names) < 2:
            return set()
        first: dict[str, str] = {}
        own = ((self.ids[n], self.names[int(s)]) for n, s in enumerate(self.source))
        return {
            identity
            for identity, source in itertools.chain(own, held)
            if first.setdefault(identity, source) != source
        }


def read_index(
    units: Sequence[Unit], work: Path, inputs: Sequence[Mapping[str, Any]]
) -> CorpusIndex:
    """The index of every unit under `work`, each held against its `inputs` and its digests.

    Raises:
        InvalidInput: units that are missing, unfinished, altered or of other inputs, by name.
    """
    done = [read_done(unit_folder(work, n), expected) for n, expected in enumerate(inputs)]
    if lacking := [unit for unit, found in zip(units, done, strict=True) if found is None]:
        listed = ", ".join(f"{unit.name} of {unit.source}" for unit in lacking[:5])
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise InvalidInput(
            f"{len(lacking)} of {len(units)} units are missing, altered or of other inputs: "
            f"{listed}{more}",
            "run the --shard that holds them again, with the same options",
        )
    names = list(dict.fromkeys(unit.source for unit in units))
    parts: dict[str, list[Any]] = {key: [] for key in _PARTS}
    files: list[Path] = []
    dtypes: list[str] = []
    found = [entry for entry in done if entry is not None]
    for number, (unit, entry) in enumerate(zip(units, found, strict=True)):
        for block in range(len(entry["blocks"])):
            stem = unit_folder(work, number) / block_stem(block)
            with np.load(stem.with_suffix(".npz")) as index:
                _append(parts, index, names.index(unit.source), len(files))
            files.append(stem.with_suffix(".tokens"))
            dtypes.append(entry["dtype"])
    joined = {key: np.concatenate([*parts[key], empty]) for key, empty in _PARTS.items()}
    return CorpusIndex(
        lengths=joined["lengths"],
        hashes=joined["hashes"],
        contaminated=joined["contaminated"],
        ids=Strings.end_to_end(joined["id_bytes"], joined["id_lengths"]),
        source=joined["source"],
        file=joined["file"],
        offset=joined["offset"],
        files=files,
        dtypes=dtypes,
        names=names,
        units=found,
    )


_PARTS: dict[str, Any] = {
    "lengths": np.empty(0, np.int64),
    "hashes": np.empty((0, 16), np.uint8),
    "contaminated": np.empty(0, bool),
    "id_bytes": np.empty(0, np.uint8),
    "id_lengths": np.empty(0, np.int64),
    "source": np.empty(0, np.int32),
    "file": np.empty(0, np.int32),
    "offset": np.empty(0, np.int64),
}


def _append(parts: dict[str, list[Any]], index: Any, source: int, file: int) -> None:
    lengths = index["lengths"]
    for key in ("lengths", "hashes", "contaminated", "id_bytes", "id_lengths"):
        parts[key].append(index[key])
    parts["source"].append(np.full(len(lengths), source, dtype=np.int32))
    parts["file"].append(np.full(len(lengths), file, dtype=np.int32))
    parts["offset"].append(np.cumsum(lengths) - lengths)
