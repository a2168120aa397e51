"""Runs and evaluations side by side, from the files they left.

A finished run tells what its `report.json` holds. One that has not finished tells its plan, the
steps it has taken and its latest loss, and is said to be unfinished. An evaluation's folder tells
its scores. What a folder does not know is absent, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from giraffe_cli.config.base import AUTO
from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_yaml
from giraffe_cli.errors import InvalidInput, raise_together
from giraffe_cli.report.loss_plot import Border
from giraffe_cli.report.numbers import Score
from giraffe_cli.report.protocol import differing, protocol
from giraffe_cli.report.scored import Scored, looks_like_shares, read_results
from giraffe_cli.report.write import all_metrics
from giraffe_cli.rundir import read_json, read_kept

OF_A_REPORT = ("model", "target_length", "steps", "stages")
"""What is read of every `report.json`."""


@dataclass(frozen=True)
class Entry:
    """One folder, as far as it knows."""

    name: str
    path: str
    kind: str
    """`run` or `evaluation`."""
    finished: bool
    model: str | None = None
    strategy: str | None = None
    native_length: int | None = None
    target_length: int | None = None
    targets: list[int] = field(default_factory=list)
    """Of the stages of training, rising."""
    steps: int | None = None
    """Taken so far."""
    planned_steps: int | None = None
    trained_tokens: int | None = None
    final_loss: float | None = None
    """Nats per target of the latest step."""
    held_out_nll: float | None = None
    scores: dict[str, dict[str, dict[int, Score]]] = field(default_factory=dict)
    """Measure → model (`base`, `control`, `checkpoint`) → length → score."""
    shares: list[str] = field(default_factory=list)
    """The measures whose scores lie in 0..1."""
    seconds: float | None = None
    """Of all stages; of the training so far where the run is unfinished."""
    peak_memory_bytes: int | None = None
    gates: list[dict[str, Any]] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    """How it was scored; what differs between two entries must be called out."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    borders: list[Border] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Without the training curve, which is `metrics.jsonl`'s."""
        value = asdict(self)
        for name in ("metrics", "borders", "shares"):
            del value[name]
        return value


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """What lies in each of `paths`.

    Raises:
        InvalidInput: some are neither run nor evaluation; all of them are named.
    """
    problems = [f"{path} {_lack(path)}" for path in paths if _lack(path)]
    hint = "name folders that `giraffe extend --out` or `giraffe eval --out` wrote"
    raise_together(problems, "report", hint)
    names = [path.resolve().name for path in paths]
    unique = [n if names.count(n) == 1 else str(p) for n, p in zip(names, paths, strict=True)]
    return [read_entry(path, name) for path, name in zip(paths, unique, strict=True)]


def read_entry(path: Path, name: str) -> Entry:
    """The run or evaluation in `path`, under `name`.

    Raises:
        InvalidInput: a file of it cannot be read.
    """
    if not (path / "run.yaml").exists():
        return _evaluation(path, name)
    return (_finished if (path / "report.json").exists() else _unfinished)(path, name)


def _lack(path: Path) -> str:
    """Why `path` cannot be told of; empty when it can."""
    if not path.is_dir():
        return "is no directory" if path.exists() else "does not exist"
    known = any((path / name).is_file() for name in ("run.yaml", "results.json"))
    return "" if known else "holds neither run.yaml nor results.json"


def read_report(run_dir: Path) -> dict[str, Any]:
    """`report.json` of a finished run.

    Raises:
        InvalidInput: it cannot be read, or is not what `giraffe extend` writes.
    """
    path = run_dir / "report.json"
    report = read_json(path)
    lacking = [key for key in OF_A_REPORT if not isinstance(report, dict) or key not in report]
    if lacking:
        raise InvalidInput(
            f"{path} is no report of a run: it has no {lacking[0]}",
            "remove it and run the command of this run again",
        )
    found: dict[str, Any] = report
    return found


def _finished(path: Path, name: str) -> Entry:
    report = read_report(path)
    metrics, borders = all_metrics(report, path)
    stages = report.get("stages") or [{}]
    copied = (
        *("model", "strategy", "native_length", "target_length", "steps", "trained_tokens"),
        *("final_loss", "peak_memory_bytes", "gates"),
    )
    of_report: dict[str, Any] = {key: report.get(key) for key in copied}
    return Entry(
        name=name,
        path=str(path),
        kind="run",
        finished=True,
        **of_report,
        planned_steps=report.get("steps"),
        targets=[s["target_length"] for s in report.get("stages", [])],
        held_out_nll=stages[-1].get("held_out_nll"),
        **_scores(Scored.of_run(report)),
        seconds=report.get("seconds", {}).get("total"),
        metrics=metrics,
        borders=borders,
    )


def _unfinished(path: Path, name: str) -> Entry:
    config = build(read_yaml(path / "run.yaml"), str(path / "run.yaml"))
    plan = read_json(path / "plan.json") if (path / "plan.json").exists() else {}
    stages = config.stage_configs()
    targets = [stage.target_length for stage in stages]
    told = {
        "target_length": config.target_length,
        "stages": [{"target_length": target} for target in targets],
    }
    metrics, borders = all_metrics(told, path)
    held_out = [m["held_out_nll"] for m in metrics if m.get("held_out_nll") is not None]
    losses = [m["loss"] for m in metrics if m.get("loss") is not None]
    starts = [border.step for border in borders[1:]]
    ends = [m for m in metrics if m["step"] in starts] + metrics[-1:]
    return Entry(
        name=name,
        path=str(path),
        kind="run",
        finished=False,
        model=config.model,
        strategy=_chosen(stages[-1].rope.strategy, path),
        native_length=plan.get("native_length"),
        target_length=config.target_length,
        targets=targets,
        steps=len(metrics),
        planned_steps=sum(stage.train.steps for stage in stages),
        trained_tokens=sum(int(m.get("tokens", 0)) for m in ends),
        final_loss=losses[-1] if losses else None,
        held_out_nll=held_out[-1] if held_out else None,
        seconds=sum(float(m.get("seconds", 0)) for m in ends),
        metrics=metrics,
        borders=borders,
    )


def _chosen(strategy: str, path: Path) -> str:
    """What the run in `path` has in the place of `auto`, once it has chosen."""
    choice = read_kept(path / "rope_choice.json") if strategy == AUTO else None
    return str(choice["chosen"]["strategy"]) if choice else strategy


def _evaluation(path: Path, name: str) -> Entry:
    results = read_results(path / "results.json")
    return Entry(
        name=name,
        path=str(path),
        kind="evaluation",
        finished=True,
        native_length=results["native_length"],
        seconds=results["seconds"],
        **_scores(Scored.of_evaluation(results)),
    )


def _scores(scored: Scored) -> dict[str, Any]:
    """What was scored, and how, as fields of an entry; lm-eval's tasks as `harness.TASK`."""
    own = {
        measure: {
            model: scores for model in scored.models if (scores := scored.scores(measure, model))
        }
        for measure in scored.measures
    }
    lm_eval = {f"harness.{task}": by_model for task, by_model in scored.harness.items()}
    shares = [measure for measure in scored.measures if scored.is_share(measure)]
    shares += [task for task, by_model in lm_eval.items() if _are_shares(by_model)]
    return {
        "scores": {**own, **lm_eval},
        "shares": shares,
        "protocol": protocol(scored.results),
    }


def _are_shares(by_model: Mapping[str, Mapping[int, Score]]) -> bool:
    return looks_like_shares(s for scores in by_model.values() for s in scores.values())


def caution(entries: Sequence[Entry]) -> str | None:
    """Why scores must not be compared, if they must not."""
    found = differing([entry.protocol for entry in entries])
    if not found:
        return None
    return (
        f"these were not scored alike, what differs: {', '.join(found)}; compare their scores "
        "within a column, not across"
    )


def refuse_run_folder(out: Path) -> None:
    """A comparison is never written over a run's own report.

    Raises:
        InvalidInput: `out` holds a run or an evaluation.
    """
    if out.is_dir() and not _lack(out):
        raise InvalidInput(f"{out} holds a run or an evaluation", "choose another --out")
