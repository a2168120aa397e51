"""What was read, as numbers: losses with intervals, differences to the best, a recommendation.

The setting with the lowest mean loss at the target is recommended. Those whose paired difference
from it has an interval that holds 0, on the documents that both were read on, are named with it:
they may be as good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.order import Entry
from giraffe_cli.evals.paired import PairedScore, paired_difference
from giraffe_cli.evals.statistics import FEWEST_CLUSTERS, Score, clustered_bootstrap
from giraffe_cli.gates import MAX_LOSS_RISE
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.tune.evidence import NLL, Evidence
from giraffe_cli.tune.reading import TableReader
from giraffe_cli.tune.settings import Setting
from giraffe_cli.units import counted, format_length

Values = Mapping[str, Value]

NAMED = 5
"""Of the settings that are not told apart from the best, in a sentence; all are in the table."""


@dataclass(frozen=True)
class Standing:
    """A setting and what it has shown."""

    setting: Setting
    values: Mapping[str, Mapping[int, Values]]
    """Task → length → pair → loss in nats; only what was read."""

    def deciding(self, evidence: Evidence) -> Values:
        """The fitness at the target."""
        return self.values.get(evidence.fitness, {}).get(evidence.target_length, {})


def standing_of(setting: Setting, reader: TableReader, evidence: Evidence) -> Standing:
    """From the cache."""
    return Standing(setting, losses(setting.table, reader, evidence, evidence.all()))


def losses(
    table: RopeTable, reader: TableReader, evidence: Evidence, entries: Iterable[Entry]
) -> dict[str, dict[int, Values]]:
    """Task → length → pair → loss of those of `entries` that have been read under `table`."""
    groups: dict[str, dict[int, list[Entry]]] = {}
    for entry in entries:
        groups.setdefault(entry[0], {}).setdefault(entry[1].length, []).append(entry)
    found: dict[str, dict[int, Values]] = {}
    for name, by_length in groups.items():
        for length, group in by_length.items():
            values = reader.values(table, evidence.tasks[name], group)
            if values:
                found.setdefault(name, {})[length] = values
    return found


def mean_of(values: Values) -> float:
    """Weighted, nats."""
    return sum(v.value * v.weight for v in values.values()) / sum(v.weight for v in values.values())


def ranked(standings: Sequence[Standing], evidence: Evidence) -> list[Standing]:
    """Those read on most samples first, among them by their mean loss."""
    return sorted(
        standings,
        key=lambda s: (-len(s.deciding(evidence)), mean_of(s.deciding(evidence))),
    )


def led_by_the_best(
    order: Sequence[Standing], evidence: Evidence, clusters: Mapping[str, str], seed: int
) -> list[Standing]:
    """`order`, but first the setting that is better than the first one where what both were read on
    shows it: an earlier comparison may have read a hopeless one on more samples."""
    best, others = order[0], list(order[1:])
    for _ in order:
        better = [one for one in others if _is_better(one, best, evidence, clusters, seed)]
        if not better:
            break
        others = [best, *(one for one in others if one is not better[0])]
        best = better[0]
    return [best, *ranked(others, evidence)]


def _is_better(
    one: Standing, other: Standing, evidence: Evidence, clusters: Mapping[str, str], seed: int
) -> bool:
    found = difference(one.deciding(evidence), other.deciding(evidence), clusters, seed)
    return found is not None and found["clusters"] > 1 and found["ci_high"] < 0


def describe(
    standings: Sequence[Standing], reference: Standing, evidence: Evidence, seed: int
) -> list[dict[str, Any]]:
    """A row for each setting, best first; scores as in `results.json`, lengths as texts.

    Args:
        reference: the unscaled base, of which what lies within the native window is used.
    """
    clusters = evidence.clusters()
    order = led_by_the_best(ranked(standings, evidence), evidence, clusters, seed)
    best = order[0]
    rows = []
    for standing in order:
        rows.append(
            {
                "label": standing.setting.label,
                "strategy": standing.setting.strategy,
                "knobs": standing.setting.knobs,
                "samples": len(standing.deciding(evidence)),
                **{
                    task: {
                        str(length): _score(values, clusters, seed)
                        for length, values in sorted(by_length.items())
                    }
                    for task, by_length in standing.values.items()
                },
                "minus_best": difference(
                    standing.deciding(evidence), best.deciding(evidence), clusters, seed
                ),
                "short_context": difference(
                    _native(standing, evidence), _native(reference, evidence), clusters, seed
                ),
            }
        )
    return rows


def _native(standing: Standing, evidence: Evidence) -> Values:
    return standing.values.get(NLL, {}).get(evidence.native_length, {})


def _score(values: Values, clusters: Mapping[str, str], seed: int) -> Score:
    return clustered_bootstrap(
        [value.value for value in values.values()],
        [clusters[pair] for pair in values],
        seed,
        weights=[value.weight for value in values.values()],
    )


def difference(
    minuend: Values, subtrahend: Values, clusters: Mapping[str, str], seed: int
) -> PairedScore | None:
    """On what both have been read; None where that is nothing."""
    if not {*minuend} & {*subtrahend}:
        return None
    return paired_difference(minuend, subtrahend, clusters, seed)


def recommend(rows: Sequence[Mapping[str, Any]], evidence: Evidence) -> dict[str, Any]:
    """The best row, those that are not told apart from it, and a sentence of reason."""
    best = rows[0]
    compared = [row for row in rows[1:] if row["minus_best"] and row["minus_best"]["clusters"] > 1]
    tied = [row["label"] for row in compared if _holds_zero(row["minus_best"])]
    target = format_length(evidence.target_length)
    loss = best[evidence.fitness][str(evidence.target_length)]
    what = "loss" if evidence.fitness == NLL else "loss of looked-up numbers"
    reason = (
        f"the lowest {what} at {target}: {loss['mean']:.3f} nats on {loss['n']} "
        + ("document" if evidence.fitness == NLL else "prompt")
        + ("s" if loss["n"] > 1 else "")
        + f", of {len(rows)} settings"
    )
    if tied:
        more = f" and {len(tied) - NAMED} more" if len(tied) > NAMED else ""
        reason += f"; not told apart from it: {', '.join(tied[:NAMED])}{more}"
    reason += _cheaper(best, compared)
    if single := len(rows) - 1 - len(compared):
        reason += f"; {single} read on one document, which tells no two apart"
    return {
        "label": best["label"],
        "strategy": best["strategy"],
        "knobs": best["knobs"],
        "tied": tied,
        "reason": reason,
    }


def _cheaper(best: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> str:
    """Of those that are not told apart from the best, the one that costs least within the native
    window, where that is less by more than short context may lose at all."""
    tied = [row for row in compared if _holds_zero(row["minus_best"]) and row["short_context"]]
    least = min(tied, key=lambda row: float(row["short_context"]["mean"]), default=None)
    if least is None or not best["short_context"]:
        return ""
    cost, of_best = least["short_context"]["mean"], best["short_context"]["mean"]
    if of_best - cost <= MAX_LOSS_RISE:
        return ""
    return (
        f"; of these {least['label']} costs least within the native window ({cost:+.3f} nats "
        f"against {of_best:+.3f})"
    )


def _holds_zero(score: Score) -> bool:
    return score["ci_low"] <= 0 <= score["ci_high"]


def warnings_of(rows: Sequence[Mapping[str, Any]], evidence: Evidence) -> list[str]:
    """What a reader of the recommendation should know."""
    best, found = rows[0], []
    if best["samples"] < FEWEST_CLUSTERS:
        found.append(
            f"the best was read on {counted(best['samples'], 'document')}; intervals from fewer "
            f"than {FEWEST_CLUSTERS} are wide, and tell few settings apart"
        )
    cost = best["short_context"]
    if cost and cost["mean"] > MAX_LOSS_RISE:
        found.append(
            f"{best['label']} costs {cost['mean']:+.3f} nats within the native window before "
            "training"
        )
    return found
