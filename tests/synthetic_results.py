"""The content of a `results.json` whose every number can be checked by eye."""

from __future__ import annotations

from typing import Any

LENGTHS = [1024, 2048, 4096, 8192, 16384]
BASE_NLL = [3.00, 3.21, 3.78, 4.31, 4.60]
EXTENDED_NLL = [3.00, 2.985, 2.97, 2.96, 2.95]
SHUFFLED_NLL = [2.99, 2.99, 3.00, 3.01]
BASE_FOUND = [20, 6, 0, 0, 0]
EXTENDED_FOUND = [20, 20, 19, 19, 18]


def score(mean: float, half: float, n: int = 32) -> dict[str, Any]:
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "n": n}


def between(low: float, high: float, n: int = 32) -> dict[str, Any]:
    return {"mean": (low + high) / 2, "ci_low": low, "ci_high": high, "n": n}


def share(found: int, n: int = 20) -> dict[str, Any]:
    from giraffe_cli.evals.statistics import wilson

    return dict(wilson(found, n))


def by_length(values: list[Any], lengths: list[int] | None = None) -> dict[str, Any]:
    return {str(n): value for n, value in zip(lengths or LENGTHS, values, strict=True)}


def depths(found: list[int]) -> dict[str, Any]:
    """20 trials at 10 depths, two each; what is missed is missed in the middle first."""
    order = [4, 5, 3, 6, 2, 7, 1, 8, 0, 9] * 2
    cells = {}
    for length, hits in zip(LENGTHS, found, strict=True):
        missed = order[: 20 - hits]
        cells[str(length)] = {
            f"{depth / 9:.2f}": share(2 - missed.count(depth), 2) for depth in range(10)
        }
    return cells


def _model(nll: list[float], found: list[int], sha: str, window: int) -> dict[str, Any]:
    shares = by_length([share(hits) for hits in found])
    curve = {
        str(position): score(3.5 - position / 16384, 0.1) for position in range(0, 16384, 4096)
    }
    return {
        "sha256": sha * 64,
        "dtype": "float32",
        "rope": {
            "rope_parameters": {"rope_type": "yarn", "factor": 16.0, "rope_theta": 10000.0},
            "max_position_embeddings": window,
        },
        "tasks": {
            "nll": by_length([score(value, 0.06) for value in nll]),
            "positions": {"16384": score(3.1, 0.1)},
            "passkey": shares,
            "passkey.ranked": dict(shares),
        },
        "effective_length": {
            "nll": 16384,
            "positions": None,
            "passkey": 2048,
            "passkey.ranked": 1024,
        },
        "controls": {},
        "by_depth": {"passkey": depths(found), "passkey.ranked": depths(found)},
        "curves": {"positions": {"16384": curve}},
    }


def _measure(summary: str, **changes: Any) -> dict[str, Any]:
    plain = {"higher_is_better": False, "kind": "mean", "chance": 0.0, "unit": "nats"}
    found = {"summary": summary, **plain, **changes}
    rule = "upper bound at most 0"
    if found["higher_is_better"]:
        rule = "lower bound at least 0.900"
    return {**found, "effective_length": {"threshold": None, "rule": rule}}


def make_results() -> dict[str, Any]:
    """Native 1k, 1k to 16k: a base that collapses, a checkpoint that gains 0.05 nats at 16k."""
    share_kind = {"higher_is_better": True, "kind": "proportion", "unit": ""}
    nested = {
        "base": by_length([score(nll - 3.0, 0.02 if nll > 3 else 0.0) for nll in BASE_NLL]),
        "checkpoint": by_length([score(nll - 3.0, 0.01 if nll < 3 else 0) for nll in EXTENDED_NLL]),
    }
    minus_base = [score(e - b + 0.01, 0.008) for e, b in zip(EXTENDED_NLL, BASE_NLL, strict=True)]
    real = [
        score(real - shuffled, 0.02)
        for real, shuffled in zip(EXTENDED_NLL[1:], SHUFFLED_NLL, strict=True)
    ]
    found = zip(EXTENDED_FOUND, BASE_FOUND, strict=True)
    points = [{**score((e - b) / 20, 0.1, 20), "p_value": 0.031} for e, b in found]
    base = _model(BASE_NLL, BASE_FOUND, "b", 1024)
    checkpoint = _model(EXTENDED_NLL, EXTENDED_FOUND, "c", 16384)
    shuffled = by_length([score(nll, 0.06) for nll in SHUFFLED_NLL], LENGTHS[1:])
    checkpoint["tasks"]["nll.shuffled"] = shuffled
    return {
        "schema_version": 2,
        "suite": "quick",
        "seed": 0,
        "native_length": 1024,
        "lengths": LENGTHS,
        "models": {"base": base, "checkpoint": checkpoint},
        "measures": {
            "nll": _measure("loss of the same tokens"),
            "nll.shuffled": _measure("loss with far text shuffled"),
            "positions": _measure("loss of all tokens"),
            "passkey": _measure("the answer generated greedily", **share_kind),
            "passkey.ranked": _measure(
                "the true answer first of ten", **{**share_kind, "chance": 0.1}
            ),
        },
        "paired": {
            "nll": {
                "checkpoint_minus_base": by_length(minus_base),
                "length_minus_native": nested,
                "real_minus_shuffled": {"checkpoint": by_length(real, LENGTHS[1:])},
            },
            "nll.shuffled": {"checkpoint_minus_base": {}, "length_minus_native": {}},
            "positions": {"checkpoint_minus_base": {"16384": score(-1.0, 0.1)}},
            "passkey": {"checkpoint_minus_base": by_length(points), "length_minus_native": {}},
            "passkey.ranked": {"checkpoint_minus_base": by_length(points)},
        },
        "short_context": {"delta_nll": minus_base[0]},
        "gates": [],
        "settings": {
            "chat": False,
            "tasks": {"nll": {"anchors": 4}, "passkey": {"trials": 2}},
            "documents": {"doc-1": 20000, "doc-2": 40000},
            "chunk": 512,
        },
        "rules": {
            "interval_proportion": "Wilson over samples",
            "effective_length_mean": "largest length without loss",
            "effective_length_proportion": "largest length that keeps 0.9",
        },
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "warnings": ["passkey: 2 trials a depth, single cells say little"],
        "seconds": 71.0,
    }


def with_control(results: dict[str, Any]) -> dict[str, Any]:
    """The same with a control that was scored at the native length: 0.02 nats of domain."""
    results["models"]["control"] = {
        **_model(BASE_NLL, BASE_FOUND, "d", 1024),
        "tasks": {"nll": {"1024": score(2.98, 0.06)}},
        "effective_length": {"nll": 1024},
        "by_depth": {},
        "curves": {},
    }
    results["paired"]["nll"] |= {
        "control_minus_base": {"1024": score(-0.02, 0.01)},
        "checkpoint_minus_control": {"1024": score(0.02, 0.01)},
        "checkpoint_minus_native_control": by_length([score(e - 2.98, 0.01) for e in EXTENDED_NLL]),
        "checkpoint_minus_native_base": by_length([score(e - 3.0, 0.01) for e in EXTENDED_NLL]),
    }
    return results


def without_base(results: dict[str, Any]) -> dict[str, Any]:
    """The same of a checkpoint on its own."""
    del results["models"]["base"]
    for paired in results["paired"].values():
        paired["checkpoint_minus_base"] = {}
        paired.get("length_minus_native", {}).pop("base", None)
    return results | {"short_context": {}}


def only(results: dict[str, Any], *tasks: str) -> dict[str, Any]:
    """The same with the measures of `tasks` alone."""

    def kept(table: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in table.items() if name.partition(".")[0] in tasks}

    for model in results["models"].values():
        for part in ("tasks", "effective_length", "by_depth", "curves"):
            model[part] = kept(model[part])
    measures, paired = kept(results["measures"]), kept(results["paired"])
    short = results["short_context"] if "nll" in tasks else {}
    return results | {"measures": measures, "paired": paired, "short_context": short}
