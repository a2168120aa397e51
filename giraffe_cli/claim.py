"""A run folder belongs to one config and to one base; what differs is named.

with claimed(config, run_dir): ...       # run.yaml is written, or is of this very config
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.building import build, differing_keys
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_sealed_yaml, write_sealed_yaml
from giraffe_cli.config.train import TrainConfig, knobs_without_effect
from giraffe_cli.corpus.source_names import PREFIX, parse_source
from giraffe_cli.corpus.store import check_replaceable
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.own_folder import refuse_a_models
from giraffe_cli.rundir import MANIFEST, make_folder, read_kept
from giraffe_cli.train.beginning import LENGTH_KNOBS, shared_steps
from giraffe_cli.train.checkpoints import saved_steps
from giraffe_cli.tune.choice import CHOICE

SPARED = {"eval.data", "eval.documents"}
"""Which documents the comparison of tables left to the evaluation."""
LENGTHS = {f"train.{knob}" for knob in LENGTH_KNOBS}
"""What may change where a training began as another would have."""
PACKED_BY = {"train.window"}
"""What of the training decides the packed windows."""
WRITTEN = (
    *("adapter", "checkpoints", "control", "eval", "model", "stages", "tune", "workers"),
    *("levers.json", "metrics.jsonl", "plan.json", "report.html", "report.json", "rope.json"),
    *(CHOICE, "timings.json", "training.json", "verify.json", "weights.safetensors"),
)
"""What a run writes into its folder by these names, beside `packed/`."""


@contextlib.contextmanager
def claimed(config: ExtendConfig, run_dir: Path) -> Iterator[None]:
    """`run_dir` as the folder of this config; when input is refused before any stage has finished,
    what was made here is removed again, so that mended input meets no leftover. What else lies in
    the folder stays.

    Raises:
        InvalidInput: it holds a run of another config; the differing keys are named.
    """
    there = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else None
    is_new = "run.yaml" not in (there or ())
    claim(config, run_dir)
    try:
        yield
    except (InvalidInput, UsageError):
        if is_new and not any(run_dir.rglob(MANIFEST)):
            _remove_what_is_new(run_dir, there)
        raise


def _remove_what_is_new(folder: Path, there: set[str] | None) -> None:
    """All of `folder` but what was `there` before; the folder too if it was not (None)."""
    if there is None:
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        if path.name in there:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def claim(config: ExtendConfig, run_dir: Path) -> None:
    """Make `run_dir` the folder of this config, or recognise it as such; knobs that change no
    weight may differ, those of the training and of the evaluation until something is trained
    (after a comparison of tables not so that it reads what they were compared on), and the
    folder's config then follows. Raises as `check_claim` does.
    """
    if check_claim(config, run_dir):
        return
    make_folder(run_dir)
    write_sealed_yaml(run_dir / "run.yaml", config.model_dump(mode="json"))


def check_claim(config: ExtendConfig, run_dir: Path) -> bool:
    """Whether `run_dir` is the folder of this very config; nothing is written.

    Raises:
        InvalidInput: it holds a run of another config, whose differing keys are named, or no run
            and something that one would write over; or as `check_folder`.
    """
    path, values = run_dir / "run.yaml", config.model_dump(mode="json")
    if path.exists():
        free = {f"train.{knob}" for knob in knobs_without_effect(config.train)}
        free |= {"eval.processes", "eval.batch_tokens", "allow_pickle"}
        free |= {"rope.minutes"}  # a budget; a comparison that has ended is kept, and said so
        before = build(read_sealed_yaml(path), str(path))
        different = differing_keys(before.model_dump(mode="json"), values)
        if not is_past_packing(run_dir):
            free |= {key for key in different if key.startswith(("eval.", "train."))} - PACKED_BY
            if (run_dir / CHOICE).exists() and not config.eval.data:
                free -= SPARED
        other = set(different) - free
        saved = saved_steps(run_dir / "checkpoints")
        is_one_training = before.trains and config.trains and not config.stages
        if other and other <= LENGTHS and saved and is_one_training:
            _check_begun_alike(run_dir, saved, before.train, config.train)
        elif other:
            raise _of_another(run_dir, other)
        if not different:
            return True
    else:
        _refuse_what_is_not_a_runs(run_dir)
        _refuse_a_corpus(config.data, run_dir)
    check_folder(run_dir)
    return False


def _check_begun_alike(
    run_dir: Path, saved: Sequence[int], before: TrainConfig, now: TrainConfig
) -> None:
    """A training of another number of steps, or another end, has begun as the one in `run_dir`,
    which was saved after so many of them.

    Raises:
        InvalidInput: the steps that were taken would have been others, or more were taken than are
            asked for.
    """
    if shared_steps(saved, before, now):
        return
    if saved[0] > now.steps:
        raise InvalidInput(
            f"{run_dir} has taken {saved[0]} of {before.steps} steps; {now.steps} are asked for",
            f"--steps {saved[0]} or more, --finish to end it there, or another --out",
        )
    raise InvalidInput(
        f"{run_dir} was trained to {before.steps} steps with train.schedule: {before.schedule}; "
        f"no checkpoint of it is a beginning of {now.steps} steps with {now.schedule}: its steps "
        "would have had other learning rates, or other held-out losses to go by",
        "a training by `constant`, or by `wsd` before its decay, can be lengthened; pass the same "
        "options to resume this one, or another --out",
    )


def _of_another(run_dir: Path, different: set[str]) -> InvalidInput:
    return InvalidInput(
        f"{run_dir} holds a run of another config; different: {', '.join(sorted(different))}",
        "pass the same options to resume it, or another --out to start a new run",
    )


def _refuse_what_is_not_a_runs(run_dir: Path) -> None:
    """A folder without `run.yaml` has nothing that a run would write over, such as an adapter, and
    is not a model's, for which a run's `rope.json` would speak."""
    refuse_a_models(run_dir)
    check_replaceable(run_dir / "packed")
    named = [run_dir / name for name in WRITTEN]
    found = [p.name for p in named if p.is_file() or p.is_dir() and any(p.iterdir())]
    if found:
        raise InvalidInput(
            f"{run_dir} holds no run, and has {', '.join(found)}, which a run would write over",
            "choose another --out",
        )


def _refuse_a_corpus(sources: Sequence[str], run_dir: Path) -> None:
    """What a run writes is read as text where it lies among texts; in a folder of its own below
    them it is not."""
    for named in sources:
        path = parse_source(named).path
        behind = PREFIX.fullmatch(path)  # `repo:FOLDER`
        if run_dir.exists() and _is_same(Path(behind[2] if behind else path), run_dir):
            raise InvalidInput(
                f"{run_dir} is the folder of the corpus `{named}`", f"--out {run_dir / 'run'}"
            )


def _is_same(path: Path, folder: Path) -> bool:
    try:
        return path.samefile(folder)
    except (OSError, ValueError):  # `hf:OWNER/NAME`
        return False


def check_folder(run_dir: Path) -> None:
    """`run_dir` is a folder, or one can be made.

    Raises:
        InvalidInput: a file is in its way, or the folder that it would be made in is not writable.
    """
    there = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InvalidInput(f"{there} is not a directory", "choose another --out")
    if not os.access(there, os.W_OK):
        raise InvalidInput(f"{there} is not writable", "choose another --out")


def check_cache(folder: Path) -> None:
    """Scores can be kept in `folder`; raises InvalidInput as `check_folder`, with what names it."""
    try:
        check_folder(folder)
    except InvalidInput as error:
        raise InvalidInput(f"eval.cache: {error.message}", "name another folder") from None


def check_base(run_dir: Path, checkpoint: Checkpoint) -> None:
    """A run goes on from the weights it began with.

    Raises:
        InvalidInput: the base holds others now, and something was trained on the first.
    """
    kept = read_kept(run_dir / "plan.json") or {}
    began_with = kept.get("model", {}).get("digest")
    if has_trained(run_dir) and began_with not in (None, checkpoint.digest):
        raise InvalidInput(
            f"{checkpoint.source} is not what {run_dir} was trained on: a file in it changed",
            "put the base back as it was, or choose another --out",
        )


def check_masks(config: ExtendConfig, run_dir: Path, checkpoint: Checkpoint) -> None:
    """A run of a base with dropout in its attention goes on with the knobs by which its masks are
    drawn, which are free for any other base.

    Raises:
        InvalidInput: one differs, and something was trained with the first.
    """
    dropout, path = checkpoint.attention_dropout, run_dir / "run.yaml"
    if not dropout or not path.exists() or not has_trained(run_dir):
        return
    train, kept = config.train, build(read_sealed_yaml(path), str(path)).train
    drawn_by = knobs_without_effect(train) - knobs_without_effect(train, dropout)
    different = {name for name in drawn_by if getattr(train, name) != getattr(kept, name)}
    if different:
        raise _of_another(run_dir, {f"train.{name}" for name in different})


def dtype_as_begun(run_dir: Path) -> str | None:
    """What a run that has trained in `run_dir` computes in, on whatever machine it began."""
    kept = read_kept(run_dir / "plan.json") or {}
    return kept.get("dtype") if has_trained(run_dir) else None


def has_trained(run_dir: Path) -> bool:
    """Whether weights are there that began to change."""
    checkpoints = run_dir.glob("**/checkpoints/step-*/manifest.json")
    return any(checkpoints) or any(run_dir.glob("**/adapter"))


def is_past_packing(run_dir: Path) -> bool:
    """Whether anything is there that an evaluation's texts could have had a part in."""
    return has_trained(run_dir) or any((run_dir / name).exists() for name in ("model", "eval"))
