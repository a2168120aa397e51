"""What a finished `giraffe extend` left in its folder, for the commands that go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_source import EMBEDDED
from giraffe_cli.config.building import build
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_sealed_yaml, read_yaml
from giraffe_cli.corpus.store import is_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import MANIFEST, read_json, read_kept
from giraffe_cli.units import format_length

_SAME_TRAINING = ("steps", "trained_tokens", "final_loss")


def read_run(run: Path) -> tuple[ExtendConfig, RopeTable]:
    """The config and the table of a run.

    Raises:
        InvalidInput: `run` is no run directory.
    """
    for name in ("run.yaml", "rope.json"):
        if not (run / name).is_file():
            raise InvalidInput(
                f"{run} is no run directory: it has no {name}",
                "name a directory that `giraffe extend --out DIR` wrote",
            )
    config = build(read_sealed_yaml(run / "run.yaml"), str(run / "run.yaml"))
    return config, RopeTable.from_json(read_json(run / "rope.json"))


def base_of(run: Path, config: ExtendConfig) -> str:
    """What the base is opened by: its name in the config, or where it lay when the run began, if
    that was named relative to another folder than this."""
    kept = (read_kept(run / "plan.json") or {}).get("model", {}).get("path", "")
    named, place = Path(config.model).expanduser(), Path(kept)
    is_its_place = named.suffix == ".gguf" or place.name == named.name
    if config.model != EMBEDDED and not named.exists() and is_its_place and place.is_absolute():
        return kept if place.is_dir() else config.model
    return config.model


def stage_folders(run: Path, targets: Sequence[int]) -> list[Path]:
    """Where each of the targets is trained, first to last: the last one in the run's own folder."""
    earlier = enumerate(targets[:-1], start=1)
    return [
        *(run / "stages" / f"{number}-{format_length(length)}" for number, length in earlier),
        run,
    ]


def was_trained(model: Path) -> bool:
    """Whether a merge wrote a model directory out of a training of ours, by its manifest; of an
    adapter of somebody else it is written without a table."""
    manifest = read_kept(model / MANIFEST)
    inputs = manifest.get("inputs") if isinstance(manifest, dict) else None
    if not isinstance(inputs, dict) or inputs.get("stage") != "merge":
        return False
    return bool(inputs.get("adapter") and inputs.get("table"))


def adapter_of(run: Path, config: ExtendConfig) -> Path | None:
    """The finished adapter; None for a run of zero steps.

    Raises:
        InvalidInput: the training has not ended.
    """
    if not config.trains:
        return None
    adapter = run / "adapter"
    if not (adapter / MANIFEST).is_file():
        raise InvalidInput(
            f"{run} has no finished adapter",
            "run the same giraffe extend command again: it resumes the training; with --finish it "
            "ends it at the newest checkpoint",
        )
    return adapter


def report_of(run: Path) -> dict[str, Any] | None:
    """`report.json`; None where it does not tell of the training that the folder holds, as where
    that went on after it."""
    report, trained = read_kept(run / "report.json"), read_kept(run / "training.json")
    if not isinstance(report, dict):
        return None
    last = (report.get("stages") or [None])[-1]
    told, known = ([one and one.get(key) for key in _SAME_TRAINING] for one in (last, trained))
    return report if told == known else None


def windows_of(folder: Path) -> list[Path]:
    """The packed folders that what was trained in `folder` read, its last stage's first: its own,
    those that it was given, and those of the run whose stage or control it is."""
    runs = [run for run in _runs_around(folder) if (run / "run.yaml").is_file()]
    around = list(dict.fromkeys((folder, *runs)))
    found = [place / "packed" for place in around]
    found += [packed for place in around for packed in sorted(place.glob("stages/*/packed"))]
    for run in runs:
        values = read_yaml(run / "run.yaml")
        for part in (values, *reversed(values.get("stages", []))):
            found += [Path(source) for source in part.get("data") or []]
    return [packed for packed in dict.fromkeys(found) if is_packed(packed)]


def _runs_around(folder: Path) -> list[Path]:
    """`folder`, and where a run would be of which it is `control`, `stages/1-16k` or the latter in
    the former."""
    within = folder.absolute()
    found = [folder]
    if within.parent.name == "stages":
        within = within.parent.parent
        found.append(within)
    if within.name == "control":
        found.append(within.parent)
    return found
