"""A search over tables in tens of evaluations: seeds, the critical pair, its tail, then all pairs.

    2 seeds (YaRN, NTK) · 10 places of the critical pair · generations of 8 until 64 are read

Fitness is the mean loss at the target on a few documents; what the search found is then held
against its best seed on *other* documents, and either beats it there or is said not to. Proposals
depend on the seed and on losses alone, so that the same command gives the same factors, and a
stopped one replays itself out of the cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.order import Entry
from giraffe_cli.evals.paired import PairedScore
from giraffe_cli.evals.software import versions
from giraffe_cli.evals.statistics import FEWEST_CLUSTERS
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import Head
from giraffe_cli.rundir import write_json
from giraffe_cli.tune.evidence import NLL, Evidence
from giraffe_cli.tune.genome import Genome
from giraffe_cli.tune.hunt import Hunt, Trial
from giraffe_cli.tune.reading import TableReader, table_as_it_is
from giraffe_cli.tune.searched import DOCUMENTS
from giraffe_cli.tune.standing import difference, mean_of
from giraffe_cli.units import counted

SCHEMA_VERSION = 1
SEARCH, FACTORS = "search.json", "factors.json"


def split(entries: Sequence[Entry], fitness: int) -> tuple[list[Entry], list[Entry]]:
    """`fitness` of the samples, evenly out of all, and the others.

    Raises:
        InvalidInput: none would be left to prove the result on.
    """
    if not 0 < fitness < len(entries):
        raise InvalidInput(
            f"{counted(len(entries), 'document')} of the target's length, {fitness} for search: "
            "none is left to prove its result on",
            "give more long documents, or fewer --documents",
        )
    chosen = {round(k * len(entries) / fitness) for k in range(fitness)}
    return (
        [entry for place, entry in enumerate(entries) if place in chosen],
        [entry for place, entry in enumerate(entries) if place not in chosen],
    )


def search(
    reader: TableReader,
    head: Head,
    evidence: Evidence,
    reporter: Reporter,
    *,
    evaluations: int = 64,
    documents: int = 4,
    seed: int = 0,
    out: Path,
) -> dict[str, Any]:
    """Search, prove, and write `search.json` and `factors.json` in `out`.

    Args:
        evaluations: tables that are read, seeds among them.
        documents: samples of the fitness; all others of `evidence` are for the proof.

    Returns:
        The content of `search.json`; `improved` says whether the interval, of several documents,
        lies below the seed.

    Raises:
        InvalidInput: no sample is left for the proof.
    """
    begun = time.monotonic()
    deciding, proving = split(evidence.deciding(), documents)
    hunt = Hunt(reader, head, evidence, deciding, seed)
    native = evidence.entries[NLL].get(evidence.native_length, [])
    tokens = evaluations * _tokens(deciding) + 2 * _tokens(proving) + 3 * _tokens(native)
    with reporter.bar("searching", evaluations, "tables") as bar:
        for trial in hunt.run(evaluations):
            bar.advance(1, loss=f"{trial.loss:.4f}", best=f"{hunt.best.loss:.4f}")
    reporter.info(
        f"best of {len(hunt.trials)}: {hunt.best.loss:.4f} nats ({hunt.best.genome.origin}), best "
        f"seed {hunt.best_seed.loss:.4f} ({hunt.best_seed.genome.origin}); now on "
        f"{counted(len(proving), 'other document')}"
    )
    proof = prove(hunt, proving, reporter, seed)
    cost = native_cost(hunt, reporter, seed)
    minus = proof["minus_seed"]
    improved = minus["clusters"] > 1 and minus["ci_high"] < 0
    result = {
        "schema_version": SCHEMA_VERSION,
        "model": reader.checkpoint.source,
        "sha256": reader.checkpoint.digest,
        "dtype": reader.dtype,
        "seed": seed,
        "fitness": evidence.fitness,
        "native_length": evidence.native_length,
        "target_length": evidence.target_length,
        "trials": [_row(trial) for trial in hunt.trials],
        "best": _row(hunt.best),
        "best_seed": _row(hunt.best_seed),
        DOCUMENTS: [example.cluster for _, example in deciding],
        "held_out_documents": [example.cluster for _, example in proving],
        "held_out": proof,
        "short_context": cost,
        "improved": improved,
        "seconds": round(time.monotonic() - begun, 1),
        "read_tokens": reader.read_tokens,
        "most_tokens": tokens,
        "warnings": _warnings(minus, evidence.fitness),
        "versions": versions(),
    }
    for warning in result["warnings"]:
        reporter.warn(warning)
    write_json(out / FACTORS, factor_file(hunt.best.genome, head, result))
    write_json(out / SEARCH, result)
    return result


def _tokens(entries: Sequence[Entry]) -> int:
    return sum(len(example.token_ids) for _, example in entries)


def _warnings(minus_seed: PairedScore, fitness: str) -> list[str]:
    """What a reader of the proof should know."""
    if minus_seed["clusters"] >= FEWEST_CLUSTERS:
        return []
    read = counted(minus_seed["clusters"], "document" if fitness == NLL else "prompt")
    return [
        f"the result was proven on {read}; an interval from fewer than {FEWEST_CLUSTERS} is wide, "
        "and tells little: give more --held-out"
    ]


def prove(hunt: Hunt, proving: Sequence[Entry], reporter: Reporter, seed: int) -> dict[str, Any]:
    """What was found and its best seed on samples that the search has not seen."""
    found = {"best": hunt.best.genome, "seed": hunt.best_seed.genome}
    task, values = hunt.evidence.tasks[hunt.evidence.fitness], {}
    tokens = len(found) * _tokens(proving)
    with reporter.bar("proving", tokens, "tokens") as bar:
        for name, genome in found.items():
            table = genome.table(hunt.head)
            hunt.reader.read(table, proving, bar)
            values[name] = hunt.reader.values(table, task, proving)
    clusters = hunt.evidence.clusters()
    minus = difference(values["best"], values["seed"], clusters, seed)
    return {
        "best": mean_of(values["best"]),
        "seed": mean_of(values["seed"]),
        "minus_seed": minus,
        "samples": len(values["best"]),
    }


def native_cost(hunt: Hunt, reporter: Reporter, seed: int) -> dict[str, PairedScore | None]:
    """What the best and its seed lose to the base as it is within the native window."""
    evidence = hunt.evidence
    entries = evidence.entries[NLL].get(evidence.native_length, [])
    tables = {
        "best": hunt.best.genome.table(hunt.head),
        "seed": hunt.best_seed.genome.table(hunt.head),
        "base": table_as_it_is(hunt.reader.checkpoint, hunt.head),
    }
    tokens, values = len(tables) * _tokens(entries), {}
    with reporter.bar("reading the native window", tokens, "tokens") as bar:
        for name, table in tables.items():
            hunt.reader.read(table, entries, bar)
            values[name] = hunt.reader.values(table, evidence.tasks[NLL], entries)
    clusters = evidence.clusters()
    return {
        name: difference(values[name], values["base"], clusters, seed) for name in ("best", "seed")
    }


def factor_file(genome: Genome, head: Head, result: dict[str, Any]) -> dict[str, Any]:
    """What `--rope longrope --factors` reads, with where it is from."""
    return {
        "long_factor": list(genome.factors),
        "attention_factor": genome.attention_factor,
        "original_max_position_embeddings": head.original_max_position_embeddings,
        "target_length": head.target_length,
        "head_dim": head.head_dim,
        "rope_theta": head.rope_theta,
        "searched": {
            key: result[key]
            for key in ("model", "sha256", "fitness", "seed", "improved", "held_out", DOCUMENTS)
        },
    }


def _row(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "loss": trial.loss, "stopped": trial.stopped} | asdict(
        trial.genome
    )
